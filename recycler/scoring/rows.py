"""Rows of benchmark files, the choice among them, and templates filled from them."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from recycler.errors import (
    InfrastructureError,
    NotFoundError,
    Problem,
    UnsafeInputError,
    UsageError,
    did_you_mean,
)
from recycler.specs.suite import SplitSpec

Row = Mapping[str, Any]
HUB = "hub:"
FILE = "_file"  # where a row comes from, for complaints


def find_data(name: str, folders: Sequence[Path], where: str) -> Path:
    """The data file in the first folder that has it. Raises NotFoundError."""
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise NotFoundError(
        Problem(
            thing=f"data file {name!r}",
            cause=f"not found in {', '.join(map(str, folders))}",
            remedy="Give its folder with --data DIR or RECYCLER_DATA",
            where=where,
        )
    )


def data_folders_of(given: Sequence[Path], *beside: Path) -> list[Path]:
    """Folders to look for data files in: --data, RECYCLER_DATA, then beside the job and suite."""
    folders = list(given)
    if os.environ.get("RECYCLER_DATA"):
        folders.append(Path(os.environ["RECYCLER_DATA"]))
    return [*folders, *beside]


def has_data(name: str, folders: Sequence[Path]) -> bool:
    return any((folder / name).is_file() for folder in folders)


def load_rows(
    name: str, folders: Sequence[Path], where: str, columns: Sequence[str] = ()
) -> list[Row]:
    """Rows of a data file, or of hub:DATASET:CONFIG:SPLIT.

    Raises NotFoundError, UnsafeInputError, or InfrastructureError for a hub that cannot be reached.
    """
    if name.startswith(HUB):
        return _hub_rows(name, where)
    return read_rows(find_data(name, folders, where), columns)


@lru_cache(maxsize=16)
def _hub_rows(name: str, where: str) -> list[Row]:
    import datasets  # loads pyarrow and pandas

    path, config, split = _hub_parts(name, where)
    try:
        return list(datasets.load_dataset(path, config or None, split=split))
    except (OSError, ValueError, RuntimeError) as error:
        raise InfrastructureError(
            Problem(
                thing=f"data set {path}",
                cause=f"cannot be had from the hub ({str(error).strip().splitlines()[0][:200]})",
                remedy=f"Go online, or put it into {path.rpartition('/')[2]}/{split}.jsonl below "
                "--data DIR",
                where=where,
            )
        ) from None


def _hub_parts(name: str, where: str) -> list[str]:
    parts = name.removeprefix(HUB).split(":", 2)
    if len(parts) != 3 or not parts[0] or not parts[2]:
        raise UsageError(
            Problem(
                thing=name,
                cause="names no split of the hub",
                remedy="Write hub:DATASET:CONFIG:SPLIT, or hub:DATASET::SPLIT",
                where=where,
            )
        )
    return parts


def read_rows(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """Rows of a JSONL, JSON (a list, or {"examples": [...]}), TSV or Parquet file; .gz is opened.

    Raises UnsafeInputError that names the line or row, UsageError for another kind of file and for
    one without rows.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("jsonl", "json", "tsv", "parquet"):
        raise UsageError(
            Problem(
                thing=str(path),
                cause=f"unknown kind of file {kind!r}",
                remedy="Use .jsonl, .json, .tsv or .parquet",
            )
        )
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        rows = _parse(content, kind, columns)
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is no object with fields, but {str(row)[:40]!r}")
        _refuse_surrogates(rows, content)
    except (ValueError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise UnsafeInputError(
            Problem(
                thing=str(path),
                cause=f"cannot be read as {kind} ({str(error).strip()[:300]})",
                remedy="Check the file",
            )
        ) from None
    if not rows:
        raise UsageError(Problem(thing=str(path), cause="holds no rows", remedy="Check the file"))
    return rows


def _parse(content: bytes, kind: str, columns: Sequence[str]) -> list[Row]:
    if kind == "parquet":
        return _parquet(content)
    text = content.decode("utf-8-sig")
    if kind == "tsv":
        return _tsv(text, columns)
    if kind == "jsonl":
        return _json_lines(text)
    return _json(text)


def _parquet(content: bytes) -> list[Row]:
    """Rows of a Parquet file; whole numbers, lists and nulls (None) stay as they are.

    Not so through a data frame. A column of whole numbers with gaps, which a data frame had to
    write as 1.0, is one of whole numbers again.
    """
    from pyarrow import BufferReader, parquet  # heavy, and few suites have Parquet

    table = parquet.ParquetFile(BufferReader(content)).read()
    columns = {
        name: column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    for name, values in columns.items():
        if None in values and all(
            value is None or isinstance(value, float) and value.is_integer() for value in values
        ):
            columns[name] = [value if value is None else int(value) for value in values]
    by_row = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in by_row]


def _json_lines(text: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return rows


def _json(text: str) -> list[Row]:
    data = json.loads(text)
    rows = data.get("examples") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise ValueError('neither a list of rows nor {"examples": [rows]}')
    return rows


def _tsv(text: str, columns: Sequence[str]) -> list[Row]:
    """Rows of fields between tabs, taken as they are (no quotes).

    `columns` names the fields of a file without a header. Raises ValueError for a line with fewer
    or more fields than there are columns.
    """
    lines: list[tuple[int, list[str]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip("\r"):
            lines.append((number, line.removesuffix("\r").split("\t")))
    names = list(columns)
    if lines and names and _is_header(lines[0][1], names):
        raise ValueError(
            f"line {lines[0][0]} is a header, and columns: is for a file without; leave columns: "
            "out"
        )
    if lines and not names:
        _, names = lines.pop(0)
    if len(set(names)) != len(names):
        raise ValueError("two columns have one name")
    for number, entries in lines:
        if len(entries) != len(names):
            raise ValueError(
                f"line {number} has {len(entries)} fields, and there are {len(names)} columns"
            )
        if any("\r" in entry for entry in entries):
            raise ValueError(f"line {number} has a carriage return within a field")
    return [dict(zip(names, entries, strict=True)) for _, entries in lines]


def _is_header(fields: Sequence[str], columns: Sequence[str]) -> bool:
    """True when a field of the first line is the name of its column."""
    pairs = zip(fields, columns, strict=False)  # another number of fields is refused later
    return any(field.strip().lower() == name.lower() for field, name in pairs)


def _refuse_surrogates(rows: Sequence[Row], content: bytes) -> None:
    """Raise ValueError for half a character, which no tokenizer takes.

    An escape such as \\ud800 alone is one.
    """
    if b"\\ud" not in content and b"\\uD" not in content:
        return
    for number, row in enumerate(rows):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"row {number} has half a character (a lone surrogate)") from None


def select_rows(rows: Sequence[Row], split: SplitSpec) -> list[tuple[int, Row]]:
    """(number in the file, row) of the rows of a split, in the order of the file."""
    first, last = split.rows or (0, len(rows))
    chosen = [
        (index, row)
        for index, row in enumerate(rows)
        if first <= index < last
        and all(row.get(key) == value for key, value in split.where.items())
    ]
    if split.limit is not None and len(chosen) > split.limit:
        chosen = [chosen[index * len(chosen) // split.limit] for index in range(split.limit)]
    return chosen


def fill(template: str, row: Row, where: str) -> str:
    """The template with its fields taken from the row.

    A field is {name}, {name[0]}, {name|strip} or {name|number}; {{ and }} are braces. Raises
    UsageError for a field that the row does not have, and for one without a value (null, NaN).
    """

    def value(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        return _field(match[1], row, where)

    return re.sub(r"\{\{|\}\}|\{([^{}]+)\}", value, template)


def _field(asked: str, row: Row, where: str) -> str:
    """The text for one field of a template, such as 'name[0]|strip'."""
    field, _, clean = asked.partition("|")
    name, _, index = field.partition("[")
    if name not in row:
        raise UsageError(
            Problem(
                thing=f"field {name!r}",
                cause="not in the data",
                remedy=did_you_mean(name, [key for key in map(str, row) if key != FILE]),
                where=where,
            )
        )
    if clean not in ("", "strip", "number"):
        raise UsageError(
            Problem(
                thing=f"'|{clean}'",
                cause="unknown",
                remedy="Use |strip or |number",
                where=where,
            )
        )
    found = row[name]
    if index:
        found = _entry(row, name, index, where)
    if found is None:
        raise _unfit(row, field, "has no value (null)", where)
    if isinstance(found, float) and math.isnan(found):
        raise _unfit(row, field, "has no value (NaN)", where)
    text = str(found)
    if clean:
        text = text.strip()
    if clean == "number":
        text = text.replace(",", "")
    return text


def _entry(row: Row, name: str, index: str, where: str) -> object:
    """One entry of a list in a row; `index` is '0]' for the first."""
    number = index.removesuffix("]")
    if not index.endswith("]") or not number.isdecimal():
        raise UsageError(
            Problem(
                thing=f"{{{name}[{index}}}",
                cause="is no entry of a list",
                remedy=f"Write a number, such as {{{name}[0]}}",
                where=where,
            )
        )
    if not isinstance(row[name], (list, tuple)):
        raise _unfit(row, name, f"is no list to take entry {number} of", where)
    if int(number) >= len(row[name]):
        raise _unfit(row, name, f"has {len(row[name])} entries and none of number {number}", where)
    return row[name][int(number)]


def _unfit(row: Row, field: str, cause: str, where: str) -> UsageError:
    place = ""
    if FILE in row:
        place += f"{row[FILE]}, "
    if "_row" in row:
        place += f"row {row['_row']}, "
    return UsageError(
        Problem(
            thing=f"{place}field {field!r}",
            cause=cause,
            remedy="Mend the data, or leave the row out (rows:, where:)",
            where=where,
        )
    )
