"""Tasks of lm-eval by name, on local rows: its wording, few-shot draws, filters, metrics.

Only this file and lmeval_names import lm_eval.

Prompts are those that `lm_eval` 0.4.13 asks with its default seeds: examples are drawn document
after document in the order of the data file (few-shot seed 1234), so a frozen item has one prompt,
whichever trial or subset of items it is asked in. Where examples come from the very file that is
asked, no asked row is one: with another `rows:` or `limit:` others are drawn, and that is another
suite.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from recycler.errors import Problem, UnsafeInputError, UsageError
from recycler.scoring.lmeval.names import definition
from recycler.scoring.lmeval.unsafe import ALLOW, function_name, runs_code

FEWSHOT_SEED = 1234  # lm_eval/evaluator.py, simple_evaluate(fewshot_random_seed=1234)
DEFAULT_NEW_TOKENS = 256  # lm_eval/models/huggingface.py, max_gen_toks
PROBE = "A sentence. Another one."  # an answer that every check looks at, when a suite is built
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An item before its token ids: what is asked, what is right, how it is scored.

    `choices` are continuations with their delimiter.
    """

    prompt: str
    gold: str
    scorer: str
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    detail: tuple[tuple[str, str], ...] = ()


def lm_eval_metrics(name: str) -> tuple[str, ...]:
    """Names of the metrics of a task: 'exact_match,strict-match' with the filter's name, or the
    bare metric without one.
    """
    config = _config(name, resolve=False)
    metrics = [
        function_name(entry["metric"])
        for entry in config.get("metric_list") or []
        if isinstance(entry.get("metric"), str)
    ]
    return tuple(
        _metric_name(metric, filter_name) for filter_name in _filters(config) for metric in metrics
    )


def data_settings(name: str, where: str = "") -> Mapping[str, Any]:
    """A task's definition as far as it says which data it asks: dataset_path, its splits,
    num_fewshot, fewshot_config.
    """
    return _config(name, resolve=False, where=where)


