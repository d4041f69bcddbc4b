"""A run as an Optuna study, for optuna-dashboard and optuna's plots.

A copy to look at: the ledger stays the truth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from recycler.search.floors import floors
from recycler.search.optuna.study_trial import StudyTrial
from recycler.types import Objective, Recipe, Trial

# user attributes that `posterior_front` reads; see `trials`
WEIGHTS, FLOORS, STDERR = "weights", "floors", "stderr"


def write_study(
    trials: Sequence[Trial], objectives: Sequence[Objective], *, storage: str, name: str
) -> int:
    """Write every closed trial into a new study and return their number.

    Parameters are the weights (MEMBER, or GROUP/MEMBER where there are several groups) and the
    numeric options; values are search scores; user attributes hold number, kind, label, method,
    standard errors (of each objective, and "stderr" of all), items, and holdout scores. Failed
    trials are there as FAIL. The study's own attributes name the weights that the search proposed,
    "weights", and the floors if there are any, so that `recycler.search.posterior_front(study)`
    needs no more. Raises UsageError when the study exists or the URL is none, InfrastructureError
    when the storage cannot be reached.
    """
    from recycler.search.optuna.storage import new_study  # loads optuna

    closed = [trial for trial in trials if trial.state in ("SCORED", "FAILED")]
    searched = _searched(closed)
    rows: list[dict[str, float]] = []
    weights: list[str] = []
    if searched is not None:
        rows = [_params(trial, searched) for trial in closed]
        weights = list(_weights(searched, searched))
    attributes: dict[str, Any] = {WEIGHTS: weights}
    if any(objective.floor for objective in objectives):
        attributes[FLOORS] = _floors(closed, objectives)
    entries = [
        StudyTrial(
            params=row,
            values=_values(trial, objectives) if trial.state == "SCORED" else None,
            attributes=_attributes(trial, objectives),
        )
        for trial, row in zip(closed, rows, strict=True)
    ]
    new_study(objectives, attributes, entries, weights, storage=storage, name=name)
    return len(closed)


def _searched(closed: Sequence[Trial]) -> Recipe | None:
    """A recipe with the groups that the search proposes weights for.

    Baselines and refined merges may have others.
    """
    proposed = [trial for trial in closed if trial.is_proposed] or closed
    groups = Counter(trial.recipe.groups for trial in proposed).most_common(1)
    return max(
        (trial.recipe for trial in proposed if trial.recipe.groups == groups[0][0]),
        key=lambda recipe: len(recipe.members),
        default=None,
    )


def _weights(recipe: Recipe, searched: Recipe) -> dict[str, float]:
    """Weights by parameter.

    One row for all groups is the same merge as equal rows; a member that is not in the recipe has
    weight 0.
    """
    same = len(recipe.groups) == 1 or recipe.groups == searched.groups
    groups, rows = (
        (
            searched.groups,
            recipe.weights * len(searched.groups) if len(recipe.groups) == 1 else recipe.weights,
        )
        if same
        else (recipe.groups, recipe.weights)
    )
    members = dict.fromkeys([*searched.members, *recipe.members]) if same else recipe.members
    return {
        f"{group.name}/{member}" if len(groups) > 1 else member: float(
            dict(zip(recipe.members, row, strict=True)).get(member, 0.0)
        )
        for group, row in zip(groups, rows, strict=True)
        for member in members
    }


def _params(trial: Trial, searched: Recipe) -> dict[str, float]:
    options = {
        f"option {name}": float(value)
        for name, value in trial.recipe.options
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return {
        name: value
        for name, value in {**_weights(trial.recipe, searched), **options}.items()
        if math.isfinite(value)
    }


def _floors(closed: Sequence[Trial], objectives: Sequence[Objective]) -> list[float | None]:
    """In the objectives' own directions, None where there is none."""
    lowest = floors(objectives, closed)
    return [
        None if math.isnan(floor) else float(floor) * objective.sign
        for floor, objective in zip(lowest, objectives, strict=True)
    ]


def _values(trial: Trial, objectives: Sequence[Objective]) -> list[float]:
    scores = {score.objective: score.value for score in trial.search}
    return [scores[objective.name] for objective in objectives]


def _attributes(trial: Trial, objectives: Sequence[Objective]) -> dict[str, object]:
    found: dict[str, object] = {
        "trial": trial.number,
        "kind": trial.kind,
        "label": trial.label,
        "method": trial.recipe.method,
    }
    found |= {f"{score.objective} stderr": score.stderr for score in trial.search} | {
        f"{score.objective} items": score.n for score in trial.search
    }
    stderrs = {score.objective: score.stderr for score in trial.search}
    found |= (
        {STDERR: [stderrs[objective.name] for objective in objectives]}
        if trial.state == "SCORED"
        else {}
    )
    found |= {f"{score.objective} holdout": score.value for score in trial.holdout} | {
        f"{score.objective} holdout stderr": score.stderr for score in trial.holdout
    }
    return found | ({"failure": trial.failure.reason} if trial.failure else {})
