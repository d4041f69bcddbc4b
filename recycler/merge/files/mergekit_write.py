"""Write a recipe as mergekit's YAML, so that nobody has to stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from recycler.errors import Problem, UsageError
from recycler.io.strict_yaml import dump_yaml
from recycler.merge.files.mergekit_settings import WITHOUT_WEIGHTS
from recycler.merge.methods.options import options_of
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.types import OptionValue, Recipe

SAME_THERE = frozenset(
    {
        "linear",
        "task_arithmetic",
        "model_stock",
        "slerp",
        "nuslerp",
        "multislerp",
        "karcher",
        "ties",
        "dare_linear",
        "dare_ties",
        "della",
        "della_linear",
        "breadcrumbs",
        "breadcrumbs_ties",
        "sce",
    }
)
MAX_COMPARED = 20_000_000  # pairs of a filter and a tensor's name: seconds
# (filter, index of its group): the first that matches wins, and the last, '', takes all the rest
Filtered: TypeAlias = list[tuple[str, int]]


def recipe_to_mergekit(
    recipe: Recipe,
    sources: Mapping[str, str | Path],
    *,
    num_layers: int = 0,
    tensors: Iterable[str] = (),
    tokenizer: str = "refuse",
) -> str:
    """The recipe in mergekit's words, computing in float32 and rounding once, as we do.

    Groups become name filters: they are found from the names of all `tensors`, or of a Llama of
    `num_layers` when these are not given. Raises UsageError when mergekit has no such method or no
    words for it.
    """
    _check(recipe)
    filters = _filters(recipe, list(tensors) or _llama_names(num_layers))
    data: dict[str, Any] = {"merge_method": recipe.method}
    parameters, per_member = _options(recipe, filters)
    if recipe.base is not None:
        data["base_model"] = str(sources[recipe.base])
        if recipe.method == "linear":
            data["merge_method"] = "task_arithmetic"
    if recipe.method == "slerp":
        data["base_model"] = str(sources[recipe.members[0]])
        t_of_groups = [second / (here + second) for here, second in recipe.weights]
        parameters["t"] = _setting(t_of_groups, filters)
    elif recipe.method == "linear":
        parameters.setdefault("normalize", False)
    data["models"] = _models(recipe, sources, per_member, filters)
    if parameters:
        data["parameters"] = parameters
    data |= {"dtype": "float32", "out_dtype": recipe.dtype}
    if tokenizer != "refuse":
        data["tokenizer_source"] = tokenizer
    return dump_yaml(data)


def _models(
    recipe: Recipe,
    sources: Mapping[str, str | Path],
    per_member: Mapping[str, list[tuple[float, ...]]],
    filters: Filtered,
) -> list[dict[str, Any]]:
    """An entry for each member, with its weight and its own options."""
    entries = []
    for index, member in enumerate(recipe.members):
        weights = [row[index] for row in recipe.weights]
        if recipe.method in WITHOUT_WEIGHTS and weights[0] == 0.0:
            continue
        entry: dict[str, Any] = {"model": str(sources[member])}
        own: dict[str, Any] = {}
        for name, rows in per_member.items():
            own[name] = _setting([values[index] for values in rows], filters)
        if recipe.method not in WITHOUT_WEIGHTS and recipe.method != "slerp":
            own["weight"] = _setting(weights, filters)
        if own:
            entry["parameters"] = own
        entries.append(entry)
    return entries


def _check(recipe: Recipe) -> None:
    """Raise UsageError for a recipe that mergekit would run as another merge, or not at all."""

    def refuse(cause: str) -> None:
        raise UsageError(
            Problem(
                thing=f"method {recipe.method!r}", cause=cause, remedy="Keep our own recipe.yaml"
            )
        )

    if recipe.method not in SAME_THERE:
        refuse("is not in mergekit")
    weights_of_first = {weight for weight in recipe.weights[0] if weight}
    weights_differ = len(set(recipe.weights)) > 1 or len(weights_of_first) > 1
    if recipe.method in WITHOUT_WEIGHTS and weights_differ:
        refuse("has no weights in mergekit, and here they differ")
    if recipe.base is not None and recipe.method in ("slerp", "karcher"):
        refuse("does not act on deltas in mergekit")
    if recipe.method == "slerp" and any(abs(sum(row)) < 1e-8 for row in recipe.weights):
        refuse("has weights that sum to zero, so there is no t")


def _options(
    recipe: Recipe, filters: Filtered
) -> tuple[dict[str, Any], dict[str, list[tuple[float, ...]]]]:
    """Options of the whole merge as settings, and rows per group of those that differ by member."""
    shared: dict[str, Any] = {}
    per_member: dict[str, list[tuple[float, ...]]] = {}
    groups = [options_of(recipe.options, group.name) for group in recipe.groups]
    for name in dict.fromkeys(name.partition("@")[0] for name, _ in recipe.options):
        values = [group.get(name, MERGE_METHODS[recipe.method].options[name]) for group in groups]
        if any(isinstance(value, tuple) for value in values):
            per_member[name] = [
                value if isinstance(value, tuple) else (value,) * len(recipe.members)
                for value in values
            ]
        else:
            shared[name] = _setting(values, filters)
    return shared, per_member


def _setting(values: Sequence[OptionValue], filters: Filtered) -> Any:
    """One value when all groups agree, else a value for each filter."""
    if len(set(values)) == 1:
        return values[0]
    return [{"filter": wanted or "*", "value": values[group]} for wanted, group in filters]


def _filters(recipe: Recipe, tensors: Sequence[str]) -> Filtered:
    """Substrings of the tensors' names that tell groups of different settings apart."""
    kinds = [
        (row, tuple(sorted(options_of(recipe.options, group.name).items())))
        for group, row in zip(recipe.groups, recipe.weights, strict=True)
    ]
    if len(set(kinds)) == 1:
        return [("", 0)]
    if not tensors:
        raise _no_filters(
            "need the names of the tensors to be written as mergekit's filters", "Pass tensors="
        )
    first_equal = [kinds.index(kind) for kind in kinds]
    return _tell_apart({name: first_equal[recipe.group_of(name)] for name in tensors})


