"""The verdict on one program: two boxes with a pipe between them (child.py).

One box runs the program and answers calls; the other runs the tests, on stand-ins for what the
program defines, and sees nothing but values. So a program can exit, print, walk frames, return
objects that equal everything or speak to the pipe itself: it passes by answering right, and by
nothing else. The verdict is a nonce of 32 random bytes that only the tests' box was given, accepted
as the exact output after its sign of life.

Memory: `memory_bytes` is the address space of one process, and what all of a box's processes hold
together: this process looks every 20 ms and kills the box beyond it (fence.py), so a box may be
above it for a moment, by what its CPUs write in 20 ms. System V segments and memfds are refused.
What remains without control groups, which an ordinary user may not make: kernel memory behind
pipes, sockets and empty files, bounded only by the limits on open files, processes and time.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO, Literal, NamedTuple

from recycler.errors import InfrastructureError, Problem
from recycler.scoring.sandbox.box import SANDBOX, complaint_of, end_box, start_box
from recycler.scoring.sandbox.fence import holds_more_than
from recycler.scoring.sandbox.names import names_of

NONCE_BYTES = 32
STARTED = b"\x01"  # what the tests' box says when both stand; without it there was no box
LOOK_SECONDS = 0.02  # how often a box's memory is added up
PAUSES = (0.1, 1.0)  # seconds before a box that did not start is tried again


class Program(NamedTuple):
    """A model's program and its tests; without tests it passes when it ends by itself.

    `given` is the trusted text that `text` begins with, '' where there is none: what it defines,
    the function to write aside, is taken from it and not from the program.
    """

    text: str
    tests: str = ""
    given: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of each of the two boxes.

    `memory_bytes` in all, `cpu_seconds` and `file_bytes` for each process or file. `output_bytes`
    caps what is read of the verdict pipe. What a program prints is heard by its tests only.
    """

    wall_seconds: float = 15.0
    cpu_seconds: int = 10
    memory_bytes: int = 2 * 1024**3
    file_bytes: int = 1024**2
    open_files: int = 64
    processes: int = 32
    output_bytes: int = 4096


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A program's end; only `passed` is a pass.

    `seconds` is wall clock, 0 when the verdict came from the cache.
    """

    outcome: Literal["passed", "failed", "timeout"]
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def judge_patiently(command: Sequence[str], program: Program, limits: Limits) -> Verdict:
    """The verdict on a program.

    Raises InfrastructureError when its boxes do not start, three times in a row.
    """
    for pause in (*PAUSES, None):
        verdict = judge_once(command, program, limits)
        if verdict is not None:
            return verdict
        if pause is not None:
            time.sleep(pause)
    raise InfrastructureError(
        Problem(
            thing=SANDBOX,
            cause=f"bubblewrap started before and does not any more ({complaint_of(command)})",
            remedy="See whether processes, namespaces (user.max_user_namespaces) or memory have "
            "run out, and start again",
        )
    )


def judge_once(command: Sequence[str], program: Program, limits: Limits) -> Verdict | None:
    """The verdict on a program; None when a box did not start, or died of something else.

    That is, when neither the program nor this process ended it.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    started = time.monotonic()
    boxes: list[subprocess.Popen[bytes]] = []
    try:
        pipes = _start_both(command, boxes)
        message = _message(program, limits, pipes, nonce)
        said, end = _exchange(boxes, message, started + limits.wall_seconds, limits)
        # nobody inside can kill bwrap itself
        killed = any(box.returncode is not None and box.returncode < 0 for box in boxes)
        code = boxes[0].returncode
    except (OSError, subprocess.SubprocessError):  # no process, no memory, no file left
        return None
    finally:
        for box in boxes:
            end_box(box)
    seconds = time.monotonic() - started
    if not said.startswith(STARTED) or killed:
        return None
    if end == "late":
        return Verdict(outcome="timeout", seconds=seconds)
    if end == "itself" and secrets.compare_digest(said, STARTED + nonce) and code == 0:
        return Verdict(outcome="passed", seconds=seconds)
    return Verdict(outcome="failed", seconds=seconds)


def _message(program: Program, limits: Limits, pipes: Sequence[int], nonce: bytes) -> bytes:
    """The message to the tests' box: JSON with its length before it."""
    names = names_of(program.tests, program.given)
    body = json.dumps(
        {
            "program": program.text,
            "tests": program.tests,
            "limits": asdict(limits),
            "pipes": pipes,
            "nonce": nonce.hex(),
            "names": names.wanted,
            "modules": names.modules,
            "given": names.given,
        }
    ).encode()
    return struct.pack(">I", len(body)) + body


def _start_both(command: Sequence[str], boxes: list[subprocess.Popen[bytes]]) -> list[int]:
    """Start the box of the tests and that of the program, into `boxes`.

    Returns the descriptors by which the tests' box reads from and writes to the other.
    """
    asked, asking = os.pipe()
    answers, answering = os.pipe()
    try:
        boxes.append(
            start_box(
                [*command, "tests"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                keep=(answers, asking),
            )
        )
        boxes.append(start_box([*command, "program"], stdin=asked, stdout=answering))
    finally:
        for pipe in (asked, asking, answers, answering):
            os.close(pipe)
    return [answers, asking]


def _exchange(
    boxes: Sequence[subprocess.Popen[bytes]], message: bytes, deadline: float, limits: Limits
) -> tuple[bytes, Literal["itself", "late", "too much"]]:
    """Send the message to the tests' box and read at most `limits.output_bytes` of its answer.

    The memory of both boxes is watched meanwhile. Returns (what was said, how it ended).
    """
    said = b""
    view = memoryview(message)
    look = time.monotonic() + LOOK_SECONDS
    to_box, from_box = _pipes(boxes[0])
    with selectors.DefaultSelector() as selector:
        os.set_blocking(to_box.fileno(), False)
        selector.register(to_box, selectors.EVENT_WRITE)
        selector.register(from_box, selectors.EVENT_READ)
        while len(said) <= limits.output_bytes:
            now = time.monotonic()
            if now >= deadline:
                return said, "late"
            if now >= look:
                if any(holds_more_than(box.pid, limits.memory_bytes) for box in boxes):
                    return said, "too much"
                look = time.monotonic() + LOOK_SECONDS
            for key, _ in selector.select(max(0.0, min(deadline, look) - now)):
                if key.fileobj is to_box:
                    view = _send(selector, to_box, view)
                    continue
                part = os.read(from_box.fileno(), 1024)
                if not part:
                    return said, _wait_for(boxes[0], deadline)
                said += part
    return said, "too much"  # more than a verdict: not the nonce, whatever follows


def _pipes(box: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """(its standard input, its standard output) of a box that was started with pipes for both."""
    assert box.stdin is not None and box.stdout is not None, "_start_both asks for both pipes"
    return box.stdin, box.stdout


def _send(selector: selectors.BaseSelector, to_box: IO[bytes], view: memoryview) -> memoryview:
    """Write as much of a message as the pipe takes, and close it after the last byte.

    Returns the rest of the message.
    """
    try:
        view = view[os.write(to_box.fileno(), view[:65536]) :]
    except BrokenPipeError:
        view = view[:0]
    if not view:
        selector.unregister(to_box)
        to_box.close()
    return view


def _wait_for(box: subprocess.Popen[bytes], deadline: float) -> Literal["itself", "late"]:
    """Wait for the box that has closed its pipe."""
    try:
        box.wait(timeout=max(0.0, deadline - time.monotonic()))
        return "itself"
    except subprocess.TimeoutExpired:
        return "late"
