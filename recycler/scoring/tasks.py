"""Build a suite into frozen items: wording and token ids fixed once, hashed, the same in every trial."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from recycler.errors import NotFoundError, Problem, UnsafeInputError, UsageError, did_you_mean
from recycler.scoring.scorers import SCORERS
from recycler.suite import EvalSuite, SplitSpec, SuiteSpec, TaskSpec, check_splits, read_suite
from recycler.types import Item, Role
from recycler.yamls import YamlDocument

Row = Mapping[str, Any]


class Tokenizer(Protocol):
    """What is needed of a tokenizer: text to ids, and the chat template."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def apply_chat_template(self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str: ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, from local files only."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def build_suite(path: Path, tokenizer: Tokenizer, *, data_folders: Sequence[Path] = ()) -> EvalSuite:
    """The suite file at `path` as frozen items. Raises UsageError or NotFoundError with file:line."""
    spec, document = read_suite(path)
    folders = [*data_folders, *([Path(os.environ["RECYCLER_DATA"])] if os.environ.get("RECYCLER_DATA") else []), path.parent]
    items: list[Item] = []
    for task_name, task in spec.tasks.items():
        items += _build_task(path.stem, task_name, task, document, tokenizer, folders)
    check_splits(path.stem, tuple(items), document)
    return EvalSuite(name=path.stem, items=tuple(items))


def objective_metrics(spec: SuiteSpec) -> dict[str, tuple[str, ...]]:
    """Metrics that each task of a suite gives, by task name."""
    return {name: SCORERS[task.scorer].metrics if task.scorer in SCORERS else () for name, task in spec.tasks.items()}


def _build_task(suite: str, name: str, task: TaskSpec, document: YamlDocument, tokenizer: Tokenizer, folders: Sequence[Path]) -> list[Item]:
    where = document.where(("tasks", name))
    if task.scorer not in SCORERS:
        raise UsageError(Problem(thing=f"scorer {task.scorer!r}", cause="unknown", remedy=did_you_mean(task.scorer, SCORERS), where=document.where(("tasks", name, "scorer"))))
    items: list[Item] = []
    for role, split in (("search", task.search), ("holdout", task.holdout)):
        rows = read_rows(_find(split.data or task.data, folders, where), task.columns)
        for index, row in _select(rows, split):
            items.append(_build_item(suite, name, task, role, index, row, tokenizer, where))
    return items


def _build_item(suite: str, name: str, task: TaskSpec, role: Role, index: int, row: Row, tokenizer: Tokenizer, where: str) -> Item:
    prompt, gold = _fill(task.prompt, row, where), _fill(task.answer, row, where)
    if task.answer_pattern:
        found = re.search(task.answer_pattern, gold)
        if not found:
            raise UsageError(Problem(thing=f"task {name!r}, row {index}", cause=f"answer_pattern finds nothing in {gold[-60:]!r}", remedy="Mend the pattern", where=where))
        gold = found.group(1).strip()
    if task.chat:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    scorer = SCORERS[task.scorer]
    ids = tuple(tokenizer.encode(prompt, add_special_tokens=not task.chat))
    if not ids or not gold:
        raise UsageError(Problem(thing=f"task {name!r}, row {index}", cause="has an empty prompt or answer", remedy="Mend the data or the template", where=where))
    continuations: tuple[tuple[int, ...], ...] = ()
    if scorer.kind == "loglikelihood":
        continuations = (tuple(tokenizer.encode(gold, add_special_tokens=False)),)
    identity = f"{suite}/{name}/{row.get('id', index)}" if role == "search" or not task.holdout.data else f"{suite}/{name}/holdout-{row.get('id', index)}"
    return Item(id=identity, suite=suite, task=name, role=role, kind=scorer.kind, scorer=task.scorer, prompt=prompt, prompt_ids=ids, gold=gold,
                continuations=continuations, num_bytes=len(gold.encode()), cluster=_fill(task.cluster, row, where) if task.cluster else identity,
                max_new_tokens=task.max_new_tokens if scorer.kind == "generate" else 0, stop=tuple(task.stop),
                detail=tuple((key, _fill(template, row, where)) for key, template in task.detail.items()))


def _find(name: str, folders: Sequence[Path], where: str) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise NotFoundError(Problem(thing=f"data file {name!r}", cause=f"not found in {', '.join(map(str, folders))}", remedy="Give its folder with --data DIR or RECYCLER_DATA", where=where))


def read_rows(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """Rows of a JSONL, JSON (a list, or {"examples": [...]}), TSV or Parquet file; .gz is opened."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        import pandas

        return pandas.read_parquet(path).to_dict("records")
    try:
        text = gzip.open(path, "rt", encoding="utf-8").read() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
        if kind == "jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if kind == "json":
            data = json.loads(text)
            return data["examples"] if isinstance(data, dict) else data
        if kind == "tsv":
            return list(csv.DictReader(io.StringIO(text), fieldnames=list(columns) or None, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (ValueError, OSError, KeyError) as error:
        raise UnsafeInputError(Problem(thing=str(path), cause=f"cannot be read as {kind} ({error})", remedy="Check the file")) from None
    raise UsageError(Problem(thing=str(path), cause=f"unknown kind of file {kind!r}", remedy="Use .jsonl, .json, .tsv or .parquet"))


def _select(rows: Sequence[Row], split: SplitSpec) -> list[tuple[int, Row]]:
    first, last = split.rows or (0, len(rows))
    chosen = [(index, row) for index, row in enumerate(rows) if first <= index < last and all(row.get(key) == value for key, value in split.where.items())]
    if split.limit is not None and len(chosen) > split.limit:
        chosen = [chosen[index * len(chosen) // split.limit] for index in range(split.limit)]
    return chosen


def _fill(template: str, row: Row, where: str) -> str:
    def value(match: re.Match) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        field, _, strip = match[1].partition("|")
        name, _, index = field.partition("[")
        if name not in row:
            raise UsageError(Problem(thing=f"field {name!r}", cause="not in the data", remedy=did_you_mean(name, map(str, row)), where=where))
        entry = row[name][int(index[:-1])] if index else row[name]
        return str(entry).strip() if strip == "strip" else str(entry)

    return re.sub(r"\{\{|\}\}|\{([^{}]+)\}", value, template)
