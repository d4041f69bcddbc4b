"""Jobs as the service sees them: state with a reason, submit, stop, resume.

Everything heavy is another process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from recycler.errors import NotFoundError, Problem, RecyclerError, UsageError
from recycler.io.atomic import write_atomic
from recycler.run.leave_out import job_without, outcome, without_id
from recycler.run.started import STARTED
from recycler.service import processes
from recycler.service.damage import bulkhead
from recycler.service.documents import finite, objectives_document
from recycler.service.exports import Exports
from recycler.service.frozen_items import FrozenItems
from recycler.service.orders import BusyError, refuse_too_many
from recycler.service.processes import LOG, Processes
from recycler.service.store import ID, Run, Snapshot, Store
from recycler.specs.job import JobSpec, read_job

STOPPED = (130, -2, -15)
NOTHING_YET: dict[str, Any] = {
    "trials": {"SCORED": 0, "PENDING": 0, "FAILED": 0},
    "expected_trials": None,
    "objectives": [],
    "num_tokens": 0,
    "worker_seconds": 0.0,
    "elapsed_seconds": 0.0,
    "eta_seconds": None,
    "hypervolume": [],
}


class Jobs:
    """The runs of a root and the processes that work on them."""

    def __init__(self, root: Path, ledger_url: str | None = None, export_place: str | None = None):
        self.store, self.processes, self.items = Store(root, ledger_url), Processes(), FrozenItems()
        self.exports = Exports(self.store, self.processes, export_place)

    # ---------------------------------------------------------------- reading

    def documents(self) -> list[dict[str, Any]]:
        found = []
        for run_id in self.store.ids():
            with suppress(NotFoundError):  # it was removed just now
                found.append(self.document(self.store.run(run_id)))
        return found

    def document(self, run: Run, snapshot: Snapshot | None = None) -> dict[str, Any]:
        """Status of one job: state and reason, progress, cost, volume.

        A run that cannot be read is a state, no error.
        """
        running = self._is_driven(run)
        head = {
            "schema_version": 1,
            "id": run.id,
            "submitted": run.submitted,
            "resumable": processes.run_command(run) is not None,
            "running": running,
        }
        try:
            with bulkhead(run.id):
                return self._document(run, head, snapshot or self.store.snapshot(run))
        except NotFoundError:
            state, reason = self._state(run, running, finished=False)
            return {
                **head,
                **NOTHING_YET,
                "name": run.id,
                "state": state if state != "running" else "starting",
                "reason": reason,
            }
        except RecyclerError as error:
            return {
                **head,
                **NOTHING_YET,
                "name": run.id,
                "state": "broken",
                "reason": error.problems[0].cause,
            }

    def _document(self, run: Run, head: dict[str, Any], snapshot: Snapshot) -> dict[str, Any]:
        status, running = snapshot.status, head["running"]
        state, reason = self._state(run, running, finished=status["state"] == "finished")
        closed = status["trials"]["SCORED"] + status["trials"]["FAILED"]
        expected = max(
            2 * len(snapshot.pool.members)
            + bool(snapshot.pool.base)
            + 1
            + (status["budget_trials"] or 0),
            closed,
        )
        left = (
            status["elapsed_seconds"] / closed * (expected - closed) if closed and running else None
        )
        return {
            **head,
            "name": status["name"],
            "state": state,
            "reason": reason,
            "trials": status["trials"],
            "expected_trials": closed if state == "finished" else expected,
            "objectives": objectives_document(snapshot.objectives),
            "num_tokens": status["num_tokens"],
            "worker_seconds": finite(status["worker_seconds"]),
            "elapsed_seconds": finite(status["elapsed_seconds"]),
            "eta_seconds": left,
            "hypervolume": snapshot.volumes,
        }

    def _is_driven(self, run: Run) -> bool:
        """True when a driver works on it, here or (by the lease in its database) elsewhere."""
        if self.processes.is_driven(run):
            return True
        try:
            with bulkhead(run.id):
                return self.store.driver(run) is not None
        except RecyclerError:  # its ledger cannot be read, which is told as its state
            return False

    def _state(self, run: Run, running: bool, finished: bool) -> tuple[str, str]:
        if running:
            return "running", "a driver is at work"
        if finished:
            return "finished", "the budget is spent and the front is scored on the holdout items"
        ended = self.processes.ended(run)
        if ended is not None and ended.code not in (0, *STOPPED):
            return "failed", ended.reason or f"the driver ended with exit code {ended.code}"
        if ended is not None and ended.code in STOPPED:
            return "stopped", "resume goes on where it was"
        return "interrupted", processes.said_last(
            run.folder / LOG
        ) or "no driver is at work; the same recycler run goes on where it was"

    # ---------------------------------------------------------------- submitting

    def validate(self, text: str) -> JobSpec:
        """The job that `text` spells.

        Raises UsageError with every problem, each at job.yaml:LINE.
        """
        with tempfile.TemporaryDirectory(prefix="recycler-") as folder:
            path = Path(folder) / "job.yaml"
            path.write_bytes(text.encode())
            try:
                return read_job(path)[0]
            except UsageError as error:
                raise UsageError(
                    [_without_folder(problem, folder) for problem in error.problems]
                ) from None

    def submit(self, text: str, run_id: str | None, data: Sequence[Path] = ()) -> tuple[Run, bool]:
        """Write the job file and start its driver; (run, True) when it is new.

        (run, False) when this very job was there. The data folders go to the driver.

        Raises UsageError for a bad job, BusyError when the id belongs to another job.
        """
        job = self.validate(text)
        run_id = run_id or job.name
        if not ID.fullmatch(run_id):
            raise UsageError(
                Problem(
                    thing="id",
                    cause="is not a word of lower case letters, digits, dots and dashes",
                    remedy="Write one such as math-and-code-2",
                )
            )
        source, folder = self.store.source(run_id), self.store.root / run_id
        if source.is_file() and source.read_bytes() == text.encode():
            return self.store.run(run_id), False
        if source.exists() or folder.exists():
            raise BusyError(
                Problem(thing=f"job {run_id!r}", cause="exists already", remedy="Give another id")
            )
        self._check_room()
        try:
            folder.mkdir()
        except FileExistsError:  # another request was quicker
            raise BusyError(
                Problem(thing=f"job {run_id!r}", cause="exists already", remedy="Give another id")
            ) from None
        if data:
            write_atomic(
                folder / STARTED,
                json.dumps({"job": str(source), "data": [str(path.resolve()) for path in data]}),
            )
        write_atomic(source, text)
        run = self.store.run(run_id)
        self.resume(run)
        return run, True

    # ---------------------------------------------------------------- leaving a member out

    def leave_out(self, run: Run, member: str) -> dict[str, Any]:
        """Start, or go on with, the job that scores a run's front without one member.

        Raises the errors of `job_without` and `submit`.
        """
        derived = job_without(run.named, member)
        other, created = self.submit(derived.text, derived.id, derived.data)
        if (
            not created
            and not self._is_driven(other)
            and self.document(other)["state"] != "finished"
        ):
            self.resume(other)
        found = self.left_out(run, member)
        assert found is not None, "it was submitted just now"
        return found

    def left_out(self, run: Run, member: str) -> dict[str, Any] | None:
        """State of that job, and when it has finished what came of it; None when there is none."""
        try:
            other = self.store.run(without_id(run.id, member))
            if read_job(other.source)[0].pool.without[-1:] != [member]:
                return None
        except (NotFoundError, UsageError):  # never asked for, or another job of that name
            return None
        found = self.document(other)
        is_done = found["state"] == "finished"
        return {
            "id": other.id,
            "state": found["state"],
            "reason": found["reason"],
            "closed": found["trials"]["SCORED"] + found["trials"]["FAILED"],
            "expected_trials": found["expected_trials"],
            "outcome": outcome(self.store.snapshot(run).front, self.store.snapshot(other).front)
            if is_done
            else None,
        }

    def resume(self, run: Run) -> None:
        """Start a job's driver again.

        Raises UsageError when its job file is not known any more, BusyError when one is at work.
        """
        command = processes.run_command(run)
        if command is None:
            raise UsageError(
                Problem(
                    thing=f"job {run.id!r}",
                    cause="was started by hand, and its job file is not there any more",
                    remedy="Run recycler run with its job file and this --dir again",
                )
            )
        self._check_room()
        if self._is_driven(run) or not self.processes.start(
            run.id,
            processes.as_python(command),
            run.folder / LOG,
            self.store.root,
            driver_of=run.folder,
        ):
            raise BusyError(
                Problem(
                    thing=f"job {run.id!r}", cause="has a driver already", remedy="Stop it first"
                )
            )

    def stop(self, run: Run) -> None:
        if not self.processes.stop(run):
            raise BusyError(
                Problem(
                    thing=f"job {run.id!r}",
                    cause="has no driver that this service may stop",
                    remedy="It has ended, or runs on another machine or as another user",
                )
            )

    def _check_room(self) -> None:
        refuse_too_many(self.processes)


def _without_folder(problem: Problem, folder: str) -> Problem:
    return Problem(
        thing=problem.thing.replace(f"{folder}/", ""),
        cause=problem.cause.replace(f"{folder}/", ""),
        remedy=problem.remedy,
        where=problem.where.replace(f"{folder}/", ""),
    )
