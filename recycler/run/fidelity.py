"""How closely a trial is looked at: on which search items it is scored, and what those say about
all of them.

Merges that a sampler proposes may be scored on a random part of the items, drawn for each trial
from its own seed, so that no item's luck is shared by all; members, base and soups are scored in
full, since what they did is the control variate of everything else. Finalists are completed: they
are asked the items they lack, and none again.
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
from recycler.types import Item, Objective, Outcome, Score, Scorecard, Trial


@dataclass(slots=True, kw_only=True)
class Fidelity:
    """Rules of a job: its search items, the objectives that are figures of them, and how many of each task a proposed merge is
    asked (None: all). What a merge costs is the same however closely it is looked at, and stays in its scorecards."""

    items: tuple[Item, ...]
    objectives: tuple[Objective, ...]
    items_per_task: int | None
    seed: int
    # proposed merges may be scored without merging, several at once; finalists are then merged and
    # asked everything
    unmerged: bool = False
    _babblers: int | None = None  # members that babble, counted once all are scored

    def drawn(self, trial: Trial) -> tuple[str, ...] | None:
        """Ids of the items to ask a trial; None for all of them."""
        if self.items_per_task is None or not trial.is_proposed:
            return None
        chosen = draw(
            self.items, derive_seed(self.seed, "items", trial.number), least=self.items_per_task
        )
        return tuple(item.id for item in chosen) if len(chosen) < len(self.items) else None

    def is_gated(self, trial: Trial, ledger: Ledger, trials: Mapping[int, Trial]) -> bool:
        """Whether a trial may be given up when it only repeats itself: a proposed merge, of members
        none of which does so.
        """
        members = [other for other in trials.values() if other.kind == "member"]
        if not trial.is_proposed or any(member.state == "PENDING" for member in members):
            return False
        if self._babblers is None:
            self._babblers = sum(
                self._babbles(ledger.outcomes(member.number, "search"))
                for member in members
                if member.state == "SCORED"
            )
        return self._babblers == 0

    def _babbles(self, outcomes: Sequence[Outcome]) -> bool:
        """Whether most long answers of a model repeat themselves: then that is how this pool
        answers, and says nothing of a merge.
        """
        long = {item.id for item in self.items if item.max_new_tokens >= 2 * GATE_TOKENS}
        texts = [outcome.output for outcome in outcomes if outcome.item in long]
        return sum(map(repeats_itself, texts)) > len(texts) / 2

    def is_whole(self, trial: Trial) -> bool:
        """Whether a trial's merged weights were scored on every search item that its scores are
        about.
        """
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
        """A scorecard of some items with scores about all of them, the members' outcomes as
        controls.
        """
        members = [
            ledger.outcomes(trial.number, "search")
            for trial in trials.values()
            if trial.kind == "member" and trial.state == "SCORED"
        ]
        scores = []
        for objective in self.objectives:
            controls = [
                {
                    outcome.item: value
                    for outcome in outcomes
                    for metric, value in outcome.values
                    if metric == objective.metric
                }
                for outcomes in members
            ]
            scores.append(
                estimate(
                    items_of(objective, self.items), scorecard.outcomes, objective, controls
                ).at_large
            )
        return replace(scorecard, scores=(*scores, *self._others(scorecard)))

    def joined(self, before: Sequence[Outcome], scorecard: Scorecard) -> Scorecard:
        """The outcomes of earlier items and of those just asked as one scorecard of all items; its
        costs are the new ones.
        """
        known = {outcome.item: outcome for outcome in (*before, *scorecard.outcomes)}
        outcomes = tuple(known[item.id] for item in self.items)
        return replace(
            scorecard,
            outcomes=outcomes,
            scores=(*aggregate(self.items, outcomes, self.objectives), *self._others(scorecard)),
        )

    def _others(self, scorecard: Scorecard) -> list[Score]:
        own = {objective.name for objective in self.objectives}
        return [score for score in scorecard.scores if score.objective not in own]

    def _num_items(self, objective: Objective) -> int:
        return len(items_of(objective, self.items))
