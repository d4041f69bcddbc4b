"""The default sampler in the job's terms: trials in, a proposal out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recycler.search.baselines import maximized
from recycler.search.simplex_gp import Observations, PosteriorFront, SimplexGP
from recycler.space import SearchSpace
from recycler.types import Objective, Proposal, Trial


class SimplexProposer:
    """Simplex GP over a resolved space; members, soups and every other linear trial of the pool count as observations."""

    def __init__(self, space: SearchSpace, objectives: Sequence[Objective], *, seed: int):
        self._space, self._objectives = space, tuple(objectives)
        self._gp = SimplexGP(
            space.members, len(self._objectives), seed=seed, scale=space.total, bounds={name: limits for name, *limits in zip(space.members, space.low, space.high, strict=True)},
            frozen=dict(space.frozen), max_nonzero=space.max_nonzero, groups=len(space.groups), knobs=[limits for _, limits in space.options])

    def ask(self, number: int, trials: Sequence[Trial]) -> Proposal:
        known = [trial for trial in trials if len(trial.recipe.weights) in (1, len(self._space.groups))]
        pending = [self._point(trial) for trial in known if trial.state == "PENDING"]
        point = self._gp.ask(self.observations(known), np.array(pending) if pending else (), number)
        rows = point[: len(self._space.groups) * len(self._space.members)].reshape(len(self._space.groups), -1)
        knobs = point[rows.size:]
        return Proposal(number=number, weights=tuple(self._space.project(row, float(row.sum())) for row in rows),
                        options=tuple((name, float(knob)) for (name, _), knob in zip(self._space.options, knobs, strict=True)))

    def front(self, trials: Sequence[Trial]) -> PosteriorFront:
        """The trials to ship by posterior mean; indices point into `trials`, all of which must be scored."""
        return self._gp.front(self.observations(trials))

    def observations(self, trials: Sequence[Trial]) -> Observations | None:
        scored = [trial for trial in trials if trial.state == "SCORED"]
        if not scored:
            return None
        stderrs = [[next(score.stderr for score in trial.search if score.objective == objective.name) for objective in self._objectives] for trial in scored]
        return Observations(np.array([self._point(trial) for trial in scored]), maximized(scored, self._objectives), np.array(stderrs))

    def _point(self, trial: Trial) -> np.ndarray:
        rows = trial.recipe.weights if len(trial.recipe.weights) == len(self._space.groups) else trial.recipe.weights * len(self._space.groups)
        knobs = [float(trial.recipe.option(name, (low + high) / 2)) for name, (low, high) in self._space.options]
        return np.concatenate([np.array(rows, dtype=float).ravel(), knobs])
