"""Copies of bucket objects on this machine: one file per (url, etag, size), complete or absent.

The least recently used copies are removed when room is needed. RECYCLER_CACHE names the folder
(default ~/.cache/recycler), RECYCLER_CACHE_BYTES its size (default 200 GB). A file that a process
uses is held by a shared lock until the process ends and is never removed; a crashed process leaves
no lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.io.atomic import atomic_folder

DEFAULT_CACHE_BYTES = 200_000_000_000
_held: dict[str, int] = {}  # lock file -> descriptor with a shared lock, until this process ends


def cache_folder() -> Path:
    """The cache's folder, made when it is not there; only its owner may read it.

    Raises InfrastructureError where it cannot be written.
    """
    folder = Path(os.environ.get("RECYCLER_CACHE") or Path.home() / ".cache" / "recycler")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise _no_cache(folder, error.strerror) from None
    if not writable:
        raise _no_cache(folder, "it is read-only")
    return folder


def _no_cache(folder: Path, cause: str | None) -> InfrastructureError:
    return InfrastructureError(
        Problem(
            thing=f"cache {folder}",
            cause=f"cannot be written ({cause})",
            remedy="Make room there, or name another folder in RECYCLER_CACHE",
        )
    )


def cache_bytes() -> int:
    """The size in bytes up to which the cache may grow.

    Raises UsageError when the variable is no number.
    """
    text = os.environ.get("RECYCLER_CACHE_BYTES") or str(DEFAULT_CACHE_BYTES)
    try:
        return int(float(text))
    except ValueError:
        raise UsageError(
            Problem(
                thing="RECYCLER_CACHE_BYTES",
                cause=f"is {text!r}, not a number of bytes",
                remedy="Give one, such as 50e9",
            )
        ) from None


def cache_key(url: str, etag: str, size: int) -> str:
    """Name of the copy of one version of an object. Times play no part in it."""
    return hashlib.sha256(json.dumps([url, etag, size]).encode()).hexdigest()[:40]


def cached(url: str, etag: str, size: int, fetch: Callable[[Path], dict[str, Any]]) -> Path:
    """The local copy of one version of an object, fetched when it is not there.

    One process at a time fetches it, into a temporary file that is renamed when it is complete.
    `fetch(path)` writes the object and returns facts to keep beside it. Raises what it raises, and
    InfrastructureError when the cache cannot hold the object beside those in use.
    """
    folder, key = cache_folder(), cache_key(url, etag, size)
    path = folder / f"{key}.bin"
    _hold(folder, key)
    if not _is_whole(path, size):
        lock = os.open(folder / f"{key}.fetch", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(path, size):  # nobody fetched it while we waited
                _make_room(folder, key, size, url)
                _fetch(folder, key, {"url": url, "etag": etag, "size": size}, fetch)
        finally:
            os.close(lock)
    os.utime(path)
    return path


def cached_folder(key: str, name: str, write: Callable[[Path], None]) -> Path:
    """A folder of the cache; `write` fills it, atomically, where it is not there.

    Raises what `write` raises.
    """
    folder = cache_folder() / "folders" / key / name
    if not folder.is_dir():
        try:
            with atomic_folder(folder) as aside:
                write(aside)
        except (UsageError, OSError):  # another process was first
            if not folder.is_dir():
                raise
    return folder


def is_cached(url: str, etag: str, size: int) -> bool:
    """True when the complete copy is there; it may be removed until `cached` holds it."""
    return _is_whole(cache_folder() / f"{cache_key(url, etag, size)}.bin", size)


def cached_facts(url: str, etag: str, size: int) -> dict[str, Any]:
    """Facts about a copy: URL, etag, size, SHA-256, tensor digests; empty when there is none."""
    try:
        return json.loads((cache_folder() / f"{cache_key(url, etag, size)}.json").read_text())
    except FileNotFoundError:
        return {}


def release_all() -> None:
    """Give up the locks of this process, so that its copies may be removed when room is needed."""
    while _held:
        os.close(_held.popitem()[1])


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _hold(folder: Path, key: str) -> None:
    name = str(folder / f"{key}.lock")
    if name not in _held:
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        _held[name] = file


def _fetch(
    folder: Path, key: str, facts: dict[str, Any], fetch: Callable[[Path], dict[str, Any]]
) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{key}.", suffix=".part", dir=folder)
    os.close(handle)
    part = Path(name)
    try:
        facts = facts | fetch(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        (folder / f".{key}.json.part").write_text(json.dumps(facts))
        (folder / f".{key}.json.part").rename(folder / f"{key}.json")
        part.rename(folder / f"{key}.bin")
    except OSError as error:
        raise _no_cache(folder, error.strerror) from None
    finally:
        part.unlink(missing_ok=True)


def _make_room(folder: Path, key: str, wanted: int, url: str) -> None:
    """Remove the least recently used copies that no process holds, until `wanted` bytes fit.

    Raises InfrastructureError when they do not.
    """
    _remove_leftovers(folder, key)
    copies = [(path, path.stat()) for path in folder.glob("*.bin")]
    copies.sort(key=lambda copy: copy[1].st_mtime_ns)
    total, limit = sum(status.st_size for _, status in copies), cache_bytes()
    for path, status in copies:
        if total + wanted <= limit:
            return
        if _remove(path):
            total -= status.st_size
    if total + wanted > limit:
        raise InfrastructureError(
            Problem(
                thing=f"cache {folder}",
                cause=f"may hold {limit:,} bytes, of which {total:,} are in use, and {url} needs "
                f"{wanted:,}",
                remedy="Raise RECYCLER_CACHE_BYTES or merge fewer checkpoints",
            )
        )


def _remove_leftovers(folder: Path, own: str) -> None:
    """Remove temporary files of processes that were killed.

    Those are the ones whose fetch lock is free, or ours (`own`) by now.
    """
    for part in folder.glob(".*.part"):
        key = part.name.split(".")[1]
        if key == own:
            part.unlink(missing_ok=True)
            continue
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        file = os.open(folder / f"{key}.fetch", flags, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            part.unlink(missing_ok=True)
        finally:
            os.close(file)


def _remove(path: Path) -> bool:
    """Remove one copy unless a process holds it; True when it was removed."""
    lock = path.with_suffix(".lock")
    if str(lock) in _held:
        return False
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        return True
    finally:
        os.close(file)
