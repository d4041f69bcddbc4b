"""`simplex_gp` inside your own Optuna study: the parameters *are* the merge weights.

    sampler = SimplexGPSampler(["math", "code", "chat"], seed=0)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)

In the objective `trial.suggest_float(member, 0, 1)` gives each member's weight; together they sum to 1, or to a searched
scale when the upper bound is above 1. Tell standard errors by `trial.set_user_attr("stderr", [...])`, one per objective,
and ship `posterior_front(study)` rather than `study.best_trials`, which lucky scores enter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from recycler.pareto import Floats
from recycler.search.simplex_gp import SimplexGP
from recycler.search.surrogate import Exact, Observations

DEFAULT_LOWEST_SCALE = 0.3
STDERR = "stderr"


class SimplexGPSampler(BaseSampler):
    """Optuna sampler over the weights of `members`; keyword arguments are those of `SimplexGP`.

    `scale` None reads the sum from the first suggested range: 1 when its upper bound is at most 1, else searched from
    0.3 to that bound. `knobs` maps names of further float parameters to their ranges; they join the same model. `floors` and
    `exact` are in the study's own directions: `exact` maps the number of an objective to a function from points (n, K + E),
    weights then knobs, to the values (n,) that the objective will give there, such as the number of members used. Such an objective is
    known and not learned, and a floor of it is kept by every proposal. Other parameters are sampled at random, and the model does not see them. RUNNING trials count as pending, so batches,
    threads and `study.ask` work; separate processes see each other's trials once all weights are suggested. The next
    proposal depends on the study's trials, the trial's number and the seed only.

    Raises ValueError when a proposed weight lies outside the range the objective suggests for it, or when `exact` names an objective
    that the study has not, or all that it has.
    """

    def __init__(
        self,
        members: Sequence[str],
        *,
        seed: int,
        scale: tuple[float, float] | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        frozen: Mapping[str, float] | None = None,
        max_nonzero: int | None = None,
        gram: ArrayLike | None = None,
        floors: ArrayLike | None = None,
        knobs: Mapping[str, tuple[float, float]] | None = None,
        exact: Exact | None = None,
    ):
        self.members, self.seed, self.scale = tuple(members), seed, scale
        self.knobs = dict(knobs or {})
        self._names = self.members + tuple(self.knobs)
        self._rules = dict(bounds=bounds, frozen=frozen, max_nonzero=max_nonzero, gram=gram)
        self._floors, self._exact = floors, dict(exact or {})
        self._others = RandomSampler(seed=seed)
        self._lock = RLock()
        self._proposers: dict[tuple[int, tuple[float, float]], SimplexGP] = {}
        self._plans: dict[tuple[str, int], dict[str, float]] = {}
        self._proposer(1, scale or (1.0, 1.0))  # so that a contradiction is told before the study starts

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without its lock and caches, which are made anew: nothing a proposal depends on is lost."""
        return {**self.__dict__, "_lock": None, "_proposers": {}, "_plans": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=RLock())

    # ------------------------------------------------------------ what Optuna calls

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """The planned weight of `param_name`; the whole row is planned when its first member is suggested."""
        if param_name not in self._names or not isinstance(param_distribution, FloatDistribution):
            return self._others.sample_independent(study, trial, param_name, param_distribution)
        with self._lock:
            value = self._plan(study, trial, param_distribution)[param_name]
        low, high = param_distribution.low, param_distribution.high
        if not low - 1e-9 <= value <= high + 1e-9:
            raise ValueError(
                f"weight {value:.4g} proposed for {param_name!r} is outside the suggested range {low:g} .. {high:g}; "
                f"give the sampler bounds={{{param_name!r}: ({low:g}, {high:g})}}"
            )
        return min(max(value, low), high)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        with self._lock:
            self._plans.pop((study.study_name, trial.number), None)

    def reseed_rng(self) -> None:
        """Nothing to reseed for the weights: proposals depend on the trial's number."""
        self._others.reseed_rng()

    # ------------------------------------------------------------ planning

    def _plan(self, study: Study, trial: FrozenTrial, distribution: FloatDistribution) -> dict[str, float]:
        key = (study.study_name, trial.number)
        if key not in self._plans:
            trials = study.get_trials(deepcopy=False)
            proposer = self._proposer(len(study.directions), self._scale(distribution), study.directions)
            _, observed = observed_trials(trials, self._names, study.directions)
            point = proposer.ask(observed, self._pending(study, trials, trial.number), trial.number)
            self._plans[key] = dict(zip(self._names, map(float, point), strict=True))
        return self._plans[key]

    def _pending(self, study: Study, trials: Sequence[FrozenTrial], number: int) -> Floats:
        rows = []
        for other in trials:
            if other.state == TrialState.RUNNING and other.number != number:
                params = {**self._plans.get((study.study_name, other.number), {}), **other.params}
                if all(name in params for name in self._names):
                    rows.append([params[name] for name in self._names])
        return np.array(rows, dtype=float).reshape(-1, len(self._names))

    def _scale(self, distribution: FloatDistribution) -> tuple[float, float]:
        if self.scale is not None:
            return self.scale
        return (1.0, 1.0) if distribution.high <= 1.0 else (DEFAULT_LOWEST_SCALE, float(distribution.high))

    def _proposer(
        self, num_objectives: int, scale: tuple[float, float], directions: Sequence[StudyDirection] = ()
    ) -> SimplexGP:
        key = (num_objectives, scale)
        if key not in self._proposers:
            floors = None if self._floors is None or not directions else np.asarray(self._floors, float) * signs(directions)
            self._proposers[key] = SimplexGP(
                self.members, num_objectives, seed=self.seed, scale=scale, floors=floors,
                knobs=tuple(self.knobs.values()),
                exact=self.exact_columns(directions) if directions else None, **self._rules,
            )
            if not directions:
                return self._proposers.pop(key)
        return self._proposers[key]

    def exact_columns(self, directions: Sequence[StudyDirection]) -> Exact:
        """`exact` to be made large, as `SimplexGP` takes it. Raises ValueError where it does not fit a study of these directions."""
        known, columns = set(self._exact), range(len(directions))
        if not known <= set(columns):
            raise ValueError(f"exact tells objective {min(known - set(columns))}, and the study has objectives 0 to {len(directions) - 1}")
        if known == set(columns):
            raise ValueError("exact tells every objective of the study, so there is nothing to learn from its trials")
        return {column: _signed(value, sign) for (column, value), sign in zip(sorted(self._exact.items()), signs(directions)[sorted(known)], strict=True)}


