"""Floors: how bad an objective may get. "base - 0.01" and "best - 0.02" are known once the
baselines are scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recycler.objectives.pareto import Floats, Mask
from recycler.search.baselines import maximized
from recycler.specs.job import FLOOR
from recycler.types import Objective, Trial


def floors(objectives: Sequence[Objective], trials: Sequence[Trial]) -> Floats:
    """Worst values allowed (T,), more being better.

    NaN where there is no floor, or where its anchor has no score yet.
    """
    signs = np.array([objective.sign for objective in objectives])
    return signs * np.array([_floor(objective, trials) for objective in objectives], dtype=float)


def above_floors(values: Floats, lowest: Floats) -> Mask:
    """True (n,) for rows of `values` (n, T), maximised, that keep every floor of `lowest` (T,)."""
    bounds = np.where(np.isnan(lowest), -np.inf, lowest)
    return np.all(np.asarray(values) >= bounds, axis=1)


def _floor(objective: Objective, trials: Sequence[Trial]) -> float:
    found = None if objective.floor is None else FLOOR.fullmatch(objective.floor)
    if found is None:
        return np.nan
    anchor, sign, amount = found.groups()
    factor = -1.0 if sign == "-" else 1.0
    if anchor is None:
        return float(amount) * factor
    kind = "base" if anchor == "base" else "member"
    anchors = [trial for trial in trials if trial.kind == kind and trial.state == "SCORED"]
    if not anchors:
        return np.nan
    best = float(maximized(anchors, [objective]).max()) * objective.sign
    return best + float(amount or 0.0) * factor
