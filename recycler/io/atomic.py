"""A folder that appears whole or not at all."""

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
    """`folder` and its parents, where they are not there.

    Raises UsageError where they cannot be.
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


def write_whole(path: Path, text: str) -> None:
    """A small file that appears whole or not at all, and its folder.

    Raises UsageError where the folder cannot be.
    """
    make_folder(path.parent)
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write; it takes the place of `path` when the block ends well, and
    goes otherwise.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A fresh sibling folder to write into; renamed to `folder` when the block ends well, removed
    otherwise.

    What a killed process left beside `folder` is removed by the next one that writes there. Raises
    UsageError when it is there already, or cannot be, and InfrastructureError when the disk is
    full; nothing is left behind then.
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
        for path in (path for path in aside.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
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


def full_disk(error: OSError, place: Path | str) -> InfrastructureError | None:
    """What to tell when `error` says that there is no room on the disk (or in a quota, or for a
    file so large); None for any other.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return InfrastructureError(
        Problem(
            thing=str(place),
            cause=f"cannot be written whole ({error.strerror})",
            remedy="Make room there or give a place on another disk, then run the same command again",
        )
    )


def _free_place(folder: Path) -> Path:
    """Where the folder really goes: through a link that leads to an empty folder.

    Raises UsageError for what is taken, or no place for a folder.
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
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a name too long, a loop of links, a zero byte, no rights to look
        raise _no_folder(folder, error) from None
    return real


def _put_in_place(aside: Path, folder: Path) -> None:
    try:
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    except OSError as error:
        if error.errno in (
            errno.ENOTEMPTY,
            errno.EEXIST,
            errno.ENOTDIR,
        ):  # another process was faster
            raise _taken(folder) from None
        raise


def _taken(folder: Path) -> UsageError:
    return UsageError(
        Problem(
            thing=str(folder), cause="exists already", remedy="Remove it or give another folder"
        )
    )


def _remove_left_behind(folder: Path) -> None:
    """Remove unfinished folders of processes that are no more; those at work hold a lock on theirs."""
    for aside in folder.parent.glob(f".{glob.escape(folder.name[:100])}-*{UNFINISHED}"):
        lock = _locked(aside)
        if lock is not None:
            shutil.rmtree(aside, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed or the process ends; None when
    another holds it, or locks are not to be had.
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
    """Copy what belongs to a checkpoint besides weights and config: tokenizer, chat template,
    generation config.
    """
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