def posterior_front(study: Study, members: Sequence[str] | None = None) -> list[FrozenTrial]:
    """The complete trials of `study` to ship: non-dominated by the GP's posterior mean, best first objective first.

    Works for a study of any sampler whose parameters are weights; `members` (and knobs) default to those of the study's
    `SimplexGPSampler`, else to the float parameters all complete trials share. Standard errors are read from the user
    attribute "stderr". Raises ValueError when no trial is complete or no weights are found.
    """
    sampler = study.sampler
    trials = study.get_trials(deepcopy=True)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise ValueError(f"study {study.study_name!r} has no complete trial, so there is no front")
    gram, knobs, exact = None, (), None
    if members is not None:
        names = tuple(members)
    elif isinstance(sampler, SimplexGPSampler):
        names, gram, knobs = sampler._names, sampler._rules["gram"], tuple(sampler.knobs.values())
        exact = sampler.exact_columns(study.directions)
    else:
        names = tuple(name for name, one in complete[0].distributions.items() if isinstance(one, FloatDistribution)
                      and all(name in trial.params for trial in complete))
    if not names:
        raise ValueError("the trials share no float parameters; name the weights in members=[...]")
    kept, observed = observed_trials(complete, names, study.directions)
    weights = names[: len(names) - len(knobs)]
    low, high = observed.weights.min(), max(1.0, observed.weights.max() * len(names))
    model = SimplexGP(weights, len(study.directions), seed=0, scale=(1e-6, high), gram=gram, knobs=knobs, exact=exact,
                      bounds={name: (min(low, 0.0), high) for name in weights})
    return [kept[index] for index in model.front(observed).indices]


def signs(directions: Sequence[StudyDirection]) -> Floats:
    """+1 where an objective is maximised, -1 where it is minimised, (T,)."""
    return np.where([direction == StudyDirection.MINIMIZE for direction in directions], -1.0, 1.0)


def _signed(value: Callable[[Floats], Floats], sign: float) -> Callable[[Floats], Floats]:
    return lambda points: sign * np.asarray(value(points), dtype=float)


def observed_trials(
    trials: Sequence[FrozenTrial], names: Sequence[str], directions: Sequence[StudyDirection]
) -> tuple[list[FrozenTrial], Observations]:
    """Finished trials that have all of `names`, and what they say, maximised; failed and pruned ones have NaN values."""
    kept = [trial for trial in trials if trial.state.is_finished() and all(name in trial.params for name in names)]
    nothing = [math.nan] * len(directions)
    weights = [[trial.params[name] for name in names] for trial in kept]
    values = [trial.values if trial.state == TrialState.COMPLETE else nothing for trial in kept]
    stderrs = [np.broadcast_to(trial.user_attrs.get(STDERR, 0.0), len(directions)) for trial in kept]
    shape = (len(kept), len(directions))
    return kept, Observations(
        np.array(weights, dtype=float).reshape(len(kept), len(names)),
        np.array(values, dtype=float).reshape(shape) * signs(directions),
        np.nan_to_num(np.array(stderrs, dtype=float)).reshape(shape),
    )
