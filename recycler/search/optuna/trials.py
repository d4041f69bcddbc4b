"""Trials of an Optuna study, read with distrust.

A score may be infinite, a standard error may be a word.

observed_trials   points, values and standard errors of the finished trials, all to be made large
stderrs_of        the standard errors of one trial; the reason, where they are none
floors_of         floors in the study's own directions, to be made large
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from recycler.objectives.pareto import Floats
from recycler.search.simplex.surrogate import LARGEST, Observations

STDERR = "stderr"
WEIGHTS, FLOORS = "weights", "floors"  # user attributes of a study that `recycler study` wrote


def signs(directions: Sequence[StudyDirection]) -> Floats:
    """+1 where an objective is maximised, -1 where it is minimised, (T,)."""
    return np.where([direction == StudyDirection.MINIMIZE for direction in directions], -1.0, 1.0)


def floors_of(floors: ArrayLike | None, directions: Sequence[StudyDirection]) -> Floats:
    """(T,) the worst values allowed, more being better, NaN where there is none.

    Raises ValueError for another number of them.
    """
    if floors is None:
        return np.full(len(directions), np.nan)
    try:
        lowest = np.asarray(floors, dtype=float)
    except (TypeError, ValueError):
        lowest = np.array(math.inf)
    if lowest.shape != (len(directions),) or np.isinf(lowest).any():
        raise ValueError(
            f"floors is {floors!r}, and the study has {len(directions)} objectives; give one "
            "number for each, nan where there is no floor"
        )
    return lowest * signs(directions)


def stderrs_of(trial: FrozenTrial, num_objectives: int) -> list[float]:
    """Standard errors (T,) of a trial from its user attribute "stderr", 0 where unknown.

    One number for all objectives, or one each; None, NaN, 0 and infinity mean unknown. Raises
    ValueError that names the trial and the attribute for anything else.
    """
    told = trial.user_attrs.get(STDERR)
    each = list(told) if isinstance(told, (list, tuple, np.ndarray)) else [told] * num_objectives
    cause = ""
    if any(
        not (one is None or (isinstance(one, Real) and not isinstance(one, bool))) for one in each
    ):
        cause = "is not made of numbers"
    elif len(each) != num_objectives:
        cause = f"has {len(each)} numbers, and the study has {num_objectives} objectives"
    elif any(one is not None and one < 0 for one in each):
        cause = "is negative"
    if cause:
        raise ValueError(
            f"trial {trial.number}: user attribute {STDERR!r} {cause} (it is {told!r}). Give one "
            "number >= 0 for each objective, None where it is unknown"
        )
    return [float(one) if one is not None and one < LARGEST else 0.0 for one in each]


def observed_trials(
    trials: Sequence[FrozenTrial],
    names: Sequence[str],
    directions: Sequence[StudyDirection],
    given: Mapping[str, float] | None = None,
) -> tuple[list[FrozenTrial], Observations]:
    """Finished trials that have all of `names`, and their observations, maximised.

    Failed and pruned ones have NaN values.

    `given` tells parameters that need not be suggested. Standard errors that are none count as
    unknown, with a warning: a finished trial can never be mended, and shall not stop its study.
    """
    given, kept, rows = given or {}, [], []
    for trial in trials:
        params = {**given, **trial.params}
        if trial.state.is_finished() and all(name in params for name in names):
            kept.append(trial)
            rows.append([params[name] for name in names])
    shape = (len(kept), len(directions))
    nothing = [math.nan] * len(directions)
    values = [trial.values if trial.state == TrialState.COMPLETE else nothing for trial in kept]
    return kept, Observations(
        np.array(rows, dtype=float).reshape(len(kept), len(names)),
        np.array(values, dtype=float).reshape(shape) * signs(directions),
        np.array(
            [_stderrs_or_unknown(trial, len(directions)) for trial in kept], dtype=float
        ).reshape(shape),
    )


def _stderrs_or_unknown(trial: FrozenTrial, num_objectives: int) -> list[float]:
    try:
        return stderrs_of(trial, num_objectives)
    except ValueError as error:
        warnings.warn(f"{error}. They count as unknown", UserWarning, stacklevel=4)
        return [0.0] * num_objectives


def missing_names(
    trials: Sequence[FrozenTrial], names: Sequence[str], given: Mapping[str, float]
) -> str:
    """Sentence on the first three of `names` that trials do not have as parameters."""
    lacking = {
        name: sum(name not in trial.params for trial in trials)
        for name in names
        if name not in given
    }
    told = [f"{name!r} is not in {number} of them" for name, number in lacking.items() if number]
    return ", ".join(told[:3]) + (f", and {len(told) - 3} more" if len(told) > 3 else "")
