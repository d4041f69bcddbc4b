"""What a person should hear once while a run goes on: benchmarks that do not trade off, and benchmarks that tell merges apart by
luck alone. Said when it is found out, kept in the ledger for `recycler status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recycler.ledger import Ledger
from recycler.ledger.runs import noise_said
from recycler.search.simplex.proposer import SimplexProposer
from recycler.types import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Notices:
    """Notices of one run; `proposer` is the model that its front is picked by.

    What was said in an earlier sitting is not said again.
    """

    ledger: Ledger
    proposer: SimplexProposer

    def of_members(self, preview: Mapping[str, Any] | None) -> tuple[str, ...]:
        """Which benchmarks do not trade off over the members, once there is a preview of them."""
        kept = self.ledger.facts.notices
        if preview is None or "tradeoffs" in kept:
            return ()
        said = [pair["said"] for pair in preview["tradeoffs"] if pair.get("together")]
        self.ledger.facts.notices = {**kept, "tradeoffs": said}
        return tuple(said)

    def of_noise(self, trials: Sequence[Trial]) -> tuple[str, ...]:
        """Which objectives lost their say in the front, or have it again, by what these trials
        tell.
        """
        kept, dead = self.ledger.facts.notices, list(self.proposer.smoothed(trials).dead)
        before = kept.get("dead", [])
        if dead == before:
            return ()
        self.ledger.facts.notices = {**kept, "dead": dead}
        return (
            *(noise_said(name) for name in dead if name not in before),
            *(
                f"{name} moves with the weights after all: it has its say in the front again"
                for name in before
                if name not in dead
            ),
        )
