"""Evaluation suites as users write them: data, wording, scorer, search and holdout rows.

Building one into frozen items needs a tokenizer and happens in `recycler.scoring.tasks`; storing
and checking them in `recycler.scoring.frozen`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from recycler.digest import digest
from recycler.errors import Problem, UsageError
from recycler.io.strict_yaml import YamlDocument, load_yaml, parse_model
from recycler.specs.job import Strict
from recycler.types import Item, Objective, Role


class SplitSpec(Strict):
    """The rows of a split.

    `rows` [first, last) and `where` {field: value} both apply; `limit` takes that many, evenly
    spread.
    """

    data: str | None = None
    rows: list[int] | None = Field(default=None, min_length=2, max_length=2)
    where: dict[str, str | int] = {}
    limit: int | None = Field(default=None, ge=1)
    cluster: str | None = None
    """Template for what an item of this split is a version of; default: the task's `cluster`."""
    benchmark_test: bool = False
    """The rows belong to a published test set: searching on them is refused unless the job says so.

    Well-known ones are recognised by their names, see docs/suites.md.
    """


class FewshotSpec(Strict):
    """Solved examples that stand before every question.

    For a task of lm-eval only `data` and `rows` are read: which it draws is its own rule.
    """

    data: str | None = None
    """Default: the task's own data."""
    rows: list[int] | None = Field(default=None, min_length=2, max_length=2)
    answer: str = ""
    """Template of an example's answer; put right after its prompt."""
    between: str = "\n\n"
    """Put after each example."""


class TaskSpec(Strict):
    """One benchmark.

    Templates name fields of a row in braces: 'Question: {question}\\nAnswer:'; {_row} is the row's
    number.

    {name[0]} takes an entry of a list, {name|strip} and {name|number} clean spaces and thousands
    separators.
    """

    data: str = ""
    """JSONL, JSON, TSV or Parquet (.gz allowed), looked for in --data, RECYCLER_DATA, the job's
    folder, the suite's folder.
    """
    columns: list[str] = []
    """Names of the columns of a TSV that has no header."""
    lm_eval: str | None = None
    """Take wording, few-shot examples, filters, stop strings and metrics from this task of the
    installed lm-eval; then no prompt:, answer: or scorer:.
    """
    fields: dict[str, str | None] = {}
    """For lm_eval: columns that its task expects, as templates of the row at hand; null gives None.
    """
    num_fewshot: int | None = Field(default=None, ge=0, le=64)
    """For lm_eval: examples before a question. Default: the task's own number."""
    prompt: str = ""
    """What the model reads."""
    answer: str = ""
    """What is right: the gold answer, or the gold continuation for bits per byte."""
    fewshot: FewshotSpec | None = None
    scorer: str = "exact_match"
    """One of recycler.scoring.scorers.SCORERS."""
    chat: bool = False
    """Put the prompt into the model's chat template as a user turn."""
    system: str = ""
    """System prompt of the chat. Default: what the chat template says."""
    answer_pattern: str | None = None
    """A regex; its first group is taken from the gold answer (such as '#### (.*)' for GSM8K)."""
    cluster: str = ""
    """Template for what the item is a version of; items of a cluster are never on both sides of the
    split. Default: the item itself.
    """
    max_new_tokens: int | None = Field(default=None, ge=1, le=32768)
    """Default: 64, or what lm-eval says (256 unless its task has max_gen_toks)."""
    stop: list[str] = []
    """Text ends before the first of them. For lm_eval: besides its own."""
    detail: dict[str, str] = {}
    """Templates for what the scorer needs besides."""
    repeated: Literal["refuse", "drop"] = "refuse"
    """What to do about a prompt that stands in search and, word for word, in holdout: drop it from
    search, or refuse the suite.
    """
    search: SplitSpec
    holdout: SplitSpec

    @model_validator(mode="after")
    def _is_whole(self) -> TaskSpec:
        if not self.data and not (self.search.data and self.holdout.data):
            raise ValueError("give data: for the task, or for both search: and holdout:")
        if self.lm_eval is None and not (self.prompt and self.answer):
            raise ValueError("give prompt: and answer:, or lm_eval:")
        if self.lm_eval is not None and (
            self.prompt or self.answer or self.scorer != "exact_match" or self.answer_pattern
        ):
            raise ValueError("lm_eval: brings prompt, answer and scorer of its own; leave them out")
        if self.system and not self.chat:
            raise ValueError("system: needs chat: true")
        if self.answer_pattern is not None and _groups(self.answer_pattern) < 1:
            raise ValueError(
                "answer_pattern: needs a group in parentheses, whose text is the answer"
            )
        return self


def _groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error as error:
        raise ValueError(
            f"answer_pattern: {pattern!r} is no regular expression ({error})"
        ) from None


class SuiteSpec(Strict):
    """The contents of eval_suites/NAME.yaml.

    Every task has a search and a holdout split: there is no default.
    """

    version: Literal[1]
    description: str = ""
    tasks: dict[str, TaskSpec] = Field(min_length=1)

    @field_validator("tasks")
    @classmethod
    def _names(cls, tasks: dict[str, TaskSpec]) -> dict[str, TaskSpec]:
        for name in tasks:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"task name {name!r} may hold letters, digits, - and _ only")
        return tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSuite:
    """A suite built once: frozen items, and the digest that says so.

    `test_tasks` are the tasks whose search split lies in a published test set.
    """

    name: str
    items: tuple[Item, ...]
    test_tasks: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return digest(self.items)

    def select(self, role: Role) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.role == role)

    def items_of(self, objective: Objective, role: Role) -> tuple[Item, ...]:
        return tuple(
            item for item in self.items if item.role == role and objective.task in (None, item.task)
        )


def tokens_needed(item: Item) -> int:
    """Tokens of context that scoring an item takes: prompt plus longest answer.

    For likelihoods one more, which vLLM insists on.
    """
    if item.kind == "generate":
        return len(item.prompt_ids) + item.max_new_tokens
    return len(item.prompt_ids) + 1 + max(map(len, item.continuations))


def context_length(
    items: Sequence[Item], *, positions: int | None, wanted: int | None = None, where: str = ""
) -> int:
    """The context length of an engine: the longest item's in steps of 16, or `wanted`.

    Never more than the model's `positions`. Raises UsageError that names the items which do not
    fit.
    """
    needs = {item.id: tokens_needed(item) for item in items}
    limit = min(wanted or -(-max(needs.values()) // 16) * 16, positions or sys.maxsize)
    too_long = [name for name, need in needs.items() if need > limit]
    if too_long:
        cause = (
            f"{len(too_long)} of {len(needs)} items need more, such as "
            f"{', '.join(f'{name} ({needs[name]:,})' for name in too_long[:3])}"
        )
        if limit == wanted:
            raise UsageError(
                Problem(
                    thing=f"engine.max_model_len: {limit:,}",
                    cause=cause,
                    remedy=f"Raise it to {max(needs.values()):,}, or leave it out",
                    where=where,
                )
            )
        raise UsageError(
            Problem(
                thing=f"context of {limit:,} tokens (the model's max_position_embeddings)",
                cause=cause,
                remedy="Ask with fewer examples (num_fewshot) or new tokens (max_new_tokens), or "
                "leave those rows out",
                where=where,
            )
        )
    return limit


def read_suite(path: Path) -> tuple[SuiteSpec, YamlDocument]:
    """The suite file at `path`.

    Raises UsageError with every problem; a task without a holdout is one.
    """
    document = load_yaml(path)
    return parse_model(SuiteSpec, document), document
