"""The suite file that a job names: one of ours, a path, or one written for a task of lm-eval.

`lm_eval:arc_easy` is the task as lm-eval has it, with rows from a local mirror or the hub. Search
is on validation or training rows, the holdout on test rows (validation rows where a task has no
test). A task with one split only is cut in two: its first half is searched, which counts as a
published test set and has to be allowed.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from recycler.errors import Problem, UsageError
from recycler.io.shipped import shipped_file
from recycler.io.strict_yaml import dump_yaml
from recycler.scoring.lmeval.definitions import data_settings
from recycler.scoring.rows import data_folders_of, has_data, load_rows

PREFIX = "lm_eval:"
ENDINGS = ("jsonl", "jsonl.gz", "json", "parquet")
# of the search split: enough to see five points, few enough to build at once
MAX_ROWS, MAX_SEARCH = 1000, 250


def suite_path(
    name: str, *, beside: Path, data_folders: Sequence[Path] = (), where: str = ""
) -> Path:
    """The suite file that a job names; for lm_eval:TASK one is written.

    Raises NotFoundError when there is none, and UsageError as `bare_suite` does.
    """
    if not name.startswith(PREFIX):
        return shipped_file("eval_suites", name, beside=beside, where=where)
    task = name.removeprefix(PREFIX)
    path = _folder() / f"{task}.yaml"
    path.write_text(dump_yaml(bare_suite(task, data_folders_of(data_folders, beside), where=where)))
    return path


def bare_suite(task: str, folders: Sequence[Path], *, where: str = "") -> dict[str, Any]:
    """The suite that the user would write for a task of lm-eval.

    Raises UsageError for a task whose data cannot be named.
    """
    config = data_settings(task, where)
    test = config.get("test_split") or config.get("validation_split")
    has_own_files = (config.get("dataset_kwargs") or {}).get("data_files")
    if not test or not config.get("dataset_path") or has_own_files:
        raise UsageError(
            Problem(
                thing=f"lm-eval task {task!r}",
                cause="does not say which rows it asks",
                remedy="Write a suite with lm_eval: and data: for it, see docs/suites.md",
                where=where,
            )
        )
    own: dict[str, Any] = {"lm_eval": task, "repeated": "drop"}
    examples = _examples_split(config)
    held_out = _source(task, config, test, folders)
    search = _search_split(config, test)
    if search:
        source = _source(task, config, search, folders)
        num_rows = len(load_rows(source, folders, where))
        if search == examples:  # what is searched is no example
            num_rows //= 2
        own["search"] = {
            "data": source,
            "rows": [0, min(MAX_ROWS, num_rows)],
            "limit": MAX_SEARCH,
        }
        if "test" in search:
            own["search"]["benchmark_test"] = True
        own["holdout"] = {"data": held_out}
    else:
        num_rows = len(load_rows(held_out, folders, where))
        half = num_rows // 2
        own["data"] = held_out
        own["search"] = {"rows": [0, half], "limit": MAX_SEARCH, "benchmark_test": True}
        own["holdout"] = {"rows": [half, num_rows]}
    if examples:
        own["fewshot"] = {"data": _source(task, config, examples, folders)}
    return {
        "version": 1,
        "description": f"{task} as lm-eval has it",
        "tasks": {_task_name(task): own},
    }


def _search_split(config: Mapping[str, Any], test: str) -> str | None:
    """The split that is searched: validation or training rows, if they are not the test's."""
    for key in ("validation_split", "training_split"):
        split = config.get(key)
        if split and split != test:
            return split
    return None


def _examples_split(config: Mapping[str, Any]) -> str | None:
    """The split of the few-shot examples; None when there are none, or the task brings its own."""
    if not config.get("num_fewshot") or (config.get("fewshot_config") or {}).get("samples"):
        return None
    return (
        config.get("fewshot_split")
        or config.get("training_split")
        or config.get("validation_split")
    )


def _task_name(task: str) -> str:
    """A task's name with _ for each character that a suite's keys may not have."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in task)


def _source(task: str, config: Mapping[str, Any], split: str, folders: Sequence[Path]) -> str:
    """A split's rows: a file below one of the folders, else the split on the hub.

    The file is TASK/SPLIT.jsonl or DATASET[/CONFIG]/SPLIT.jsonl, or has another of ENDINGS.
    """
    path, name = config["dataset_path"], config.get("dataset_name")
    tail = path.rpartition("/")[2]
    places = [task, tail]
    if name:
        places.insert(1, f"{tail}/{name}")
    for folder in places:
        for ending in ENDINGS:
            if has_data(f"{folder}/{split}.{ending}", folders):
                return f"{folder}/{split}.{ending}"
    return f"hub:{path}:{name or ''}:{split}"


@lru_cache(maxsize=1)
def _folder() -> Path:
    """The folder of written suites, kept until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="recycler-suites-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
