"""One box: a process that can touch nothing, with a Python and the text of child.py in it.

It has an own user, process, mount, network, IPC and host-name namespace, no capabilities,
no way to make further user namespaces; /usr read-only, an empty /tmp and /dev/shm of 16 MB each, no
/proc, no /etc, no environment. child.py sets limits on CPU time, file size, open files and
processes, and verdict.py kills all of a box after its wall-clock time. Root drops to uid 65534
first, since RLIMIT_NPROC does not bind real root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from recycler.errors import Problem, UnsafeInputError
from recycler.scoring.sandbox.fence import seccomp_filter

SANDBOX = "code sandbox"  # the thing that its errors are about
NOBODY = 65534
_TMPFS = ("--size", str(16 * 1024**2), "--tmpfs")
_TEXTS = ("stand_ins", "shared", "values", "child")  # what runs inside, in this order


def box_command() -> list[str]:
    """The bwrap command line up to the side that the box is for.

    Raises UnsafeInputError when bwrap or an interpreter is missing.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise refusal(
            "bubblewrap (bwrap) is not installed",
            "apt-get install bubblewrap, or leave code suites out",
        )
    interpreter = find_interpreter()
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
        "\n".join(Path(__file__).with_name(f"{name}.py").read_text() for name in _TEXTS),
    ]


def find_interpreter() -> str:
    """A Python that uid 65534 may read: our own where it lies in the open, else the system's.

    Raises UnsafeInputError when there is none.
    """
    choices = [
        os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
        *(os.path.realpath(f"{folder}/python3") for folder in ("/usr/local/bin", "/usr/bin")),
    ]
    for path in choices:
        if (
            os.path.isfile(path)
            and is_python_prefix(Path(path).parent.parent)
            and _is_in_the_open(Path(path))
        ):
            return path
    raise refusal(
        "no Python interpreter here is readable by an ordinary user",
        "apt-get install python3-minimal, or leave code suites out",
    )


def is_python_prefix(folder: Path) -> bool:
    """True for the folder of a Python, which the box is given to read: /usr, or one of its own.

    A home, or /, that has an interpreter in its bin is none.
    """
    if folder == Path("/usr"):
        return True
    return len(folder.parts) > 2 and any(folder.glob("lib*/python3*/os.py"))


def _is_in_the_open(path: Path) -> bool:
    """True when anybody may read and enter a path and all folders above it."""
    return all(os.stat(part).st_mode & 0o005 == 0o005 for part in (path, *path.parents))


def start_box(
    command: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int = subprocess.DEVNULL,
    keep: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a box as an ordinary user; it has the descriptors `keep` besides its pipes.

    Root leaves the change of user to setpriv where there is one: asked to do it itself, Python
    copies the page tables of this whole process (fork for vfork), 2 ms for each 4 GB that an engine
    holds, for every program.
    """
    kept = list(keep)
    rules = b""
    if "--unshare-all" in command:
        rules = seccomp_filter()
    if rules:
        inside, outside = os.pipe()
        os.write(outside, rules)
        os.close(outside)
        command = [command[0], "--seccomp", str(inside), *command[1:]]
        kept.insert(0, inside)
    user: int | None = None
    extra_groups: list[int] | None = None
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv:
            dropped = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            command = [setpriv, *dropped, "--", *command]
        else:
            user, extra_groups = NOBODY, []
    try:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=kept,
            user=user,
            group=user,
            extra_groups=extra_groups,
            start_new_session=True,
            cwd="/",
            env={},
        )
    finally:
        if rules:
            os.close(inside)


def end_box(process: subprocess.Popen[bytes]) -> None:
    """Kill the box with everything in it: bwrap dies, its process namespace with it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe and not pipe.closed:
            pipe.close()
    process.wait()


def complaint_of(command: Sequence[str]) -> str:
    """The words of bwrap itself when it is asked for an empty program, for the error message."""
    end = command.index("-I")
    process = start_box(
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
        end_box(process)
    return said.decode(errors="replace").strip()[:300] or "no message"


def refusal(cause: str, remedy: str) -> UnsafeInputError:
    """The error of a machine where programs cannot be run safely."""
    return UnsafeInputError(Problem(thing=SANDBOX, cause=cause, remedy=remedy))
