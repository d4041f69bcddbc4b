"""Refuse to go on with a run whose job, pool or suites have changed since it began."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from recycler.errors import Problem, UsageError
from recycler.ledger import Ledger
from recycler.ledger.runs import open_ledger, read_facts
from recycler.pool.catalog import open_checkpoint
from recycler.run.prepare import PreparedJob, object_versions
from recycler.scoring.frozen import read_frozen, refuse_change, write_frozen
from recycler.types import Pool


def open_pool_of(run: str | Path) -> Pool:
    """The pool of a run, opened again with its headers.

    Raises UsageError when a member has gone or is another version.
    """
    with closing(open_ledger(run)) as ledger:
        _, named, _ = read_facts(ledger)
        before = json.loads(ledger.fact("digests") or "{}")
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
    stored, now = ledger.fact("digests"), prepared.facts
    if stored is None:
        base = prepared.pool.base
        ledger.set_fact(
            "job",
            json.dumps(
                {
                    "name": prepared.job.name,
                    "dtype": prepared.job.engine.dtype,
                    "trials": prepared.job.budget.trials,
                    "objectives": [
                        {
                            "suite": o.suite,
                            "task": o.task,
                            "metric": o.metric,
                            "direction": o.direction,
                            "floor": o.floor,
                            **({"bound_only": True} if o.bound_only else {}),
                        }
                        for o in prepared.objectives
                    ],
                    "members": [
                        [
                            member.name,
                            str(Path(member.location).resolve())
                            if "://" not in member.location
                            else member.location,
                        ]
                        for member in prepared.pool.members
                    ],
                    "base": [
                        base.name,
                        str(Path(base.location).resolve())
                        if "://" not in base.location
                        else base.location,
                    ]
                    if base
                    else None,
                }
            ),
        )
        ledger.set_fact("digests", json.dumps(now))
        return
    _refuse_changes(json.loads(stored), now)


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
