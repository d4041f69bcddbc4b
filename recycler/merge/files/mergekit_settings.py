"""mergekit's way to write a number: a scalar, a gradient over depth, or values by name filters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

WITHOUT_WEIGHTS = frozenset({"karcher", "model_stock", "sce"})  # mergekit has no weights for these
MAX_NESTING = 3  # a filter, its value, a gradient inside
Matches = Callable[[str], bool]  # True when this filter matches the tensor at hand


def setting_fault(setting: Any, depth: int = 0) -> str | None:
    """The fault in a setting's shape, in words; None when it is sound."""
    if isinstance(setting, (bool, int, float, str)):
        return _scalar_fault(setting)
    if setting is None or setting == []:
        return "is empty"
    if depth > MAX_NESTING:
        return "is nested too deeply" if setting else "is empty"
    if isinstance(setting, Mapping):
        is_word = isinstance(setting.get("filter"), str | None)
        if "value" not in setting or setting.keys() - {"filter", "value"} or not is_word:
            return "is not {filter: a word, value: ...}"
        return setting_fault(setting["value"], depth + 1)
    if not isinstance(setting, list):
        return f"is a {type(setting).__name__}"
    kinds = {isinstance(entry, Mapping) for entry in setting}
    if len(kinds) > 1 or any(isinstance(entry, list) for entry in setting):
        return "mixes filters with plain values"
    return next((fault for entry in setting if (fault := setting_fault(entry, depth + 1))), None)


def _scalar_fault(setting: bool | int | float | str) -> str | None:
    if isinstance(setting, float) and not math.isfinite(setting):
        return f"is {setting}"
    if type(setting) is int and abs(setting) > 2**63:
        return "is a number of too many digits"
    return None


def evaluate(setting: Any, depth: float, matches: Matches) -> Any:
    """The value of a setting at a relative depth in [0, 1]; None when no filter matches.

    Numbers in a list are interpolated linearly over depth; other values are taken in steps.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if not setting:
        return None
    if not any(isinstance(entry, Mapping) for entry in setting):
        return _gradient(setting, depth)
    for condition in setting:
        wanted = condition.get("filter")
        if wanted in (None, "*") or matches(wanted):
            return evaluate(condition["value"], depth, matches)
    return None


def _gradient(values: Sequence[Any], depth: float) -> Any:
    """The value at a depth: between two numbers in proportion, else the last one before it."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return values[int(depth * (len(values) - 1))]
    place = depth * (len(values) - 1)
    index = int(place)
    after = min(index + 1, len(values) - 1)
    share = place - index
    return (1 - share) * values[index] + share * values[after]


def filters_in(setting: Any) -> Iterator[str]:
    """Every filter of a setting but the ones that match all, nested ones too."""
    for condition in setting if isinstance(setting, list) else [setting]:
        if isinstance(condition, Mapping):
            if condition.get("filter") not in (None, "*"):
                yield condition["filter"]
            yield from filters_in(condition["value"])


def has_gradient(setting: Any) -> bool:
    """True when the setting changes over depth."""
    if isinstance(setting, Mapping):
        return has_gradient(setting.get("value"))
    if not isinstance(setting, list):
        return False
    return any(
        has_gradient(entry) if isinstance(entry, Mapping) else entry != setting[0]
        for entry in setting
    )


def first(
    settings: Sequence[Mapping[str, Any] | None], name: str, depth: float, matches: Matches
) -> Any:
    """The first value of a parameter, from the innermost scope to the outermost; None for none."""
    for scope in settings:
        if scope and name in scope:
            value = evaluate(scope[name], depth, matches)
            if value is not None:
                return value
    return None
