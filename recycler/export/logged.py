"""Trials as flat figures, for experiment trackers: what was tried, and what it scored.

Copies to look at; the ledger stays the truth.
"""

from __future__ import annotations

import math

from recycler.types import Trial


def trial_params(trial: Trial) -> dict[str, float | int | str]:
    """Method, options and weights:

    `weight/MEMBER`, or `weight/GROUP/MEMBER` where there are several groups.
    """
    recipe, many = trial.recipe, len(trial.recipe.groups) > 1
    weights = {
        f"weight/{group.name}/{member}" if many else f"weight/{member}": float(weight)
        for group, row in zip(recipe.groups, recipe.weights, strict=True)
        for member, weight in zip(recipe.members, row, strict=True)
    }
    options = {
        f"option/{name}": value if isinstance(value, (int, float, str)) else str(value)
        for name, value in recipe.options
    }
    return {
        "kind": trial.kind,
        "label": trial.label,
        "method": recipe.method,
        "dtype": recipe.dtype,
        **options,
        **weights,
    }


def trial_metrics(trial: Trial) -> dict[str, float]:
    """`search/OBJECTIVE`, `search_stderr/OBJECTIVE`, and the same of holdout; only what is a finite
    number.
    """
    found = {}
    for role in ("search", "holdout"):
        for score in trial.scores(role):
            found |= {
                f"{role}/{score.objective}": score.value,
                f"{role}_stderr/{score.objective}": score.stderr,
            }
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}
