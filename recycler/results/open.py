"""Open the front of a run from its ledger."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from recycler.ledger import Ledger
from recycler.ledger.runs import open_ledger
from recycler.results.front import Front, read_front


def open_front(run: str | Path) -> Front:
    """The front of a run as the ledger has it now.

    Raises NotFoundError when there is no run or nothing scored.
    """
    with closing(open_ledger(run)) as ledger:
        return front_of(ledger)


def front_of(ledger: Ledger) -> Front:
    """The front as the ledger has it now. Raises NotFoundError where nothing was scored."""
    job = ledger.facts.require_job()
    return read_front(
        ledger.trials(), job.objectives, job.pool, job.dtype, smoothed=ledger.facts.smoothed
    )
