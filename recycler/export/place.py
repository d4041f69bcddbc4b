"""Refuse to export to a place where the run's own pool would find one more member.

The next `recycler inspect` or `run` of the pool would count it, and the run itself could not go on,
its pool having changed. A pool that names its members one by one finds nothing new, so beside those
an export may lie.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from recycler.errors import Problem, UsageError
from recycler.ledger.runs import open_ledger
from recycler.location import local_path
from recycler.pool.catalog import would_list
from recycler.run.started import read_started


def refuse_in_pool(run: str | Path, target: str) -> None:
    """Raise UsageError when an entry of the run's pool would list `target`.

    `target` is a folder, or a prefix of a bucket.
    """
    entry = next((entry for entry in _entries(run) if would_list(entry, target)), None)
    if entry is not None:
        raise UsageError(
            Problem(
                thing=f"export to {target}",
                cause=f"lies where this run's pool looks for its members ({entry}): it would be "
                "one more of them, and the run could not go on",
                remedy="Give a place outside of it, or name the members one by one under "
                "pool.members",
            )
        )


def _entries(run: str | Path) -> list[str]:
    """The pool's entries as the run's job names them; else the folders that its members lie in."""
    started = read_started(local_path(run))
    if started is not None:
        return [started.beside(entry) for entry in started.job.pool.members]
    with closing(open_ledger(run)) as ledger:
        pool = ledger.facts.require_job().pool
    return sorted({str(member.location).rstrip("/").rpartition("/")[0] for member in pool.members})