def _no_filters(cause: str, remedy: str = "Keep our own recipe.yaml") -> UsageError:
    return UsageError(Problem(thing="groups", cause=cause, remedy=remedy))


def _tell_apart(left: dict[str, int]) -> Filtered:
    """Filters that give every tensor its group, found greedily; takes `left` (name -> group) apart.

    Each is the one that settles most of the tensors that are still open. Raises UsageError when
    there are none, or too many tensors to look for them.
    """
    names = list(left)
    pieces = set().union(*map(_pieces, names))
    if len(pieces) * len(names) > MAX_COMPARED:
        pieces -= set(names)  # names of single tensors as filters are what makes it quadratic
    if len(pieces) * len(names) > MAX_COMPARED:
        raise _no_filters(f"of {len(names):,} tensors are too many to find mergekit's filters for")
    holders = {piece: [name for name in names if piece in name] for piece in sorted(pieces)}
    found: Filtered = []
    while len(set(left.values())) > 1:
        counts = {piece: _settles(held, left) for piece, held in holders.items()}
        best = max(counts, key=lambda piece: (counts[piece], -len(piece)))
        if counts[best] == 0:
            raise _no_filters("cannot be told apart by substrings of names")
        settled = [name for name in holders[best] if name in left]
        found.append((best, left[settled[0]]))
        for name in settled:
            del left[name]
    return [*found, ("", next(iter(left.values())))]


def _settles(names: Sequence[str], left: Mapping[str, int]) -> int:
    """Number of open tensors that a filter would settle; 0 when it would mix groups."""
    groups = [left[name] for name in names if name in left]
    return len(groups) if len(set(groups)) == 1 else 0


def _pieces(name: str) -> set[str]:
    """Parts of a name that may serve as a filter.

    They are all of it, its words, and the likes of 'layers.N.' and 'layers.N.mlp.'.
    """
    parts = name.split(".")
    pieces = {name}
    for index, part in enumerate(parts):
        if not part.isdigit():
            pieces.add(part)
        elif index:
            pair = f"{parts[index - 1]}.{part}."
            pieces.add(pair)
            if index + 1 < len(parts):
                pieces.add(f"{pair}{parts[index + 1]}.")
    return pieces


def _llama_names(num_layers: int) -> list[str]:
    """Names of the tensors of a Llama with N layers; none for 0."""
    if not num_layers:
        return []
    attention = [f"self_attn.{side}_proj" for side in "qkvo"]
    mlp = [f"mlp.{side}_proj" for side in ("gate", "up", "down")]
    parts = ["input_layernorm", "post_attention_layernorm", *attention, *mlp]
    names = ["model.embed_tokens.weight"]
    for layer in range(num_layers):
        names += [f"model.layers.{layer}.{part}.weight" for part in parts]
    return [*names, "model.norm.weight", "lm_head.weight"]