class LmEvalTask:
    """One task over `docs` (all rows of the data file up to the last one asked) and a pool of
    few-shot examples.
    """

    def __init__(
        self,
        name: str,
        docs: Sequence[Mapping[str, Any]],
        shots: Sequence[Mapping[str, Any]],
        *,
        num_fewshot: int | None = None,
        where: str = "",
    ):
        self.name, self._config, self._where = name, _config(name, resolve=True, where=where), where
        self._task = _open_task(self._config, docs, shots or docs, num_fewshot)
        self._num_fewshot = self._task.config.num_fewshot or 0
        if (
            self._num_fewshot
            and not shots
            and not (self._config.get("fewshot_config") or {}).get("samples")
        ):
            raise UsageError(
                Problem(
                    thing=f"lm-eval task {name!r}",
                    cause=f"wants {self._num_fewshot} examples and there is no data for them",
                    remedy="Give fewshot: {data: ...} or num_fewshot: 0",
                    where=where,
                )
            )

    def questions(
        self,
        indices: Sequence[int],
        *,
        chat: Callable[..., str] | None = None,
        system: str = "",
        max_new_tokens: int | None = None,
    ) -> Iterator[Question]:
        """The questions at these rows, in order; rows between are drawn for too, so that prompts do
        not depend on the choice.
        """
        task, wanted = self._task, set(indices)
        task.set_fewshot_seed(FEWSHOT_SEED)
        template = _chat_template(chat) if chat else None
        for index, doc in enumerate(task.eval_docs):
            if index not in wanted:
                if self._num_fewshot:
                    task.sampler.sample(
                        n=self._num_fewshot,
                        eval_doc=doc if task.fewshot_cfg.split == task.config.test_split else None,
                    )
                continue
            context = task.fewshot_context(
                doc,
                num_fewshot=self._num_fewshot,
                system_instruction=system or None,
                apply_chat_template=chat is not None,
                chat_template=template,
                gen_prefix=task.doc_to_prefix(doc),
            )
            yield self._question(doc, context, max_new_tokens, chat is not None)

    def _question(
        self, doc: Mapping[str, Any], context: str, max_new_tokens: int | None, chat: bool
    ) -> Question:
        kind, task = self._task.OUTPUT_TYPE, self._task
        if kind == "generate_until":
            return self._generating(doc, context, max_new_tokens)
        if kind != "multiple_choice" or task.multiple_input:
            raise UsageError(
                Problem(
                    thing=f"lm-eval task {self.name!r}",
                    cause=f"is of the kind {kind}, which is not supported",
                    remedy="Generating and multiple-choice tasks are",
                    where=self._where,
                )
            )
        choices = task.doc_to_choice(doc)
        requests = task.construct_requests(
            doc=doc, ctx=context, metadata=(self.name, 0, 1), apply_chat_template=chat
        )
        gold = task.doc_to_target(doc)
        right = gold if isinstance(gold, int) else choices.index(gold) if gold in choices else -1
        return Question(
            prompt=context,
            gold=str(right),
            scorer="choice",
            choices=tuple(request.args[1] for request in requests),
            detail=(
                ("choices", json.dumps(choices, ensure_ascii=False)),
                ("metrics", json.dumps(lm_eval_metrics(self.name))),
            ),
        )

    def _generating(
        self, doc: Mapping[str, Any], context: str, max_new_tokens: int | None
    ) -> Question:
        settings = self._task.config.generation_kwargs or {}
        if settings.get("do_sample"):
            raise UsageError(
                Problem(
                    thing=f"lm-eval task {self.name!r}",
                    cause="samples its answers; scores of a search must not depend on luck",
                    remedy="Choose a greedy task",
                    where=self._where,
                )
            )
        until = settings.get("until") or []
        limits = {
            "max_new_tokens": max_new_tokens
            or int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS)),
            "stop": tuple([until] if isinstance(until, str) else until),
        }
        gold, metrics = (
            self._task.doc_to_target(doc),
            ("metrics", json.dumps(lm_eval_metrics(self.name))),
        )
        plain = _plain_match(self._config)
        if plain is not None and isinstance(gold, (str, int)):
            return Question(
                prompt=context,
                gold=str(gold),
                scorer="lm_eval_match",
                detail=(("match", json.dumps(plain, ensure_ascii=False)), metrics),
                **limits,
            )
        weights = {
            name: len(value)
            for name, value in process_text(self.name, doc, PROBE, lists=True).items()
            if isinstance(value, list)
        }
        detail = (
            ("task", self.name),
            ("doc", json.dumps(doc, ensure_ascii=False)),
            metrics,
            *([("weights", json.dumps(weights))] if weights else []),
        )
        return Question(
            prompt=context,
            gold=json.dumps(gold, ensure_ascii=False) if not isinstance(gold, str) else gold,
            scorer="lm_eval",
            detail=detail,
            **limits,
        )


def process_text(
    name: str, doc: Mapping[str, Any], text: str, *, lists: bool = False
) -> dict[str, Any]:
    """Values of one answer by lm-eval's own filters and process_results; lists of yes and no become
    their mean unless `lists`.

    Raises UsageError where its checks need data of nltk that are not here.
    """
    from lm_eval.api.instance import Instance

    task = _SCORING.get(name) or _SCORING.setdefault(
        name, _open_task(_config(name, resolve=True), [doc], [doc], 0)
    )
    values: dict[str, Any] = {}
    with _one_verdict():
        for ensemble in task._filters:
            instance = Instance(
                request_type="generate_until",
                doc=dict(doc),
                arguments=("", {}),
                idx=0,
                metadata=(name, 0, 1),
            )
            instance.resps = [text]
            ensemble.apply([instance])
            for metric, value in _results(
                task, name, doc, instance.filtered_resps[ensemble.name]
            ).items():
                values[_metric_name(metric, ensemble.name)] = (
                    value if isinstance(value, list) and lists else _figure(value)
                )
    return values


