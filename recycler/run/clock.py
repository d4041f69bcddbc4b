"""Wall time and tokens over all sittings of a job, against its budget."""

from __future__ import annotations

import time

from recycler.ledger import Ledger
from recycler.run.loop import Event, Listener
from recycler.run.prepare import PreparedJob


class _Clock:
    """Wall time and tokens over all sittings of a job, against its budget."""

    def __init__(self, ledger: Ledger, prepared: PreparedJob):
        self._ledger, self._budget = ledger, prepared.job.budget
        self._before, self._start = ledger.facts.elapsed_seconds, time.monotonic()

    def within_budget(self) -> bool:
        elapsed = self._before + time.monotonic() - self._start
        if self._budget.wall_seconds is not None and elapsed >= self._budget.wall_seconds:
            return False
        return self._budget.tokens is None or self._ledger.spent()[0] < self._budget.tokens

    def stamp(self, listen: Listener) -> Listener:
        def stamped(event: Event) -> None:
            if event.what != "opened":
                self._ledger.facts.elapsed_seconds = self._before + time.monotonic() - self._start
            listen(event)

        return stamped
