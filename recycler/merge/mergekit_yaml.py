"""Read mergekit's YAML into a recipe. Settings that vary over depth or by name become groups of tensors.

Understood: `models` or `slices` (that stack the whole model in its own order), `merge_method`, `base_model`, `parameters`
with scalars, gradients and filters, `dtype`, `out_dtype`, `tokenizer_source`. Refused, with the reason: `modules`,
`passthrough` and slices that repeat, skip or reorder layers, LoRA references (`model+lora`), methods we do not have, and
parameters other than weights that differ between tensors. `docs/parity.md` lists what is meant to differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any


from recycler.errors import Problem, UsageError, did_you_mean, raise_problems
from recycler.merge import MERGE_METHODS
from recycler.merge.mergekit_settings import evaluate, filters_in, first, has_gradient
from recycler.merge.mergekit_write import recipe_to_mergekit as recipe_to_mergekit  # both ways from one door
from recycler.merge.recipe_yaml import DTYPES
from recycler.types import Group, OptionValue, Recipe
from recycler.yamls import KeyPath, YamlDocument, load_yaml

KEYS = ("models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name")
IGNORED_PARAMETERS = frozenset({"int8_mask"})  # saves memory there, has no meaning here
SHARED_BY_NATURE = {"karcher", "model_stock", "sce"}  # mergekit gives these methods no weights
MAX_FILTERS = 6
MAX_LAYERS = 10_000


@dataclass(slots=True)
class _Slice:
    """Layers [start, stop) of the output, what feeds them, and the settings in force, innermost first."""

    start: int
    stop: int
    settings: dict[str, Mapping[str, Any] | None]  # model -> its own parameters
    shared: Mapping[str, Any] | None


@dataclass(slots=True)
class _Reader:
    document: YamlDocument
    problems: list[Problem] = field(default_factory=list)

    @property
    def data(self) -> dict[str, Any]:
        return self.document.data

    def refuse(self, key_path: KeyPath, thing: str, cause: str, remedy: str) -> None:
        self.problems.append(Problem(thing=thing, cause=cause, remedy=remedy, where=self.document.where(key_path)))

    def stop_if_wrong(self) -> None:
        raise_problems(self.problems)


def read_mergekit(path: Path | str, text: str | None = None) -> tuple[Recipe, dict[str, Path]]:
    """The recipe that a mergekit configuration means, and the folder of each model by the name it got.

    Folders are as mergekit takes them: relative to where the command runs. Raises UsageError with file:line.
    """
    reader = _Reader(load_yaml(path, text))
    if not isinstance(reader.data, dict):
        raise UsageError(Problem(thing=str(path), cause="does not hold a mapping of keys to values", remedy="Start it with merge_method:", where=reader.document.where(())))
    _check_keys(reader)
    slices = _slices(reader)
    reader.stop_if_wrong()
    base = reader.data.get("base_model")
    models = list(dict.fromkeys(model for part in slices for model in part.settings))
    if base is not None and base not in models:
        models.append(base)
        for part in slices:
            part.settings.setdefault(base, None)
    names = _names(models)
    method = reader.data["merge_method"]
    members = _members(reader, method, models, base)
    reader.stop_if_wrong()
    groups, weights = _groups(reader, method, members, base, slices, num_layers=_num_layers(slices, models))
    options = _options(reader, method, members, slices)
    reader.stop_if_wrong()
    uses_base = base is not None and base not in members
    recipe = Recipe(method=method, members=tuple(names[model] for model in members), base=names[base] if uses_base else None,
                    groups=groups, weights=weights, options=options, dtype=_dtype(reader, base or models[0]))
    return recipe, {names[model]: Path(model) for model in (*members, *([base] if uses_base else []))}


def read_tokenizer_source(path: Path | str, text: str | None = None) -> str | None:
    """What a mergekit configuration says on the tokenizer: 'union', 'base', a model, or None."""
    data = load_yaml(path, text).data
    return data.get("tokenizer_source") or (data.get("tokenizer") or {}).get("source")


# ---------------------------------------------------------------- structure

def _check_keys(reader: _Reader) -> None:
    data = reader.data
    for key in data.keys() - set(KEYS):
        reader.refuse((key,), f"key {key!r}", "is not understood", "Modules are not; give models or slices" if key == "modules" else did_you_mean(str(key), KEYS))
    method = data.get("merge_method")
    if method == "passthrough":
        reader.refuse(("merge_method",), "method 'passthrough'", "stacks layers into another architecture, which a pool of one architecture cannot hold", "Run this one with mergekit")
    elif method not in MERGE_METHODS:
        reader.refuse(("merge_method",), f"method {method!r}", "unknown", did_you_mean(str(method), MERGE_METHODS))
    elif MERGE_METHODS[method].needs_base and not data.get("base_model"):
        reader.refuse(("merge_method",), f"method {method!r}", "works on deltas and there is no base_model", "Add base_model:")
    if ("models" in data) == ("slices" in data):
        reader.refuse((), "models and slices", "exactly one of them is needed", "models: for whole models")
    for key in ("dtype", "out_dtype"):
        if data.get(key) is not None and data[key] not in DTYPES:
            reader.refuse((key,), f"{key} {data[key]!r}", "unknown", did_you_mean(str(data[key]), DTYPES))


def _slices(reader: _Reader) -> list[_Slice]:
    """The output's layers in order. A configuration with `models` is one slice of all layers (stop 0: not known yet)."""
    data = reader.data
    if reader.problems:
        return []
    if "models" in data:
        settings = _inputs(reader, data["models"], ("models",))
        return [_Slice(0, 0, {model: entry.get("parameters") for model, entry in settings.items()}, data.get("parameters"))]
    slices: list[_Slice] = []
    for index, part in enumerate(data["slices"] if isinstance(data["slices"], list) else []):
        path: KeyPath = ("slices", index)
        if not isinstance(part, dict) or part.keys() - {"sources", "parameters"}:
            reader.refuse(path, "slice", "is more than sources and parameters", "A base_model or residual_weight of its own is not supported")
            continue
        inputs = _inputs(reader, part.get("sources"), (*path, "sources"))
        ranges = {tuple(entry.get("layer_range") or ()) for entry in inputs.values()}
        place = slices[-1].stop if slices else 0
        if len(ranges) != 1 or len(next(iter(ranges))) != 2 or next(iter(ranges))[0] != place or not place < next(iter(ranges))[1] <= MAX_LAYERS:
            reader.refuse(path, f"slice {index}", f"does not take layers {place} and up from all of its sources: layers would repeat, be skipped or change place", "Run this one with mergekit")
            continue
        shared = {**(data.get("parameters") or {}), **(part.get("parameters") or {})}
        slices.append(_Slice(place, next(iter(ranges))[1], {model: entry.get("parameters") for model, entry in inputs.items()}, shared))
    if not slices and not reader.problems:
        reader.refuse(("slices",), "slices", "empty", "Give at least one")
    return slices


