"""A front as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recycler.objectives import costs
from recycler.results.front import NOT_SMOOTHED, Front, choose, knee, shown_kind
from recycler.search.baselines import best_member, maximized
from recycler.types import Objective, Score, Smoothed, Trial

SCHEMA_VERSION = 1


def front_document(front: Front) -> dict[str, Any]:
    """The front as the one JSON document of `recycler front --json`; the same for equal runs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "objectives": [_objective_entry(objective) for objective in front.objectives],
        "floors_kept": front.floors_kept,
        "reference_point": list(front.reference),
        "hypervolume": _hypervolumes(front, front.front),
        "baseline_hypervolume": {
            "members": _hypervolumes(front, front.members),
            "uniform_soup": _hypervolumes(front, [front.uniform]),
            "greedy_soup": _hypervolumes(front, [front.greedy]),
        },
        "num_trials": len(front.trials),
        "knee": knee(front).number,
        "front": _front_entries(front),
        "picked_by": "posterior" if front.smoothed else "search score",
        "dead_objectives": list(front.smoothed.uninformative),
        "observed_front": [trial.number for trial in front.observed],
        "search_to_holdout": {
            name: {"value": gap, "stderr": stderr, "trials": number}
            for name, gap, stderr, number in search_to_holdout(front)
        },
        "baselines": _baseline_entries(front),
        "base": _entry(front.base, "base", front.objectives) if front.base else None,
    }


def _objective_entry(objective: Objective) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": objective.name, "direction": objective.direction}
    if objective.floor:
        entry["floor"] = objective.floor
    return entry


def _hypervolumes(front: Front, trials: Sequence[Trial | None]) -> dict[str, float | None]:
    return {
        "search": front.hypervolume(trials, "search"),
        "holdout": front.hypervolume(trials, "holdout"),
    }


def _front_entries(front: Front) -> list[dict[str, Any]]:
    probability = front.probability
    alike = {group[0].number: [trial.number for trial in group[1:]] for group in front.alike}
    entries = []
    for trial in front.front:
        entry = _entry(trial, shown_kind(trial), front.objectives, front.smoothed)
        entry["probability"] = probability[trial.number]
        entry["same_weights"] = alike[trial.number]
        entries.append(entry)
    return entries


def _baseline_entries(front: Front) -> list[dict[str, Any]]:
    """Members, soups, and the best member for each benchmark."""
    objectives = front.objectives
    entries = [_entry(trial, "member", objectives) for trial in front.members]
    if front.uniform is not None:
        entries.append(_entry(front.uniform, "uniform_soup", objectives))
    if front.greedy is not None:
        entries.append(_entry(front.greedy, "greedy_soup", objectives))
    for objective in costs.benchmarks(objectives):
        best = _entry(best_member(front.trials, objective), "best_per_task", objectives)
        entries.append({**best, "objective": objective.name})
    return entries


def search_to_holdout(front: Front) -> tuple[tuple[str, float, float, int], ...]:
    """(name, gap, standard error, number of merges) by benchmark, over the front's merges.

    The gap is the mean of holdout less search score. Empty before the holdout is scored. All merges
    answer the same items, so the mean's error is no smaller than each one's.
    """
    held = [trial for trial in front.front if trial.holdout]
    if not held:
        return ()
    found = []
    for objective in costs.benchmarks(front.objectives):
        gaps, errors = [], []
        for trial in held:
            before, after = trial.score(objective.name), trial.score(objective.name, "holdout")
            gaps.append(after.value - before.value)
            errors.append(np.hypot(before.stderr, after.stderr))
        gap, error = float(np.mean(gaps)), float(np.mean(errors))
        found.append((objective.name, gap, error, len(held)))
    return tuple(found)


def choice_document(front: Front, what: str) -> dict[str, Any]:
    """The trial that `choose` returns, by which score it was chosen, and its scores of all kinds.

    For best:OBJECTIVE also the trial with the best search score, which may be a lucky one.
    """
    chosen = choose(front, what)
    by = "posterior score" if front.smoothed else "search score"
    return {
        "asked": what,
        "trial": chosen.number,
        "by": "number" if what.isdecimal() else by,
        "scores": _entry(chosen, "", front.objectives, front.smoothed)["scores"],
        "best_by_search_score": _best_by_search_score(front, what),
    }


def _best_by_search_score(front: Front, what: str) -> dict[str, Any] | None:
    """The luckiest trial for best:OBJECTIVE, with its scores; None for any other choice."""
    if not what.startswith("best:"):
        return None
    name = what.removeprefix("best:")
    objective = next(objective for objective in front.objectives if objective.name == name)
    luckiest = front.observed[int(np.argmax(maximized(front.observed, [objective])[:, 0]))]
    scores = _entry(luckiest, "", [objective], front.smoothed)["scores"]
    return {"trial": luckiest.number, "scores": scores}


def weights_by_group(trial: Trial) -> dict[str, dict[str, float]]:
    """{group: {member: weight}} without the zeros."""
    recipe, weights = trial.recipe, {}
    for group, row in zip(recipe.groups, recipe.weights, strict=True):
        named = zip(recipe.members, row, strict=True)
        weights[group.name] = {name: weight for name, weight in named if weight != 0.0}
    return weights


def _entry(
    trial: Trial, kind: str, objectives: Sequence[Objective], smoothed: Smoothed = NOT_SMOOTHED
) -> dict[str, Any]:
    by_role = {"search": _by_name(trial.search), "holdout": _by_name(trial.holdout)}
    if smoothed:
        by_role["posterior"] = _by_name(smoothed.get(trial.number, ()))
    return {
        "trial": trial.number,
        "kind": kind,
        "label": trial.label,
        "method": trial.recipe.method,
        "weights": weights_by_group(trial),
        "options": dict(trial.recipe.options),
        "scores": {
            objective.name: {role: found.get(objective.name) for role, found in by_role.items()}
            for objective in objectives
        },
    }


def _by_name(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    return {
        score.objective: {"value": score.value, "stderr": score.stderr, "n": score.n}
        for score in scores
    }
