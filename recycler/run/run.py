"""One run: a prepared job, and the ledger that it is written to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from recycler.io.strict_yaml import YamlDocument
from recycler.ledger import Ledger
from recycler.ledger.facts import Facts
from recycler.run.prepared import PreparedJob
from recycler.specs.job import JobSpec
from recycler.specs.space import SearchSpace
from recycler.types import Item, Objective, Pool, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that a driver hands around: the job as prepared, its ledger, its folder."""

    prepared: PreparedJob
    ledger: Ledger
    folder: Path

    @property
    def job(self) -> JobSpec:
        return self.prepared.job

    @property
    def document(self) -> YamlDocument:
        return self.prepared.document

    @property
    def pool(self) -> Pool:
        return self.prepared.pool

    @property
    def space(self) -> SearchSpace:
        return self.prepared.space

    @property
    def items(self) -> tuple[Item, ...]:
        return self.prepared.items

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return self.prepared.objectives

    @property
    def benchmarks(self) -> tuple[Objective, ...]:
        """The objectives that have items: all but the costs."""
        return self.prepared.benchmarks

    @property
    def facts(self) -> Facts:
        """Facts that the ledger keeps besides trials."""
        return self.ledger.facts

    @property
    def is_finished(self) -> bool:
        """True when it was finished with this budget, and no trial was opened since."""
        has_pending = self.ledger.counts()["PENDING"] > 0
        return self.facts.finished == self.job.budget.trials and not has_pending

    def trials(self) -> tuple[Trial, ...]:
        """All trials by number, as the ledger has them now."""
        return self.ledger.trials()

    def warned(self, *warnings: str) -> Run:
        """This run with further warnings for the user; empty ones are left out."""
        more = tuple(warning for warning in warnings if warning)
        prepared = replace(self.prepared, warnings=(*self.prepared.warnings, *more))
        return replace(self, prepared=prepared)
