"""Progress bar with the stage and the time left; plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the CLI's start loads none of these
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from recycler.run.loop import Event
    from recycler.run.prepared import PreparedJob
    from recycler.types import Trial

LINE_EVERY_SECONDS = 5.0


class Progress:
    """Stages with a fraction done, on stderr. Use as a context manager."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._stage, self._stage_start, self._last_line = "", 0.0, 0.0
        self._done, self._expected = 0, 1

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            # loads rich
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, stage: str, fraction: float) -> None:
        """Show that `stage` is `fraction` (0 to 1) done."""
        now = time.monotonic()
        name = stage.partition(":")[0]
        if name != self._stage:
            self._stage, self._stage_start, self._last_line = name, now, 0.0
            if self._bar is not None:
                self._task = self._bar.add_task(stage, total=1.0)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=stage, completed=fraction)
        elif now - self._last_line >= LINE_EVERY_SECONDS or fraction >= 1.0:
            self._last_line = now
            elapsed = now - self._stage_start
            left = (
                f", about {elapsed / fraction - elapsed:.0f} s left"
                if 0.02 < fraction < 1.0
                else ""
            )
            print(f"[{fraction:4.0%}] {stage} ({elapsed:.0f} s{left})", file=sys.stderr, flush=True)

    # ---------------------------------------------------------------- a run

    def started(self, prepared: PreparedJob, trials: Sequence[Trial]) -> None:
        say_notes(prepared.warnings)
        pool = prepared.pool
        self._done = sum(trial.state != "PENDING" for trial in trials)
        self._expected = 2 * len(pool.members) + bool(pool.base) + 1 + prepared.job.budget.trials
        done = f"; going on after {self._done} trials" if self._done else ""
        print(
            f"recycler: {len(pool.members)} members{' and their base' if pool.base else ''}, "
            f"{len(prepared.objectives)} objectives, "
            f"{sum(item.role == 'search' for item in prepared.items)} search items, "
            f"{prepared.job.budget.trials} trials with {prepared.job.sampler}{done}",
            file=sys.stderr,
        )
        # loads sqlalchemy and numpy
        from recycler.run.plan import visible_difference, visible_lines

        for line in visible_lines(
            [visible_difference(objective, prepared.items, {}) for objective in prepared.benchmarks]
        ):
            print(f"recycler: {line}", file=sys.stderr)
        self.update("searching: starting workers", 0.0)

    def listen(self, event: Event) -> None:
        if event.what in ("holdout", "completed"):
            holdout = event.what == "holdout"
            stage = "holdout" if holdout else "finalists on all search items"
            self.update(f"{stage}: trial {event.trial.number}", event.fraction)
        elif event.what in ("scored", "failed"):
            self._done += 1
            self.update(
                f"searching: trial {event.trial.number} {event.trial.label or event.trial.kind} "
                f"{_scores(event.trial)}",
                min(self._done / self._expected, 1.0),
            )
        if event.gain is not None:
            # loads scipy and numpy
            from recycler.search.outlook import FORECAST_TRIALS

            print(
                f"recycler: {gain_said(event.gain, FORECAST_TRIALS)}", file=sys.stderr, flush=True
            )
        for note in event.notes:
            print(f"recycler: {note}", file=sys.stderr, flush=True)
        failure = event.trial.failure
        if event.what == "failed" and failure is not None:
            print(
                f"recycler: trial {event.trial.number} failed ({failure.blame}): {failure.reason}",
                file=sys.stderr,
            )


def say_notes(notes: Sequence[str]) -> None:
    """Print notes on stderr: things that are allowed, and that the user should know."""
    for note in notes:
        print(f"recycler: note: {note}", file=sys.stderr)


def gain_said(gain: float, trials: int) -> str:
    """Sentence on the gain that more trials are expected to bring."""
    return f"the next {trials} merges are expected to add {gain:.1%} to the front's hypervolume"


def _scores(trial: Trial) -> str:
    return " ".join(
        f"{score.value:.4g}" if score.is_exact else f"{score.value:.3f}" for score in trial.search
    )
