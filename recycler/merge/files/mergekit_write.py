"""Write a recipe as mergekit's YAML, so that nobody has to stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recycler.errors import Problem, UsageError
from recycler.io.strict_yaml import dump_yaml
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
WITHOUT_WEIGHTS = frozenset({"karcher", "model_stock", "sce"})
Filtered = list[
    tuple[str, int]
]  # (filter, index of its group), the first that matches wins; '' at last for all the rest


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
    columns = list(zip(*recipe.weights, strict=True))
    entries: list[dict[str, Any]] = [{"model": str(sources[name])} for name in recipe.members]
    if recipe.base is not None:
        data["base_model"] = str(sources[recipe.base])
        if recipe.method == "linear":
            data["merge_method"] = "task_arithmetic"
    if recipe.method == "slerp":
        data["base_model"] = entries[0]["model"]
        parameters["t"] = _setting(
            [second / (here + second) for here, second in recipe.weights], filters
        )
    elif recipe.method == "linear":
        parameters.setdefault("normalize", False)
    for index, entry in enumerate(entries):
        own = {
            name: _setting([values[index] for values in rows], filters)
            for name, rows in per_member.items()
        }
        if recipe.method not in WITHOUT_WEIGHTS | {"slerp"}:
            own["weight"] = _setting(columns[index], filters)
        if own:
            entry["parameters"] = own
    if recipe.method in WITHOUT_WEIGHTS:
        entries = [
            entry for entry, column in zip(entries, columns, strict=True) if column[0] != 0.0
        ]
    data["models"] = entries
    if parameters:
        data["parameters"] = parameters
    return dump_yaml(
        data
        | {"dtype": "float32", "out_dtype": recipe.dtype}
        | ({"tokenizer_source": tokenizer} if tokenizer != "refuse" else {})
    )


def _check(recipe: Recipe) -> None:
    def refuse(cause: str) -> None:
        raise UsageError(
            Problem(
                thing=f"method {recipe.method!r}", cause=cause, remedy="Keep our own recipe.yaml"
            )
        )

    if recipe.method not in SAME_THERE:
        refuse("is not in mergekit")
    if recipe.method in WITHOUT_WEIGHTS and (
        len({row for row in recipe.weights}) > 1
        or len({weight for weight in recipe.weights[0] if weight}) > 1
    ):
        refuse("has no weights in mergekit, and here they differ")
    if recipe.base is not None and recipe.method in ("slerp", "karcher"):
        refuse("does not act on deltas in mergekit")
    if recipe.method == "slerp" and any(abs(sum(row)) < 1e-8 for row in recipe.weights):
        refuse("has weights that sum to zero, so there is no t")


def _options(
    recipe: Recipe, filters: Filtered
) -> tuple[dict[str, Any], dict[str, list[tuple[float, ...]]]]:
    """Options of the whole merge as settings, and those that differ between members as one row of
    numbers a group.
    """
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
    """Substrings that tell the groups apart, each time the one that settles most of the tensors
    still open.
    """
    kinds = [
        (row, tuple(sorted(options_of(recipe.options, group.name).items())))
        for group, row in zip(recipe.groups, recipe.weights, strict=True)
    ]
    if len(set(kinds)) == 1:
        return [("", 0)]
    if not tensors:
        raise UsageError(
            Problem(
                thing="groups",
                cause="need the names of the tensors to be written as mergekit's filters",
                remedy="Pass tensors=",
            )
        )
    first_equal = [kinds.index(kind) for kind in kinds]
    group_of = {name: first_equal[recipe.group_of(name)] for name in tensors}
    pieces = {piece for name in tensors for piece in _pieces(name)}
    if (
        len(pieces) * len(tensors) > MAX_COMPARED
    ):  # names of single tensors as filters are what makes it quadratic
        pieces -= set(tensors)
    if len(pieces) * len(tensors) > MAX_COMPARED:
        raise UsageError(
            Problem(
                thing="groups",
                cause=f"of {len(tensors):,} tensors are too many to find mergekit's filters for",
                remedy="Keep our own recipe.yaml",
            )
        )
    holders = {piece: [name for name in tensors if piece in name] for piece in pieces}
    found: Filtered = []
    left = dict(group_of)
    while len(set(left.values())) > 1:
        counts = {piece: _settles(names, left) for piece, names in holders.items()}
        best = max(sorted(counts), key=lambda piece: (counts[piece], -len(piece)))
        if counts[best] == 0:
            raise UsageError(
                Problem(
                    thing="groups",
                    cause="cannot be told apart by substrings of names",
                    remedy="Keep our own recipe.yaml",
                )
            )
        hit = [name for name in holders[best] if name in left]
        found.append((best, left[hit[0]]))
        for name in hit:
            del left[name]
    return [*found, ("", next(iter(left.values())))]


def _settles(names: Sequence[str], left: Mapping[str, int]) -> int:
    """How many open tensors a filter would settle; none when it would mix groups."""
    groups = {left[name] for name in names if name in left}
    return sum(name in left for name in names) if len(groups) == 1 else 0


def _pieces(name: str) -> set[str]:
    """What may serve as a filter: the whole name, its parts, and 'layers.N.' and 'layers.N.mlp.'
    likes.
    """
    parts = name.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit() and index]
    pairs = {f"{parts[index - 1]}.{parts[index]}." for index in numbered}
    triples = {
        f"{parts[index - 1]}.{parts[index]}.{parts[index + 1]}."
        for index in numbered
        if index + 1 < len(parts)
    }
    return {name, *(part for part in parts if not part.isdigit()), *pairs, *triples}


def _llama_names(num_layers: int) -> list[str]:
    layers = [
        f"model.layers.{layer}.{part}.weight"
        for layer in range(num_layers)
        for part in (
            "input_layernorm",
            "post_attention_layernorm",
            *(f"self_attn.{side}_proj" for side in "qkvo"),
            *(f"mlp.{side}_proj" for side in ("gate", "up", "down")),
        )
    ]
    return (
        ["model.embed_tokens.weight", *layers, "model.norm.weight", "lm_head.weight"]
        if num_layers
        else []
    )
