"""mergekit's parameters as groups of tensors.

Each group has a row of weights, and options of its own where these differ between tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from recycler.errors import did_you_mean
from recycler.merge.files.mergekit_settings import WITHOUT_WEIGHTS, filters_in, first, has_gradient
from recycler.merge.files.mergekit_structure import Reader, Slice
from recycler.merge.methods.options import PER_MEMBER, Options
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.types import Group, OptionValue

IGNORED_PARAMETERS = frozenset({"int8_mask"})  # saves memory there, has no meaning here
MAX_FILTERS = 6
AFTER_THE_LAYERS = r"^(?!.*(^|\.)(layers|h|blocks)\.\d+\.)(?=.*(norm|ln_f|lm_head|embed_out|score))"


@dataclass(frozen=True, slots=True)
class _Cell:
    """All that holds for one group: a weight per member, and the options in the file."""

    weights: tuple[float, ...]
    options: Options


@dataclass(frozen=True, slots=True)
class _Place:
    """Tensors at one depth: the slice they belong to, and the depth within it, in [0, 1]."""

    label: str
    match: str  # a regex of their names; "" for all
    part: Slice
    depth: float


def groups_and_options(
    reader: Reader, method: str, members: Sequence[str], slices: Sequence[Slice], *, num_layers: int
) -> tuple[tuple[Group, ...], tuple[tuple[float, ...], ...], Options]:
    """The groups, their rows of weights, and all options.

    There is a group for each filter, and for each layer where a setting varies over depth. An
    option that is the same everywhere stands once, any other as NAME@GROUP. Adds problems to the
    reader.
    """
    names = _option_names(reader, method, members, slices)
    settings = _settings(method, names, members, slices)
    by_filter = _filter_classes(reader, settings)
    by_layer = len(slices) > 1 or any(map(has_gradient, settings))
    if by_layer and not num_layers:
        reader.refuse(
            ("parameters",),
            "gradient",
            "needs the number of layers, and no model's config.json can be read",
            "Check the models' paths",
        )
    groups: list[Group] = []
    cells: list[_Cell] = []
    for place in _places(slices, num_layers, by_layer):
        for filters, regex in by_filter:
            words = [word for word in (place.label, *filters) if word]
            name = "-".join(words).replace("@", "_") or "rest"
            groups.append(Group(name=name, match=_both(place.match, regex)))
            row = _row(reader, method, members, place, filters)
            cells.append(_Cell(row, _options(reader, method, names, members, place, filters)))
        if reader.problems:
            break
    if len(set(cells)) == 1:
        return (Group(name="all"),), (cells[0].weights,), cells[0].options
    return tuple(groups), tuple(cell.weights for cell in cells), _flat(groups, cells)


def _settings(
    method: str, names: Sequence[str], members: Sequence[str], slices: Sequence[Slice]
) -> list[Any]:
    """Every setting of a weight or of an option of `names`, in the order of the file's scopes."""
    wanted = ("t" if method == "slerp" else "weight", *names)
    found: list[Any] = []
    for part in slices:
        for model in (*members, None):
            for scope in part.scopes(model):
                found += [scope[name] for name in wanted if scope and name in scope]
    return found


def _flat(groups: Sequence[Group], cells: Sequence[_Cell]) -> Options:
    """Options that agree in all groups once, the others for each group."""
    agreed = [pair for pair in cells[0].options if all(pair in cell.options for cell in cells)]
    flat = list(agreed)
    for group, cell in zip(groups, cells, strict=True):
        for name, value in cell.options:
            if (name, value) not in agreed:
                flat.append((f"{name}@{group.name}", value))
    return tuple(flat)


def _places(slices: Sequence[Slice], num_layers: int, by_layer: bool) -> Iterator[_Place]:
    """Each layer; all after the layers, when there are several slices; the rest."""
    for part in slices if by_layer else []:
        length = (part.stop or num_layers) - part.start
        for layer in range(part.start, part.start + length):
            depth = (layer - part.start) / (length - 1) if length > 1 else 1.0
            match = rf"(^|\.)(layers|h|blocks)\.{layer}\."
            yield _Place(f"layer{layer}", match, part, depth)
    if len(slices) > 1:
        # as mergekit: the last slice's settings, at the start of their gradients
        yield _Place("after", AFTER_THE_LAYERS, slices[-1], 0.0)
    yield _Place("", "", slices[0], 0.0)


