"""Runs and exports as processes of their own.

The service holds no weights, and a service that dies takes no run with it.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from recycler.errors import RecyclerError
from recycler.io.atomic import write_atomic
from recycler.objectives.costs import benchmarks
from recycler.run.started import STARTED
from recycler.service.store import Run, Snapshot
from recycler.specs.job import read_job

LOG = "driver.log"
LOCK = "driver.lock"
# in a run folder: how the last driver that a service started has ended, for services to come
ENDED = "driver.ended.json"
INTERRUPT_SECONDS, TERMINATE_SECONDS = 15.0, 10.0
TAIL_BYTES = 8_192


@dataclass(frozen=True, slots=True)
class Ended:
    """Exit code of a driver, and what it said last."""

    code: int
    reason: str


class Processes:
    """Processes that this service started, by name.

    Drivers that others started are found by the lock they hold.
    """

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen] = {}
        self._lock = threading.Lock()

    def start(
        self, name: str, command: list[str], log: Path, cwd: Path, *, driver_of: Path | None = None
    ) -> bool:
        """Start `command` in its own session, with its output in `log`.

        False when the last one of that name still runs.

        How the driver of a run folder ends is kept there.
        """
        with self._lock:
            if self._alive(name):
                return False
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as file:
                child = self._children[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    start_new_session=True,
                )
            if driver_of is not None:
                (driver_of / ENDED).unlink(missing_ok=True)
                threading.Thread(
                    target=self._keep_end, args=(name, child, driver_of), daemon=True
                ).start()
            return True

    def alive(self, name: str) -> bool:
        with self._lock:
            return self._alive(name)

    def num_alive(self) -> int:
        with self._lock:
            return sum(child.poll() is None for child in self._children.values())

    def ended(self, run: Run) -> Ended | None:
        """End of the run's last driver, by this service or an earlier one; None if unknown."""
        with self._lock:
            child = self._children.get(run.id)
            if child is not None and child.poll() is not None and not (run.folder / ENDED).exists():
                return _keep(run.folder, child.returncode)
        return _kept(run.folder)

    def _keep_end(self, name: str, child: subprocess.Popen, folder: Path) -> None:
        code = child.wait()
        with self._lock:
            if self._children.get(name) is child and not (folder / ENDED).exists():
                _keep(folder, code)

    def stop(self, run: Run) -> bool:
        """Interrupt the driver of a run, then terminate it; False when none runs."""
        with self._lock:
            child = self._children.get(run.id)
            pid = child.pid if child and child.poll() is None else driver_pid(run.folder)
        if pid is None:
            return False
        if not _signal(pid, signal.SIGINT):
            return False
        threading.Thread(target=self._insist, args=(run, pid), daemon=True).start()
        return True

    def is_driven(self, run: Run) -> bool:
        return self.alive(run.id) or driver_pid(run.folder) is not None

    def _insist(self, run: Run, pid: int) -> None:
        for seconds, number in (
            (INTERRUPT_SECONDS, signal.SIGTERM),
            (TERMINATE_SECONDS, signal.SIGKILL),
        ):
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                time.sleep(0.2)
                if not self._is_still(run, pid):
                    return
            _signal(pid, number)

    def _is_still(self, run: Run, pid: int) -> bool:
        """True when `pid` is still the driver.

        A number that was given to another process is never signalled.
        """
        with self._lock:
            child = self._children.get(run.id)
            if child is not None and child.pid == pid:
                return child.poll() is None
        return driver_pid(run.folder) == pid

    def _alive(self, name: str) -> bool:
        child = self._children.get(name)
        return child is not None and child.poll() is None


def _keep(folder: Path, code: int) -> Ended:
    ended = Ended(code, said_last(folder / LOG))
    if folder.is_dir():  # it may have been removed since
        with suppress(OSError):  # a full disk: then it is known as long as this service lives
            write_atomic(folder / ENDED, json.dumps(asdict(ended)))
    return ended


def _kept(folder: Path) -> Ended | None:
    """End of the last driver as it was kept; None if the run was started by hand since."""
    try:
        if (folder / STARTED).exists() and (folder / STARTED).stat().st_mtime_ns > (
            folder / ENDED
        ).stat().st_mtime_ns:
            return None
        found = json.loads((folder / ENDED).read_text())
        return Ended(int(found["code"]), str(found["reason"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # it has just ended, or is another user's
        return False
    return True


def driver_pid(folder: Path) -> int | None:
    """Process that holds the run's lock, read from /proc/locks.

    Trying the lock itself could refuse a starting driver.
    """
    try:
        stat, locks = (folder / LOCK).stat(), Path("/proc/locks").read_text()
    except OSError:
        return None
    inode = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    for line in locks.splitlines():
        words = line.split()
        if "->" in words or words[1] != "FLOCK" or words[5] != inode:
            continue  # a waiting process, another kind of lock, or another file
        if int(words[4]) > 0:
            return int(words[4])
    return None


def log_tail(path: Path) -> str:
    """The last few kilobytes of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def said_last(path: Path) -> str:
    """Last line of recycler itself in a log, without its prefix."""
    lines = [line.strip() for line in log_tail(path).splitlines() if line.strip()]
    own = [line.removeprefix("recycler: ") for line in lines if line.startswith("recycler: ")]
    return (own or lines or [""])[-1]


def run_command(run: Run) -> list[str] | None:
    """Command that starts a job's driver again.

    The job file is the one that was submitted here, or the one that the run was started with by
    hand; None when neither is there any more. Data folders are those of the last start, or of the
    submission.
    """
    try:
        started = json.loads((run.folder / STARTED).read_text())
        job: Path | None = Path(started["job"])
        data = [str(folder) for folder in started["data"]]
    except (OSError, ValueError, LookupError, TypeError):
        job, data = None, []
    if run.submitted:
        job = run.source
    if job is None or not job.is_file():
        return None
    return ["run", str(job), "--dir", str(run.folder), *_flags("--data", data)]


def _flags(name: str, values: Iterable[str]) -> list[str]:
    """A flag once for each value."""
    words: list[str] = []
    for value in values:
        words += [name, value]
    return words


def confirm_commands(run: Run, snapshot: Snapshot) -> list[str]:
    """Two lines that merge `without.yaml` and score it on the search items.

    Suites are named as the job file names them.
    """
    objectives = benchmarks(snapshot.objectives)
    suites = list(dict.fromkeys(objective.suite for objective in objectives))
    data: list[str] = []
    command = run_command(run)
    if command is not None:
        data = [word for word in command if word != "--data"][4:]
        with suppress(RecyclerError):  # changed since: the names that the objectives tell will do
            suites = _suites_of(Path(command[1]))
    words = [
        "score",
        "without",
        *_flags("--suite", suites),
        "--role",
        "search",
        "--dtype",
        snapshot.dtype,
        *_flags("--data", data),
    ]
    return [as_shell(["merge", "without.yaml", "without"]), as_shell(words)]


def _suites_of(job: Path) -> list[str]:
    """Suites of a job file, files by their paths. Raises RecyclerError."""
    found = []
    for name in read_job(job)[0].suites:
        path = job.parent / name
        found.append(str(path) if path.is_file() else name)
    return found


def as_python(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "recycler", *words]


def as_shell(words: list[str]) -> str:
    """The command line that the user would type."""
    return shlex.join(["recycler", *words])
