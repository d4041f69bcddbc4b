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

from recycler.errors import Problem, UsageError
from recycler.io.strict_yaml import YamlDocument, load_yaml
from recycler.location import DiskLocation, parse_location
from recycler.merge.files.mergekit_numbers import groups_and_options
from recycler.merge.files.mergekit_structure import (
    MAX_LAYERS,
    WORDS,
    Reader,
    Slice,
    check_keys,
    read_slices,
    tokenizer_source,
)
from recycler.merge.files.mergekit_write import (
    recipe_to_mergekit as recipe_to_mergekit,  # both ways from one door
)
from recycler.merge.methods.options import DTYPES
from recycler.merge.methods.problems import method_problems
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.hf_folder import read_config
from recycler.pool.tokens.aligned import TokenizerPolicy
from recycler.types import Recipe


def read_mergekit(
    path: Path | str | YamlDocument, text: str | None = None
) -> tuple[Recipe, dict[str, Path]]:
    """The recipe that a mergekit configuration means, and the folder of each model by its name.

    The configuration is a file, one that was read already, or `text`. Folders are as mergekit takes
    them: relative to where the command runs. Raises UsageError with file:line.
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
    check_keys(reader)
    slices = read_slices(reader)
    reader.stop_if_wrong()
    base: str | None = reader.data.get("base_model")
    models = _models(slices, base)
    method = reader.data["merge_method"]
    members = _members(reader, method, models, base)
    reader.stop_if_wrong()
    num_layers = _num_layers(reader, slices, models)
    groups, weights, options = groups_and_options(
        reader, method, members, slices, num_layers=num_layers
    )
    reader.stop_if_wrong()
    names = _names(models)
    used = list(members)
    recipe_base = None
    if base is not None and base not in members:
        recipe_base = names[base]
        used.append(base)
    recipe = Recipe(
        method=method,
        members=tuple(names[model] for model in members),
        base=recipe_base,
        groups=groups,
        weights=weights,
        options=options,
        dtype=_dtype(reader, base or models[0]),
    )
    return recipe, {names[model]: Path(model) for model in used}


def read_tokenizer_policy(
    document: YamlDocument, recipe: Recipe, sources: Mapping[str, Path]
) -> tuple[TokenizerPolicy, str | None]:
    """Our policy for the tokenizer that a configuration asks for, and its base_model's name.

    The name of the base (or first) model means `base`; another model's is honoured where
    vocabularies agree, as without any. Raises UsageError for what is no model of the file.
    """
    source, base = tokenizer_source(document.data), document.data.get("base_model")
    if source not in (None, "union", "base") and Path(source) not in sources.values():
        key_path = ("tokenizer", "source")
        raise UsageError(
            Problem(
                thing=f"tokenizer source {source!r}",
                cause="is neither union nor base nor one of the merged models",
                remedy="Write union, base, or a model of this file",
                where=document.where(
                    ("tokenizer_source",) if "tokenizer_source" in document.data else key_path
                ),
            )
        )
    origin = None
    if base is not None:
        origin = next((name for name, place in sources.items() if place == Path(base)), None)
    template = sources[recipe.base or recipe.members[0]]
    if source == "union":
        return "union", origin
    if source == "base" or (source and Path(source) == template):
        return "base", origin
    return "refuse", origin


# ---------------------------------------------------------------- models


def _models(slices: Sequence[Slice], base: str | None) -> list[str]:
    """All models in the order of the file, the base last when it stands under base_model alone."""
    models = list(dict.fromkeys(model for part in slices for model in part.settings))
    if base is not None and base not in models:
        models.append(base)
        for part in slices:
            part.settings.setdefault(base, None)
    return models


def _names(models: Sequence[str]) -> dict[str, str]:
    """Short names: the last part of the path where that is unique, the whole path otherwise."""
    last = [Path(model).name for model in models]
    return {
        model: name if last.count(name) == 1 else model.strip("/").replace("/", "-")
        for model, name in zip(models, last, strict=True)
    }


def _members(reader: Reader, method: str, models: Sequence[str], base: str | None) -> list[str]:
    """The models that are merged, as opposed to the origin of deltas."""
    others = [model for model in models if model != base]
    if method == "slerp":
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
    found = method_problems(method, WORDS, num_members=len(others), where=reader.at_method)
    if not others and not found:
        reader.refuse(
            ("merge_method",),
            f"method {method!r}",
            f"merges some {WORDS.members} 0",
            WORDS.change_members,
        )
    reader.problems += found
    return others


def _num_layers(reader: Reader, slices: Sequence[Slice], models: Sequence[str]) -> int:
    """Layers of the merge: from the slices, else from the first model whose config can be read.

    0 when none can.
    """
    if slices[-1].stop:
        return slices[-1].stop
    configs = (_config(model) for model in models)
    config = next((found for found in configs if found is not None), {})
    number = config.get("num_hidden_layers", 0)
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
    """A model's config.json; None where there is none."""
    location = parse_location(model)
    if not isinstance(location, DiskLocation):
        return dict(open_checkpoint(location).config)
    path = Path(location.path) / "config.json"
    try:
        return read_config(path) if path.is_file() else None
    except (OSError, ValueError):
        return None  # no name that a file could have: opening the model says so


def _dtype(reader: Reader, model: str) -> str:
    """out_dtype, else dtype, else the model's own, as mergekit keeps the input's."""
    asked = reader.data.get("out_dtype") or reader.data.get("dtype")
    config = _config(model) or {}
    asked = asked or config.get("dtype") or config.get("torch_dtype")
    return asked if asked in DTYPES else "bfloat16"
