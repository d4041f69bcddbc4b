"""The order of trials: baselines, the greedy soup, then proposals until the budget is spent."""

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
from recycler.types import (
    Objective,
    OptionValue,
    Pool,
    Proposal,
    Recipe,
    Score,
    Trial,
    scored_members,
    scored_trials,
)


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
        """The next trial to open with its raw parameters.

        None when there is none, or none until a pending one ends.
        """
        planned = self._baseline([trial for trial in trials if not trial.is_proposed])
        if planned is not None:
            return planned, ()
        if not may_propose or not self._has_budget(trials) or self._waits_for_members(trials):
            return None
        comparable = self.comparable(trials)
        if self._is_stopped(comparable):
            return None
        proposal = self._proposal(len(trials), comparable)
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
        """True when the space holds nothing new although the budget of trials is not spent."""
        comparable = self.comparable(trials)
        if not self._has_budget(trials) or self._is_stopped(comparable):
            return False
        return self._proposal(len(trials), comparable) is None

    def _has_budget(self, trials: Sequence[Trial]) -> bool:
        """True when a merge may be proposed: some are left, and one trial at least was scored."""
        proposed = sum(trial.is_proposed for trial in trials)
        return proposed < self.num_merges and bool(scored_trials(trials))

    def _waits_for_members(self, trials: Sequence[Trial]) -> bool:
        members = [trial for trial in trials if trial.kind == "member"]
        return self.needs_members and any(trial.state == "PENDING" for trial in members)

    def _is_stopped(self, comparable: Sequence[Trial]) -> bool:
        return any(stop.reached(comparable) for stop in self.stops)

    def _proposal(self, number: int, comparable: Sequence[Trial]) -> Proposal | None:
        """The proposer's next merge; None when nothing is left."""
        num_points = self.space.num_points
        if num_points is not None and self._num_tried(comparable) >= num_points:
            return None  # samplers that draw would draw the same ones for ever
        try:
            return self.proposer.ask(number, comparable)
        except Exhausted:
            return None

    def _num_tried(self, comparable: Sequence[Trial]) -> int:
        """Number of merges of a space of countably many that were opened."""
        allowed, groups = set(self.space.rows() or ()), len(self.space.groups)
        options = _typed(self.method, [(name, low) for name, (low, _) in self.space.options])
        tried = set()
        for recipe in (trial.recipe for trial in comparable):
            rows = recipe.weights
            is_own = recipe.members == self.space.members and recipe.options == options
            if is_own and len(rows) in (1, groups) and allowed.issuperset(rows):
                tried.add(rows if len(rows) == groups else rows * groups)
        return len(tried)

    def comparable(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that the proposer and the stops see."""
        observed = self._with_failures_scored(trials)
        # a soup says nothing about ties
        return [trial for trial in observed if trial.recipe.method == self.method]

    def _with_failures_scored(self, trials: Sequence[Trial]) -> list[Trial]:
        """Trials as a sampler sees them: a failed merge is as bad as the worst.

        Without a score it would be asked for again.
        """
        scored = scored_trials(trials)
        if not scored or not any(map(_is_recipe_failure, trials)):
            return list(trials)
        scores = [score for trial in scored for score in trial.search]
        worst = [_worst(objective, scores) for objective in self.objectives]
        search = tuple(sorted(worst, key=lambda score: score.objective))
        return [
            replace(trial, state="SCORED", search=search) if _is_recipe_failure(trial) else trial
            for trial in trials
        ]

    def _baseline(self, trials: Sequence[Trial]) -> Planned | None:
        known = {(trial.kind, trial.recipe) for trial in trials}
        for planned in baselines.fixed_baselines(self.pool, self.dtype):
            if (planned.kind, planned.recipe) not in known:
                return planned
        first = [trial for trial in trials if trial.kind in ("member", "base", "uniform_soup")]
        if any(trial.state == "PENDING" for trial in first) or not scored_members(first):
            return None
        if not any(trial.label == baselines.MERGE_BEST for trial in trials):
            return baselines.merge_best(self.pool, self.dtype, trials, self.objectives)
        step = baselines.greedy_soup(self.pool, self.dtype, trials, self.objectives)
        return step if isinstance(step, Planned) else None


def _is_recipe_failure(trial: Trial) -> bool:
    return trial.failure is not None and trial.failure.blame == "recipe"


def _worst(objective: Objective, scores: Sequence[Score]) -> Score:
    """The first of the worst scores of one objective."""
    own = [score for score in scores if score.objective == objective.name]
    worst = min if objective.direction == "maximize" else max
    return worst(own, key=lambda score: score.value)


def _typed(
    method: str, options: Sequence[tuple[str, OptionValue]]
) -> tuple[tuple[str, OptionValue], ...]:
    """Options in the type of their defaults: samplers return floats, a number of layers is int."""
    defaults, typed = MERGE_METHODS[method].options, []
    for name, value in options:
        is_integer = type(defaults[name.partition("@")[0]]) is int
        if is_integer and not isinstance(value, str | tuple):
            value = round(value)
        typed.append((name, value))
    return tuple(typed)
