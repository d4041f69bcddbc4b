"""Refuse to go on with a run whose job, pool or suites have changed since it began."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from recycler.errors import Problem, UsageError
from recycler.ledger import Ledger
from recycler.ledger.facts import JobFacts, NamedPlace
from recycler.ledger.runs import open_ledger
from recycler.pool.catalog import open_checkpoint
from recycler.run.prepare import PreparedJob, object_versions
from recycler.scoring.frozen import read_frozen, refuse_change, write_frozen
from recycler.types import Checkpoint, Pool


def open_pool_of(run: str | Path) -> Pool:
    """The pool of a run, opened again with its headers.

    Raises UsageError when a member has gone or is another version.
    """
    with closing(open_ledger(run)) as ledger:
        named, before = ledger.facts.started_job.pool, ledger.facts.digests or {}
    members = tuple(open_checkpoint(member.location, member.name) for member in named.members)
    pool = Pool(
        members=members,
        base=open_checkpoint(named.base.location, named.base.name) if named.base else None,
    )
    _refuse_changes(
        {name: version for name, version in before.items() if name.startswith("object ")},
        object_versions(pool),
    )
    return pool


def _check_same_job(ledger: Ledger, prepared: PreparedJob) -> None:
    """Write the facts of a new run; refuse to go on with a run whose job, pool or suites have
    changed since.
    """
    stored, now = ledger.facts.digests, prepared.facts
    if stored is None:
        ledger.facts.job = _job_facts(prepared)
        ledger.facts.digests = now
        return
    _refuse_changes(stored, now)


def _job_facts(prepared: PreparedJob) -> JobFacts:
    job, pool = prepared.job, prepared.pool
    return JobFacts(
        name=job.name,
        dtype=job.engine.dtype,
        trials=job.budget.trials,
        objectives=prepared.objectives,
        members=tuple(_named_place(member) for member in pool.members),
        base=_named_place(pool.base) if pool.base else None,
    )


def _named_place(checkpoint: Checkpoint) -> NamedPlace:
    """A checkpoint by name and by a location that holds from any folder."""
    location = checkpoint.location
    if "://" not in location:
        location = str(Path(location).resolve())
    return checkpoint.name, location


def _refuse_changes(before: dict[str, str], now: dict[str, str]) -> None:
    changed = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
    )
    if changed:
        raise UsageError(
            [
                Problem(
                    thing=name,
                    cause="has changed since this run began",
                    remedy="Put it back, or start a new run with another --dir: scores of different "
                    "items cannot be compared",
                )
                for name in changed
            ]
        )


def _freeze_suites(folder: Path, prepared: PreparedJob) -> None:
    """Keep the items that are asked; refuse to go on with other ones, and say which item differs
    and how.
    """
    for suite in prepared.suites:
        path = folder / f"{suite.name}.jsonl"
        if path.exists():
            refuse_change(read_frozen(path), suite)
        else:
            write_frozen(suite, path)
