"""Evaluation suites as people write them: which data, which wording, which scorer, which items for search and holdout.

Building one into frozen items needs a tokenizer and happens in `recycler.scoring.tasks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from recycler.digest import digest
from recycler.errors import Problem, UsageError
from recycler.job import Strict
from recycler.types import Item, Objective, Role
from recycler.yamls import YamlDocument, load_yaml, parse_model


class SplitSpec(Strict):
    """Which rows of the data: `rows` [first, last) and `where` {field: value} both apply; `limit` takes that many, evenly spread."""

    data: str | None = None
    rows: list[int] | None = Field(default=None, min_length=2, max_length=2)
    where: dict[str, str | int] = {}
    limit: int | None = Field(default=None, ge=1)
    benchmark_test: bool = False
    """The rows belong to a published test set: searching on them is refused unless the job says so."""


class TaskSpec(Strict):
    """One benchmark. Templates name fields of a row in braces: 'Question: {question}\\nAnswer:'."""

    data: str = ""
    """JSONL, JSON, TSV or Parquet (.gz allowed), looked for in --data, RECYCLER_DATA, the job's folder, the suite's folder."""
    columns: list[str] = []
    """Names of the columns of a TSV that has no header."""
    prompt: str
    """What the model reads."""
    answer: str
    """What is right: the gold answer, or the gold continuation for bits per byte."""
    scorer: str = "exact_match"
    """One of recycler.scoring.scorers.SCORERS."""
    chat: bool = False
    """Put the prompt into the model's chat template as a user turn."""
    answer_pattern: str | None = None
    """A regex; its first group is taken from the gold answer (such as '#### (.*)' for GSM8K)."""
    cluster: str = ""
    """Template for what the item is a version of; items of a cluster are never on both sides of the split. Default: the item itself."""
    max_new_tokens: int = Field(default=64, ge=1, le=32768)
    stop: list[str] = []
    detail: dict[str, str] = {}
    """Templates for what the scorer needs besides."""
    search: SplitSpec
    holdout: SplitSpec

    @model_validator(mode="after")
    def _has_data(self) -> TaskSpec:
        if not self.data and not (self.search.data and self.holdout.data):
            raise ValueError("give data: for the task, or for both search: and holdout:")
        return self


class SuiteSpec(Strict):
    """What a person writes in eval_suites/NAME.yaml. Every task has a search and a holdout split: there is no default."""

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
    """A suite built once: frozen items, and the digest that says so."""

    name: str
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        return digest(self.items)

    def select(self, role: Role) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.role == role)

    def items_of(self, objective: Objective, role: Role) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.role == role and objective.task in (None, item.task))


def read_suite(path: Path) -> tuple[SuiteSpec, YamlDocument]:
    """The suite file at `path`. Raises UsageError with every problem; a task without a holdout is one."""
    document = load_yaml(path)
    return parse_model(SuiteSpec, document), document


def check_splits(name: str, items: tuple[Item, ...], document: YamlDocument) -> None:
    """Raise UsageError unless every task has items on both sides and no problem is on both."""
    problems = []
    for task in sorted({item.task for item in items}):
        for role in ("search", "holdout"):
            if not any(item.task == task and item.role == role for item in items):
                problems.append(Problem(thing=f"suite {name!r}, task {task!r}", cause=f"its {role} split is empty", remedy="Widen rows: or where:", where=document.where(("tasks", task, role))))
    sides = {role: {item.cluster for item in items if item.role == role} for role in ("search", "holdout")}
    prompts = {role: {(item.task, item.prompt) for item in items if item.role == role} for role in ("search", "holdout")}
    both = sorted(sides["search"] & sides["holdout"])
    same = sorted(prompts["search"] & prompts["holdout"])
    if both or same:
        shown = repr(both[0]) if both else repr(same[0][1][:60])
        problems.append(Problem(thing=f"suite {name!r}", cause=f"{len(both) or len(same)} problems are in search and in holdout, such as {shown}", remedy="A holdout that was searched on proves nothing; make the splits disjoint", where=document.where(("tasks",))))
    if problems:
        raise UsageError(problems)