def _inputs(reader: _Reader, entries: Any, path: KeyPath) -> dict[str, dict[str, Any]]:
    """The entries of a list of models or sources by model. Adds problems."""
    found: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str) or entry.keys() - {"model", "parameters", "layer_range"}:
            reader.refuse((*path, index), "entry", "is not model, parameters and layer_range", "Write - model: FOLDER")
        elif "+" in entry["model"] or "@" in entry["model"]:
            reader.refuse((*path, index), f"model {entry['model']!r}", "is an adapter or a revision of a model", "Fold the adapter with recycler fold, or download the revision")
        elif entry["model"] in found:
            reader.refuse((*path, index), f"model {entry['model']!r}", "stands twice", "Add its weights up")
        else:
            found[entry["model"]] = entry
    if not found and not reader.problems:
        reader.refuse(path, "models", "empty", "Give at least one")
    return found


def _names(models: Sequence[str]) -> dict[str, str]:
    """Short names: the last part of the path where that is unique, the whole path otherwise."""
    last = [Path(model).name for model in models]
    return {model: name if last.count(name) == 1 else model.strip("/").replace("/", "-") for model, name in zip(models, last, strict=True)}


def _members(reader: _Reader, method: str, models: Sequence[str], base: str | None) -> list[str]:
    """Which models are merged, as opposed to being the origin of deltas."""
    if method == "slerp":
        others = [model for model in models if model != base]
        if base is None or len(others) != 1:
            reader.refuse(("merge_method",), "method 'slerp'", "needs a base_model and one other model", "Give exactly two models")
            return list(models)
        return [base, *others]
    if method in ("linear", "karcher"):
        return list(models)
    members = [model for model in models if model != base]
    wanted = MERGE_METHODS[method].num_members
    if not members or (wanted is not None and len(members) != wanted):
        reader.refuse(("merge_method",), f"method {method!r}", f"merges {wanted or 'some'} models besides the base, here are {len(members)}", "Check models:")
    return members


def _num_layers(slices: Sequence[_Slice], models: Sequence[str]) -> int:
    if slices[-1].stop:
        return slices[-1].stop
    for model in models:
        config = Path(model) / "config.json"
        if config.is_file():
            return int(json.loads(config.read_text()).get("num_hidden_layers", 0))
    return 0


def _dtype(reader: _Reader, model: str) -> str:
    """out_dtype, else dtype, else what the first model's config says, as mergekit keeps the input's."""
    asked = reader.data.get("out_dtype") or reader.data.get("dtype")
    config = Path(model) / "config.json"
    if asked is None and config.is_file():
        values = json.loads(config.read_text())
        asked = values.get("dtype") or values.get("torch_dtype")
    return asked if asked in DTYPES else "bfloat16"


# ---------------------------------------------------------------- numbers

def _scopes(part: _Slice, model: str | None) -> list[Mapping[str, Any] | None]:
    return [part.settings.get(model), part.shared] if model is not None else [part.shared]


