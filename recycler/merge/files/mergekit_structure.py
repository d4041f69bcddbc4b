"""The structure of mergekit's YAML: which keys it has, and which models feed which layers.

Every problem met on the way is kept in a `Reader`, so that all of them are shown at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recycler.errors import Problem, did_you_mean, raise_problems
from recycler.io.strict_yaml import KeyPath, YamlDocument
from recycler.merge.files.mergekit_settings import setting_fault
from recycler.merge.methods.options import DTYPES
from recycler.merge.methods.problems import MethodWords, method_problems

KEYS = (
    "models",
    "slices",
    "merge_method",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)
WORDS = MethodWords(
    no_base="there is no base_model",
    add_base="Add base_model:",
    members="models besides the base, here are",
    change_members="Check models:",
)
SCALARS = ("merge_method", "base_model", "dtype", "out_dtype", "tokenizer_source", "name")
MAX_LAYERS = 10_000


@dataclass(slots=True)
class Slice:
    """Layers [start, stop) of the output, what feeds them, and the settings in force."""

    start: int
    stop: int
    settings: dict[str, Mapping[str, Any] | None]  # model -> its own parameters
    shared: Mapping[str, Any] | None

    def scopes(self, model: str | None) -> list[Mapping[str, Any] | None]:
        """The parameters that hold for a model, innermost first; for the merge when it is None."""
        return [self.settings.get(model), self.shared] if model is not None else [self.shared]


@dataclass(slots=True)
class Reader:
    """The document, and the problems met so far."""

    document: YamlDocument
    problems: list[Problem] = field(default_factory=list)

    @property
    def data(self) -> dict[str, Any]:
        return self.document.data

    def refuse(self, key_path: KeyPath, thing: str, cause: str, remedy: str) -> None:
        """Keep a problem with the line of a key."""
        self.problems.append(
            Problem(thing=thing, cause=cause, remedy=remedy, where=self.document.where(key_path))
        )

    def at_method(self, key_path: KeyPath) -> str:
        """The line of merge_method, which every problem of the method points to."""
        return self.document.where(("merge_method",))

    def stop_if_wrong(self) -> None:
        """Raise UsageError when there are problems."""
        raise_problems(self.problems)


def tokenizer_source(data: Mapping[str, Any]) -> Any:
    """The tokenizer that a configuration asks for: 'union', 'base', a model, or None."""
    own = data.get("tokenizer")
    return data.get("tokenizer_source") or (own.get("source") if isinstance(own, dict) else None)


# ---------------------------------------------------------------- keys


def check_keys(reader: Reader) -> None:
    """Add a problem for each key at the top that is unknown or of another kind.

    Raises UsageError, after the kinds and after the method, with all that was found.
    """
    _check_names(reader)
    _check_kinds(reader)
    check_parameters(reader, reader.data.get("parameters"), ("parameters",))
    reader.stop_if_wrong()
    _check_method(reader)
    if ("models" in reader.data) == ("slices" in reader.data):
        reader.refuse(
            (), "models and slices", "exactly one of them is needed", "models: for whole models"
        )
    for key in ("dtype", "out_dtype"):
        dtype = reader.data.get(key)
        if dtype is not None and dtype not in DTYPES:
            reader.refuse((key,), f"{key} {dtype!r}", "unknown", did_you_mean(str(dtype), DTYPES))


def _check_names(reader: Reader) -> None:
    """Add a problem for each key that we do not have."""
    for key in reader.data.keys() - set(KEYS):
        remedy = did_you_mean(str(key), KEYS)
        if key == "modules":
            remedy = "Modules are not; give models or slices"
        reader.refuse((key,), f"key {key!r}", "is not understood", remedy)
    if "chat_template" in reader.data:
        reader.refuse(
            ("chat_template",),
            "key 'chat_template'",
            "is not done here: a merge gets the chat template of its base, or first model",
            "Leave it out, and put the template into the merge's folder",
        )


def _check_kinds(reader: Reader) -> None:
    """Add a problem for each key whose value is of another kind."""
    data = reader.data
    for key in SCALARS:
        if not isinstance(data.get(key), str | None):
            reader.refuse(
                (key,),
                f"key {key!r}",
                f"is {str(data[key])[:40]!r}, which is not a word",
                "Write one word",
            )
    tokenizer = data.get("tokenizer")
    if not isinstance(tokenizer, dict | None):
        reader.refuse(
            ("tokenizer",),
            "key 'tokenizer'",
            "is not a mapping",
            "Write tokenizer: {source: union}",
        )
    for key in tokenizer if isinstance(tokenizer, dict) else ():
        if key != "source":
            reader.refuse(
                ("tokenizer", key),
                f"key {str(key)[:40]!r}",
                "is not done here: rows of tokens are the member's own, else the base's, else "
                "the mean",
                "Leave it out, or run this one with mergekit",
            )
    if not isinstance(tokenizer_source(data), str | None):
        reader.refuse(
            ("tokenizer",),
            "the tokenizer's source",
            "is not a word",
            "Write union, base, or a model",
        )


def _check_method(reader: Reader) -> None:
    """Add the problems of the method and of its base."""
    method = reader.data.get("merge_method")
    if method == "passthrough":
        reader.refuse(
            ("merge_method",),
            "method 'passthrough'",
            "stacks layers into another architecture, which a pool of one architecture cannot hold",
            "Run this one with mergekit",
        )
        return
    has_base = bool(reader.data.get("base_model"))
    reader.problems += method_problems(method, WORDS, has_base=has_base, where=reader.at_method)


def check_parameters(reader: Reader, given: Any, path: KeyPath) -> None:
    """Add a problem for each parameter that is not a number, a gradient or a list of filters."""
    if not isinstance(given, dict | None):
        reader.refuse(path, "parameters", "are not a mapping", "Write parameters: {NAME: VALUE}")
        return
    for name, setting in (given or {}).items():
        fault = setting_fault(setting)
        if not isinstance(name, str):
            fault = "does not have a word as its name"
        if fault:
            reader.refuse(
                (*path, name),
                f"parameter {str(name)[:40]!r}",
                fault,
                "Write a number, a list of numbers over depth, or a list of {filter: PART OF A "
                "NAME, value: ...}",
            )


# ---------------------------------------------------------------- models and slices


def read_slices(reader: Reader) -> list[Slice]:
    """The output's layers in order; empty when there are problems.

    A configuration with `models` is one slice of all layers (stop 0: not known yet).
    """
    data = reader.data
    if reader.problems:
        return []
    if "models" in data:
        inputs = _inputs(reader, data["models"], ("models",))
        return [Slice(0, 0, _own_parameters(inputs), data.get("parameters"))]
    slices: list[Slice] = []
    for index, part in enumerate(_listed(data["slices"])):
        start = slices[-1].stop if slices else 0
        found = _read_slice(reader, part, index, start)
        if found is not None:
            slices.append(found)
    if not slices and not reader.problems:
        reader.refuse(("slices",), "slices", "empty", "Give at least one")
    return slices


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _own_parameters(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any] | None]:
    return {model: entry.get("parameters") for model, entry in inputs.items()}


def _read_slice(reader: Reader, part: Any, index: int, start: int) -> Slice | None:
    """One slice, whose layers must go on at `start`; None after a problem."""
    path: KeyPath = ("slices", index)
    if not isinstance(part, dict) or part.keys() - {"sources", "parameters"}:
        reader.refuse(
            path,
            "slice",
            "is more than sources and parameters",
            "A base_model or residual_weight of its own is not supported",
        )
        return None
    inputs = _inputs(reader, part.get("sources"), (*path, "sources"))
    check_parameters(reader, part.get("parameters"), (*path, "parameters"))
    if reader.problems:
        return None
    ranges = {_layer_range(entry.get("layer_range")) for entry in inputs.values()}
    layers = ranges.pop()
    if ranges or layers is None or layers[0] != start or not start < layers[1] <= MAX_LAYERS:
        reader.refuse(
            path,
            f"slice {index}",
            f"does not take layers {start} and up from all of its sources: layers would "
            "repeat, be skipped or change place",
            "Run this one with mergekit",
        )
        return None
    shared = {**(reader.data.get("parameters") or {}), **(part.get("parameters") or {})}
    return Slice(start, layers[1], _own_parameters(inputs), shared)


def _inputs(reader: Reader, entries: Any, path: KeyPath) -> dict[str, dict[str, Any]]:
    """The entries of a list of models or sources, by model; adds problems."""
    found: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(_listed(entries)):
        if not _is_input(entry):
            reader.refuse(
                (*path, index),
                "entry",
                "is not model, parameters and layer_range",
                "Write - model: FOLDER",
            )
            continue
        model = entry["model"]
        if "+" in model or "@" in model:
            reader.refuse(
                (*path, index),
                f"model {model!r}",
                "is an adapter or a revision of a model",
                "Fold the adapter with recycler fold, or download the revision",
            )
        elif model in found:
            reader.refuse((*path, index), f"model {model!r}", "stands twice", "Add its weights up")
        else:
            found[model] = entry
            check_parameters(reader, entry.get("parameters"), (*path, index, "parameters"))
    if not found and not reader.problems:
        reader.refuse(path, "models", "empty", "Give at least one")
    return found


def _is_input(entry: Any) -> bool:
    """True for a mapping that names a model and holds nothing unknown."""
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        return False
    return not entry.keys() - {"model", "parameters", "layer_range"}


def _layer_range(given: Any) -> tuple[int, int] | None:
    """(first, last + 1); None when it is not two whole numbers."""
    if not isinstance(given, list) or len(given) != 2:
        return None
    first, stop = given
    return (first, stop) if type(first) is int and type(stop) is int else None
