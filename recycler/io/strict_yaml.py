"""Strict YAML: every key is known, every mistake is told at once with its file and line.

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
    """Plain data, and the line (from 1) of every key and list entry by its path."""

    path: str
    data: Any
    lines: Mapping[KeyPath, int]

    def where(self, key_path: KeyPath) -> str:
        """file:line of the nearest enclosing key that the file really holds."""
        while key_path and key_path not in self.lines:
            key_path = key_path[:-1]
        return f"{self.path}:{self.lines.get(key_path, 1)}"


def load_yaml(path: Path | str | YamlDocument, text: str | None = None) -> YamlDocument:
    """Read one YAML document; one that was read already is returned as it is.

    So a file is read once, and everybody sees the same of it. Raises UsageError with file:line for
    syntax, duplicate keys, anchors, tags, depth and size.
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
            _check_event(path, event)
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


def _check_event(path: Path, event: yaml.Event) -> None:
    """Raise UsageError for an anchor, an alias or a tag."""
    line = _line_of(event)
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise _refusal(path, line, "uses an anchor or alias", "Write the value out")
    tag = getattr(event, "tag", None)
    if tag:
        remedy = "Write the plain value; text goes in quotes"
        raise _refusal(path, line, f"uses the tag {_short(tag)}", remedy)


def _line_of(part: yaml.Event | yaml.Node) -> int:
    """The line, from 1, on which a part of a document starts."""
    return part.start_mark.line + 1 if part.start_mark else 1


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
    """A tag as it is commonly written: !!set for tag:yaml.org,2002:set."""
    return tag.replace("tag:yaml.org,2002:", "!!")[:80]


def _plain(path: Path, node: yaml.Node, key_path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    """The data of a node; `lines` receives the line of every key and list entry below it."""
    line = _line_of(node)
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
        key_line = _line_of(key_node)
        if isinstance(key, (list, dict)):
            raise _refusal(path, key_line, "has a key that is not a word", "Quote it")
        if key in mapping:
            raise _refusal(path, key_line, f"has the key {key!r} twice", "Keep one of them")
        lines[(*key_path, key)] = key_line
        mapping[key] = _plain(path, value_node, (*key_path, key), lines)
    return mapping


def _problem(model: type[BaseModel], document: YamlDocument, entry: Mapping[str, Any]) -> Problem:
    """A mistake that pydantic found, with the line of the key it is about."""
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
    message = entry["msg"].removeprefix("Value error, ")
    if len(shown) >= 80:
        shown = shown[:77] + "..."
    return Problem(
        thing=f"key {name!r}",
        cause=message[0].lower() + message[1:],
        remedy=f"It is {shown} now",
        where=where,
    )


def _fields_at(model: type[BaseModel], key_path: KeyPath) -> list[str]:
    """Field names of the model that stands at `key_path` inside `model`."""
    parts: list[type[BaseModel]] = []
    for key in key_path:
        if _is_tag(key):
            model = next((part for part in parts if f"<{part.__name__}>" == key), model)
        field = model.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            continue  # an index or a union tag: stay at the same model
        parts = _models_in(field.annotation)
        model = parts[0] if parts else model
    return list(model.model_fields)


def _is_tag(key: str | int) -> bool:
    """True for a part of an error's place that names a model, as <MODEL>, and not a key."""
    return isinstance(key, str) and key.startswith("<")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type, outermost first."""
    parts = []
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        parts.append(annotation)
    for inner in get_args(annotation):
        parts += _models_in(inner)
    return parts
