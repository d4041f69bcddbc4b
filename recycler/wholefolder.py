"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recycler.errors import Problem, UsageError

COMPANIONS = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
              "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A fresh sibling folder to write into; renamed to `folder` when the block ends well, removed otherwise."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(Problem(thing=str(folder), cause="exists already", remedy="Remove it or give another folder"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        aside.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def copy_companions(source: Path, target: Path) -> None:
    """Copy what belongs to a checkpoint besides weights and config: tokenizer, chat template, generation config."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
