"""Trials as flat figures, for experiment trackers: what was tried, and what it scored.

Copies to look at; the ledger stays the truth.
"""

from __future__ import annotations

import math

from recycler.types import Trial


def trial_params(trial: Trial) -> dict[str, float | int | str]:
    """Method, options and weights of a trial, by name.

    Weights are `weight/MEMBER`, or `weight/GROUP/MEMBER` where there are several groups.
    """
    recipe = trial.recipe
    params: dict[str, float | int | str] = {
        "kind": trial.kind,
        "label": trial.label,
        "method": recipe.method,
        "dtype": recipe.dtype,
    }
    for name, value in recipe.options:
        params[f"option/{name}"] = value if isinstance(value, (int, float, str)) else str(value)
    for group, row in zip(recipe.groups, recipe.weights, strict=True):
        prefix = f"weight/{group.name}" if len(recipe.groups) > 1 else "weight"
        for member, weight in zip(recipe.members, row, strict=True):
            params[f"{prefix}/{member}"] = float(weight)
    return params


def trial_metrics(trial: Trial) -> dict[str, float]:
    """`search/OBJECTIVE`, `search_stderr/OBJECTIVE`, and the same of holdout.

    Numbers that are not finite are left out.
    """
    found: dict[str, float] = {}
    for role in ("search", "holdout"):
        for score in trial.scores(role):
            found[f"{role}/{score.objective}"] = float(score.value)
            found[f"{role}_stderr/{score.objective}"] = float(score.stderr)
    return {name: value for name, value in found.items() if math.isfinite(value)}
