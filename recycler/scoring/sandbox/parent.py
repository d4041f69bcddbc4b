"""Run programs that a model wrote where they can touch nothing: a pool of threads that judge them.

    parent.py    `Sandbox`: threads, a probe of the box, verdicts remembered
    verdict.py   one program: two boxes, one for it and one for its tests
    box.py       one box: bubblewrap, no network, no files, an ordinary user
    fence.py     system calls that are refused, and the memory of a whole box
    names.py     what tests take from a program by name
    child.py     what runs inside, with stand_ins.py, shared.py and values.py

There is no fallback: where bubblewrap does not work, `Sandbox()` raises UnsafeInputError (exit code
4). Where it worked and no longer does (no namespaces or memory left), `run` raises
InfrastructureError after three tries: that is no verdict on the program.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from recycler.errors import UnsafeInputError
from recycler.scoring.sandbox.box import box_command, complaint_of, find_interpreter, refusal
from recycler.scoring.sandbox.verdict import (
    DEFAULT_LIMITS,
    Limits,
    Program,
    Verdict,
    judge_once,
    judge_patiently,
)

# to be raised when the same program may get another verdict: 1 ran tests in the program's
# interpreter
RULES = 2


class Sandbox:
    """A pool of `workers` threads, each judging one program at a time in boxes of its own.

    Probed when made. Verdicts are remembered by SHA-256 of the program, time-outs excepted: a
    loaded machine is not the program's fault. Raises UnsafeInputError when bubblewrap is missing,
    may not make namespaces, or lets a probe out.
    """

    def __init__(self, *, workers: int | None = None, limits: Limits = DEFAULT_LIMITS):
        self.limits = limits
        self._cache: dict[str, Verdict] = {}
        self._lock = threading.Lock()
        self._command = box_command()
        self._pool = ThreadPoolExecutor(
            workers or max(1, os.cpu_count() or 1), thread_name_prefix="sandbox"
        )
        self._probe()

    def submit(self, program: Program) -> Future[Verdict]:
        """Start a program as soon as a worker is free."""
        return self._pool.submit(self.run, program)

    def run_many(self, programs: Sequence[Program]) -> list[Verdict]:
        """One verdict for each program, in their order."""
        futures = [self.submit(program) for program in programs]
        return [future.result() for future in futures]

    def run(self, program: Program) -> Verdict:
        """Run one Python program and its tests.

        It passes when it ends, and they do, without an exception.
        """
        key = hashlib.sha256(json.dumps(program).encode()).hexdigest()
        with self._lock:
            if key in self._cache:
                return Verdict(outcome=self._cache[key].outcome)
        verdict = judge_patiently(self._command, program, self.limits)
        if verdict.outcome != "timeout":
            with self._lock:
                self._cache[key] = verdict
        return verdict

    def close(self) -> None:
        """Wait for running programs and end the worker threads."""
        self._pool.shutdown(cancel_futures=True)

    def _probe(self) -> None:
        """Refuse boxes where a right program fails, a wrong one passes, or one gets out."""
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
            verdict = judge_once(self._command, Program(text, tests), self.limits)
            if verdict is None or verdict.passed != expected:
                self.close()
                complaint = complaint_of(self._command)
                raise refusal(
                    f"bubblewrap does not hold or does not start here ({complaint})",
                    "Allow user namespaces (in Docker: --security-opt seccomp=unconfined; on "
                    "Ubuntu: an AppArmor profile for bwrap), or leave code suites out",
                )


def judge() -> str:
    """The Python in the box and the rules, on which verdicts depend beside a program.

    'Python 3.11.2, rules 2'; '' where there is no Python.
    """
    try:
        said = subprocess.run(
            [find_interpreter(), "-V"],
            capture_output=True,
            text=True,
            check=False,
            env={},
            timeout=60,
        ).stdout.strip()
    except UnsafeInputError:
        return ""
    return f"{said}, rules {RULES}"


_shared: list[Sandbox] = []
_shared_lock = threading.Lock()


def shared_sandbox() -> Sandbox:
    """The one sandbox of this process, probed on first use.

    Its verdict cache lives as long as the process.
    """
    with _shared_lock:
        if not _shared:
            _shared.append(Sandbox())
        return _shared[0]
