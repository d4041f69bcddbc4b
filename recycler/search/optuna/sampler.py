"""`simplex_gp` inside your own Optuna study: the parameters *are* the merge weights.

    sampler = SimplexGPSampler(["math", "code", "chat"], seed=0)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)

In the objective `trial.suggest_float(member, 0, 1)` gives each member's weight; together they sum
to 1, or to a searched scale when an upper bound is above 1. Tell standard errors by
`trial.set_user_attr("stderr", [...])`, one per objective, and ship `posterior_front(study)`
(optuna_front) rather than `study.best_trials`, which lucky scores enter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from threading import RLock
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from recycler.objectives.pareto import Floats
from recycler.search.optuna.parameters import (
    Ranges,
    fixed_params,
    float_distribution,
    is_inside,
    suggested_ranges,
)
from recycler.search.optuna.trials import floors_of, observed_trials, signs, stderrs_of
from recycler.search.simplex.domain import CLOSE, SLACK, WeightDomain, weight_domain
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import LARGEST, Exact

DEFAULT_LOWEST_SCALE = 0.3
LOST = 8  # trials that end after one was begun and before it says its weights: then it never will


class SimplexGPSampler(BaseSampler):
    """Optuna sampler over the weights of `members`; keyword arguments are those of `SimplexGP`.

    Weights lie where the objective suggests them, or in `bounds`; in a study's first trial what is
    not suggested yet is taken to be 0 to 1, or as wide as what is. `scale` None reads the sum from
    these ranges: 1 when no upper bound is above 1, else searched from 0.3 to the largest. `frozen`
    weights need not be suggested. `knobs` maps names of further float parameters to their ranges;
    they join the same model. `floors` and `exact` are in the study's own directions: `exact` maps
    the number of an objective to a function from points (n, K + E), weights then knobs, to the
    values (n,) that the objective will give there, such as the number of members used. Such an
    objective is known and not learned, and a floor of it is kept by every proposal. Other
    parameters are sampled at random, and the model does not see them.

    RUNNING trials count as pending, so batches, threads and `study.ask` work. Processes on one
    storage see each other's trials once all weights are suggested; before that each leaves the next
    points of the opening to the running trials of lower number. What `enqueue_trial` fixes is kept,
    and the other weights are scaled to the rest of the sum. A trial with a score that is infinite
    or beyond 1e30 counts as failed. The next proposal depends on the study's trials, the trial's
    number and the seed only.

    Raises ValueError when a weight or knob is suggested in steps or as another kind of parameter,
    or a weight on a log scale; when a proposed weight lies outside the range suggested for it, or
    no row of weights fits the ranges; when `floors` or `exact` do not fit the study's objectives;
    and, at the end of a trial, when its attribute "stderr" is no standard errors.
    """

    def __init__(
        self,
        members: Sequence[str],
        *,
        seed: int,
        scale: tuple[float, float] | None = None,
        bounds: Ranges | None = None,
        frozen: Mapping[str, float] | None = None,
        max_nonzero: int | None = None,
        gram: ArrayLike | None = None,
        floors: ArrayLike | None = None,
        knobs: Ranges | None = None,
        exact: Exact | None = None,
    ):
        self.members, self.seed, self.scale = tuple(members), seed, scale
        self.knobs, self.bounds = dict(knobs or {}), dict(bounds or {})
        self.frozen, self.exact = dict(frozen or {}), dict(exact or {})
        self.names = self.members + tuple(self.knobs)
        self.max_nonzero, self.gram, self.floors = max_nonzero, gram, floors
        shared = [name for name in self.knobs if name in self.members]
        if shared:
            raise ValueError(
                f"{shared[0]!r} is a member and a knob, and a trial can have one parameter of "
                "that name; give the knob another"
            )
        self._lock = RLock()
        self._proposers: dict[tuple[Any, ...], SimplexGP] = {}
        self._plans: dict[tuple[str, int], dict[str, float]] = {}
        # so that a contradiction is found before the study starts
        self._made(1, scale or (1.0, 1.0), self.bounds)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without lock and caches: they are made anew, and no proposal depends on them."""
        return {**self.__dict__, "_lock": None, "_proposers": {}, "_plans": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=RLock())

    # ------------------------------------------------------------ what Optuna calls

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the planned weight of `param_name`.

        The whole row is planned when its first member is suggested.
        """
        if param_name not in self.names:
            return self._other(trial.number, param_name).sample_independent(
                study, trial, param_name, param_distribution
            )
        is_weight = param_name in self.members
        distribution = float_distribution(param_name, param_distribution, is_weight=is_weight)
        with self._lock:
            value = self._planned(study, trial, param_name, distribution)
        low, high = distribution.low, distribution.high
        if not is_inside(distribution, value):
            kind, keyword = ("weight", "bounds") if is_weight else ("knob", "knobs")
            raise ValueError(
                f"{kind} {value:.4g} proposed for {param_name!r} is outside the suggested range "
                f"{low:g} .. {high:g}; "
                f"give the sampler {keyword}={{{param_name!r}: ({low:g}, {high:g})}}"
            )
        return min(max(value, low), high)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        with self._lock:
            self._plans.pop((study.study_name, trial.number), None)
        if state != TrialState.COMPLETE:
            return
        missing = [
            name for name in self.names if name not in trial.params and name not in self.frozen
        ]
        if missing:
            warnings.warn(
                f"trial {trial.number} teaches nothing: {missing[0]!r} was not suggested in it. "
                "Suggest every member and knob of the sampler",
                UserWarning,
                stacklevel=2,
            )
        if not (np.abs(np.array(values, dtype=float)) < LARGEST).all():
            warnings.warn(
                f"trial {trial.number} counts as failed: its scores are {list(values or ())}, "
                f"and one beyond {LARGEST:g} is that of a broken merge",
                UserWarning,
                stacklevel=2,
            )
        stderrs_of(trial, len(study.directions))

    def reseed_rng(self) -> None:
        """Nothing to reseed: proposals depend on the trial's number."""

    def _other(self, number: int, name: str) -> RandomSampler:
        """Draw a parameter that the model does not see, by seed, trial and name.

        Neither resuming nor other processes repeat draws.
        """
        rng = np.random.default_rng([self.seed, number, crc32(name.encode())])
        return RandomSampler(seed=int(rng.integers(2**31)))

    # ------------------------------------------------------------ planning

    def _planned(
        self, study: Study, trial: FrozenTrial, name: str, distribution: FloatDistribution
    ) -> float:
        key = (study.study_name, trial.number)
        row = self._plans.get(key)
        if row is not None and self._still_fits(row, trial, name, distribution):
            return row[name]
        trials = study.get_trials(deepcopy=False)
        free = [member for member in self.members if member not in self.frozen]
        ranges = suggested_ranges(free, {name: distribution}, trial, trials)
        row = self._row(study, trials, trial, ranges)
        trials = study.get_trials(deepcopy=False)
        if self._taken(trials, trial.number, row):  # by another process in the meantime
            row = self._row(study, trials, trial, ranges)
        # without ranges a knob was suggested before any weight, and the row is planned again later
        if ranges:
            self._plans[key] = row
        return row[name]

    def _still_fits(
        self,
        row: Mapping[str, float],
        trial: FrozenTrial,
        name: str,
        distribution: FloatDistribution,
    ) -> bool:
        """True when a planned row lies in the suggested range and agrees with the trial so far."""
        if not is_inside(distribution, row[name]):
            return False
        differences = [row[other] - trial.params.get(other, row[other]) for other in self.members]
        return not any(abs(difference) > SLACK for difference in differences)

    def _row(
        self, study: Study, trials: Sequence[FrozenTrial], trial: FrozenTrial, ranges: Ranges
    ) -> dict[str, float]:
        """A weight for each member and a value for each knob.

        Those that this trial has already, or has been given, stay as they are.
        """
        proposer = self._proposer(study.directions, ranges)
        _, observed = observed_trials(trials, self.names, study.directions, self.frozen)
        pending, skip = self._in_flight(study, trials, trial.number)
        point = proposer.ask(observed, pending, trial.number, skip)
        row = dict(zip(self.names, map(float, point), strict=True))
        fixed = fixed_params(trial)
        held = {name: float(fixed[name]) for name in self.members if name in fixed}
        if held:
            domain = self._domain_around(held, proposer.domain, trial.number)
            repaired = domain.repair(point[None, : len(self.members)])[0]
            row.update(zip(self.members, map(float, repaired), strict=True))
        return {name: float(fixed.get(name, value)) for name, value in row.items()}

    def _domain_around(
        self, held: Mapping[str, float], domain: WeightDomain, number: int
    ) -> WeightDomain:
        """The domain of the other weights of a trial that holds some.

        Raises ValueError when the held weights leave no row for the other members.
        """
        bounds = {
            name: (low, high)
            for name, low, high in zip(self.members, domain.low, domain.high, strict=True)
            if name not in held
        }
        try:
            return weight_domain(
                self.members,
                scale=domain.scale,
                bounds=bounds,
                frozen={**self.frozen, **held},
                max_nonzero=self.max_nonzero,
            )
        except ValueError as error:
            wanted = {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
            raise ValueError(
                f"trial {number} holds the weights {dict(held)}, which leave no row for the "
                f"other members: {error}. Unless they were enqueued, "
                f"give the sampler bounds={wanted}: a study's first trial cannot know the "
                "ranges of what is suggested last"
            ) from None

    def _in_flight(
        self, study: Study, trials: Sequence[FrozenTrial], number: int
    ) -> tuple[Floats, int]:
        """Points (p, D) of running trials, and the number of earlier ones without a point.

        Those have not suggested anything yet: they do so in other processes, unless so many later
        trials have ended that their process must have been killed.
        """
        rows: list[list[float]] = []
        num_silent = 0
        ended = np.array([other.number for other in trials if other.state.is_finished()], dtype=int)
        for other in trials:
            if other.state.is_finished() or other.number == number:
                continue
            plan = self._plans.get((study.study_name, other.number), {})
            params = {**self.frozen, **plan, **fixed_params(other)}
            if all(name in params for name in self.names):
                rows.append([params[name] for name in self.names])
            elif other.state == TrialState.RUNNING and other.number < number:
                num_silent += int((ended > other.number).sum() < LOST)
        return np.array(rows, dtype=float).reshape(-1, len(self.names)), num_silent

    def _taken(self, trials: Sequence[FrozenTrial], number: int, row: Mapping[str, float]) -> bool:
        others = ({**self.frozen, **other.params} for other in trials if other.number != number)
        return any(
            all(abs(params.get(name, np.inf) - value) <= CLOSE for name, value in row.items())
            for params in others
        )

    def _proposer(self, directions: Sequence[StudyDirection], ranges: Ranges) -> SimplexGP:
        widest = max([1.0, *(high for _, high in ranges.values())])
        scale = self.scale or (1.0, 1.0)
        if self.scale is None and widest > 1.0:
            scale = (DEFAULT_LOWEST_SCALE, float(widest))
        bounds = self._bounds(ranges, widest, scale[1])
        key = (tuple(directions), scale, tuple(bounds.items()))
        if key not in self._proposers:
            try:
                self._proposers[key] = self._made(
                    len(directions),
                    scale,
                    bounds,
                    floors_of(self.floors, directions),
                    self.exact_columns(directions),
                )
            except ValueError as error:
                raise ValueError(f"the sampler does not fit the study: {error}") from None
        return self._proposers[key]

    def _bounds(self, ranges: Ranges, widest: float, most: float) -> Ranges:
        """The range of each member's weight, no wider than a sum of `most` allows."""
        if not ranges:
            return self.bounds
        found = {
            name: self.bounds.get(name, ranges.get(name, (0.0, widest)))
            for name in self.members
            if name not in self.frozen
        }
        below_searched = sum(min(low, 0.0) for low, _ in found.values())
        below = below_searched + sum(min(weight, 0.0) for weight in self.frozen.values())
        bounds = {}
        for name, (low, high) in found.items():
            reachable = max(low, most - below + min(low, 0.0))
            bounds[name] = (low, high if name in self.bounds else min(high, reachable))
        return bounds

    def _made(
        self,
        num_objectives: int,
        scale: tuple[float, float],
        bounds: Ranges,
        floors: Floats | None = None,
        exact: Exact | None = None,
    ) -> SimplexGP:
        return SimplexGP(
            self.members,
            num_objectives,
            seed=self.seed,
            scale=scale,
            bounds=bounds,
            frozen=self.frozen,
            max_nonzero=self.max_nonzero,
            gram=self.gram,
            floors=floors,
            knobs=tuple(self.knobs.values()),
            exact=exact,
        )

    def exact_columns(self, directions: Sequence[StudyDirection]) -> Exact:
        """`exact` to be made large, as `SimplexGP` takes it.

        Raises ValueError where it does not fit a study of these directions.
        """
        known, columns = set(self.exact), range(len(directions))
        if not known <= set(columns):
            raise ValueError(
                f"exact tells objective {min(known - set(columns))}, and the study has "
                f"objectives 0 to {len(directions) - 1}"
            )
        if known == set(columns):
            raise ValueError(
                "exact tells every objective of the study, so there is nothing to learn from its "
                "trials"
            )
        sign = signs(directions)
        return {column: _signed(self.exact[column], sign[column]) for column in sorted(known)}


def _signed(value: Callable[[Floats], Floats], sign: float) -> Callable[[Floats], Floats]:
    return lambda points: sign * np.asarray(value(points), dtype=float)
