"""Rows of benchmark files, the choice among them, and templates filled from them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from recycler.errors import InfrastructureError, NotFoundError, Problem, UnsafeInputError, UsageError, did_you_mean
from recycler.suite import SplitSpec

Row = Mapping[str, Any]
HUB = "hub:"


def find_data(name: str, folders: Sequence[Path], where: str) -> Path:
    """The data file in the first folder that has it. Raises NotFoundError."""
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise NotFoundError(Problem(thing=f"data file {name!r}", cause=f"not found in {', '.join(map(str, folders))}", remedy="Give its folder with --data DIR or RECYCLER_DATA", where=where))


def data_folders_of(given: Sequence[Path], *beside: Path) -> list[Path]:
    """Where data files are looked for: --data, RECYCLER_DATA, then beside the job and the suite."""
    return [*given, *([Path(os.environ["RECYCLER_DATA"])] if os.environ.get("RECYCLER_DATA") else []), *beside]


def has_data(name: str, folders: Sequence[Path]) -> bool:
    return any((folder / name).is_file() for folder in folders)


def load_rows(name: str, folders: Sequence[Path], where: str, columns: Sequence[str] = ()) -> list[Row]:
    """Rows of a data file, or of hub:DATASET:CONFIG:SPLIT. Raises NotFoundError, UnsafeInputError, or InfrastructureError for a hub that cannot be reached."""
    return _hub_rows(name, where) if name.startswith(HUB) else read_rows(find_data(name, folders, where), columns)


@lru_cache(maxsize=16)
def _hub_rows(name: str, where: str) -> list[Row]:
    import datasets

    path, config, split = name.removeprefix(HUB).split(":")
    try:
        return list(datasets.load_dataset(path, config or None, split=split))
    except (OSError, ValueError, RuntimeError) as error:
        raise InfrastructureError(Problem(thing=f"data set {path}", cause=f"cannot be had from the hub ({str(error).strip().splitlines()[0][:200]})",
                                          remedy=f"Go online, or put it into {path.rpartition('/')[2]}/{split}.jsonl below --data DIR", where=where)) from None


def read_rows(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """Rows of a JSONL, JSON (a list, or {"examples": [...]}), TSV or Parquet file; .gz is opened."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        import pandas

        return pandas.read_parquet(path).to_dict("records")
    try:
        text = gzip.open(path, "rt", encoding="utf-8").read() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
        if kind == "jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        if kind == "json":
            data = json.loads(text)
            return data["examples"] if isinstance(data, dict) else data
        if kind == "tsv":
            return list(csv.DictReader(io.StringIO(text), fieldnames=list(columns) or None, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (ValueError, OSError, KeyError) as error:
        raise UnsafeInputError(Problem(thing=str(path), cause=f"cannot be read as {kind} ({error})", remedy="Check the file")) from None
    raise UsageError(Problem(thing=str(path), cause=f"unknown kind of file {kind!r}", remedy="Use .jsonl, .json, .tsv or .parquet"))


def select_rows(rows: Sequence[Row], split: SplitSpec) -> list[tuple[int, Row]]:
    """(number in the file, row) of the rows of a split, in the order of the file."""
    first, last = split.rows or (0, len(rows))
    chosen = [(index, row) for index, row in enumerate(rows) if first <= index < last and all(row.get(key) == value for key, value in split.where.items())]
    if split.limit is not None and len(chosen) > split.limit:
        chosen = [chosen[index * len(chosen) // split.limit] for index in range(split.limit)]
    return chosen


def fill(template: str, row: Row, where: str) -> str:
    """The template with {name}, {name[0]}, {name|strip} and {name|number} taken from the row; {{ and }} are braces.

    Raises UsageError for a field that the row does not have.
    """
    def value(match: re.Match) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        field, _, clean = match[1].partition("|")
        name, _, index = field.partition("[")
        if name not in row:
            raise UsageError(Problem(thing=f"field {name!r}", cause="not in the data", remedy=did_you_mean(name, map(str, row)), where=where))
        entry = str(row[name][int(index[:-1])] if index else row[name])
        if clean not in ("", "strip", "number"):
            raise UsageError(Problem(thing=f"'|{clean}'", cause="unknown", remedy="Use |strip or |number", where=where))
        return entry if not clean else entry.strip() if clean == "strip" else entry.strip().replace(",", "")

    return re.sub(r"\{\{|\}\}|\{([^{}]+)\}", value, template)
