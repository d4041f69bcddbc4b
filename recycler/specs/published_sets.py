"""Published test sets: which data belong to one, and the guard that keeps a search off them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

from recycler.errors import Problem, UsageError
from recycler.specs.suite import EvalSuite, TaskSpec
from recycler.types import Objective

# Benchmarks by their names without spaces and dashes: those with training rows of their own, and
# those that are a test set throughout.
_WITH_TRAINING = frozenset({"gsm8k", "gradeschoolmath", "mbpp"})
_TEST_ONLY = frozenset(
    {
        "humaneval",
        "humanevalplus",
        "mbppplus",
        "gsm8kplatinum",
        "mgsm",
        "ifeval",
        "bbh",
        "bigbenchhard",
    }
)
_BESIDE_NAMES = frozenset(
    "openai google research datasets dataset data input hf main full socratic sanitized train "
    "test of bn de en es fr ja ru sw te th zh".split()
)
_OTHER_SPLITS = frozenset({"train", "training", "validation", "valid", "val", "dev", "prompt"})
MBPP_TEST_ROWS = (10, 510)  # of mbpp.jsonl, which holds all of its splits


def searches_test_set(task: TaskSpec) -> bool:
    """True when the search split of a task touches a published test set.

    Either the task says so, or its data's name and rows are well known.
    """
    if task.search.benchmark_test:
        return True
    found = _test_rows(task.search.data or task.data, task.lm_eval)
    if isinstance(found, bool):
        return found
    first, last = task.search.rows or (0, sys.maxsize)
    return first < found[1] and last > found[0]


def _test_rows(name: str, lm_eval: str | None = None) -> bool | tuple[int, int]:
    """True for the name of a published test set, or (first, last) where those rows are.

    `name` is a file, whatever its ending, or hub:DATASET:CONFIG:SPLIT. A folder, file or data set
    counts that is called as the benchmark is, but for words such as openai, main or a language:
    gsm8k-own is free. So does one called as the task of lm-eval that asks it, and what such a task
    takes from the hub.
    """
    parts = [_name_words(part) for part in re.split(r"[/\\:]", name)]
    own = re.sub("[^a-z0-9]", "", (lm_eval or "").lower())
    known = {*_WITH_TRAINING, *_TEST_ONLY, own}
    for place, words in enumerate(parts):
        called = "".join(word for word in words if word not in _BESIDE_NAMES and not word.isdigit())
        if not called:
            continue
        if called not in known and "".join(words) != own:
            continue
        split = _last_split(parts[place:])
        if "test" in split or called == "ifeval" or (called in _TEST_ONLY and not split):
            return True
        if called == "mbpp" and not split and place == len(parts) - 1:
            return True if "sanitized" in words else MBPP_TEST_ROWS
    return bool(lm_eval) and name.startswith("hub:") and "test" in parts[-1]


def _name_words(part: str) -> list[str]:
    """The words of one part of a data set's name, without the endings of files."""
    bare = re.sub(r"(\.(jsonl?|tsv|csv|parquet|arrow|gz|zst))+$", "", part.lower())
    return re.findall("[a-z0-9]+", bare)


def _last_split(parts: Sequence[Sequence[str]]) -> set[str]:
    """The words of the last part that names a split; empty without one."""
    for part in reversed(parts):
        words = set(part)
        if words & {"test", *_OTHER_SPLITS}:
            return words
    return set()


def check_search_guard(
    suites: Sequence[EvalSuite], allow: bool, objectives: Iterable[Objective] = ()
) -> None:
    """Raise UsageError when a search would optimise on published test sets and `allow` is false.

    With `objectives` only the tasks they name are looked at; the idea is mergekit-evolve's guard.
    """
    objectives = tuple(objectives)
    used = [
        f"{suite.name}:{task}"
        for suite in suites
        for task in suite.test_tasks
        if not objectives
        or any(entry.suite == suite.name and entry.task in (None, task) for entry in objectives)
    ]
    if used and not allow:
        raise UsageError(
            Problem(
                thing=f"search on {', '.join(used)}",
                cause="these items are a published test set; a score that was searched on it "
                "cannot be compared with anyone's",
                remedy="Search on train or validation rows, or set allow_benchmark_tests: true in "
                "the job",
            )
        )
