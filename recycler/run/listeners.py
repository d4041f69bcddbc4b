"""Listeners of a run: each may write down what an event tells, and add notes for the user to it.

event of the loop -> clock -> preview of the members -> noise -> forecast -> the door's listener
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from recycler.results.insight import write_outlook, write_preview
from recycler.results.notices import Notices
from recycler.run.loop import Event, Listener
from recycler.run.run import Run
from recycler.run.schedule import Planner
from recycler.search.outlook import FORECAST_EVERY, GainForecast, last_forecast

Annotator = Callable[[Event], Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """A listener that calls annotators in order, each with the event of the one before."""

    annotators: tuple[Annotator, ...]
    last: Listener

    def __call__(self, event: Event) -> None:
        for annotate in self.annotators:
            event = annotate(event)
        self.last(event)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberPreview:
    """Writes the preview down as soon as the last member is scored."""

    run: Run
    notices: Notices

    def __call__(self, event: Event) -> Event:
        if event.what == "scored" and event.trial.kind == "member":
            return _with_notes(event, self.notes())
        return event

    def notes(self) -> tuple[str, ...]:
        """Write the preview and return its notices; none before the members are scored."""
        run = self.run
        preview = write_preview(run.ledger, run.items, run.objectives, len(run.pool.members))
        return self.notices.of_members(preview)


@dataclass(slots=True, kw_only=True)
class NoiseNotices:
    """Tells of uninformative objectives when the first merge is proposed in a session."""

    run: Run
    planner: Planner
    notices: Notices
    _has_looked: bool = False

    def __call__(self, event: Event) -> Event:
        if self._has_looked or event.what != "opened" or not event.trial.is_proposed:
            return event
        self._has_looked = True
        known = self.planner.comparable(self.run.trials())
        return _with_notes(event, self.notices.of_noise(known))


class GainForecasts:
    """Writes a gain forecast after every FORECAST_EVERY proposed merges, and tells of it."""

    def __init__(self, run: Run, planner: Planner, forecast: GainForecast, notices: Notices):
        self._run, self._planner, self._forecast, self._notices = run, planner, forecast, notices
        known = planner.comparable(run.trials())
        self._proposed = sum(trial.is_proposed and trial.state == "SCORED" for trial in known)

    def __call__(self, event: Event) -> Event:
        if not _ends_proposal(event):
            return event
        self._proposed += 1
        if self._proposed % FORECAST_EVERY:
            return event
        _, known = last_forecast(self._planner.comparable(self._run.trials()))
        gain = write_outlook(self._run.ledger, self._forecast, known)
        return replace(_with_notes(event, self._notices.of_noise(known)), gain=gain)


def _ends_proposal(event: Event) -> bool:
    """True for a proposed merge that was scored, or that failed through its own fault."""
    if not event.trial.is_proposed:
        return False
    failure = event.trial.failure
    has_failed = event.what == "failed" and failure is not None and failure.blame == "recipe"
    return event.what == "scored" or has_failed


def _with_notes(event: Event, notes: tuple[str, ...]) -> Event:
    return replace(event, notes=(*event.notes, *notes))
