"""Wall time and tokens over all sessions of a run, against its budget."""

from __future__ import annotations

import time

from recycler.run.loop import Event
from recycler.run.run import Run

UNSTAMPED = ("opened", "noted")  # events that take no time worth writing down


class Clock:
    """Wall time and tokens over all sessions of a run; it starts with its construction."""

    def __init__(self, run: Run):
        self._run = run
        self._before, self._start = run.facts.elapsed_seconds, time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        """Wall time of all sessions so far."""
        return self._before + time.monotonic() - self._start

    def within_budget(self) -> bool:
        """True while the job's seconds and tokens last; without limits always."""
        budget = self._run.job.budget
        if budget.wall_seconds is not None and self.elapsed_seconds >= budget.wall_seconds:
            return False
        return budget.tokens is None or self._run.ledger.spent()[0] < budget.tokens

    def stamp(self, event: Event) -> Event:
        """Write the time down, as a listener that comes before all others."""
        if event.what not in UNSTAMPED:
            self._run.facts.elapsed_seconds = self.elapsed_seconds
        return event
