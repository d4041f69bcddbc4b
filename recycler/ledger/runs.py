"""Find a run's ledger and say how far it is. Light: nothing that computes is imported."""

from __future__ import annotations

import json
from pathlib import Path

from recycler.errors import NotFoundError, Problem
from recycler.ledger import Ledger
from recycler.ledger.place import find_ledger
from recycler.types import Checkpoint, Objective, Pool

OUTLOOK = "outlook"  # the ledger's fact: what the next trials are expected to add
# the ledger's fact: pairs of benchmarks that do not trade off, and objectives that are all noise,
# as far as a run knew
NOTICES = "notices"


def open_ledger(run: str | Path) -> Ledger:
    """The ledger of a run: its folder, URL?job=ID, or a job's id in the database RECYCLER_LEDGER.

    Raises NotFoundError.
    """
    return Ledger(find_ledger(run), create=False)


def read_facts(ledger: Ledger) -> tuple[tuple[Objective, ...], Pool, str]:
    """(objectives, pool by name and place but without tensors, dtype) of the job that a ledger
    belongs to.
    """
    text = ledger.fact("job")
    if text is None:
        raise NotFoundError(
            Problem(
                thing="run", cause="was never started", remedy="recycler run job.yaml --dir RUN"
            )
        )
    facts = json.loads(text)
    members = tuple(
        Checkpoint(name=name, location=location, tensors={}, config={})
        for name, location in facts["members"]
    )
    base = (
        Checkpoint(name=facts["base"][0], location=facts["base"][1], tensors={}, config={})
        if facts["base"]
        else None
    )
    return (
        tuple(Objective(**objective) for objective in facts["objectives"]),
        Pool(members=members, base=base),
        facts["dtype"],
    )


def read_status(ledger: Ledger) -> dict:
    """How far a run is, as the one JSON document of `recycler status --json`."""
    facts = json.loads(ledger.fact("job") or "{}")
    tokens, seconds = ledger.spent()
    return {
        "schema_version": 1,
        "name": facts.get("name", ""),
        "state": _state(ledger),
        "trials": ledger.counts(),
        "budget_trials": facts.get("trials"),
        "num_tokens": tokens,
        "worker_seconds": round(seconds, 3),
        "elapsed_seconds": float(ledger.fact("elapsed_seconds") or 0.0),
        "outlook": json.loads(ledger.fact(OUTLOOK) or "null"),
        "notices": _notices(ledger),
        "failures": [
            {"trial": number, "blame": failure.blame, "reason": failure.reason}
            for number, failure in ledger.failures()
        ],
    }


def noise_said(name: str) -> str:
    """For people, of an objective that no weights move."""
    return f"{name} moves with no weights beyond its noise: it has no say in the front"


def _notices(ledger: Ledger) -> list[str]:
    """The lines of `recycler.results.notices` that hold now."""
    kept = json.loads(ledger.fact(NOTICES) or "{}")
    return [*kept.get("tradeoffs", []), *map(noise_said, kept.get("dead", []))]


def _state(ledger: Ledger) -> str:
    """One line that is true: finished, driven by whom, or why nobody drives it."""
    if ledger.fact("finished") is not None and not ledger.counts()["PENDING"]:
        return "finished"
    holder = ledger.holder()
    if holder is None:
        return "unfinished: recycler run goes on with it"
    if holder.is_alive:
        return (
            f"running: driven by {holder.name}, heard of {holder.seconds_since_renewal:.0f} s ago"
        )
    return (
        f"stalled: {holder.name} was last heard of {holder.seconds_since_renewal:.0f} s ago; "
        "recycler resume or run goes on with it"
    )
