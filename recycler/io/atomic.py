"""Atomic folders and files: they appear complete, or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recycler.errors import InfrastructureError, Problem, UsageError

UNFINISHED = ".unfinished"
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents where they are missing.

    Raises UsageError when that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(folder, error) from None


def _no_folder(folder: Path, error: OSError | RuntimeError | ValueError) -> UsageError:
    return UsageError(
        Problem(
            thing=f"folder {folder}",
            cause=f"cannot be made ({getattr(error, 'strerror', None) or error})",
            remedy="Give another folder, or make room for this one",
        )
    )


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file atomically, and make its folder.

    Raises UsageError when the folder cannot be made.
    """
    make_folder(path.parent)
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to.

    It replaces `path` when the block ends without an exception, and is removed otherwise.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` to write into.

    It is renamed to `folder` when the block ends without an exception, and removed otherwise. What
    a killed process left behind is removed by the next one that writes to the same place. Raises
    UsageError when `folder` exists already or cannot be made, and InfrastructureError when the
    disk is full; nothing is left behind then.
    """
    folder = _free_place(folder)
    made_parent = not folder.parent.exists()
    make_folder(folder.parent)
    _remove_left_behind(folder)
    try:
        aside = Path(
            tempfile.mkdtemp(prefix=f".{folder.name[:100]}-", suffix=UNFINISHED, dir=folder.parent)
        )
    except OSError as error:
        raise full_disk(error, folder) or _no_folder(folder, error) from None
    lock = _locked(aside)
    try:
        yield aside
        _flush(aside)
        aside.chmod(0o755)
        _put_in_place(aside, folder)
    except OSError as error:
        if (full := full_disk(error, folder)) is None:
            raise
        raise full from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        if made_parent:
            with suppress(OSError):  # not empty: it is wanted
                folder.parent.rmdir()


def _flush(folder: Path) -> None:
    """Wait until the disk holds every file below `folder`."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def full_disk(error: OSError, place: Path | str) -> InfrastructureError | None:
    """The user's error when `error` says that the disk is full; None for any other cause.

    A quota that is used up, and a file larger than the file system allows, count too.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return InfrastructureError(
        Problem(
            thing=str(place),
            cause=f"cannot be written whole ({error.strerror})",
            remedy="Make room there or give a place on another disk, then run the same command "
            "again",
        )
    )


def _free_place(folder: Path) -> Path:
    """The resolved place of a new folder; a link to an empty folder is followed.

    Raises UsageError when the place is taken, or when no folder can be there.
    """
    try:
        if folder.is_symlink() and not folder.exists():
            raise UsageError(
                Problem(
                    thing=str(folder),
                    cause="is a link to nothing",
                    remedy="Remove it or give another folder",
                )
            )
        real = folder.resolve()
        if real == Path.cwd() or real in Path.cwd().parents:
            raise UsageError(
                Problem(
                    thing=str(folder),
                    cause="is the folder that this runs in, or one above it",
                    remedy="Give a new folder in it",
                )
            )
        if real.exists() and (not real.is_dir() or any(real.iterdir())):
            raise _taken(folder)
    except (OSError, RuntimeError, ValueError) as error:
        # a name too long, a loop of links, a zero byte, no rights to look
        raise _no_folder(folder, error) from None
    return real


def _put_in_place(aside: Path, folder: Path) -> None:
    try:
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            # another process was faster
            raise _taken(folder) from None
        raise


def _taken(folder: Path) -> UsageError:
    return UsageError(
        Problem(
            thing=str(folder), cause="exists already", remedy="Remove it or give another folder"
        )
    )


def _remove_left_behind(folder: Path) -> None:
    """Remove unfinished folders of ended processes; running ones hold a lock on theirs."""
    for aside in folder.parent.glob(f".{glob.escape(folder.name[:100])}-*{UNFINISHED}"):
        lock = _locked(aside)
        if lock is not None:
            shutil.rmtree(aside, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed or the process ends.

    None when another process holds the lock, or the file system has no locks.
    """
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template and generation config: all but weights and config."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
