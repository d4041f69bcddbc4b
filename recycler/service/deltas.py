"""Distance of each member from the base, layer by layer, measured on demand.

    python -m recycler.service.deltas RUN FILE

The service starts this as a process of its own. FILE appears whole or not at all, and is kept with
the run.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from recycler.errors import Problem, RecyclerError, UsageError
from recycler.io.atomic import write_atomic
from recycler.pool.checks.inspect import propose_swap
from recycler.pool.geometry.delta_profile import delta_profile
from recycler.run.guard import open_pool_of
from recycler.service import processes
from recycler.service.orders import refuse_too_many
from recycler.service.processes import Processes
from recycler.service.store import Run, Snapshot

FILE, LOG = "pool-deltas.json", "pool-deltas.log"


def measure(run: str, path: Path) -> None:
    """Write the delta profile of a run's pool. Raises what opening the pool raises."""
    profile = delta_profile(open_pool_of(run))
    document = {
        "base": profile.base,
        "sample": profile.sample,
        "members": [
            {
                "name": member.member,
                "mean": member.mean,
                "p99": member.p99,
                "relative_norm": member.relative,
                "layers": list(member.layers),
                "proposed_swap": propose_swap(member),
            }
            for member in profile.members
        ],
    }
    write_atomic(path, json.dumps(document))


def deltas_document(run: Run, snapshot: Snapshot, started: Processes) -> dict[str, Any]:
    """State of the measurement and, when done, mean |delta| of each layer of each member.

    States are absent, running, done and failed.
    """
    found = {
        "schema_version": 1,
        "state": "absent",
        "reason": "",
        "command": _by_hand(snapshot),
        "profile": None,
    }
    try:
        profile = json.loads((run.folder / FILE).read_text())
        if isinstance(profile, dict) and "members" in profile:
            return {**found, "state": "done", "profile": profile}
    except (OSError, ValueError):  # measured anew when asked
        pass
    if started.alive(_name(run)):
        return {**found, "state": "running"}
    if (run.folder / LOG).is_file():
        return {
            **found,
            "state": "failed",
            "reason": processes.said_last(run.folder / LOG) or "it was interrupted; ask again",
        }
    return found


def start(run: Run, snapshot: Snapshot, started: Processes) -> dict[str, Any]:
    """Start measuring, unless it is done or under way. Raises BusyError."""
    if deltas_document(run, snapshot, started)["state"] not in ("done", "running"):
        if not run.folder.is_dir():
            raise UsageError(
                Problem(
                    thing=f"job {run.id!r}",
                    cause="has no folder here",
                    remedy="Measure where its pool is, by the command line",
                )
            )
        refuse_too_many(started)
        started.start(
            _name(run),
            [sys.executable, "-m", "recycler.service.deltas", run.named, str(run.folder / FILE)],
            run.folder / LOG,
            run.folder.parent,
        )
    return deltas_document(run, snapshot, started)


def _name(run: Run) -> str:
    return f"{run.id}/{LOG}"


def _by_hand(snapshot: Snapshot) -> str:
    pool = snapshot.pool
    return shlex.join(
        [
            "recycler",
            "inspect",
            *(str(member.location) for member in pool.members),
            *(["--base", str(pool.base.location)] if pool.base else []),
            "--deltas",
        ]
    )


if __name__ == "__main__":
    try:
        measure(sys.argv[1], Path(sys.argv[2]))
    except RecyclerError as error:
        sys.exit("".join(f"recycler: {problem}\n" for problem in error.problems))
