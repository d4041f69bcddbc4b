"""mergekit's way to write a number: a scalar, a gradient over depth, or a list of values with name filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Matches = Callable[[str], bool]  # does this filter match the tensor at hand?


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
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return values[int(depth * (len(values) - 1))]
    place = depth * (len(values) - 1)
    index = int(place)
    after = min(index + 1, len(values) - 1)
    share = place - index
    return (1 - share) * values[index] + share * values[after]


def filters_in(setting: Any) -> Iterator[str]:
    """Every filter of a setting but the ones that match all."""
    for condition in setting if isinstance(setting, list) else [setting]:
        if isinstance(condition, Mapping) and condition.get("filter") not in (None, "*"):
            yield condition["filter"]


def has_gradient(setting: Any) -> bool:
    """Does the setting change over depth?"""
    if isinstance(setting, Mapping):
        return has_gradient(setting.get("value"))
    if not isinstance(setting, list):
        return False
    return any(has_gradient(entry) if isinstance(entry, Mapping) else entry != setting[0] for entry in setting)


def first(settings: Sequence[Mapping[str, Any] | None], name: str, depth: float, matches: Matches) -> Any:
    """The first value that a scope gives for a parameter: scopes from the innermost to the outermost."""
    for scope in settings:
        if scope and name in scope:
            value = evaluate(scope[name], depth, matches)
            if value is not None:
                return value
    return None
