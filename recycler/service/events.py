"""Server-sent events of a job: one for each trial that is scored or fails, one for each holdout score, resumable.

An event's id says what its reader has seen as ranges of trial numbers, `closed;holdout`, such as `0-17,19;0-3`. Trials
close out of order and clocks jump, so neither a number nor a time would do; what is not in the ranges is sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from recycler.service.documents import trial_entry
from recycler.service.store import Snapshot

POLL_SECONDS = 0.5
KEEP_ALIVE_POLLS = 20
REST = 4.0  # of the time that one reading took: a large ledger is read less often
MAX_CURSOR = 20_000
_RANGE = re.compile(r"(\d{1,8})(?:-(\d{1,8}))?", re.ASCII)


class Cursor:
    """What a reader has seen."""

    def __init__(self, closed: set[int] | None = None, holdout: set[int] | None = None):
        self.closed, self.holdout = closed or set(), holdout or set()

    def __str__(self) -> str:
        return f"{_ranges(self.closed)};{_ranges(self.holdout)}"

    @classmethod
    def read(cls, text: str, num_trials: int) -> Cursor:
        """The cursor that `text` spells; what cannot be read counts as not seen."""
        closed, _, holdout = text[:MAX_CURSOR].partition(";")
        return cls(_numbers(closed, num_trials), _numbers(holdout, num_trials))

    @classmethod
    def of(cls, snapshot: Snapshot) -> Cursor:
        """A reader who knows all of a snapshot."""
        return cls({trial.number for trial in snapshot.trials if trial.state != "PENDING"}, {trial.number for trial in snapshot.trials if trial.holdout})


def unseen(snapshot: Snapshot, cursor: Cursor) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind of event, trial) of all that the reader has not seen, by number; the cursor moves past each as it is given."""
    for trial in snapshot.trials:
        if trial.state != "PENDING" and trial.number not in cursor.closed:
            cursor.closed.add(trial.number)
            yield "trial", trial_entry(trial)
        if trial.holdout and trial.number not in cursor.holdout:
            cursor.holdout.add(trial.number)
            yield "holdout", trial_entry(trial)


async def stream(read: Callable[[], tuple[Snapshot, dict[str, Any]]], last_event_id: str) -> AsyncIterator[str]:
    """Lines of an event stream until no driver works on the job any more; `read` gives snapshot and status."""
    snapshot, status = await run_in_threadpool(read)
    cursor, told, quiet, took = Cursor.read(last_event_id, len(snapshot.trials)), None, 0, 0.0
    yield "retry: 3000\n\n"
    while True:
        for kind, entry in unseen(snapshot, cursor):
            yield f"id: {cursor}\nevent: {kind}\ndata: {json.dumps(entry, allow_nan=False)}\n\n"
            quiet = 0
        if status != told:
            told, quiet = status, 0
            yield f"event: status\ndata: {json.dumps(status, allow_nan=False)}\n\n"
        if not status["running"]:
            yield f"event: end\ndata: {json.dumps(status['state'])}\n\n"
            return
        quiet += 1
        if quiet % KEEP_ALIVE_POLLS == 0:
            yield ": still here\n\n"
        await asyncio.sleep(max(POLL_SECONDS, REST * took))
        began = time.monotonic()
        snapshot, status = await run_in_threadpool(read)
        took = time.monotonic() - began


def _ranges(numbers: set[int]) -> str:
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def _numbers(text: str, num_trials: int) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        if match := _RANGE.fullmatch(part):
            low = int(match[1])
            found.update(range(low, min(int(match[2] or low), num_trials) + 1))
    return found
