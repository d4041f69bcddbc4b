"""Refuse to go on with a run whose job, pool or suites have changed since it began."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from recycler.errors import Problem, UsageError
from recycler.ledger.facts import JobFacts, NamedPlace
from recycler.ledger.runs import open_ledger
from recycler.pool.catalog import open_checkpoint
from recycler.run.prepared import object_versions
from recycler.run.run import Run
from recycler.scoring.frozen import read_frozen, refuse_change, write_frozen
from recycler.types import Checkpoint, Pool


def open_pool_of(run: str | Path) -> Pool:
    """The pool of a run, opened again with its headers.

    Raises UsageError when a member has gone or is another version.
    """
    with closing(open_ledger(run)) as ledger:
        named, before = ledger.facts.require_job().pool, ledger.facts.digests or {}
    members = tuple(_reopened(member) for member in named.members)
    pool = Pool(members=members, base=_reopened(named.base) if named.base else None)
    versions = {name: version for name, version in before.items() if name.startswith("object ")}
    _refuse_changes(versions, object_versions(pool))
    return pool


def check_same_job(run: Run) -> None:
    """Write the facts of a new run; compare those of one that is resumed.

    Raises UsageError when its job, pool or suites have changed.
    """
    before, now = run.facts.digests, run.prepared.digests
    if before is not None:
        _refuse_changes(before, now)
        return
    run.facts.job = _job_facts(run)
    run.facts.digests = now


def freeze_suites(run: Run) -> None:
    """Keep the items of a new run in its folder; compare those of one that is resumed.

    Raises UsageError that names the first item that differs, and how.
    """
    for suite in run.prepared.suites:
        path = run.folder / "suites" / f"{suite.name}.jsonl"
        if path.exists():
            refuse_change(read_frozen(path), suite)
        else:
            write_frozen(suite, path)


def _reopened(checkpoint: Checkpoint) -> Checkpoint:
    return open_checkpoint(checkpoint.location, checkpoint.name)


def _job_facts(run: Run) -> JobFacts:
    return JobFacts(
        name=run.job.name,
        dtype=run.job.engine.dtype,
        trials=run.job.budget.trials,
        objectives=run.objectives,
        members=tuple(_named_place(member) for member in run.pool.members),
        base=_named_place(run.pool.base) if run.pool.base else None,
    )


def _named_place(checkpoint: Checkpoint) -> NamedPlace:
    """A checkpoint by name and by a location that holds from any folder."""
    return checkpoint.name, str(checkpoint.location.resolved())


def _refuse_changes(before: dict[str, str], now: dict[str, str]) -> None:
    names = before.keys() | now.keys()
    changed = sorted(name for name in names if before.get(name) != now.get(name))
    if changed:
        raise UsageError(
            [
                Problem(
                    thing=name,
                    cause="has changed since this run began",
                    remedy="Put it back, or start a new run with another --dir: scores of "
                    "different items cannot be compared",
                )
                for name in changed
            ]
        )
