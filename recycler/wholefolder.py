"""A folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recycler.errors import Problem, UsageError

UNFINISHED = ".unfinished"
COMPANIONS = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
              "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json")


def make_folder(folder: Path) -> None:
    """`folder` and its parents, where they are not there. Raises UsageError where they cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(folder, error) from None


def _no_folder(folder: Path, error: OSError) -> UsageError:
    return UsageError(Problem(thing=f"folder {folder}", cause=f"cannot be made ({error.strerror or error})", remedy="Give another folder, or make room for this one"))


def write_whole(path: Path, text: str) -> None:
    """A small file that appears whole or not at all, and its folder. Raises UsageError where the folder cannot be."""
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A fresh sibling folder to write into; renamed to `folder` when the block ends well, removed otherwise.

    What a killed process left beside `folder` is removed by the next one that writes there. Raises UsageError when it is there already, or cannot be.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(Problem(thing=str(folder), cause="exists already", remedy="Remove it or give another folder"))
    make_folder(folder.parent)
    _remove_left_behind(folder)
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=UNFINISHED, dir=folder.parent))
    except OSError as error:
        raise _no_folder(folder, error) from None
    lock = _locked(aside)
    try:
        yield aside
        for path in (path for path in aside.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_left_behind(folder: Path) -> None:
    """Remove unfinished folders of processes that are no more; those at work hold a lock on theirs."""
    for aside in folder.parent.glob(f".{glob.escape(folder.name)}-*{UNFINISHED}"):
        lock = _locked(aside)
        if lock is not None:
            shutil.rmtree(aside, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed or the process ends; None when another holds it, or locks are not to be had."""
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
    """Copy what belongs to a checkpoint besides weights and config: tokenizer, chat template, generation config."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
