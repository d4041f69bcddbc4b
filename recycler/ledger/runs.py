"""Find a run's ledger and say how far it is. Light: nothing that computes is imported."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from recycler.ledger import Ledger
from recycler.ledger.facts import NoticeFacts
from recycler.ledger.place import find_ledger


def open_ledger(run: str | Path) -> Ledger:
    """The ledger of a run: its folder, URL?job=ID, or a job's id in the database RECYCLER_LEDGER.

    Raises NotFoundError.
    """
    return Ledger(find_ledger(run), create=False)


def read_status(ledger: Ledger) -> dict[str, Any]:
    """Progress of a run, as the one JSON document of `recycler status --json`."""
    facts = ledger.facts
    job, outlook = facts.job, facts.outlook
    tokens, seconds = ledger.spent()
    return {
        "schema_version": 1,
        "name": job.name if job else "",
        "state": _state(ledger),
        "trials": ledger.counts(),
        "budget_trials": job.trials if job else None,
        "num_tokens": tokens,
        "worker_seconds": round(seconds, 3),
        "elapsed_seconds": facts.elapsed_seconds,
        "outlook": asdict(outlook) if outlook else None,
        "notices": _notice_lines(facts.notices),
        "failures": [
            {"trial": number, "blame": failure.blame, "reason": failure.reason}
            for number, failure in ledger.failures()
        ],
    }


def noise_said(name: str) -> str:
    """A sentence on an uninformative objective."""
    return f"{name} moves with no weights beyond its noise: it has no say in the front"


def _notice_lines(kept: NoticeFacts) -> list[str]:
    """The lines of `recycler.results.notices` that hold now."""
    return [*kept.get("tradeoffs", []), *map(noise_said, kept.get("dead", []))]


def _state(ledger: Ledger) -> str:
    """One line that is true: finished, driven by whom, or why nobody drives it."""
    if ledger.facts.finished is not None and not ledger.counts()["PENDING"]:
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
