"""Evaluation suites as people write them: which data, which wording, which scorer, which items for
search and holdout.

Building one into frozen items needs a tokenizer and happens in `recycler.scoring.tasks`; storing
and checking them in `recycler.scoring.frozen`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from recycler.digest import digest
from recycler.errors import Problem, UsageError, raise_problems
from recycler.io.strict_yaml import YamlDocument, load_yaml, parse_model
from recycler.objectives.stats import coverage
from recycler.specs.job import Strict
from recycler.types import Item, Objective, Role

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
_LONG_LINE = 40  # letters of a line that two problems do not share by chance
FEW_PROBLEMS = (
    20  # independent ones of a task and split: below, stated errors are noticeably too small
)
MBPP_TEST_ROWS = (10, 510)  # of mbpp.jsonl, which holds all of its splits


class SplitSpec(Strict):
    """Which rows of the data:

    `rows` [first, last) and `where` {field: value} both apply; `limit` takes that many, evenly
    spread.
    """

    data: str | None = None
    rows: list[int] | None = Field(default=None, min_length=2, max_length=2)
    where: dict[str, str | int] = {}
    limit: int | None = Field(default=None, ge=1)
    cluster: str | None = None
    """What the items of this split are versions of; default: the task's `cluster`."""
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
    """What a person writes in eval_suites/NAME.yaml.

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
    """Longest context that scoring an item takes: prompt plus answer; for likelihoods one more,
    which vLLM insists on.
    """
    return len(item.prompt_ids) + (
        item.max_new_tokens if item.kind == "generate" else 1 + max(map(len, item.continuations))
    )


def context_length(
    items: Sequence[Item], *, positions: int | None, wanted: int | None = None, where: str = ""
) -> int:
    """What an engine must take: the longest item in steps of 16, or `wanted`; never more than the
    model's `positions`.

    Raises UsageError that names the items which do not fit.
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


def searches_test_set(task: TaskSpec) -> bool:
    """Whether the search split of a task touches a published test set: it says so, or its data's
    name and rows are well known.
    """
    found = task.search.benchmark_test or _test_rows(task.search.data or task.data, task.lm_eval)
    if isinstance(found, bool):
        return found
    first, last = task.search.rows or (0, sys.maxsize)
    return first < found[1] and last > found[0]


def _test_rows(name: str, lm_eval: str | None = None) -> bool | tuple[int, int]:
    """Whether a file, or hub:DATASET:CONFIG:SPLIT, is a published test set, whatever it ends with;
    (first, last) where those rows are.

    A folder, file or data set counts that is called as the benchmark is, but for words such as
    openai, main or a language: gsm8k-own is free. So does one called as the task of lm-eval that
    asks it, and what such a task takes from the hub.
    """
    parts = [
        re.findall(
            "[a-z0-9]+", re.sub(r"(\.(jsonl?|tsv|csv|parquet|arrow|gz|zst))+$", "", part.lower())
        )
        for part in re.split(r"[/\\:]", name)
    ]
    own = re.sub("[^a-z0-9]", "", (lm_eval or "").lower())
    for place, words in enumerate(parts):
        called = "".join(word for word in words if word not in _BESIDE_NAMES and not word.isdigit())
        if (
            not called
            or called not in {*_WITH_TRAINING, *_TEST_ONLY, own}
            and "".join(words) != own
        ):
            continue
        after = [set(entry) for entry in parts[place:]]
        split = next(
            (entry for entry in reversed(after) if entry & {"test", *_OTHER_SPLITS}), set()
        )
        if "test" in split or called == "ifeval" or called in _TEST_ONLY and not split:
            return True
        if called == "mbpp" and not split and place == len(parts) - 1:
            return True if "sanitized" in words else MBPP_TEST_ROWS
    return bool(lm_eval) and name.startswith("hub:") and "test" in parts[-1]


def check_splits(
    name: str, items: tuple[Item, ...], tasks: Iterable[str], document: YamlDocument
) -> None:
    """Raise UsageError unless every task has items on both sides, no id is used twice and no
    problem is on both sides.
    """
    problems = []
    for task in tasks:
        for role in ("search", "holdout"):
            if not any(item.task == task and item.role == role for item in items):
                problems.append(
                    Problem(
                        thing=f"suite {name!r}, task {task!r}",
                        cause=f"its {role} split is empty",
                        remedy="Widen rows: or where:",
                        where=document.where(("tasks", task, role)),
                    )
                )
    seen: set[str] = set()
    twice = [item.id for item in items if item.id in seen or seen.add(item.id)]
    if twice:
        problems.append(
            Problem(
                thing=f"item {twice[0]!r}",
                cause="stands twice",
                remedy="Give the rows different id fields",
                where=document.where(("tasks",)),
            )
        )
    prompts = {
        role: {(item.task, item.prompt) for item in items if item.role == role}
        for role in ("search", "holdout")
    }
    both, same = _straddling(items), sorted(prompts["search"] & prompts["holdout"])
    if both or same:
        shown = repr(both[0]) if both else repr(same[0][1][:60])
        problems.append(
            Problem(
                thing=f"suite {name!r}",
                cause=f"{len(both) or len(same)} problems are in search and in holdout, such as "
                f"{shown}",
                remedy="A holdout that was searched on proves nothing; make the splits disjoint",
                where=document.where(("tasks",)),
            )
        )
    raise_problems(problems, UsageError)


