"""The default sampler in the job's terms: trials in, a proposal out.

Scores are smoothed over all trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from recycler.objectives import costs
from recycler.objectives.costs import Costs
from recycler.objectives.pareto import Floats
from recycler.search.baselines import maximized
from recycler.search.floors import floors
from recycler.search.simplex.simplex_gp import SimplexGP
from recycler.search.simplex.surrogate import Observations
from recycler.specs.space import SearchSpace
from recycler.types import Objective, Proposal, Smoothed, Trial

Gram = Sequence[Sequence[float]]
MIN_TRIALS = 8  # with fewer the model knows no more than the scores themselves


class SimplexProposer:
    """SimplexGP over a resolved space.

    Members, soups and every other linear trial of the pool are observations. `gram` (K, K) holds
    the inner products of the members' deltas (`recycler.pool.geometry.gram.delta_gram`): with it
    distances are measured between merges, else between weights. `known_costs` has the costs among
    the objectives; without it only costs that need no measuring are known. Raises ValueError for
    others.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        seed: int,
        gram: Gram | None = None,
        known_costs: Costs | None = None,
    ):
        self._space, self._objectives = space, tuple(objectives)
        self._priced = known_costs or Costs(costs.costs(objectives))
        self.gp = SimplexGP(
            space.members,
            len(self._objectives),
            seed=seed,
            scale=space.total,
            bounds=dict(zip(space.members, zip(space.low, space.high, strict=True), strict=True)),
            frozen=dict(space.frozen),
            max_nonzero=space.max_nonzero,
            gram=gram,
            groups=len(space.groups),
            knobs=[limits for _, limits in space.knobs],
            exact={
                column: self._exact(objective)
                for column, objective in enumerate(self._objectives)
                if objective.is_cost
            },
        )

    def ask(self, number: int, trials: Sequence[Trial]) -> Proposal:
        known = self._in_space(trials)
        pending = [self._point(trial) for trial in known if trial.state == "PENDING"]
        scored = [trial for trial in known if trial.state == "SCORED"]
        self.gp.floors = floors(self._objectives, trials)
        point = self.gp.ask(
            self.observations(scored) if scored else None,
            np.array(pending) if pending else (),
            number,
        )
        rows = point[: len(self._space.groups) * len(self._space.members)].reshape(
            len(self._space.groups), -1
        )
        knobs = dict(zip((name for name, _ in self._space.knobs), point[rows.size :], strict=True))
        return Proposal(
            number=number,
            weights=tuple(self._space.project(row, float(row.sum())) for row in rows),
            options=tuple(
                (name, float(knobs.get(name, low))) for name, (low, _) in self._space.options
            ),
        )

    def smoothed(self, trials: Sequence[Trial]) -> Smoothed:
        """Posterior scores by trial number, from all trials together.

        Value and standard error of the score that a trial would have on average over fresh items
        like these. Empty while there are fewer than MIN_TRIALS. Where all trials answer the same
        items, their common luck does not average out; it is in the standard error.
        """
        scored = [trial for trial in self._in_space(trials) if trial.state == "SCORED"]
        if len(scored) < MIN_TRIALS:
            return Smoothed()
        front = self.gp.front(self.observations(scored))
        signs = [objective.sign for objective in self._objectives]
        scores = {}
        for index, trial in enumerate(scored):
            told = {score.objective: score for score in trial.search}
            guessed = zip(
                (told[objective.name] for objective in self._objectives),
                signs,
                front.mean[index],
                front.total_sd[index],
                strict=True,
            )
            scores[trial.number] = tuple(
                score
                if score.is_exact
                else replace(score, value=float(sign * mean), stderr=float(sd))
                for score, sign, mean, sd in guessed
            )
        return Smoothed(
            scores=scores,
            uninformative=tuple(
                objective.name
                for objective, dead in zip(self._objectives, front.dead, strict=True)
                if dead
            ),
        )

    def training_data(self, trials: Sequence[Trial]) -> tuple[tuple[Trial, ...], Observations]:
        """The scored trials that the model learns from, and its observations of them.

        Raises ValueError when there is none.
        """
        scored = [trial for trial in self._in_space(trials) if trial.state == "SCORED"]
        if not scored:
            raise ValueError("no scored trial belongs to this space")
        return tuple(scored), self.observations(scored)

    def observations(self, scored: Sequence[Trial]) -> Observations:
        stderrs = [
            [
                next(score.stderr for score in trial.search if score.objective == objective.name)
                for objective in self._objectives
            ]
            for trial in scored
        ]
        return Observations(
            np.array([self._point(trial) for trial in scored]),
            maximized(scored, self._objectives),
            np.array(stderrs),
        )

    def cost_reference(self, trials: Sequence[Trial]) -> Floats:
        """Reference point (T,) of the costs, NaN for objectives that are scored.

        See `recycler.objectives.costs.cost_reference`.
        """
        members = [trial for trial in trials if trial.kind == "member" and trial.state == "SCORED"]
        return costs.cost_reference(
            self._objectives,
            members or [trial for trial in trials if trial.state == "SCORED"],
            np.full(len(self._objectives), np.nan),
        )

    def _exact(self, objective: Objective) -> Callable[[Floats], Floats]:
        """Make the cost function of points (n, D), maximised; a bound clamps it."""
        cost_function = self._priced.cost_function(objective, self._space.groups)
        return lambda points: (
            objective.sign
            * costs.clamp_to_bound(objective, cost_function(self.gp.domain.split(points)[0]))
        )

    def _in_space(self, trials: Sequence[Trial]) -> list[Trial]:
        return [
            trial
            for trial in trials
            if trial.recipe.members == self._space.members
            and len(trial.recipe.weights) in (1, len(self._space.groups))
        ]

    def _point(self, trial: Trial) -> np.ndarray:
        rows = (
            trial.recipe.weights
            if len(trial.recipe.weights) == len(self._space.groups)
            else trial.recipe.weights * len(self._space.groups)
        )
        knobs = [
            float(trial.recipe.option(name, (low + high) / 2))
            for name, (low, high) in self._space.knobs
        ]
        return np.concatenate([np.array(rows, dtype=float).ravel(), knobs])
