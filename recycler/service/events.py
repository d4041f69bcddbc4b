"""Server-sent events of a job: scored and failed trials, holdout scores; resumable.

An event's id holds what its reader has seen as ranges of trial numbers, `closed;holdout`, such as
`0-17,19;0-3`. Trials close out of order and clocks jump, so neither a number nor a time would do;
trials outside the ranges are sent. Events are read and written in worker threads: a reader with
thousands of events ahead holds up nobody else.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from recycler.errors import RecyclerError
from recycler.service.documents import trial_entry
from recycler.service.store import Snapshot

POLL_SECONDS = 0.5
KEEP_ALIVE_POLLS = 20
REST = 4.0  # of the time that one reading took: a large ledger is read less often
MAX_RANGES = (
    400  # of an id's either half; what a reader has seen beyond the lowest is sent to it again
)
MAX_CURSOR = 20_000  # characters, more than MAX_RANGES of eight digits take
BLOCK = 200  # events that are spelled at a time
_RANGE = re.compile(r"(\d{1,8})(?:-(\d{1,8}))?", re.ASCII)


class Seen:
    """Set of trial numbers as sorted ranges that do not touch.

    To add one number, or to write all of them, costs as much as there are gaps.
    """

    def __init__(self, numbers: Iterable[int] = ()):
        self._low: list[int] = []
        self._high: list[int] = []
        self._text: str | None = None
        for number in sorted(numbers):
            self.add(number)

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._low, number) - 1
        return index >= 0 and number <= self._high[index]

    def __iter__(self) -> Iterator[int]:
        return (
            number
            for low, high in zip(self._low, self._high, strict=True)
            for number in range(low, high + 1)
        )

    def __str__(self) -> str:
        if self._text is None:
            self._text = ",".join(
                str(low) if low == high else f"{low}-{high}"
                for low, high in zip(self._low[:MAX_RANGES], self._high[:MAX_RANGES], strict=True)
            )
        return self._text

    def add(self, low: int, high: int | None = None) -> None:
        """Add low to high, and make one of all ranges that it touches."""
        high = low if high is None else high
        first, last = bisect_left(self._high, low - 1), bisect_right(self._low, high + 1)
        if first < last:
            low, high = min(low, self._low[first]), max(high, self._high[last - 1])
        self._low[first:last], self._high[first:last], self._text = [low], [high], None

    @classmethod
    def read(cls, text: str, num_trials: int) -> Seen:
        """Read ranges from `text`, for the trials that there are.

        Empty when it has more ranges than an id.
        """
        found, parts = cls(), text.split(",", MAX_RANGES)
        for match in map(_RANGE.fullmatch, parts if len(parts) <= MAX_RANGES else ()):
            if match:
                low, high = int(match[1]), min(int(match[2] or match[1]), num_trials - 1)
                if low <= high:
                    found.add(low, high)
        return found


class Cursor:
    """Position of a reader: trials and holdout scores seen."""

    def __init__(self, closed: Iterable[int] = (), holdout: Iterable[int] = ()):
        self.closed, self.holdout = Seen(closed), Seen(holdout)

    def __str__(self) -> str:
        return f"{self.closed};{self.holdout}"

    @classmethod
    def read(cls, text: str, num_trials: int) -> Cursor:
        """Read a cursor from `text`.

        Text that cannot be read, or is longer than any id, counts as not seen.
        """
        cursor = cls()
        if len(text) <= MAX_CURSOR:
            closed, _, holdout = text.partition(";")
            cursor.closed, cursor.holdout = (
                Seen.read(closed, num_trials),
                Seen.read(holdout, num_trials),
            )
        return cursor

    @classmethod
    def of(cls, snapshot: Snapshot) -> Cursor:
        """A reader who knows all of a snapshot."""
        return cls(
            [trial.number for trial in snapshot.trials if trial.state != "PENDING"],
            [trial.number for trial in snapshot.trials if trial.holdout],
        )


def unseen(snapshot: Snapshot, cursor: Cursor) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (kind of event, trial) of all that the reader has not seen, by number.

    The cursor moves past each as it is yielded.
    """
    for trial in snapshot.trials:
        if trial.state != "PENDING" and trial.number not in cursor.closed:
            cursor.closed.add(trial.number)
            yield "trial", trial_entry(trial)
        if trial.holdout and trial.number not in cursor.holdout:
            cursor.holdout.add(trial.number)
            yield "holdout", trial_entry(trial)


def spelled(snapshot: Snapshot, cursor: Cursor) -> Iterator[str]:
    """The same as lines of the stream, BLOCK events at a time."""
    lines: list[str] = []
    for kind, entry in unseen(snapshot, cursor):
        lines.append(f"id: {cursor}\nevent: {kind}\ndata: {json.dumps(entry, allow_nan=False)}\n\n")
        if len(lines) == BLOCK:
            yield "".join(lines)
            lines = []
    if lines:
        yield "".join(lines)


async def stream(
    read: Callable[[], tuple[Snapshot, dict[str, Any]]], last_event_id: str
) -> AsyncIterator[str]:
    """Lines of an event stream, until no driver works on the job any more.

    `read` returns snapshot and status.
    """
    snapshot, status = await run_in_threadpool(read)
    cursor = await run_in_threadpool(Cursor.read, last_event_id, len(snapshot.trials))
    told, quiet, took = None, 0, 0.0
    yield "retry: 3000\n\n"
    while True:
        async for block in iterate_in_threadpool(spelled(snapshot, cursor)):
            yield block
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
        try:
            snapshot, status = await run_in_threadpool(read)
        except RecyclerError:  # its ledger is away; the reader comes again, and is told then
            return
        took = time.monotonic() - began
