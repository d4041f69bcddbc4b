"""Run programs that a model wrote where they can touch nothing: bubblewrap, no network, no files, hard limits.

What a program gets: an own user, process, mount, network, IPC and host-name namespace, no capabilities, no way to make
further user namespaces; /usr read-only, an empty 16 MB /tmp, no /proc, no /etc, no environment; limits on CPU time,
memory, file size, open files and processes; a wall-clock limit, after which all of it is killed. Root drops to uid 65534 first, since
RLIMIT_NPROC does not bind real root.

The verdict is a nonce of 32 random bytes, accepted only as the exact and only output. Half of it stands in the runner's
frame, half stays unread in a pipe, so that neither exit codes, printing, walking frames nor reading file descriptors
alone forge a pass. A program made to defeat this very runner could still forge *its own* pass (it shares an interpreter with its
tests), but not leave the box.

There is no fallback: where bubblewrap does not work, `Sandbox()` raises UnsafeInputError (exit code 4).
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
from typing import Any, Literal

from recycler.errors import Problem, UnsafeInputError

NOBODY = 65534
NONCE_BYTES = 32
_CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use. `output_bytes` caps what is read of its verdict pipe; printing goes to /dev/null."""

    wall_seconds: float = 15.0
    cpu_seconds: int = 10
    memory_bytes: int = 2 * 1024**3
    file_bytes: int = 1024**2
    open_files: int = 64
    processes: int = 32
    output_bytes: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a program ended. Only `passed` is a pass; `seconds` is wall clock, 0 when it came from the cache."""

    outcome: Literal["passed", "failed", "timeout"]
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


class Sandbox:
    """A pool of `workers` threads, each running one program at a time in a box of its own.

    Probed when made. Verdicts are remembered by SHA-256 of the program, time-outs excepted: a loaded machine is not the
    program's fault. Raises UnsafeInputError when bubblewrap is missing, may not make namespaces, or lets a probe out.
    """

    def __init__(self, *, workers: int | None = None, limits: Limits = Limits()):
        self.limits = limits
        self._cache: dict[str, Verdict] = {}
        self._lock = threading.Lock()
        self._command = _command()
        self._pool = ThreadPoolExecutor(workers or max(1, os.cpu_count() or 1), thread_name_prefix="sandbox")
        self._probe()

    def submit(self, program: str) -> Future[Verdict]:
        """Start a program as soon as a worker is free."""
        return self._pool.submit(self.run, program)

    def run_many(self, programs: Sequence[str]) -> list[Verdict]:
        """One verdict a program, in their order."""
        return [future.result() for future in [self.submit(program) for program in programs]]

    def run(self, program: str) -> Verdict:
        """Run one Python program to its end; it passes when its last statement is reached without an exception."""
        key = hashlib.sha256(program.encode("utf-8", "surrogatepass")).hexdigest()
        with self._lock:
            if key in self._cache:
                return Verdict(outcome=self._cache[key].outcome)
        verdict = _run(self._command, program, self.limits)
        if verdict.outcome != "timeout":
            with self._lock:
                self._cache[key] = verdict
        return verdict

    def close(self) -> None:
        """Wait for running programs and end the worker threads."""
        self._pool.shutdown(cancel_futures=True)

    def _probe(self) -> None:
        """A right program passes, a wrong one fails, and one that looks for the outside world finds nothing."""
        inside = ("import os, socket\nassert os.getuid() != 0 and not os.path.exists('/etc/passwd') and not os.path.exists('/home')\n"
                  "try:\n    socket.create_connection(('1.1.1.1', 53), 0.2)\nexcept OSError:\n    pass\nelse:\n    raise SystemExit('network')\n")
        for program, expected in (("assert 1 + 1 == 2", True), ("assert 1 + 1 == 3", False), (inside, True)):
            if _run(self._command, program, self.limits).passed != expected:
                self.close()
                raise _refusal(f"bubblewrap does not hold or does not start here ({_why(self._command)})",
                               "Allow user namespaces (in Docker: --security-opt seccomp=unconfined; on Ubuntu: an AppArmor profile for bwrap), or leave code suites out")


def _command() -> list[str]:
    """The bwrap command line up to the interpreter's arguments. Raises UnsafeInputError when bwrap or an interpreter is missing."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise _refusal("bubblewrap (bwrap) is not installed", "apt-get install bubblewrap, or leave code suites out")
    interpreter = _interpreter()
    command = [bwrap, "--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
               "--hostname", "sandbox", "--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib64", "lib32", "bin"):
        if os.path.islink(f"/{name}"):
            command += ["--symlink", f"usr/{name}", f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            command += ["--ro-bind", f"/{name}", f"/{name}"]
    if not interpreter.startswith("/usr/"):
        prefix = str(Path(interpreter).parent.parent)
        command += ["--ro-bind", prefix, prefix]
    return [*command, "--dev", "/dev", "--size", str(16 * 1024**2), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/",
            interpreter, "-I", "-S", "-B", "-c", _CHILD.read_text()]


def _interpreter() -> str:
    """A Python that uid 65534 may read: our own where it lies in the open, else the system's in /usr."""
    choices = [os.path.realpath(getattr(sys, "_base_executable", sys.executable)), *(os.path.realpath(f"{folder}/python3") for folder in ("/usr/local/bin", "/usr/bin"))]
    for path in choices:
        if os.path.isfile(path) and all(os.stat(part).st_mode & 0o005 == 0o005 for part in (path, *map(str, Path(path).parents))):
            return path
    raise _refusal("no Python interpreter here is readable by an ordinary user", "apt-get install python3-minimal, or leave code suites out")


def _spawn(command: Sequence[str], **pipes: int) -> subprocess.Popen:
    """Start a box as an ordinary user.

    Root leaves the change of user to setpriv where there is one: asked to do it itself, Python copies the page tables of this
    whole process (fork for vfork), 2 ms for each 4 GB that an engine holds, for every program.
    """
    drop: dict[str, Any] = {}
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv:
            command = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", *command]
        else:
            drop = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    return subprocess.Popen(command, **pipes, **drop, start_new_session=True, cwd="/", env={})


def _run(command: Sequence[str], program: str, limits: Limits) -> Verdict:
    nonce, half = secrets.token_bytes(NONCE_BYTES), secrets.token_bytes(NONCE_BYTES)
    other = bytes(a ^ b for a, b in zip(nonce, half, strict=True))
    body = json.dumps({"program": program, "half": half.hex(), "limits": asdict(limits)}).encode()
    started = time.monotonic()
    process = _spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        said, in_time = _exchange(process, struct.pack(">I", len(body)) + body + other, started + limits.wall_seconds, limits.output_bytes)
    finally:
        _end(process)
    seconds = time.monotonic() - started
    if not in_time:
        return Verdict(outcome="timeout", seconds=seconds)
    return Verdict(outcome="passed" if secrets.compare_digest(said, nonce) and process.returncode == 0 else "failed", seconds=seconds)


def _exchange(process: subprocess.Popen, message: bytes, deadline: float, cap: int) -> tuple[bytes, bool]:
    """Send the message while reading at most `cap` bytes; (what was said, ended before the deadline)."""
    said, view = b"", memoryview(message)
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(said) <= cap:
            left = deadline - time.monotonic()
            if left <= 0:
                return said, False
            for key, _ in selector.select(left):
                if key.fileobj is process.stdin:
                    view = _send(selector, process, view)
                else:
                    part = os.read(process.stdout.fileno(), 1024)
                    if not part:
                        return said, _ended(process, deadline)
                    said += part
    return said, True  # more than a verdict: not the nonce, whatever follows


def _send(selector: selectors.BaseSelector, process: subprocess.Popen, view: memoryview) -> memoryview:
    try:
        view = view[os.write(process.stdin.fileno(), view[:65536]):]
    except BrokenPipeError:
        view = view[:0]
    if not view:
        selector.unregister(process.stdin)
        process.stdin.close()
    return view


def _ended(process: subprocess.Popen, deadline: float) -> bool:
    try:
        process.wait(timeout=max(0.0, deadline - time.monotonic()))
        return True
    except subprocess.TimeoutExpired:
        return False


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
    process = _spawn([*command[:end], "-I", "-S", "-c", ""], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, said = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        said = b"it does not end"
    finally:
        _end(process)
    return said.decode(errors="replace").strip()[:300] or "no message"


def _refusal(cause: str, remedy: str) -> UnsafeInputError:
    return UnsafeInputError(Problem(thing="code sandbox", cause=cause, remedy=remedy))


_shared: list[Sandbox] = []
_shared_lock = threading.Lock()


def shared_sandbox() -> Sandbox:
    """The one sandbox of this process, probed on first use; its verdict cache lives as long as the process."""
    with _shared_lock:
        if not _shared:
            _shared.append(Sandbox())
        return _shared[0]
