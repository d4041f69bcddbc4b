"""mergekit's parameters as groups of tensors: a row of weights for each, and options where these
differ between tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from recycler.errors import Problem, did_you_mean, raise_problems
from recycler.io.strict_yaml import KeyPath, YamlDocument
from recycler.merge.files.mergekit_settings import filters_in, first, has_gradient
from recycler.merge.methods.options import PER_MEMBER, Options
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.types import Group, OptionValue

IGNORED_PARAMETERS = frozenset({"int8_mask"})  # saves memory there, has no meaning here
SHARED_BY_NATURE = {"karcher", "model_stock", "sce"}  # mergekit gives these methods no weights
MAX_FILTERS = 6
MAX_LAYERS = 10_000
AFTER_THE_LAYERS = r"^(?!.*(^|\.)(layers|h|blocks)\.\d+\.)(?=.*(norm|ln_f|lm_head|embed_out|score))"


@dataclass(slots=True)
class Slice:
    """Layers [start, stop) of the output, what feeds them, and the settings in force, innermost
    first.
    """

    start: int
    stop: int
    settings: dict[str, Mapping[str, Any] | None]  # model -> its own parameters
    shared: Mapping[str, Any] | None

    def scopes(self, model: str | None) -> list[Mapping[str, Any] | None]:
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
        self.problems.append(
            Problem(thing=thing, cause=cause, remedy=remedy, where=self.document.where(key_path))
        )

    def at_method(self, key_path: KeyPath) -> str:
        """The line of merge_method, which every problem of the method points to."""
        return self.document.where(("merge_method",))

    def stop_if_wrong(self) -> None:
        raise_problems(self.problems)


@dataclass(frozen=True, slots=True)
class _Cell:
    """What holds for one group: a weight a member, and the options that the file gives."""

    weights: tuple[float, ...]
    options: Options


def groups_and_options(
    reader: Reader, method: str, members: Sequence[str], slices: Sequence[Slice], *, num_layers: int
) -> tuple[tuple[Group, ...], tuple[tuple[float, ...], ...], Options]:
    """Groups by filter, and by layer where a setting varies over depth; their rows of weights; and
    all options.

    An option that is the same everywhere stands once, any other as NAME@GROUP. Adds problems to the
    reader.
    """
    names = _option_names(reader, method, members, slices)
    weight = "t" if method == "slerp" else "weight"
    settings = [
        scope[name]
        for part in slices
        for model in (*members, None)
        for scope in part.scopes(model)
        if scope
        for name in (weight, *names)
        if name in scope
    ]
    by_filter = _filter_classes(reader, settings)
    by_layer = len(slices) > 1 or any(map(has_gradient, settings))
    if by_layer and not num_layers:
        reader.refuse(
            ("parameters",),
            "gradient",
            "needs the number of layers, and no model's config.json can be read",
            "Check the models' paths",
        )
    found: list[tuple[Group, _Cell]] = []
    for label, match, part, depth in _places(slices, num_layers, by_layer):
        for filters, regex in by_filter:
            cell = _Cell(
                _row(reader, method, members, part, depth, filters),
                _options(reader, method, names, members, part, depth, filters),
            )
            found.append(
                (
                    Group(
                        name="-".join(filter(None, [label, *filters])).replace("@", "_") or "rest",
                        match=_both(match, regex),
                    ),
                    cell,
                )
            )
        if reader.problems:
            break
    if len({cell for _, cell in found}) == 1:
        return (Group(name="all"),), (found[0][1].weights,), found[0][1].options
    return (
        tuple(group for group, _ in found),
        tuple(cell.weights for _, cell in found),
        _flat([(group.name, cell.options) for group, cell in found]),
    )


def _flat(cells: Sequence[tuple[str, Options]]) -> Options:
    """Options that agree in all groups once, the others for each group."""
    first_options = cells[0][1]
    agreed = tuple(pair for pair in first_options if all(pair in options for _, options in cells))
    return (
        *agreed,
        *(
            (f"{name}@{group}", value)
            for group, options in cells
            for name, value in options
            if (name, value) not in agreed
        ),
    )


def _places(
    slices: Sequence[Slice], num_layers: int, by_layer: bool
) -> Iterator[tuple[str, str, Slice, float]]:
    """(label, regex, slice, depth): each layer; what comes after the layers, when the last slice
    has other settings; the rest.
    """
    for part in slices if by_layer else []:
        length = (part.stop or num_layers) - part.start
        for layer in range(part.start, part.start + length):
            yield (
                f"layer{layer}",
                rf"(^|\.)(layers|h|blocks)\.{layer}\.",
                part,
                (layer - part.start) / (length - 1) if length > 1 else 1.0,
            )
    if len(slices) > 1:
        yield (
            "after",
            AFTER_THE_LAYERS,
            slices[-1],
            0.0,
        )  # as mergekit: the last slice's settings, at the start of their gradients
    yield "", "", slices[0], 0.0


def _row(
    reader: Reader,
    method: str,
    members: Sequence[str],
    part: Slice,
    depth: float,
    filters: Sequence[str],
) -> tuple[float, ...]:
    """Weights of all members for the tensors that match exactly `filters`."""

    def value(name: str, model: str | None) -> float:
        number = first(part.scopes(model), name, depth, lambda wanted: wanted in filters)
        if model is not None and model not in part.settings:
            return 0.0  # this slice is made of other models
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            reader.refuse(
                ("parameters",),
                f"{name} of {model or 'the merge'}",
                "missing or not a number" + (f" for tensors with {filters}" if filters else ""),
                f"Give {name}: under parameters",
            )
            return 0.0
        return float(number)

    if method in SHARED_BY_NATURE:
        return (1.0,) * len(members)
    if method == "slerp":
        t = value("t", None)
        return (1.0 - t, t)
    return tuple(value("weight", model) for model in members)


def _option_names(
    reader: Reader, method: str, members: Sequence[str], slices: Sequence[Slice]
) -> list[str]:
    """Options that the file gives.

    Refused by name: unknown ones, and those of the whole merge under a single model.
    """
    known = MERGE_METHODS[method].options
    weight = {"slerp": {"t"}}.get(method, set() if method in SHARED_BY_NATURE else {"weight"})
    shared = {name for part in slices for name in part.shared or {}}
    own = {name for part in slices for model in members for name in part.settings.get(model) or {}}
    names = sorted((shared | own) - weight - IGNORED_PARAMETERS)
    for name in names:
        if name not in known:
            reader.refuse(
                ("parameters", name),
                f"parameter {name!r} of {method!r}",
                "unknown",
                did_you_mean(name, {*known, *weight}) if known or weight else "It has none",
            )
        elif name in own and name not in PER_MEMBER:
            reader.refuse(
                ("models",),
                f"parameter {name!r} of {method!r}",
                "holds for all models, and stands under one",
                "Put it under the parameters of the merge",
            )
    return [name for name in names if name in known] + (
        ["normalize"] if method == "linear" and "normalize" not in names else []
    )


def _options(
    reader: Reader,
    method: str,
    names: Sequence[str],
    members: Sequence[str],
    part: Slice,
    depth: float,
    filters: Sequence[str],
) -> Options:
    """The options' values for the tensors that match exactly `filters`: one for all members, or one
    for each.
    """
    known = MERGE_METHODS[method].options | (
        {"normalize": True} if method == "linear" else {}
    )  # mergekit's linear normalizes unless told
    found: list[tuple[str, OptionValue]] = []
    for name in names:
        values = [
            first(part.scopes(model), name, depth, lambda wanted: wanted in filters)
            for model in members
        ]
        values = [
            _in_kind(known[name], known[name] if value is None else value) for value in values
        ]
        if any(value is None for value in values):
            reader.refuse(
                ("parameters", name),
                f"parameter {name!r}",
                "is of another kind than its default",
                f"Its default is {known[name]}",
            )
            return ()
        found.append((name, values[0] if len(set(values)) == 1 else tuple(map(float, values))))
    return tuple(found)


def _in_kind(default: Any, value: Any) -> Any:
    """The value in the kind of the default; None when it is of another.

    Truth values may be written 0 and 1.
    """
    if isinstance(default, bool):
        return bool(value) if value in (0, 1) else None
    if isinstance(default, str):
        return value if isinstance(value, str) else None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _filter_classes(reader: Reader, settings: Sequence[Any]) -> list[tuple[tuple[str, ...], str]]:
    """(filters that match, regex) from the most special to the rest.

    The regex of the rest is empty.

    When all settings ask the same filters in the same order, the first that matches decides, so one
    class a filter is enough; otherwise one for each combination.
    """
    orders = {order for setting in settings if (order := tuple(filters_in(setting)))}
    if not orders:
        return [((), "")]
    if len(orders) == 1 and not any(_nested(setting) for setting in settings):
        return [
            *(((wanted,), re.escape(wanted)) for wanted in dict.fromkeys(next(iter(orders)))),
            ((), ""),
        ]
    every = list(dict.fromkeys(wanted for order in orders for wanted in order))
    if len(every) > MAX_FILTERS:
        reader.refuse(
            ("parameters",),
            "filters",
            f"{len(every)} different ones are combined in different orders",
            "Use the same list of filters for every model",
        )
        return [((), "")]
    return [
        (chosen, "^" + "".join(f"(?=.*{re.escape(wanted)})" for wanted in chosen) if chosen else "")
        for size in range(len(every), -1, -1)
        for chosen in combinations(every, size)
    ]


def _nested(setting: Any) -> bool:
    """Does a filter stand inside another one's value?"""
    return any(
        isinstance(entry, Mapping) and any(filters_in(entry["value"]))
        for entry in (setting if isinstance(setting, list) else [setting])
    )


def _both(place: str, regex: str) -> str:
    if not place or not regex:
        return place or regex
    return (
        rf"^(?=.*{place.lstrip('^')})(?=.*{regex.lstrip('^')})"
        if not place.startswith("^(?!")
        else rf"{place}(?=.*{regex.lstrip('^')})"
    )
