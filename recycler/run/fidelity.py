"""Fidelity of a trial: the search items that it is scored on, and estimates over all of them.

Merges that a sampler proposes may be scored on a random part of the items, drawn for each trial
from its own seed, so that no item's luck is shared by all. Members, base and soups are scored in
full, since their outcomes are the control variates of all estimates. Finalists are completed: they
are asked the items that they lack, and none again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from recycler.digest import derive_seed
from recycler.engines.watch import GATE_TOKENS, repeats_itself
from recycler.ledger import Ledger
from recycler.scoring.outcomes import aggregate
from recycler.scoring.scorers import items_of
from recycler.scoring.subsets import draw, estimate
from recycler.types import Item, Objective, Outcome, Score, Scorecard, Trial, scored_members


@dataclass(slots=True, kw_only=True)
class Fidelity:
    """The rules by which trials of a job are asked items.

    Costs do not depend on the items that are asked, and stay in the scorecards as they are.
    """

    items: tuple[Item, ...]  # search items
    objectives: tuple[Objective, ...]  # those that are figures of items
    items_per_task: int | None  # asked of a proposed merge; None for all
    seed: int
    # proposed merges may be scored without merging, several at once; finalists are then merged and
    # asked everything
    unmerged: bool = False
    _num_degenerate: int | None = None  # members with degenerate output, once all are scored

    def drawn(self, trial: Trial) -> tuple[str, ...] | None:
        """Ids of the items to ask a trial; None for all of them."""
        if self.items_per_task is None or not trial.is_proposed:
            return None
        seed = derive_seed(self.seed, "items", trial.number)
        chosen = draw(self.items, seed, least=self.items_per_task)
        if len(chosen) == len(self.items):
            return None
        return tuple(item.id for item in chosen)

    def is_gated(self, trial: Trial, ledger: Ledger, trials: Mapping[int, Trial]) -> bool:
        """True when a trial may be given up for degenerate output.

        It may when it is a proposed merge, and no member's output is degenerate.
        """
        members = [other for other in trials.values() if other.kind == "member"]
        if not trial.is_proposed or any(member.state == "PENDING" for member in members):
            return False
        if self._num_degenerate is None:
            self._num_degenerate = sum(
                self._is_degenerate(ledger.outcomes(member.number, "search"))
                for member in scored_members(members)
            )
        return self._num_degenerate == 0

    def _is_degenerate(self, outcomes: Sequence[Outcome]) -> bool:
        """True when most long answers of a model repeat themselves.

        Then that is how this pool answers, and says nothing of a merge.
        """
        long = {item.id for item in self.items if item.max_new_tokens >= 2 * GATE_TOKENS}
        texts = [outcome.output for outcome in outcomes if outcome.item in long]
        return sum(map(repeats_itself, texts)) > len(texts) / 2

    def is_whole(self, trial: Trial) -> bool:
        """True when a trial's merged weights were scored on every item of each objective."""
        if trial.is_unmerged:
            return False
        if self.items_per_task is None:
            return True
        asked = {score.objective: score.n for score in trial.search}
        return all(
            asked[objective.name] >= self._num_items(objective) for objective in self.objectives
        )

    def missing(self, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
        """Ids of the items that have no outcome yet."""
        asked = {outcome.item for outcome in outcomes}
        return tuple(item.id for item in self.items if item.id not in asked)

    def estimated(
        self, scorecard: Scorecard, ledger: Ledger, trials: Mapping[int, Trial]
    ) -> Scorecard:
        """A scorecard of some items with estimates over all, the members' outcomes as controls."""
        members = [
            ledger.outcomes(member.number, "search") for member in scored_members(trials.values())
        ]
        scores = []
        for objective in self.objectives:
            controls = [_values(outcomes, objective.metric) for outcomes in members]
            items = items_of(objective, self.items)
            found = estimate(items, scorecard.outcomes, objective, controls)
            scores.append(found.at_large)
        return replace(scorecard, scores=(*scores, *self._costs(scorecard)))

    def joined(self, before: Sequence[Outcome], scorecard: Scorecard) -> Scorecard:
        """One scorecard of all items, from earlier outcomes and those just asked.

        Its costs are those of the new scorecard.
        """
        known = {outcome.item: outcome for outcome in (*before, *scorecard.outcomes)}
        outcomes = tuple(known[item.id] for item in self.items)
        scores = aggregate(self.items, outcomes, self.objectives)
        return replace(scorecard, outcomes=outcomes, scores=(*scores, *self._costs(scorecard)))

    def _costs(self, scorecard: Scorecard) -> list[Score]:
        own = {objective.name for objective in self.objectives}
        return [score for score in scorecard.scores if score.objective not in own]

    def _num_items(self, objective: Objective) -> int:
        return len(items_of(objective, self.items))


def _values(outcomes: Sequence[Outcome], metric: str) -> dict[str, float]:
    """Values of one metric by item."""
    found = {}
    for outcome in outcomes:
        for name, value in outcome.values:
            if name == metric:
                found[outcome.item] = value
    return found
