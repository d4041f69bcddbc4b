"""A task of lm-eval opened on local rows, with its wording compiled once."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def open_task(
    config: Mapping[str, Any], docs: Sequence[Row], shots: Sequence[Row], num_fewshot: int | None
) -> Any:
    """lm-eval's own task object over `docs`, with `shots` as the pool of few-shot examples."""
    # both are heavy, and few jobs have a task of lm-eval
    import datasets
    from lm_eval.api.task import ConfigurableTask

    not_taken = ("dataset_path", "dataset_name", "dataset_kwargs", "include", "group")
    own = {key: value for key, value in config.items() if key not in not_taken}
    if num_fewshot is not None:
        own["num_fewshot"] = num_fewshot
    splits: dict[Any, Sequence[Row]] = {}
    for key in ("training_split", "validation_split", "fewshot_split"):
        if own.get(key):
            splits[own[key]] = shots
    splits[own.get("test_split") or own.get("validation_split")] = docs
    tables = {
        split: datasets.Dataset.from_list([dict(row) for row in rows])
        for split, rows in splits.items()
    }
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return ConfigurableTask(
        config={**own, **_compiled_templates(own), "custom_dataset": lambda **_: tables}
    )


def _compiled_templates(config: Mapping[str, Any]) -> dict[str, Callable[[Row], Any]]:
    """Wording as functions, each template compiled once.

    lm-eval compiles it for every document and example, most of its time. Same result as
    lm_eval/api/task.py `doc_to_text` and `doc_to_target`; tasks with choices read more into the
    text and are left alone.
    """
    if config.get("doc_to_choice") or config.get("use_prompt"):
        return {}
    compiled: dict[str, Callable[[Row], Any]] = {}
    for key, build in (("doc_to_text", _text), ("doc_to_target", _target)):
        template = config.get(key)
        if isinstance(template, str) and "{" in template:
            compiled[key] = build(template)
    return compiled


def _text(template: str) -> Callable[[Row], str]:
    from lm_eval.utils import env  # loads as much as the rest of lm-eval

    compiled = env.from_string(template)
    return lambda doc: compiled.render(**doc)


def _target(template: str) -> Callable[[Row], Any]:
    """A right answer: a text that is written like a list is one."""
    render = _text(template)

    def target(doc: Row) -> Any:
        found = render(doc)
        if len(found) < 2 or found[0] != "[" or found[-1] != "]":
            return found
        try:
            return ast.literal_eval(found)
        except (SyntaxError, ValueError):
            return found

    return target
