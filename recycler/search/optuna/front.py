"""Posterior front of an Optuna study whose parameters are merge weights.

The model puts trials on it, and not a lucky score.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from optuna.distributions import FloatDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from recycler.objectives.pareto import non_dominated
from recycler.search.floors import above_floors
from recycler.search.optuna.sampler import SimplexGPSampler
from recycler.search.optuna.trials import FLOORS, WEIGHTS, floors_of, missing_names, observed_trials
from recycler.search.simplex.simplex_gp import SimplexGP


def posterior_front(
    study: Study, members: Sequence[str] | None = None, floors: ArrayLike | None = None
) -> list[FrozenTrial]:
    """Return the complete trials of `study` that are non-dominated by posterior mean.

    The best at the first objective comes first.

    Works for a study of any sampler whose parameters are weights. `members` and `floors` (T,) in
    the study's own directions default to those of the study's `SimplexGPSampler` (its knobs then
    join the model), or to what `recycler study` wrote with the study; else members are the float
    parameters all complete trials share. Trials whose posterior mean is below a floor are left out;
    where none keeps every floor the front is that without floors, with a warning. Standard errors
    are read from the user attribute "stderr".

    Raises ValueError when no trial is complete with all weights and finite scores, and when no
    weights are found.
    """
    complete = [
        trial for trial in study.get_trials(deepcopy=True) if trial.state == TrialState.COMPLETE
    ]
    if not complete:
        raise ValueError(f"study {study.study_name!r} has no complete trial, so there is no front")
    sampler = (
        study.sampler if members is None and isinstance(study.sampler, SimplexGPSampler) else None
    )
    names = (
        sampler.names
        if sampler
        else _weights(study, complete)
        if members is None
        else tuple(members)
    )
    if not names:
        raise ValueError("the trials share no float parameters; name the weights in members=[...]")
    frozen = sampler.frozen if sampler else {}
    kept, observed = observed_trials(complete, names, study.directions, frozen)
    if not kept:
        raise ValueError(
            f"none of the {len(complete)} complete trials has all weights: "
            f"{missing_names(complete, names, frozen)}. Suggest every member, or name those that "
            "there are in members=[...]"
        )
    if len(kept) < len(complete):
        warnings.warn(
            f"{len(complete) - len(kept)} of {len(complete)} complete trials are left out, since "
            f"they have not all weights: {missing_names(complete, names, frozen)}",
            UserWarning,
            stacklevel=2,
        )
    if not observed.scored.any():
        raise ValueError(
            f"none of the {len(kept)} complete trials has finite scores, so there is no front"
        )
    if floors is None:
        floors = sampler.floors if sampler else study.user_attrs.get(FLOORS)
    front = _model(study, sampler, names, observed.weights).front(observed)
    above = observed.scored & above_floors(front.mean, floors_of(floors, study.directions))
    if not above.any():
        warnings.warn(
            "No trial keeps every floor: this is the front without floors",
            UserWarning,
            stacklevel=2,
        )
        above = observed.scored
    alive = np.where(above[:, None], front.mean, np.nan)[:, ~front.dead]
    chosen = np.flatnonzero(non_dominated(alive))
    return [kept[index] for index in chosen[np.argsort(-front.mean[chosen, 0], kind="stable")]]


def _weights(study: Study, complete: Sequence[FrozenTrial]) -> tuple[str, ...]:
    """Names of the parameters that are weights.

    Those that the study names, else all floats that its complete trials share.
    """
    if WEIGHTS in study.user_attrs:
        return tuple(study.user_attrs[WEIGHTS])
    return tuple(
        name
        for name, one in complete[0].distributions.items()
        if isinstance(one, FloatDistribution) and all(name in trial.params for trial in complete)
    )


def _model(
    study: Study, sampler: SimplexGPSampler | None, names: Sequence[str], points: np.ndarray
) -> SimplexGP:
    """A model over all that was tried, whatever its rules were."""
    knobs = tuple(sampler.knobs.values()) if sampler else ()
    weights = names[: len(names) - len(knobs)]
    low, high = points.min(), max(1.0, points.max() * len(names))
    return SimplexGP(
        weights,
        len(study.directions),
        seed=0,
        scale=(1e-6, high),
        bounds={name: (min(low, 0.0), high) for name in weights},
        knobs=knobs,
        gram=sampler.gram if sampler else None,
        exact=sampler.exact_columns(study.directions) if sampler else None,
    )