def _results(task: Any, name: str, doc: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    os.environ.pop(ALLOW, None)
    try:
        return task.process_results(dict(doc), [answer])
    except LookupError as error:
        if type(error) is not LookupError:  # nltk raises the bare class, and a page of advice
            raise
        missing = re.search(r"nltk\.download\('([\w.-]+)'\)", str(error))
        raise UsageError(
            Problem(
                thing=f"lm-eval task {name!r}",
                cause=f"is checked with nltk's {missing[1] if missing else 'data'}, which is not "
                "on this machine",
                remedy="Set NLTK_DATA to a folder that holds it, see docs/suites.md",
            )
        ) from None


@contextmanager
def _one_verdict() -> Iterator[None]:
    """IFEval's checks draw lots, langdetect's and where a letter to count is none (#); unseeded, an
    answer is right one time and wrong the next.
    """
    if "langdetect" in sys.modules:
        sys.modules["langdetect"].DetectorFactory.seed = 0
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def _figure(value: Any) -> float:
    return sum(map(float, value)) / len(value) if isinstance(value, list) else float(value)


_SCORING: dict[
    str, Any
] = {}  # tasks by name, for their filters and metrics only; lm-eval wants a row to open one


def _open_task(
    config: Mapping[str, Any],
    docs: Sequence[Mapping[str, Any]],
    shots: Sequence[Mapping[str, Any]],
    num_fewshot: int | None,
) -> Any:
    import datasets
    from lm_eval.api.task import ConfigurableTask

    own = {
        key: value
        for key, value in config.items()
        if key not in ("dataset_path", "dataset_name", "dataset_kwargs", "include", "group")
    }
    if num_fewshot is not None:
        own["num_fewshot"] = num_fewshot
    splits = {
        own[key]: shots
        for key in ("training_split", "validation_split", "fewshot_split")
        if own.get(key)
    }
    splits[own.get("test_split") or own.get("validation_split")] = docs
    tables = {
        split: datasets.Dataset.from_list([dict(row) for row in rows])
        for split, rows in splits.items()
    }
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return ConfigurableTask(
        config={**own, **_compiled_templates(own), "custom_dataset": lambda **_: tables}
    )


def _compiled_templates(config: Mapping[str, Any]) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """Wording as functions, each template compiled once: lm-eval compiles it for every document and
    example, most of its time.

    Same result as lm_eval/api/task.py `doc_to_text` and `doc_to_target`; tasks with choices read
    more into the text and are left alone.
    """
    from lm_eval.utils import env

    def text(template: str) -> Callable[[Mapping[str, Any]], str]:
        compiled = env.from_string(template)
        return lambda doc: compiled.render(**doc)

    def target(template: str) -> Callable[[Mapping[str, Any]], Any]:
        compiled = env.from_string(template)

        def render(doc: Mapping[str, Any]) -> Any:
            found = compiled.render(**doc)
            if len(found) >= 2 and found[0] == "[" and found[-1] == "]":
                try:
                    return ast.literal_eval(found)
                except (SyntaxError, ValueError):
                    return found
            return found

        return render

    if config.get("doc_to_choice") or config.get("use_prompt"):
        return {}
    return {
        key: build(config[key])
        for key, build in (("doc_to_text", text), ("doc_to_target", target))
        if isinstance(config.get(key), str) and "{" in config[key]
    }


def _chat_template(chat: Callable[..., str]) -> Callable[..., str]:
    """As lm_eval/models/huggingface.py `apply_chat_template` calls the tokenizer's."""
    return lambda messages, add_generation_prompt=True: chat(
        messages,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )


# ---------------------------------------------------------------- definitions


@lru_cache(maxsize=256)
def _config(name: str, *, resolve: bool, where: str = "") -> dict[str, Any]:
    """A task's YAML with its includes; `resolve` imports the functions it names.

    Raises UnsafeInputError for a task that runs what a model wrote.
    """
    path = definition(name, where)
    from lm_eval.tasks._yaml_loader import load_yaml

    os.environ.pop(ALLOW, None)
    try:
        unresolved = load_yaml(path, resolve_func=False)
        reason = runs_code(
            unresolved, next(folder for folder in path.parents if folder.name == "tasks")
        )
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
        return load_yaml(path, resolve_func=True) if resolve else unresolved
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


def _filters(config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {entry["name"]: entry["filter"] for entry in config.get("filter_list") or []} or {
        "none": [{"function": "take_first"}]
    }


def _metric_name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _plain_match(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Filters and settings when exact_match is all there is, so that our own scorer can stand for
    lm-eval's; else None.
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
    for steps in filters.values():
        if any(
            step["function"] not in _PLAIN_FILTERS
            or set(step) - {"function"} - _PLAIN_FILTERS[step["function"]]
            for step in steps
        ):
            return None
    return {
        "filters": {_metric_name("exact_match", name): steps for name, steps in filters.items()},
        "exact_match": {
            key: value
            for key, value in metrics[0].items()
            if key not in ("metric", "aggregation", "higher_is_better")
        },
    }