def check_across_suites(suites: Sequence[EvalSuite]) -> None:
    """Raise UsageError when a problem is searched on in one suite and held out in another (GSM8K
    test and MGSM share some).
    """
    both = _straddling([item for suite in suites for item in suite.items])
    if both:
        names = sorted(
            {suite.name for suite in suites if any(item.cluster in both for item in suite.items)}
        )
        raise UsageError(
            Problem(
                thing=f"suites {', '.join(names)}",
                cause=f"{len(both)} problems are in search of one and in holdout of another, such "
                f"as {both[0]!r}",
                remedy="Choose rows: so that a problem has one role in all suites of a job",
            )
        )


def alike_warnings(suites: Sequence[EvalSuite]) -> list[str]:
    """A sentence when items that no cluster ties together look like one problem, asked in search
    and held out; else nothing.

    Two look alike whose prompts differ in spaces and case alone, or, in other tasks, whose last
    long line is the same and stands in no other problem of its task. A translation is not noticed:
    cluster: says it.
    """
    found: dict[tuple[str, str], tuple[Item, Item]] = {}
    items = [item for suite in suites for item in suite.items]
    for keys in (
        {item.id: "".join(item.prompt.lower().split()) for item in items},
        _own_lines(items),
    ):
        searched = {
            keys[item.id]: item for item in items if item.role == "search" and keys.get(item.id)
        }
        for item in items:
            twin = searched.get(keys.get(item.id, ""))
            if twin and item.role == "holdout" and twin.cluster != item.cluster:
                found[twin.cluster, item.cluster] = (twin, item)
    if not found:
        return []
    twin, item = next(iter(found.values()))
    return [
        f"{len(found)} problems seem to be searched on and held out, such as {twin.id!r} and "
        f"{item.id!r}, which ask the same. Give both the same cluster:, or choose other rows: "
        "for one"
    ]


def few_problems_warnings(suites: Sequence[EvalSuite]) -> list[str]:
    """One sentence that names the tasks whose standard errors rest on fewer than FEW_PROBLEMS independent problems in a split, those
    with as many together; nothing where there are none. See `stats.coverage`."""
    problems: dict[tuple[str, str], dict[str, list[str]]] = {}
    for suite in suites:
        for item in suite.items:
            problems.setdefault((suite.name, item.task), {}).setdefault(item.role, []).append(
                item.cluster
            )
    alike: dict[str, list[str]] = {}
    numbers: set[int] = set()
    for (name, task), splits in sorted(problems.items()):
        few = {
            role: (len(own), len(set(own)))
            for role, own in sorted(splits.items(), reverse=True)
            if len(set(own)) < FEW_PROBLEMS
        }
        numbers |= {own for _, own in few.values()}
        if few:
            counts = " and ".join(
                f"{own} {role}" if own == items else f"{items} {role} items of {own}"
                for role, (items, own) in few.items()
            )
            alike.setdefault(f"{counts} problems", []).append(f"{name}:{task}")
    if not alike:
        return []
    shares = sorted(
        {f"{100 * coverage(own):.0f}" for own in (min(numbers), max(numbers))}, key=float
    )
    named = "; ".join(f"{', '.join(names)} ({counts})" for counts, names in alike.items())
    return [
        f"{named}: over fewer than {FEW_PROBLEMS} independent problems "
        f"intervals of 1.96 stated errors hold the truth {' to '.join(shares)} % of the time at "
        "best, not 95 %. Take more rows"
    ]


def _own_lines(items: Iterable[Item]) -> dict[str, str]:
    """By item the last line of 40 letters or more, where no other problem of its task has it; not
    of choices, whose last line is one of them.
    """
    lines = {
        item.id: (
            item,
            next(
                (
                    words
                    for line in reversed(item.prompt.split("\n"))
                    if len(line) >= _LONG_LINE and len(words := _words(line)) >= _LONG_LINE
                ),
                "",
            ),
        )
        for item in items
        if len(item.continuations) < 2
    }
    holders: dict[tuple[str, str, str], set[str]] = {}
    for item, line in lines.values():
        holders.setdefault((item.suite, item.task, line), set()).add(item.cluster)
    return {
        name: line
        for name, (item, line) in lines.items()
        if line and len(holders[item.suite, item.task, line]) == 1
    }


def _words(text: str) -> str:
    """Its words in small letters, without a label such as 'Question:' and the tags of a chat."""
    return " ".join(
        re.findall(
            r"\w+",
            re.sub(r"^\s*[\w -]{1,24}:\s", "", re.sub(r"<[^<>\s]{1,40}>", " ", text)).lower(),
        )
    )


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


def _straddling(items: Iterable[Item]) -> list[str]:
    sides: dict[str, set[str]] = {"search": set(), "holdout": set()}
    for item in items:
        sides[item.role].add(item.cluster)
    return sorted(sides["search"] & sides["holdout"])
