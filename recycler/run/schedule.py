"""What to score next: baselines, then the greedy soup, then what the proposer asks for, until the
budget is spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from recycler.merge.methods.registry import MERGE_METHODS
from recycler.search import baselines
from recycler.search.baselines import Planned
from recycler.search.proposer import Proposer
from recycler.search.simplex.domain import Exhausted
from recycler.specs.space import SearchSpace
from recycler.types import Objective, OptionValue, Pool, Proposal, Recipe, Trial


class Stop(Protocol):
    """A reason to propose no more, from the trials alone."""

    def reached(self, trials: Sequence[Trial]) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Decides from the trials alone, so that a restarted driver decides the same."""

    pool: Pool
    method: str
    dtype: str
    space: SearchSpace
    objectives: tuple[Objective, ...]
    proposer: Proposer
    num_merges: int
    seed: int
    stops: tuple[Stop, ...] = ()
    needs_members: bool = False
    """Nothing is proposed before every member has been scored: their outcomes are the controls of
    what is scored in part.
    """

    def next(
        self, trials: Sequence[Trial], *, may_propose: bool
    ) -> tuple[Planned, tuple[tuple[str, float], ...]] | None:
        """The next trial to open with its raw parameters; None when there is none, or none until a
        pending one ends.
        """
        planned = self._baseline(
            [trial for trial in trials if trial.kind != "merge" or trial.label]
        )
        if planned is not None:
            return planned, ()
        if self.needs_members and any(
            trial.kind == "member" and trial.state == "PENDING" for trial in trials
        ):
            return None
        proposed = sum(trial.is_proposed for trial in trials)
        if (
            not may_propose
            or proposed >= self.num_merges
            or not any(trial.state == "SCORED" for trial in trials)
        ):
            return None
        comparable = self.comparable(trials)
        proposal = (
            None
            if any(stop.reached(comparable) for stop in self.stops)
            else self._proposal(len(trials), comparable)
        )
        if proposal is None:
            return None
        recipe = Recipe(
            method=self.method,
            members=self.pool.names,
            groups=self.space.groups,
            weights=proposal.weights,
            options=_typed(self.method, proposal.options),
            base=self.pool.base.name if self.pool.base else None,
            dtype=self.dtype,
            seed=self.seed,
        )
        return Planned(kind="merge", label="", recipe=recipe), proposal.params

    def exhausted(self, trials: Sequence[Trial]) -> bool:
        """Whether nothing that the space allows is left to try while the budget of trials is not
        spent.
        """
        comparable = self.comparable(trials)
        if sum(trial.is_proposed for trial in trials) >= self.num_merges or not any(
            trial.state == "SCORED" for trial in trials
        ):
            return False
        return (
            not any(stop.reached(comparable) for stop in self.stops)
            and self._proposal(len(trials), comparable) is None
        )

    def _proposal(self, number: int, comparable: Sequence[Trial]) -> Proposal | None:
        """What the proposer asks for; None when nothing is left."""
        num_points = self.space.num_points
        if num_points is not None and self._num_tried(comparable) >= num_points:
            return None  # samplers that draw would draw the same ones for ever
        try:
            return self.proposer.ask(number, comparable)
        except Exhausted:
            return None

    def _num_tried(self, comparable: Sequence[Trial]) -> int:
        """How many merges of a space of countably many were opened."""
        allowed, groups = set(self.space.rows() or ()), len(self.space.groups)
        options = _typed(self.method, [(name, low) for name, (low, _) in self.space.options])
        own = [
            trial.recipe.weights
            for trial in comparable
            if trial.recipe.members == self.space.members and trial.recipe.options == options
        ]
        return len(
            {
                rows if len(rows) == groups else rows * groups
                for rows in own
                if len(rows) in (1, groups) and allowed.issuperset(rows)
            }
        )

    def comparable(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that the proposer and the stops see."""
        return [
            trial for trial in self._told(trials) if trial.recipe.method == self.method
        ]  # a soup says nothing about ties

    def _told(self, trials: Sequence[Trial]) -> list[Trial]:
        """Trials as a sampler sees them: a merge that gave nothing worth scoring is as bad as the
        worst, or it would be asked for again.
        """
        scored = [trial for trial in trials if trial.state == "SCORED"]
        if (
            not any(trial.failure and trial.failure.blame == "recipe" for trial in trials)
            or not scored
        ):
            return list(trials)
        worst = []
        for objective in self.objectives:
            scores = [
                score
                for trial in scored
                for score in trial.search
                if score.objective == objective.name
            ]
            worst.append(
                (min if objective.direction == "maximize" else max)(
                    scores, key=lambda score: score.value
                )
            )
        return [
            replace(
                trial,
                state="SCORED",
                search=tuple(sorted(worst, key=lambda score: score.objective)),
            )
            if trial.failure and trial.failure.blame == "recipe"
            else trial
            for trial in trials
        ]

    def _baseline(self, trials: Sequence[Trial]) -> Planned | None:
        known = {(trial.kind, trial.recipe) for trial in trials}
        fixed = baselines.fixed_baselines(self.pool, self.dtype)
        for planned in fixed:
            if (planned.kind, planned.recipe) not in known:
                return planned
        first = [trial for trial in trials if trial.kind in ("member", "base", "uniform_soup")]
        if any(trial.state == "PENDING" for trial in first) or not any(
            trial.kind == "member" and trial.state == "SCORED" for trial in first
        ):
            return None
        if not any(trial.label == baselines.MERGE_BEST for trial in trials):
            return baselines.merge_best(self.pool, self.dtype, trials, self.objectives)
        step = baselines.greedy_soup(self.pool, self.dtype, trials, self.objectives)
        return step if isinstance(step, Planned) else None


def _typed(
    method: str, options: Sequence[tuple[str, OptionValue]]
) -> tuple[tuple[str, OptionValue], ...]:
    """Options in the type of their defaults: samplers give floats, a number of layers is an
    integer.
    """
    defaults = MERGE_METHODS[method].options
    return tuple(
        (name, round(value) if type(defaults[name.partition("@")[0]]) is int else value)
        for name, value in options
    )
