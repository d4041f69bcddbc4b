"""A suite from the bare name of a task:

`lm_eval:arc_easy`, as lm-eval has it, with rows from a local mirror or the hub.

Search is on validation or training rows, the holdout on test rows (validation rows where a task has
no test). A task with one split only is cut in two: its first half is searched, which counts as a
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
from recycler.scoring.lmeval.tasks import data_settings
from recycler.scoring.rows import data_folders_of, has_data, load_rows

PREFIX = "lm_eval:"
ENDINGS = ("jsonl", "jsonl.gz", "json", "parquet")
MOST_ROWS, MOST_SEARCH = (
    1000,
    250,
)  # of the search split: enough to see five points, few enough to build at once


def suite_path(
    name: str, *, beside: Path, data_folders: Sequence[Path] = (), where: str = ""
) -> Path:
    """The suite file that a job names: one of ours, a path, or lm_eval:TASK, for which one is
    written. Raises NotFoundError, UsageError.
    """
    if not name.startswith(PREFIX):
        return shipped_file("eval_suites", name, beside=beside, where=where)
    task = name.removeprefix(PREFIX)
    path = _folder() / f"{task}.yaml"
    path.write_text(dump_yaml(bare_suite(task, data_folders_of(data_folders, beside), where=where)))
    return path


def bare_suite(task: str, folders: Sequence[Path], *, where: str = "") -> dict[str, Any]:
    """What a person would write for a task of lm-eval.

    Raises UsageError for a task whose data cannot be named.
    """
    config = data_settings(task, where)
    test = config.get("test_split") or config.get("validation_split")
    if (
        not test
        or not config.get("dataset_path")
        or (config.get("dataset_kwargs") or {}).get("data_files")
    ):
        raise UsageError(
            Problem(
                thing=f"lm-eval task {task!r}",
                cause="does not say which rows it asks",
                remedy="Write a suite with lm_eval: and data: for it, see docs/suites.md",
                where=where,
            )
        )
    search = next(
        (
            split
            for split in (config.get("validation_split"), config.get("training_split"))
            if split and split != test
        ),
        None,
    )
    has_samples = not config.get("num_fewshot") or (config.get("fewshot_config") or {}).get(
        "samples"
    )
    examples = (
        None
        if has_samples
        else config.get("fewshot_split")
        or config.get("training_split")
        or config.get("validation_split")
    )
    held_out = _source(task, config, test, folders)
    own: dict[str, Any] = {"lm_eval": task, "repeated": "drop"}
    if search:
        source = _source(task, config, search, folders)
        there = len(load_rows(source, folders, where))
        rows = min(
            MOST_ROWS, there // 2 if search == examples else there
        )  # what is searched is no example
        own |= {
            "search": {"data": source, "rows": [0, rows], "limit": MOST_SEARCH}
            | ({"benchmark_test": True} if "test" in search else {}),
            "holdout": {"data": held_out},
        }
    else:
        rows = len(load_rows(held_out, folders, where))
        own |= {
            "data": held_out,
            "search": {"rows": [0, rows // 2], "limit": MOST_SEARCH, "benchmark_test": True},
            "holdout": {"rows": [rows // 2, rows]},
        }
    if examples:
        own["fewshot"] = {"data": _source(task, config, examples, folders)}
    return {
        "version": 1,
        "description": f"{task} as lm-eval has it",
        "tasks": {
            "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in task): own
        },
    }


def _source(task: str, config: Mapping[str, Any], split: str, folders: Sequence[Path]) -> str:
    """A file below one of the folders, TASK/SPLIT.jsonl or DATASET[/CONFIG]/SPLIT.jsonl, else the
    split on the hub.
    """
    path, name = config["dataset_path"], config.get("dataset_name")
    tail = path.rpartition("/")[2]
    for folder in (task, *([f"{tail}/{name}"] if name else []), tail):
        for ending in ENDINGS:
            if has_data(f"{folder}/{split}.{ending}", folders):
                return f"{folder}/{split}.{ending}"
    return f"hub:{path}:{name or ''}:{split}"


@lru_cache(maxsize=1)
def _folder() -> Path:
    """Where written suites lie until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="recycler-suites-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