def _groups(reader: _Reader, method: str, members: Sequence[str], base: str | None, slices: Sequence[_Slice], *,
            num_layers: int) -> tuple[tuple[Group, ...], tuple[tuple[float, ...], ...]]:
    """Groups of tensors with one row of weights each: by filters, and by layer where a weight varies over depth."""
    name = "t" if method == "slerp" else "weight"
    settings = [scope[name] for part in slices for model in (*members, None) for scope in _scopes(part, model) if scope and name in scope]
    by_filter = _filter_classes(reader, settings)
    by_layer = len(slices) > 1 or any(map(has_gradient, settings))
    if by_layer and not num_layers:
        reader.refuse(("parameters",), f"gradient of {name}", "needs the number of layers, and no model's config.json can be read", "Check the models' paths")
    rows: list[tuple[Group, tuple[float, ...]]] = []
    places = [(part, layer) for part in slices for layer in range(part.start, part.stop or num_layers)] if by_layer else []
    for part, layer in [*places, (slices[0], None)]:
        length = (part.stop or num_layers) - part.start
        depth = 0.0 if layer is None else (layer - part.start) / (length - 1) if length > 1 else 1.0
        for filters, regex in by_filter:
            row = _row(reader, method, members, part, depth, filters)
            label = "-".join(filter(None, [f"layer{layer}" if layer is not None else "", *filters])) or "rest"
            rows.append((Group(name=label, match=_regex(layer, regex)), row))
        if reader.problems:
            break
    if len({row for _, row in rows}) == 1:
        return (Group(name="all"),), (rows[0][1],)
    return tuple(group for group, _ in rows), tuple(row for _, row in rows)


def _row(reader: _Reader, method: str, members: Sequence[str], part: _Slice, depth: float, filters: Sequence[str]) -> tuple[float, ...]:
    """Weights of all members for the tensors that match exactly `filters`."""
    def value(name: str, model: str | None) -> float:
        number = first(_scopes(part, model), name, depth, lambda wanted: wanted in filters)
        if model is not None and model not in part.settings:
            return 0.0  # this slice is made of other models
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            reader.refuse(("parameters",), f"{name} of {model or 'the merge'}", "missing or not a number" + (f" for tensors with {filters}" if filters else ""), f"Give {name}: under parameters")
            return 0.0
        return float(number)

    if method in SHARED_BY_NATURE:
        return (1.0,) * len(members)
    if method == "slerp":
        t = value("t", None)
        return (1.0 - t, t)
    return tuple(value("weight", model) for model in members)


def _filter_classes(reader: _Reader, settings: Sequence[Any]) -> list[tuple[tuple[str, ...], str]]:
    """(filters that match, regex) from the most special to the rest. The regex of the rest is empty.

    When all settings ask the same filters in the same order, the first that matches decides, so one class a filter is
    enough; otherwise one for each combination.
    """
    orders = {order for setting in settings if (order := tuple(filters_in(setting)))}
    if not orders:
        return [((), "")]
    if len(orders) == 1:
        return [*(((wanted,), re.escape(wanted)) for wanted in next(iter(orders))), ((), "")]
    every = list(dict.fromkeys(wanted for order in orders for wanted in order))
    if len(every) > MAX_FILTERS:
        reader.refuse(("parameters",), "filters", f"{len(every)} different ones are combined in different orders", "Use the same list of filters for every model")
        return [((), "")]
    return [(chosen, "^" + "".join(f"(?=.*{re.escape(wanted)})" for wanted in chosen) if chosen else "")
            for size in range(len(every), -1, -1) for chosen in combinations(every, size)]


def _regex(layer: int | None, regex: str) -> str:
    if layer is None:
        return regex
    place = rf"(^|\.)(layers|h|blocks)\.{layer}\."
    return rf"^(?=.*{place})(?=.*{regex.lstrip('^')})" if regex else place


def _options(reader: _Reader, method: str, members: Sequence[str], slices: Sequence[_Slice]) -> tuple[tuple[str, OptionValue], ...]:
    """Parameters other than weights: one value for the merge, or one per member; anything finer is refused."""
    known = MERGE_METHODS[method].options
    weight = {"slerp": {"t"}}.get(method, set() if method in SHARED_BY_NATURE else {"weight"})
    given = {name for part in slices for model in (*members, None) for scope in _scopes(part, model) if scope for name in scope}
    found: list[tuple[str, OptionValue]] = [("normalize", True)] if method == "linear" and "normalize" not in given else []
    for name in sorted(given - weight - IGNORED_PARAMETERS):
        if name not in known:
            reader.refuse(("parameters", name), f"parameter {name!r} of {method!r}", "unknown", did_you_mean(name, {*known, *weight}) if known or weight else "It has none")
            continue
        values = [_constant(reader, name, [scope for part in slices for scope in _scopes(part, model)]) for model in members]
        values = [known[name] if value is None else value for value in values]
        found.append((name, values[0] if len(set(values)) == 1 else tuple(float(value) for value in values)))
    return tuple(found)


def _constant(reader: _Reader, name: str, scopes: Sequence[Mapping[str, Any] | None]) -> Any:
    for scope in scopes:
        if scope and name in scope:
            if has_gradient(scope[name]) or any(filters_in(scope[name])):
                reader.refuse(("parameters", name), f"parameter {name!r}", "differs between tensors", "Only weights may vary by depth or name in a recipe")
            return evaluate(scope[name], 0.0, lambda wanted: True)
    return None