def _row(
    reader: Reader, method: str, members: Sequence[str], place: _Place, filters: Sequence[str]
) -> tuple[float, ...]:
    """Weights of all members for the tensors that match exactly `filters`."""

    def value(name: str, model: str | None) -> float:
        if model is not None and model not in place.part.settings:
            return 0.0  # this slice is made of other models
        number = _first(place, model, name, filters)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return float(number)
        for_these = f" for tensors with {filters}" if filters else ""
        reader.refuse(
            ("parameters",),
            f"{name} of {model or 'the merge'}",
            f"missing or not a number{for_these}",
            f"Give {name}: under parameters",
        )
        return 0.0

    if method in WITHOUT_WEIGHTS:
        return (1.0,) * len(members)
    if method == "slerp":
        t = value("t", None)
        return (1.0 - t, t)
    return tuple(value("weight", model) for model in members)


def _option_names(
    reader: Reader, method: str, members: Sequence[str], slices: Sequence[Slice]
) -> list[str]:
    """Options that stand in the file.

    Refused by name: unknown ones, and those of the whole merge under a single model.
    """
    known = MERGE_METHODS[method].options
    weight = {"weight"}
    if method in WITHOUT_WEIGHTS:
        weight = set()
    elif method == "slerp":
        weight = {"t"}
    shared: set[str] = set()
    own: set[str] = set()
    for part in slices:
        shared.update(part.shared or {})
        for model in members:
            own.update(part.settings.get(model) or {})
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
    found = [name for name in names if name in known]
    if method == "linear" and "normalize" not in found:
        found.append("normalize")
    return found


def _options(
    reader: Reader,
    method: str,
    names: Sequence[str],
    members: Sequence[str],
    place: _Place,
    filters: Sequence[str],
) -> Options:
    """The options' values for the tensors that match exactly `filters`, one or one per member."""
    known = dict(MERGE_METHODS[method].options)
    if method == "linear":
        known["normalize"] = True  # mergekit's linear normalizes by default
    found: list[tuple[str, OptionValue]] = []
    for name in names:
        values = []
        for model in members:
            given = _first(place, model, name, filters)
            values.append(_in_kind(known[name], known[name] if given is None else given))
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


def _first(place: _Place, model: str | None, name: str, filters: Sequence[str]) -> Any:
    """The innermost value of a parameter at a place, for tensors that match exactly `filters`."""
    scopes = place.part.scopes(model)
    return first(scopes, name, place.depth, lambda wanted: wanted in filters)


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
    """(filters that match, regex) from the most special to the rest, whose regex is empty.

    When all settings ask the same filters in the same order, the first that matches decides, so one
    class per filter is enough; otherwise there is one for each combination.
    """
    rest: tuple[tuple[str, ...], str] = ((), "")
    orders = {order for setting in settings if (order := tuple(filters_in(setting)))}
    if not orders:
        return [rest]
    if len(orders) == 1 and not any(map(_nested, settings)):
        (order,) = orders
        return [*(((wanted,), re.escape(wanted)) for wanted in dict.fromkeys(order)), rest]
    every = list(dict.fromkeys(wanted for order in orders for wanted in order))
    if len(every) > MAX_FILTERS:
        reader.refuse(
            ("parameters",),
            "filters",
            f"{len(every)} different ones are combined in different orders",
            "Use the same list of filters for every model",
        )
        return [rest]
    classes = []
    for size in range(len(every), 0, -1):
        for chosen in combinations(every, size):
            lookaheads = "".join(f"(?=.*{re.escape(wanted)})" for wanted in chosen)
            classes.append((chosen, f"^{lookaheads}"))
    return [*classes, rest]


def _nested(setting: Any) -> bool:
    """True when a filter stands inside another one's value."""
    for entry in setting if isinstance(setting, list) else [setting]:
        if isinstance(entry, Mapping) and any(filters_in(entry["value"])):
            return True
    return False


def _both(place: str, regex: str) -> str:
    """A regex of the names that match a place and a filter; an empty one matches all."""
    if not place or not regex:
        return place or regex
    filtered = rf"(?=.*{regex.lstrip('^')})"
    if place.startswith("^(?!"):
        return place + filtered
    return rf"^(?=.*{place.lstrip('^')}){filtered}"
