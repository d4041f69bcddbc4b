"""Definitions of lm-eval's tasks: the YAML with its includes, and its metrics and filters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from recycler.errors import Problem, UnsafeInputError, UsageError
from recycler.scoring.lmeval.names import definition
from recycler.scoring.lmeval.unsafe import ALLOW, function_name, runs_code

_PLAIN_FILTERS = {
    "regex": {"regex_pattern", "group_select", "fallback"},
    "remove_whitespace": set(),
    "take_first": set(),
}
_PLAIN_MATCH = {
    "metric",
    "aggregation",
    "higher_is_better",
    "regexes_to_ignore",
    "ignore_case",
    "ignore_punctuation",
    "ignore_numbers",
}


def lm_eval_metrics(name: str) -> tuple[str, ...]:
    """Names of the metrics of a task, 'exact_match,strict-match' with the filter's name.

    The bare metric where a task has no filters.
    """
    config = load_definition(name, resolve=False)
    metrics = [
        function_name(entry["metric"])
        for entry in config.get("metric_list") or []
        if isinstance(entry.get("metric"), str)
    ]
    return tuple(
        metric_name(metric, filter_name) for filter_name in _filters(config) for metric in metrics
    )


def data_settings(name: str, where: str = "") -> Mapping[str, Any]:
    """A task's definition as far as it says which data it asks.

    That is dataset_path, its splits, num_fewshot, fewshot_config.
    """
    return load_definition(name, resolve=False, where=where)


@lru_cache(maxsize=256)
def load_definition(name: str, *, resolve: bool, where: str = "") -> dict[str, Any]:
    """A task's YAML with its includes; `resolve` imports the functions it names.

    Raises UnsafeInputError for a task that runs what a model wrote, and UsageError for one that
    needs something that is not installed.
    """
    path = definition(name, where)
    # lm-eval loads torch and transformers
    from lm_eval.tasks._yaml_loader import load_yaml

    os.environ.pop(ALLOW, None)
    try:
        unresolved = load_yaml(path, resolve_func=False)
        root = next(folder for folder in path.parents if folder.name == "tasks")
        reason = runs_code(unresolved, root)
        if reason:
            raise UnsafeInputError(
                Problem(
                    thing=f"lm-eval task {name!r}",
                    cause=f"{reason}: a program that a model wrote would run outside the sandbox",
                    remedy="For HumanEval and MBPP use the suites humaneval.yaml and mbpp.yaml "
                    "(scorer: humaneval, mbpp), which run programs in the sandbox; others "
                    "cannot be scored",
                    where=where,
                )
            )
        if not resolve:
            return unresolved
        return load_yaml(path, resolve_func=True)
    except (ImportError, LookupError, OSError) as error:
        raise UsageError(
            Problem(
                thing=f"lm-eval task {name!r}",
                cause="needs something that is not installed "
                f"({str(error).strip().splitlines()[0][:200]})",
                remedy=f"pip install 'lm-eval[{path.parent.name}]' and its data, or leave it out",
                where=where,
            )
        ) from None


def plain_match(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Filters and settings of a task that is scored by exact_match alone, else None.

    Our own scorer can stand for lm-eval's there.
    """
    metrics = config.get("metric_list") or []
    if (
        len(metrics) != 1
        or metrics[0].get("metric") != "exact_match"
        or set(metrics[0]) - _PLAIN_MATCH
        or config.get("process_results")
        or config.get("doc_to_choice")
    ):
        return None
    filters = _filters(config)
    if not all(_is_plain(step) for steps in filters.values() for step in steps):
        return None
    about = ("metric", "aggregation", "higher_is_better")
    return {
        "filters": {metric_name("exact_match", name): steps for name, steps in filters.items()},
        "exact_match": {key: value for key, value in metrics[0].items() if key not in about},
    }


def metric_name(metric: str, filter_name: str) -> str:
    """A metric's name beside others of its task: with the filter's, if that has one."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _filters(config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The steps of each filter by its name; without filters the first answer is taken."""
    named = {entry["name"]: entry["filter"] for entry in config.get("filter_list") or []}
    return named or {"none": [{"function": "take_first"}]}


def _is_plain(step: Mapping[str, Any]) -> bool:
    """True for a step of a filter that `scorers.lm_eval_filter` knows."""
    name = step["function"]
    return name in _PLAIN_FILTERS and not set(step) - {"function"} - _PLAIN_FILTERS[name]
