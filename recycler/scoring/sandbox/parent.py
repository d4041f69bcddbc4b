"""Run programs that a model wrote where they can touch nothing: bubblewrap, no network, no files,
hard limits.

What a program gets: an own user, process, mount, network, IPC and host-name namespace, no
capabilities, no way to make further user namespaces; /usr read-only, an empty /tmp and /dev/shm of
16 MB each, no /proc, no /etc, no environment; limits on CPU time, file size, open files and
processes; a wall-clock limit, after which all of it is killed. Root drops to uid 65534 first, since
RLIMIT_NPROC does not bind real root.

Memory: `memory_bytes` is the address space of one process, and what all of a box's processes hold
together: this process looks every 20 ms and kills the box beyond it (fence.py), so a box
may be above it for a moment, by what its CPUs write in 20 ms. System V segments and memfds are
refused. What remains without control groups, which an ordinary user may not make: kernel memory
behind pipes, sockets and empty files, bounded only by the limits on open files, processes and time.

A verdict takes two such boxes, with a pipe between them (child.py). One runs the program
and answers calls; the other runs the tests, on stand-ins for what the program defines, and sees
values alone. So a program can exit, print, walk frames, return objects that equal everything or
speak to the pipe itself: it passes by answering right, and by nothing else. The verdict is a nonce
of 32 random bytes that only the tests' box was given, accepted as the exact output after its sign
of life.

There is no fallback: where bubblewrap does not work, `Sandbox()` raises UnsafeInputError (exit code
4). Where it worked and no longer does (no namespaces or memory left), `run` raises
InfrastructureError after three tries: that is no verdict on the program.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from recycler.errors import InfrastructureError, Problem, UnsafeInputError
from recycler.scoring.sandbox.fence import holds_more_than, seccomp_filter
from recycler.scoring.sandbox.names import names_of

SANDBOX = "code sandbox"  # the thing that its errors are about
NOBODY = 65534
NONCE_BYTES = 32
STARTED = b"\x01"  # what the tests' box says when both stand; without it there was no box
LOOK_SECONDS = 0.02  # how often a box's memory is added up
# to be raised when the same program may get another verdict: 1 ran tests in the program's
# interpreter
RULES = 2
PAUSES = (0.1, 1.0)  # seconds before a box that did not start is tried again
_TMPFS = ("--size", str(16 * 1024**2), "--tmpfs")
_CHILD = [Path(__file__).with_name(f"{part}.py") for part in ("values", "child")]


class Program(NamedTuple):
    """What a model wrote, and what judges it. `given` is the trusted text that `text` begins with, '' where there is none: what it
    defines, the function to write aside, is taken from it and not from the program. Without tests a program passes when it ends by itself."""

    text: str
    tests: str = ""
    given: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What each of the two boxes may use:

    `memory_bytes` in all, `cpu_seconds` and `file_bytes` a process or file. `output_bytes` caps
    what is read of the verdict pipe. Of what a program prints its tests alone hear, should they
    listen.
    """

    wall_seconds: float = 15.0
    cpu_seconds: int = 10
    memory_bytes: int = 2 * 1024**3
    file_bytes: int = 1024**2
    open_files: int = 64
    processes: int = 32
    output_bytes: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a program ended.

    Only `passed` is a pass; `seconds` is wall clock, 0 when it came from the cache.
    """

    outcome: Literal["passed", "failed", "timeout"]
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


class Sandbox:
    """A pool of `workers` threads, each judging one program at a time in boxes of its own.

    Probed when made. Verdicts are remembered by SHA-256 of the program, time-outs excepted: a
    loaded machine is not the program's fault. Raises UnsafeInputError when bubblewrap is missing,
    may not make namespaces, or lets a probe out.
    """

    def __init__(self, *, workers: int | None = None, limits: Limits = Limits()):
        self.limits = limits
        self._cache: dict[str, Verdict] = {}
        self._lock = threading.Lock()
        self._command = _command()
        self._pool = ThreadPoolExecutor(
            workers or max(1, os.cpu_count() or 1), thread_name_prefix="sandbox"
        )
        self._probe()

    def submit(self, program: Program) -> Future[Verdict]:
        """Start a program as soon as a worker is free."""
        return self._pool.submit(self.run, program)

    def run_many(self, programs: Sequence[Program]) -> list[Verdict]:
        """One verdict a program, in their order."""
        return [future.result() for future in [self.submit(program) for program in programs]]

    def run(self, program: Program) -> Verdict:
        """Run one Python program and its tests; it passes when it ends, and they do, without an
        exception.
        """
        key = hashlib.sha256(json.dumps(program).encode()).hexdigest()
        with self._lock:
            if key in self._cache:
                return Verdict(outcome=self._cache[key].outcome)
        verdict = _run_patiently(self._command, program, self.limits)
        if verdict.outcome != "timeout":
            with self._lock:
                self._cache[key] = verdict
        return verdict

    def close(self) -> None:
        """Wait for running programs and end the worker threads."""
        self._pool.shutdown(cancel_futures=True)

    def _probe(self) -> None:
        """A right program passes, a wrong one fails, and one that looks for the outside world finds
        nothing.
        """
        inside = (
            "import os, socket\nassert os.getuid() != 0 and not os.path.exists('/etc/passwd') "
            "and not os.path.exists('/home')\n"
            "try:\n    socket.create_connection(('1.1.1.1', 53), 0.2)\nexcept OSError:\n    "
            "pass\nelse:\n    raise SystemExit('network')\n"
        )
        for text, tests, expected in (
            ("two = 1 + 1", "assert two == 2", True),
            ("two = 1 + 1", "assert two == 3", False),
            (inside, inside, True),
        ):
            verdict = _run(self._command, Program(text, tests), self.limits)
            if verdict is None or verdict.passed != expected:
                self.close()
                raise _refusal(
                    f"bubblewrap does not hold or does not start here ({_why(self._command)})",
                    "Allow user namespaces (in Docker: --security-opt seccomp=unconfined; on "
                    "Ubuntu: an AppArmor profile for bwrap), or leave code suites out",
                )


def _command() -> list[str]:
    """The bwrap command line up to the interpreter's arguments.

    Raises UnsafeInputError when bwrap or an interpreter is missing.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise _refusal(
            "bubblewrap (bwrap) is not installed",
            "apt-get install bubblewrap, or leave code suites out",
        )
    interpreter = _interpreter()
    command = [
        bwrap,
        "--unshare-user",
        "--unshare-all",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--clearenv",
        "--hostname",
        "sandbox",
        "--ro-bind",
        "/usr",
        "/usr",
    ]
    for name in ("lib", "lib64", "lib32", "bin"):
        if os.path.islink(f"/{name}"):
            command += ["--symlink", f"usr/{name}", f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            command += ["--ro-bind", f"/{name}", f"/{name}"]
    if not interpreter.startswith("/usr/"):
        prefix = str(Path(interpreter).parent.parent)
        command += ["--ro-bind", prefix, prefix]
    return [
        *command,
        "--dev",
        "/dev",
        *_TMPFS,
        "/dev/shm",
        "--remount-ro",
        "/dev",
        *_TMPFS,
        "/tmp",
        "--chdir",
        "/tmp",
        "--remount-ro",
        "/",
        interpreter,
        "-I",
        "-S",
        "-B",
        "-c",
        "\n".join(part.read_text() for part in _CHILD),
    ]


def _interpreter() -> str:
    """A Python that uid 65534 may read: our own where it lies in the open, else the system's in
    /usr.
    """
    choices = [
        os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
        *(os.path.realpath(f"{folder}/python3") for folder in ("/usr/local/bin", "/usr/bin")),
    ]
    for path in choices:
        if (
            os.path.isfile(path)
            and _is_prefix(Path(path).parent.parent)
            and all(
                os.stat(part).st_mode & 0o005 == 0o005
                for part in (path, *map(str, Path(path).parents))
            )
        ):
            return path
    raise _refusal(
        "no Python interpreter here is readable by an ordinary user",
        "apt-get install python3-minimal, or leave code suites out",
    )


def _is_prefix(folder: Path) -> bool:
    """Whether a folder, which the box is given to read, is a Python's own: not a home or / that has
    an interpreter in its bin.
    """
    return (
        folder == Path("/usr") or len(folder.parts) > 2 and any(folder.glob("lib*/python3*/os.py"))
    )


def judge() -> str:
    """What verdicts hang on beside a program: the Python in the box and the rules; '' where there
    is no Python. 'Python 3.11.2, rules 2'.
    """
    try:
        said = subprocess.run(
            [_interpreter(), "-V"], capture_output=True, text=True, check=False, env={}, timeout=60
        ).stdout.strip()
    except UnsafeInputError:
        return ""
    return f"{said}, rules {RULES}"


def _spawn(command: Sequence[str], keep: Sequence[int] = (), **pipes: int) -> subprocess.Popen:
    """Start a box as an ordinary user; it has the descriptors `keep` besides its pipes.

    Root leaves the change of user to setpriv where there is one: asked to do it itself, Python
    copies the page tables of this whole process (fork for vfork), 2 ms for each 4 GB that an engine
    holds, for every program.
    """
    drop: dict[str, Any] = {"pass_fds": tuple(keep)}
    rules = seccomp_filter() if "--unshare-all" in command else b""
    if rules:
        inside, outside = os.pipe()
        os.write(outside, rules)
        os.close(outside)
        command = [command[0], "--seccomp", str(inside), *command[1:]]
        drop = {"pass_fds": (inside, *keep)}
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv:
            command = [
                setpriv,
                f"--reuid={NOBODY}",
                f"--regid={NOBODY}",
                "--clear-groups",
                "--",
                *command,
            ]
        else:
            drop |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    try:
        return subprocess.Popen(command, **pipes, **drop, start_new_session=True, cwd="/", env={})
    finally:
        if rules:
            os.close(inside)


def _run_patiently(command: Sequence[str], program: Program, limits: Limits) -> Verdict:
    """The verdict on a program.

    Raises InfrastructureError when its boxes do not start, three times in a row.
    """
    for pause in (*PAUSES, None):
        verdict = _run(command, program, limits)
        if verdict is not None:
            return verdict
        if pause is not None:
            time.sleep(pause)
    raise InfrastructureError(
        Problem(
            thing=SANDBOX,
            cause=f"bubblewrap started before and does not any more ({_why(command)})",
            remedy="See whether processes, namespaces (user.max_user_namespaces) or memory have run "
            "out, and start again",
        )
    )


def _run(command: Sequence[str], program: Program, limits: Limits) -> Verdict | None:
    """The verdict on a program; None when a box did not start, or was ended by neither the program
    nor us.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    started, boxes = time.monotonic(), []
    try:
        pipes = _start(command, boxes)
        asked = {
            "program": program.text,
            "tests": program.tests,
            "limits": asdict(limits),
            "pipes": pipes,
            "nonce": nonce.hex(),
        }
        names = names_of(program.tests, program.given)
        body = json.dumps(
            asked | {"names": names.wanted, "modules": names.modules, "given": names.given}
        ).encode()
        said, end = _exchange(
            boxes, struct.pack(">I", len(body)) + body, started + limits.wall_seconds, limits
        )
        killed = any(
            box.returncode is not None and box.returncode < 0 for box in boxes
        )  # nobody inside can kill bwrap itself
        code = boxes[0].returncode
    except (OSError, subprocess.SubprocessError):  # no process, no memory, no file left
        return None
    finally:
        for box in boxes:
            _end(box)
    seconds = time.monotonic() - started
    if not said.startswith(STARTED) or killed:
        return None
    if end == "late":
        return Verdict(outcome="timeout", seconds=seconds)
    passed = end == "itself" and secrets.compare_digest(said, STARTED + nonce) and code == 0
    return Verdict(outcome="passed" if passed else "failed", seconds=seconds)


def _start(command: Sequence[str], boxes: list[subprocess.Popen]) -> list[int]:
    """Start the box of the tests and that of the program, into `boxes`; the descriptors by which
    the tests' box reads and writes to the other.
    """
    asked, asking = os.pipe()
    answering, answers = os.pipe()[::-1]
    try:
        boxes.append(
            _spawn(
                [*command, "tests"],
                (answers, asking),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        )
        boxes.append(
            _spawn([*command, "program"], stdin=asked, stdout=answering, stderr=subprocess.DEVNULL)
        )
    finally:
        for pipe in (asked, asking, answers, answering):
            os.close(pipe)
    return [answers, asking]


def _exchange(
    boxes: Sequence[subprocess.Popen], message: bytes, deadline: float, limits: Limits
) -> tuple[bytes, Literal["itself", "late", "too much"]]:
    """Send the message to the tests' box while reading at most `limits.output_bytes`, and look at
    the memory meanwhile; (what was said, how it ended).
    """
    said, view, look, process = b"", memoryview(message), time.monotonic() + LOOK_SECONDS, boxes[0]
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(said) <= limits.output_bytes:
            now = time.monotonic()
            if now >= deadline:
                return said, "late"
            if now >= look:
                if any(holds_more_than(box.pid, limits.memory_bytes) for box in boxes):
                    return said, "too much"
                look = time.monotonic() + LOOK_SECONDS
            for key, _ in selector.select(max(0.0, min(deadline, look) - now)):
                if key.fileobj is process.stdin:
                    view = _send(selector, process, view)
                    continue
                part = os.read(process.stdout.fileno(), 1024)
                if not part:
                    return said, _ended(process, deadline)
                said += part
    return said, "too much"  # more than a verdict: not the nonce, whatever follows


def _send(
    selector: selectors.BaseSelector, process: subprocess.Popen, view: memoryview
) -> memoryview:
    try:
        view = view[os.write(process.stdin.fileno(), view[:65536]) :]
    except BrokenPipeError:
        view = view[:0]
    if not view:
        selector.unregister(process.stdin)
        process.stdin.close()
    return view


def _ended(process: subprocess.Popen, deadline: float) -> Literal["itself", "late"]:
    """Wait for the box that has closed its pipe."""
    try:
        process.wait(timeout=max(0.0, deadline - time.monotonic()))
        return "itself"
    except subprocess.TimeoutExpired:
        return "late"


def _end(process: subprocess.Popen) -> None:
    """Kill the box with everything in it: bwrap dies, its process namespace with it."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for pipe in (process.stdin, process.stdout):
        if pipe and not pipe.closed:
            pipe.close()
    process.wait()


def _why(command: Sequence[str]) -> str:
    """What bwrap itself says when it is asked for an empty program, for the error message."""
    end = command.index("-I")
    process = _spawn(
        [*command[:end], "-I", "-S", "-c", ""],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, said = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        said = b"it does not end"
    finally:
        _end(process)
    return said.decode(errors="replace").strip()[:300] or "no message"


def _refusal(cause: str, remedy: str) -> UnsafeInputError:
    return UnsafeInputError(Problem(thing=SANDBOX, cause=cause, remedy=remedy))


_shared: list[Sandbox] = []
_shared_lock = threading.Lock()


def shared_sandbox() -> Sandbox:
    """The one sandbox of this process, probed on first use; its verdict cache lives as long as the
    process.
    """
    with _shared_lock:
        if not _shared:
            _shared.append(Sandbox())
        return _shared[0]
