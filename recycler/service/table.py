"""All trials as columns, for pages that draw thousands of them; and one trial's place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recycler.objectives.costs import benchmarks
from recycler.search.baselines import best_member, maximized
from recycler.service.documents import (
    ROLES,
    find_score,
    finite,
    has_front,
    objectives_document,
    trial_entry,
)
from recycler.service.store import Snapshot
from recycler.types import Objective, Role, Score, Trial

DIGITS = 6  # of figures that are drawn
MAX_DOMINATORS = 3


def table_document(snapshot: Snapshot, cursor: str) -> dict[str, Any]:
    """Columns over all trials in their order.

    Number, kind, state, scores (null where there are none), mean weight by member.

    Figures are rounded to 6 digits; labels are given only where there are some, by number.
    """
    trials = snapshot.trials
    front = snapshot.front if has_front(snapshot) else None
    means = [_mean_weights(trial) for trial in trials]
    return {
        "schema_version": 1,
        "objectives": objectives_document(snapshot.objectives),
        "members": list(snapshot.pool.names),
        "base": snapshot.pool.base.name if snapshot.pool.base else None,
        "front": [trial.number for trial in front.front] if front else [],
        "knee": snapshot.knee,
        "greedy": front.greedy.number if front and front.greedy else None,
        "cursor": cursor,
        "trial": [trial.number for trial in trials],
        "kind": [trial.kind for trial in trials],
        "state": [trial.state for trial in trials],
        "labels": {trial.number: trial.label for trial in trials if trial.label},
        "scores": {
            role: {
                objective.name: _column(trials, role, objective.name)
                for objective in snapshot.objectives
            }
            for role in ROLES
        },
        "weights": {
            name: [_short(row[index]) for row in means]
            for index, name in enumerate(snapshot.pool.names)
        },
    }


def trial_document(snapshot: Snapshot, trial: Trial) -> dict[str, Any]:
    """One trial with all that is known, and `why` it is on the front or not."""
    return {
        "schema_version": 1,
        **trial_entry(trial),
        "why": why(snapshot, trial) if trial.state == "SCORED" and has_front(snapshot) else None,
    }


def why(snapshot: Snapshot, trial: Trial) -> dict[str, Any]:
    """Place of one trial: dominance, worth for the front, differences to the baselines.

    Differences to baselines take the two scores as independent. Both were asked the same items, so
    their errors are, if anything, too large; Compare gives the paired ones.
    """
    front = snapshot.front
    on_front = any(other.number == trial.number for other in front.front)
    whole = front.hypervolume(front.front, "search")
    rest = [other for other in front.front if other.number != trial.number]
    share = None
    if on_front and whole:
        share = finite(1.0 - (front.hypervolume(rest, "search") or 0.0) / whole)
    # a cost has no best member, and is the same on the holdout
    scored = benchmarks(snapshot.objectives)
    against = [
        _against(name, other, trial, snapshot)
        for name, other in _baselines(snapshot, scored)
        if other.number != trial.number
    ]
    gaps = {objective.name: _gap(trial, objective.name) for objective in scored}
    return {
        "on_front": on_front,
        "picked_by": "posterior" if front.smoothed else "search score",
        "probability": snapshot.probability.get(trial.number),
        "knee": snapshot.knee == trial.number,
        "dominators": [] if on_front else _dominators(snapshot, trial),
        "share_of_volume": share,
        "against": against,
        "holdout_gap": {name: gap for name, gap in gaps.items() if gap is not None},
    }


def _baselines(snapshot: Snapshot, scored: Sequence[Objective]) -> list[tuple[str, Trial]]:
    """(name, trial) of the baselines that there are."""
    front = snapshot.front
    found = []
    for objective in scored:
        best = best_member(front.trials, objective)
        found.append((f"best member on {objective.name}", best))
    for name, trial in (
        ("uniform soup", front.uniform),
        ("greedy soup", front.greedy),
        ("base", front.base),
    ):
        if trial is not None:
            found.append((name, trial))
    return found


def _dominators(snapshot: Snapshot, trial: Trial) -> list[dict[str, Any]]:
    """Front trials at least as good everywhere, the farthest above first.

    A trial equal to one before it has that one.

    By what the front was picked by: the posterior of all trials once the search has ended, the
    search scores before.
    """
    values, own = _picked_by(snapshot, snapshot.front.front), _picked_by(snapshot, [trial])[0]
    above = [index for index in range(len(values)) if (values[index] >= own).all()]
    spread = np.ptp(maximized(snapshot.front.trials, snapshot.objectives), axis=0)
    above.sort(
        key=lambda index: -float(((values[index] - own) / np.where(spread > 0, spread, 1.0)).sum())
    )
    return [
        {
            "trial": snapshot.front.front[index].number,
            "differences": _differences(snapshot, snapshot.front.front[index], trial),
        }
        for index in above[:MAX_DOMINATORS]
    ]


def _picked_by(snapshot: Snapshot, trials: Sequence[Trial]) -> np.ndarray:
    """Scores (n, T) to be made large that fronts are picked by."""
    return maximized([_best_known(snapshot, trial) for trial in trials], snapshot.objectives)


def _best_known(snapshot: Snapshot, trial: Trial) -> Trial:
    return replace(trial, search=snapshot.front.smoothed.get(trial.number, trial.search))


def _differences(snapshot: Snapshot, other: Trial, trial: Trial) -> dict[str, float | None]:
    first, second = _best_known(snapshot, other), _best_known(snapshot, trial)
    return {
        objective.name: finite(
            _score(first, objective.name).value - _score(second, objective.name).value
        )
        for objective in snapshot.objectives
    }


def _against(name: str, other: Trial, trial: Trial, snapshot: Snapshot) -> dict[str, Any]:
    """Difference of a trial to one baseline, by objective.

    Name, trial, and by objective difference, stderr, better (true, false, or null where it cannot
    be told).
    """
    found: dict[str, Any] = {}
    for objective in snapshot.objectives:
        a, b = _score(trial, objective.name), _score(other, objective.name)
        difference, stderr = a.value - b.value, math.hypot(a.stderr, b.stderr)
        good = difference if objective.direction == "maximize" else -difference
        found[objective.name] = {
            "difference": finite(difference),
            "stderr": finite(stderr),
            "better": (good > 0) if abs(difference) > 1.96 * stderr else None,
        }
    return {"name": name, "trial": other.number, "objectives": found}


def _gap(trial: Trial, name: str) -> float | None:
    holdout = find_score(trial, "holdout", name)
    return finite(holdout.value - _score(trial, name).value) if holdout else None


def _score(trial: Trial, name: str) -> Score:
    return next(score for score in trial.search if score.objective == name)


def _column(trials: Sequence[Trial], role: Role, name: str) -> dict[str, list[float | None]]:
    scores = [find_score(trial, role, name) for trial in trials]
    return {
        "value": [_short(score.value) if score else None for score in scores],
        "stderr": [_short(score.stderr) if score else None for score in scores],
    }


def _mean_weights(trial: Trial) -> list[float]:
    rows = trial.recipe.weights
    if len(rows) == 1:
        return list(rows[0])
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _short(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
