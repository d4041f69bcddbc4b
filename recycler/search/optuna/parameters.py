"""The parameters of an Optuna trial that are weights and knobs: ranges, fixed values, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from recycler.search.simplex.domain import SLACK

FIXED = "fixed_params"  # where Optuna keeps what enqueue_trial fixes
Ranges = Mapping[str, tuple[float, float]]


def fixed_params(trial: FrozenTrial) -> dict[str, Any]:
    """Parameters of a trial as they are, or as it was enqueued with them."""
    return {**trial.system_attrs.get(FIXED, {}), **trial.params}


def is_inside(distribution: FloatDistribution, value: float) -> bool:
    """True when a value lies in the suggested range, to rounding."""
    return bool(distribution.low - SLACK <= value <= distribution.high + SLACK)


def float_distribution(
    name: str, distribution: BaseDistribution, *, is_weight: bool
) -> FloatDistribution:
    """The distribution of a weight or knob.

    Raises ValueError where it is no float, has steps, or is a weight on a log scale.
    """
    if (
        isinstance(distribution, FloatDistribution)
        and distribution.step is None
        and not (is_weight and distribution.log)
    ):
        return distribution
    if is_weight:
        kind, round_it = "weight", ""
        why = "weights that sum to a number can keep no steps, logarithms or choices"
    else:
        kind, round_it = "knob", " and round it in the objective, or leave it out of knobs"
        why = "the model's knobs are continuous"
    raise ValueError(
        f"{kind} {name!r} is suggested by {distribution}, and {why}; use "
        f"trial.suggest_float({name!r}, low, high) without step{round_it}"
    )


def suggested_ranges(
    names: Sequence[str],
    own: Mapping[str, BaseDistribution],
    trial: FrozenTrial,
    trials: Sequence[FrozenTrial],
) -> dict[str, tuple[float, float]]:
    """Range of each of `names`, as far as trials have suggested it.

    What is suggested now (`own`) counts first, then the trial's other parameters, then the latest
    earlier trial's.
    """
    found: dict[str, tuple[float, float]] = {}
    earlier = (other.distributions for other in reversed(trials) if other.number < trial.number)
    for suggested in (own, trial.distributions, *earlier):
        for name in names:
            distribution = suggested.get(name)
            if name not in found and isinstance(distribution, FloatDistribution):
                found[name] = (distribution.low, distribution.high)
        if len(found) == len(names):
            break
    return found
