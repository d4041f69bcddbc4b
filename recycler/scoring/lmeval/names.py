"""The YAML of the installed lm-eval that defines a task.

It is searched for by its key, which is quick, then looked up in lm-eval's own index.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from recycler.errors import NotFoundError, Problem, UsageError


@lru_cache(maxsize=1024)
def definition(name: str, where: str = "") -> Path:
    """The file of a task.

    Raises NotFoundError, or UsageError for a group of tasks, a tag, or a task that is a program.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            Problem(
                thing=f"lm_eval: {name}",
                cause="lm-eval is not installed",
                remedy="pip install 'lm-eval==0.4.13'",
                where=where,
            )
        )
    root = Path(found.submodule_search_locations[0]) / "tasks"
    line = re.compile(
        rf"^['\"]?task['\"]?\s*:\s*(['\"]?){re.escape(name)}\1\s*(#.*)?$", re.MULTILINE
    )
    words = name.split("_")
    near = [root / "_".join(words[:size]) for size in range(len(words), 0, -1)]
    for folder in (*(folder for folder in near if folder.is_dir()), root):
        for path in sorted(folder.rglob("*.yaml"), key=lambda path: path.stem not in name):
            if line.search(path.read_text(encoding="utf-8", errors="replace")):
                return path
    return _indexed(name, where)


def _indexed(name: str, where: str) -> Path:
    """By lm-eval's index, which knows includes, groups and tags, and takes seconds to make."""
    index = _index()
    entry = index.get(name)
    if entry is None:
        close = get_close_matches(name, index, n=1)
        raise NotFoundError(
            Problem(
                thing=f"lm-eval task {name!r}",
                cause="not found in the installed lm-eval",
                where=where,
                remedy=(f"Did you mean {close[0]!r}? " if close else "")
                + "List them with: lm_eval ls tasks",
            )
        )
    if entry.kind.name == "TASK":
        return entry.yaml_path
    if entry.kind.name == "PY_TASK":
        raise UsageError(
            Problem(
                thing=f"lm-eval task {name!r}",
                cause="is a program of its own, not a definition in YAML",
                remedy="Choose another, or write a suite with prompt: and answer:",
                where=where,
            )
        )
    tasks = sorted(_members(name, index))
    raise UsageError(
        Problem(
            thing=f"lm-eval task {name!r}",
            cause=f"is a group of {len(tasks)} tasks",
            remedy=f"Name them one by one, such as {', '.join(tasks[:3])}",
            where=where,
        )
    )


def _members(name: str, index: Mapping[str, Any], above: frozenset[str] = frozenset()) -> set[str]:
    """Names of the tasks of a group or tag, those of groups in it included."""
    entry = index.get(name)
    if entry is None or name in above:
        return set()
    if entry.kind.name in ("TASK", "PY_TASK"):
        return {name}
    named = (entry.cfg or {}).get("task") or sorted(entry.tags)
    if isinstance(named, str):
        named = [named]
    found: set[str] = set()
    for part in named:
        if not isinstance(part, str):
            part = part.get("task") or part.get("group")
        if isinstance(part, str):
            found |= _members(part, index, above | {name}) or {part}
    return found


@lru_cache(maxsize=1)
def _index() -> dict[str, Any]:
    from lm_eval.tasks import TaskManager  # loads torch and transformers

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager().task_index
