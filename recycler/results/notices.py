"""Notices of a run, each told once: benchmarks that do not trade off, uninformative objectives.

They are told when they are found out, and kept in the ledger for `recycler status`.
"""

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

    A notice of an earlier session is not told again.
    """

    ledger: Ledger
    proposer: SimplexProposer

    def of_members(self, preview: Mapping[str, Any] | None) -> tuple[str, ...]:
        """Sentences on benchmarks that do not trade off over the members, from their preview."""
        kept = self.ledger.facts.notices
        if preview is None or "tradeoffs" in kept:
            return ()
        said = [pair["said"] for pair in preview["tradeoffs"] if pair.get("together")]
        self.ledger.facts.notices = {**kept, "tradeoffs": said}
        return tuple(said)

    def of_noise(self, trials: Sequence[Trial]) -> tuple[str, ...]:
        """Sentences on objectives that lost their say in the front, or have it again."""
        kept = self.ledger.facts.notices
        before = kept.get("dead", [])
        now = list(self.proposer.smoothed(trials).uninformative)
        if now == before:
            return ()
        self.ledger.facts.notices = {**kept, "dead": now}
        lost = [noise_said(name) for name in now if name not in before]
        back = [
            f"{name} moves with the weights after all: it has its say in the front again"
            for name in before
            if name not in now
        ]
        return (*lost, *back)
