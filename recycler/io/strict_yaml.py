"""Strict YAML: every key known, every mistake told at once with its file and line.

Duplicate keys, anchors, aliases and tags are refused: the first hides a mistake, the next two let a
small file become a large one, and a tag asks for a type that nothing here makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from recycler.errors import Problem, UsageError, did_you_mean

MAX_BYTES = 4_000_000
MAX_DEPTH = 40
KeyPath = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlDocument:
    """Plain data plus the line (from 1) of every key and list entry, by its path."""

    path: str
    data: Any
    lines: Mapping[KeyPath, int]

    def where(self, key_path: KeyPath) -> str:
        """file:line of the nearest enclosing key that the file really holds."""
        while key_path and key_path not in self.lines:
            key_path = key_path[:-1]
        return f"{self.path}:{self.lines.get(key_path, 1)}"


def load_yaml(path: Path | str | YamlDocument, text: str | None = None) -> YamlDocument:
    """Read one YAML document; one that was read already is given back, so that a file is read once
    and all see the same of it.

    Raises UsageError with file:line for syntax, duplicate keys, anchors, tags, depth and size.
    """
    if isinstance(path, YamlDocument):
        return path
    path = Path(path)
    if text is None:
        text = _read(path)
    if len(text) > MAX_BYTES:
        raise _refusal(
            path, 1, f"larger than {MAX_BYTES:,} bytes", "A job or a recipe is a few kilobytes"
        )
    lines: dict[KeyPath, int] = {}
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _refusal(
                    path,
                    event.start_mark.line + 1,
                    "uses an anchor or alias",
                    "Write the value out",
                )
            if getattr(event, "tag", None):
                raise _refusal(
                    path,
                    event.start_mark.line + 1,
                    f"uses the tag {_short(event.tag)}",
                    "Write the plain value; text goes in quotes",
                )
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _refusal(
            path,
            mark.line + 1 if mark else 1,
            f"is not YAML ({getattr(error, 'problem', None) or error})",
            "Check indentation and quotes there",
        ) from None
    except RecursionError:
        raise _refusal(
            path, 1, "is nested too deeply", "A job or a recipe needs few levels"
        ) from None
    data = None if node is None else _plain(path, node, (), lines)
    return YamlDocument(path=str(path), data=data, lines=lines)


def parse_model(model: type[Model], document: YamlDocument) -> Model:
    """The document as a pydantic model.

    Raises UsageError listing every unknown key, wrong type and missing field.
    """
    if not isinstance(document.data, dict):
        raise _refusal(
            Path(document.path),
            1,
            "does not hold a mapping of keys to values",
            f"Start it with one of: {', '.join(model.model_fields)}",
        )
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise UsageError([_problem(model, document, entry) for entry in error.errors()]) from None


def dump_yaml(data: Any) -> str:
    """Plain data as block-style YAML, keys in the order given."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would wait, a device would never end
            raise UsageError(
                Problem(thing=str(path), cause="is no file", remedy="Give a text file")
            )
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(
            Problem(thing=str(path), cause="no such file", remedy="Check the path")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            Problem(thing=str(path), cause=f"cannot be read ({error})", remedy="Give a text file")
        ) from None


def _refusal(path: Path, line: int, cause: str, remedy: str) -> UsageError:
    return UsageError(Problem(thing=path.name, cause=cause, remedy=remedy, where=f"{path}:{line}"))


def _short(tag: str) -> str:
    """A tag as it is commonly written: !!set, not tag:yaml.org,2002:set."""
    return tag.replace("tag:yaml.org,2002:", "!!")[:80]


def _plain(path: Path, node: yaml.Node, key_path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(key_path, line)
    if len(key_path) > MAX_DEPTH:
        raise _refusal(path, line, "is nested too deeply", "A job or a recipe needs few levels")
    if isinstance(node, yaml.ScalarNode):
        constructor = yaml.SafeLoader("")
        try:
            return constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise _refusal(
                path, line, f"has a value that cannot be read ({error})", "Quote it if it is text"
            ) from None
    if isinstance(node, yaml.SequenceNode):
        return [
            _plain(path, child, (*key_path, index), lines) for index, child in enumerate(node.value)
        ]
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = _plain(path, key_node, (*key_path, "?"), {})
        if isinstance(key, (list, dict)):
            raise _refusal(
                path, key_node.start_mark.line + 1, "has a key that is not a word", "Quote it"
            )
        if key in mapping:
            raise _refusal(
                path, key_node.start_mark.line + 1, f"has the key {key!r} twice", "Keep one of them"
            )
        lines[(*key_path, key)] = key_node.start_mark.line + 1
        mapping[key] = _plain(path, value_node, (*key_path, key), lines)
    return mapping


def _problem(model: type[BaseModel], document: YamlDocument, entry: Mapping[str, Any]) -> Problem:
    loc = tuple(entry["loc"])
    key_path = tuple(key for key in loc if not _is_tag(key))
    name = ".".join(map(str, key_path)) or document.path
    where = document.where(key_path)
    if entry["type"] == "extra_forbidden":
        return Problem(
            thing=f"key {name!r}",
            cause="unknown",
            remedy=did_you_mean(str(key_path[-1]), _fields_at(model, loc[:-1])),
            where=where,
        )
    if entry["type"] == "missing":
        return Problem(
            thing=f"key {name!r}", cause="missing", remedy=f"Add {key_path[-1]}: ...", where=where
        )
    shown = repr(entry.get("input"))
    if entry["type"] == "list_type":
        return Problem(
            thing=f"key {name!r}",
            cause=f"is no list but {shown[:80]}",
            remedy="Write a list, of one entry too: [...]",
            where=where,
        )
    return Problem(
        thing=f"key {name!r}",
        cause=f"{entry['msg'].removeprefix('Value error, ')[0].lower()}{entry['msg'].removeprefix('Value error, ')[1:]}",
        remedy=f"It is {shown if len(shown) < 80 else shown[:77] + '...'} now",
        where=where,
    )


def _fields_at(model: type[BaseModel], key_path: KeyPath) -> list[str]:
    """Field names of the model that sits at `key_path` inside `model`."""
    parts: list[type[BaseModel]] = []
    for key in key_path:
        if _is_tag(key):
            model = next((part for part in parts if f"<{part.__name__}>" == key), model)
        field = model.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            continue  # an index or a union tag: stay at the same model
        parts = [
            part
            for part in _annotations(field.annotation)
            if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        model = next(iter(parts), model)
    return list(model.model_fields)


def _is_tag(key: str | int) -> bool:
    """Whether a part of an error's place names the model that was meant, as <MODEL>, and no key of
    the file.
    """
    return isinstance(key, str) and key.startswith("<")


def _annotations(annotation: Any) -> list[Any]:
    parts = [annotation]
    for inner in get_args(annotation):
        parts += _annotations(inner)
    return parts
