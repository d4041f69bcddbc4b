"""Read mergekit's YAML into a recipe.

Settings that vary over depth or by name become groups of tensors.

Understood: `models` or `slices` (that stack the whole model in its own order), `merge_method`,
`base_model`, `parameters` with scalars, gradients and filters, `dtype`, `out_dtype`,
`tokenizer_source`, `tokenizer: {source}`. Refused, with the reason: `modules`, `passthrough` and
slices that repeat, skip or reorder layers, LoRA references (`model+lora`), methods and parameters
that we do not have. `docs/parity.md` lists what is meant to differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recycler.errors import Problem, UsageError, did_you_mean
from recycler.io.strict_yaml import KeyPath, YamlDocument, load_yaml
from recycler.merge.files.mergekit_numbers import MAX_LAYERS, Reader, Slice, groups_and_options
from recycler.merge.files.mergekit_settings import setting_fault
from recycler.merge.files.mergekit_write import (
    recipe_to_mergekit as recipe_to_mergekit,
)  # both ways from one door
from recycler.merge.methods.options import DTYPES
from recycler.merge.methods.problems import MethodWords, method_problems
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.hf_folder import read_config
from recycler.pool.storage.location import local_path, packed_place, remote_url
from recycler.pool.tokens.aligned import TokenizerPolicy
from recycler.types import Recipe

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


def read_mergekit(
    path: Path | str | YamlDocument, text: str | None = None
) -> tuple[Recipe, dict[str, Path]]:
    """The recipe that a mergekit configuration (a file, read already, or `text`) means, and the
    folder of each model by the name it got.

    Folders are as mergekit takes them: relative to where the command runs. Raises UsageError with
    file:line.
    """
    reader = Reader(load_yaml(path, text))
    if not isinstance(reader.data, dict):
        raise UsageError(
            Problem(
                thing=reader.document.path,
                cause="does not hold a mapping of keys to values",
                remedy="Start it with merge_method:",
                where=reader.document.where(()),
            )
        )
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
    groups, weights, options = groups_and_options(
        reader, method, members, slices, num_layers=_num_layers(reader, slices, models)
    )
    reader.stop_if_wrong()
    uses_base = base is not None and base not in members
    recipe = Recipe(
        method=method,
        members=tuple(names[model] for model in members),
        base=names[base] if uses_base else None,
        groups=groups,
        weights=weights,
        options=options,
        dtype=_dtype(reader, base or models[0]),
    )
    return recipe, {
        names[model]: Path(model) for model in (*members, *([base] if uses_base else []))
    }


def read_tokenizer_policy(
    document: YamlDocument, recipe: Recipe, sources: Mapping[str, Path]
) -> tuple[TokenizerPolicy, str | None]:
    """Our policy for what a mergekit configuration says on the tokenizer, and the name of its
    base_model.

    The name of the base (or first) model means `base`; another model's is honoured where
    vocabularies agree, as without any. Raises UsageError for what is no model of the file.
    """
    source, base = _tokenizer_source(document.data), document.data.get("base_model")
    template = sources[recipe.base or recipe.members[0]]
    if source not in (None, "union", "base") and Path(source) not in sources.values():
        raise UsageError(
            Problem(
                thing=f"tokenizer source {source!r}",
                cause="is neither union nor base nor one of the merged models",
                remedy="Write union, base, or a model of this file",
                where=document.where(
                    ("tokenizer_source",)
                    if "tokenizer_source" in document.data
                    else ("tokenizer", "source")
                ),
            )
        )
    policy: TokenizerPolicy = (
        "union"
        if source == "union"
        else "base"
        if source == "base" or (source and Path(source) == template)
        else "refuse"
    )
    return policy, next(
        (name for name, place in sources.items() if base is not None and place == Path(base)), None
    )


# ---------------------------------------------------------------- structure


def _check_keys(reader: Reader) -> None:
    data = reader.data
    for key in data.keys() - set(KEYS):
        reader.refuse(
            (key,),
            f"key {key!r}",
            "is not understood",
            "Modules are not; give models or slices"
            if key == "modules"
            else did_you_mean(str(key), KEYS),
        )
    if "chat_template" in data:
        reader.refuse(
            ("chat_template",),
            "key 'chat_template'",
            "is not done here: a merge gets the chat template of its base, or first model",
            "Leave it out, and put the template into the merge's folder",
        )
    for key in SCALARS:
        if not isinstance(data.get(key), str | None):
            reader.refuse(
                (key,),
                f"key {key!r}",
                f"is {str(data[key])[:40]!r}, which is not a word",
                "Write one word",
            )
    if not isinstance(data.get("tokenizer"), dict | None):
        reader.refuse(
            ("tokenizer",),
            "key 'tokenizer'",
            "is not a mapping",
            "Write tokenizer: {source: union}",
        )
    for key in (data.get("tokenizer") or {}) if isinstance(data.get("tokenizer"), dict) else ():
        if key != "source":
            reader.refuse(
                ("tokenizer", key),
                f"key {str(key)[:40]!r}",
                "is not done here: rows of tokens are the member's own, else the base's, else "
                "the mean",
                "Leave it out, or run this one with mergekit",
            )
    if not isinstance(_tokenizer_source(data), str | None):
        reader.refuse(
            ("tokenizer",),
            "the tokenizer's source",
            "is not a word",
            "Write union, base, or a model",
        )
    _parameters(reader, data.get("parameters"), ("parameters",))
    reader.stop_if_wrong()
    method = data.get("merge_method")
    if method == "passthrough":
        reader.refuse(
            ("merge_method",),
            "method 'passthrough'",
            "stacks layers into another architecture, which a pool of one architecture cannot hold",
            "Run this one with mergekit",
        )
    else:
        reader.problems += method_problems(
            method, WORDS, has_base=bool(data.get("base_model")), where=reader.at_method
        )
    if ("models" in data) == ("slices" in data):
        reader.refuse(
            (), "models and slices", "exactly one of them is needed", "models: for whole models"
        )
    for key in ("dtype", "out_dtype"):
        if data.get(key) is not None and data[key] not in DTYPES:
            reader.refuse(
                (key,), f"{key} {data[key]!r}", "unknown", did_you_mean(str(data[key]), DTYPES)
            )


def _tokenizer_source(data: Mapping[str, Any]) -> Any:
    """What a mergekit configuration says on the tokenizer: 'union', 'base', a model, or None."""
    own = data.get("tokenizer")
    return data.get("tokenizer_source") or (own.get("source") if isinstance(own, dict) else None)


def _slices(reader: Reader) -> list[Slice]:
    """The output's layers in order.

    A configuration with `models` is one slice of all layers (stop 0: not known yet).
    """
    data = reader.data
    if reader.problems:
        return []
    if "models" in data:
        settings = _inputs(reader, data["models"], ("models",))
        return [
            Slice(
                0,
                0,
                {model: entry.get("parameters") for model, entry in settings.items()},
                data.get("parameters"),
            )
        ]
    slices: list[Slice] = []
    for index, part in enumerate(data["slices"] if isinstance(data["slices"], list) else []):
        path: KeyPath = ("slices", index)
        if not isinstance(part, dict) or part.keys() - {"sources", "parameters"}:
            reader.refuse(
                path,
                "slice",
                "is more than sources and parameters",
                "A base_model or residual_weight of its own is not supported",
            )
            continue
        inputs = _inputs(reader, part.get("sources"), (*path, "sources"))
        _parameters(reader, part.get("parameters"), (*path, "parameters"))
        ranges = [_layer_range(entry.get("layer_range")) for entry in inputs.values()]
        place = slices[-1].stop if slices else 0
        if reader.problems:
            continue
        if (
            len(set(ranges)) != 1
            or ranges[0] is None
            or ranges[0][0] != place
            or not place < ranges[0][1] <= MAX_LAYERS
        ):
            reader.refuse(
                path,
                f"slice {index}",
                f"does not take layers {place} and up from all of its sources: layers would "
                "repeat, be skipped or change place",
                "Run this one with mergekit",
            )
            continue
        shared = {**(data.get("parameters") or {}), **(part.get("parameters") or {})}
        slices.append(
            Slice(
                place,
                ranges[0][1],
                {model: entry.get("parameters") for model, entry in inputs.items()},
                shared,
            )
        )
    if not slices and not reader.problems:
        reader.refuse(("slices",), "slices", "empty", "Give at least one")
    return slices


def _inputs(reader: Reader, entries: Any, path: KeyPath) -> dict[str, dict[str, Any]]:
    """The entries of a list of models or sources by model. Adds problems."""
    found: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("model"), str)
            or entry.keys() - {"model", "parameters", "layer_range"}
        ):
            reader.refuse(
                (*path, index),
                "entry",
                "is not model, parameters and layer_range",
                "Write - model: FOLDER",
            )
        elif "+" in entry["model"] or "@" in entry["model"]:
            reader.refuse(
                (*path, index),
                f"model {entry['model']!r}",
                "is an adapter or a revision of a model",
                "Fold the adapter with recycler fold, or download the revision",
            )
        elif entry["model"] in found:
            reader.refuse(
                (*path, index), f"model {entry['model']!r}", "stands twice", "Add its weights up"
            )
        else:
            found[entry["model"]] = entry
            _parameters(reader, entry.get("parameters"), (*path, index, "parameters"))
    if not found and not reader.problems:
        reader.refuse(path, "models", "empty", "Give at least one")
    return found


def _parameters(reader: Reader, given: Any, path: KeyPath) -> None:
    """Adds a problem for each parameter that is not a number, a gradient or a list of filters."""
    if not isinstance(given, dict | None):
        reader.refuse(path, "parameters", "are not a mapping", "Write parameters: {NAME: VALUE}")
        return
    for name, setting in (given or {}).items():
        fault = (
            setting_fault(setting) if isinstance(name, str) else "does not have a word as its name"
        )
        if fault:
            reader.refuse(
                (*path, name),
                f"parameter {str(name)[:40]!r}",
                fault,
                "Write a number, a list of numbers over depth, or a list of {filter: PART OF A "
                "NAME, value: ...}",
            )


def _layer_range(given: Any) -> tuple[int, int] | None:
    return (
        (given[0], given[1])
        if isinstance(given, list)
        and len(given) == 2
        and all(type(number) is int for number in given)
        else None
    )


def _names(models: Sequence[str]) -> dict[str, str]:
    """Short names: the last part of the path where that is unique, the whole path otherwise."""
    last = [Path(model).name for model in models]
    return {
        model: name if last.count(name) == 1 else model.strip("/").replace("/", "-")
        for model, name in zip(models, last, strict=True)
    }


def _members(reader: Reader, method: str, models: Sequence[str], base: str | None) -> list[str]:
    """Which models are merged, as opposed to being the origin of deltas."""
    if method == "slerp":
        others = [model for model in models if model != base]
        if base is None or len(others) != 1:
            reader.refuse(
                ("merge_method",),
                "method 'slerp'",
                "needs a base_model and one other model",
                "Give exactly two models",
            )
            return list(models)
        return [base, *others]
    if method in ("linear", "karcher"):
        return list(models)
    members = [model for model in models if model != base]
    found = method_problems(method, WORDS, num_members=len(members), where=reader.at_method)
    if not members and not found:
        reader.refuse(
            ("merge_method",),
            f"method {method!r}",
            f"merges some {WORDS.members} 0",
            WORDS.change_members,
        )
    reader.problems += found
    return members


def _num_layers(reader: Reader, slices: Sequence[Slice], models: Sequence[str]) -> int:
    """Layers of the merge: from the slices, else from the first model that is a folder here; 0 when
    none is.
    """
    if slices[-1].stop:
        return slices[-1].stop
    number = next(
        (
            found.get("num_hidden_layers", 0)
            for model in models
            if (found := _config(model)) is not None
        ),
        0,
    )
    if type(number) is not int or not 0 <= number <= MAX_LAYERS:
        reader.refuse(
            (),
            "num_hidden_layers",
            f"is {str(number)[:40]} in config.json",
            f"A model has at most {MAX_LAYERS:,} layers",
        )
        return 0
    return number


def _config(model: str) -> dict[str, Any] | None:
    if remote_url(model) or packed_place(model):
        return dict(open_checkpoint(model).config)
    path = Path(local_path(model)) / "config.json"
    try:
        return read_config(path) if path.is_file() else None
    except (
        OSError,
        ValueError,
    ):  # no name that a file could have: that is told when the model is opened
        return None


def _dtype(reader: Reader, model: str) -> str:
    """out_dtype, else dtype, else what the first model's config says, as mergekit keeps the
    input's.
    """
    asked = reader.data.get("out_dtype") or reader.data.get("dtype")
    config = _config(model) or {}
    asked = asked or config.get("dtype") or config.get("torch_dtype")
    return asked if asked in DTYPES else "bfloat16"
