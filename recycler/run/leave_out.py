"""Leaving a member out, for certain: a job of its own over the rest of the pool, and what its front
is worth beside the run's.

Same suites, objectives, space, engine, budget and seed; the run stands under `earlier`, so all of
its trials that gave the member no weight count at no cost. The budget is spent on top of them, so
the rest of the pool is looked at no less closely than the whole was.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recycler.digest import digest
from recycler.errors import NotFoundError, Problem, UsageError, did_you_mean
from recycler.io.strict_yaml import dump_yaml
from recycler.ledger.runs import open_ledger
from recycler.results.front import Front
from recycler.run.started import Started, read_started
from recycler.types import Role

MAX_ID = 63
ROLES: tuple[Role, ...] = ("search", "holdout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A job file to be run as `id`, with all its paths in full, and the data folders to give
    besides.
    """

    id: str
    text: str
    data: tuple[Path, ...]


def job_without(run: str | Path, member: str) -> Derived:
    """The run's job without one of its members.

    Raises NotFoundError for no such member, UsageError where it cannot be left out.
    """
    with closing(open_ledger(run)) as ledger:
        names = ledger.facts.require_job().pool.names
    if member not in names:
        raise NotFoundError(
            Problem(
                thing=f"member {member[:80]!r}",
                cause="is not in this run's pool",
                remedy=did_you_mean(member, names),
            )
        )
    if len(names) < 3:
        raise UsageError(
            Problem(
                thing=f"member {member!r}",
                cause="is one of two: without it there is nothing to merge",
                remedy="Compare the front with the other member's own scores",
            )
        )
    folder, started = Path(run), read_started(Path(run))
    if started is None:
        raise UsageError(
            Problem(
                thing=f"run {run}",
                cause="has no job file here any more",
                remedy=f"Where its job file is, add `without: [{member}]` under pool: and this run "
                "under earlier:, and run that",
            )
        )
    own, derived = started.document.data, without_id(folder.resolve().name, member)
    changes = {
        "name": derived,
        "pool": _pool(started, member),
        "suites": [_in_full(started, name) for name in started.job.suites],
        "earlier": [str(folder.resolve())],
    }
    if "space" in own:
        changes["space"] = _in_full(started, started.job.space)
    return Derived(
        id=derived, text=dump_yaml({**own, **changes}), data=(*started.data, started.folder)
    )


def without_id(run_id: str, member: str) -> str:
    """The one id of that job:

    RUN-without-MEMBER where this is a plain word, else with a digest that tells it apart.
    """
    words = [re.sub(r"[^a-z0-9._-]+", "-", word.lower()) for word in (run_id, member)]
    whole = "-without-".join(words)
    if words == [run_id, member] and whole[0].isalnum() and len(whole) <= MAX_ID:
        return whole
    return f"{words[0][:25].lstrip('._-') or 'run'}-without-{words[1][:18]}-{digest([run_id, member])[:8]}"


def outcome(front: Front, other: Front) -> dict[str, Any]:
    """What the front without the member is worth beside the run's, above the run's own reference point, by role: volumes, and the
    share that is lost (negative where the rest of the pool does better alone). None while a front lacks scores of a role."""
    found: dict[str, Any] = {}
    for role in ROLES:
        volume, without = front.hypervolume(front.front, role), front.hypervolume(other.front, role)
        found[role] = (
            None
            if volume is None or without is None
            else {
                "hypervolume": volume,
                "without": without,
                "lost": 1.0 - without / volume if volume > 0 else None,
            }
        )
    return found


def outcome_text(
    member: str, found: dict[str, Any], estimate: tuple[float, float, float] | None
) -> str:
    """One line a role for people, and what the model had expected: share, low and high."""
    lines = [
        f"{role}: hypervolume {said['hypervolume']:.4g} with {member}, {said['without']:.4g} "
        "without" + ("" if said["lost"] is None else f": {said['lost']:.1%} lost")
        for role, said in found.items()
        if said
    ]
    if estimate is not None:
        lines.append(
            "the model of the run expected {:.1%} lost ({:.0%} to {:.0%})".format(*estimate)
        )
    return "\n".join(lines) + "\n"


def _pool(started: Started, member: str) -> dict[str, Any]:
    pool = started.job.pool
    base = {"base": started.beside(pool.base)} if pool.base else {}
    return {
        "members": [started.beside(entry) for entry in pool.members],
        **base,
        "duplicates": pool.duplicates,
        "without": [*pool.without, member],
    }


def _in_full(started: Started, name: str) -> str:
    """The path of a file beside the job; a name that ships with recycler stays one."""
    return next(
        (
            str(path)
            for path in (started.folder / name, started.folder / f"{name}.yaml")
            if path.is_file()
        ),
        name,
    )
