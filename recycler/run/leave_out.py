"""Leave-one-out: a job over the pool without one member, and its front beside the run's.

Suites, objectives, space, engine, budget and seed are the same. The run stands under `earlier`, so
all of its trials that gave the member no weight count at no cost. The budget is spent on top of
them, so the rest of the pool is searched no less closely than the whole was.
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
    """A job file to be run as `id`, with all its paths in full, and its data folders."""

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
    """The one id of the leave-one-out job of a run and a member.

    It is RUN-without-MEMBER where this is a plain word, else with a digest that tells it apart.
    """
    words = [re.sub(r"[^a-z0-9._-]+", "-", word.lower()) for word in (run_id, member)]
    whole = "-without-".join(words)
    if words == [run_id, member] and whole[0].isalnum() and len(whole) <= MAX_ID:
        return whole
    run = words[0][:25].lstrip("._-") or "run"
    return f"{run}-without-{words[1][:18]}-{digest([run_id, member])[:8]}"


def outcome(front: Front, other: Front) -> dict[str, Any]:
    """Hypervolumes by role of a run's front and of its leave-one-out front, and the share lost.

    Both are above the run's own reference point. The share is negative where the rest of the pool
    does better alone. A role is None while a front lacks scores of it.
    """
    return {role: _loss(front, other, role) for role in ROLES}


def _loss(front: Front, other: Front, role: Role) -> dict[str, float | None] | None:
    volume, without = front.hypervolume(front.front, role), front.hypervolume(other.front, role)
    if volume is None or without is None:
        return None
    lost = 1.0 - without / volume if volume > 0 else None
    return {"hypervolume": volume, "without": without, "lost": lost}


def outcome_text(
    member: str, found: dict[str, Any], estimate: tuple[float, float, float] | None
) -> str:
    """One line per role, and the model's estimate of the loss: share, low and high."""
    lines = []
    for role, said in found.items():
        if not said:
            continue
        lost = "" if said["lost"] is None else f": {said['lost']:.1%} lost"
        volumes = f"{said['hypervolume']:.4g} with {member}, {said['without']:.4g} without"
        lines.append(f"{role}: hypervolume {volumes}{lost}")
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
    for path in (started.folder / name, started.folder / f"{name}.yaml"):
        if path.is_file():
            return str(path)
    return name
