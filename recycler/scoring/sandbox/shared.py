"""Lists, dictionaries, sets and all else that can be changed, shared by both sides.

The second of the texts that run alone inside a box (see child.py).

Both sides have such a thing under one number, and each message carries what its sender changed of
all that is shared, so that it is the same on both sides, as in one interpreter.
"""

import collections
import itertools
import operator
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is slow to import, and a verdict starts two boxes
    from collections.abc import Iterator, Sequence
    from typing import Any

CHANGEABLE: "dict[str, type[Any]]" = {
    "list": list,
    "dict": dict,
    "set": set,
    "bytearray": bytearray,
    "deque": collections.deque,
    "OrderedDict": collections.OrderedDict,
    "defaultdict": collections.defaultdict,
    "Counter": collections.Counter,
}


class Shared:
    """Things under one number on both sides.

    New ones get odd numbers on the program's side and even ones on the other. `seen`: the parts of
    each at the last message. `keys`: the number of a thing by its `id`.
    """

    def __init__(self, odd: bool) -> None:
        self.shared: dict[int, Any] = {}
        self.keys: dict[int, int] = {}
        self.seen: dict[int, Any] = {}
        self.counted = itertools.count(int(odd), 2)

    def encode(self, value: "Any") -> "Any":
        """A value as JSON; values.py says how."""
        raise NotImplementedError

    def decode(self, said: "Any") -> "Any":
        """The value that was encoded."""
        raise NotImplementedError

    def contents(self) -> "list[Any]":
        """Changes since the last message, as [number, kind, parts] of each changed thing.

        A thing that is shared for the first time counts as changed.
        """
        found: list[Any] = []
        looked: set[int] = set()
        # their parts may be shared for the first time as well
        while new := [key for key in self.shared if key not in looked]:
            for key in new:
                looked.add(key)
                value = self.shared[key]
                now = _snapshot(value)
                if not _unchanged(self.seen.get(key), now):
                    self.seen[key] = now
                    found.append([key, self._kind(value), self._parts(value)])
        return found

    def take(self, contents: "Sequence[Any]") -> None:
        """Make what is shared what the other side says it is now."""
        for key, (kind, *more), _ in contents:
            if key not in self.shared:
                self._share(CHANGEABLE[kind](*[self.decode(part) for part in more]), key)
        for key, _, parts in contents:
            if isinstance(parts, str):
                _fill(self.shared[key], parts.encode("latin-1"))
            else:
                _fill(self.shared[key], [self.decode(part) for part in parts])
            self.seen[key] = _snapshot(self.shared[key])

    def unseen(self) -> list[int]:
        """Numbers of what nobody on this side can see any more: no need to share it any longer."""
        return [key for key, count in _references(self.shared) if count <= _OWN_REFERENCES]

    def forget(self, keys: "Sequence[int]") -> None:
        for key in keys:
            self.keys.pop(id(self.shared.pop(key, None)), None)
            self.seen.pop(key, None)

    def number_of_shared(self, value: "Any") -> int:
        """The number of a thing that can be changed; it is shared from now on."""
        if id(value) in self.keys:
            return self.keys[id(value)]
        return self._share(value, next(key for key in self.counted if key not in self.shared))

    def _share(self, value: "Any", key: int) -> int:
        self.shared[key], self.keys[id(value)] = value, key
        return key

    def _kind(self, value: "Any") -> "list[Any]":
        kind = next(name for name, kind in reversed(CHANGEABLE.items()) if isinstance(value, kind))
        if kind == "defaultdict" and isinstance(value.default_factory, (type, type(None))):
            return [kind, self.encode(value.default_factory)]
        return [kind]

    def _parts(self, value: "Any") -> "Any":
        if isinstance(value, bytearray):
            return value.decode("latin-1")
        if isinstance(value, dict):
            return [self.encode(part) for part in value.items()]
        return [self.encode(part) for part in value]


def _references(shared: "dict[int, Any]") -> "Iterator[tuple[int, int]]":
    """(number, references to it) of each thing."""
    for key in list(shared):
        yield key, sys.getrefcount(shared[key])


# of a thing that nothing but `shared` holds, counted in the same way
_OWN_REFERENCES = next(count for _, count in _references({0: []}))


def _snapshot(value: "Any") -> "Any":
    """Its present parts, cheap to compare with later."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, bytearray):
        return bytes(value)
    return list(value)


def _unchanged(before: "Any", now: "Any") -> bool:
    if before is None or len(before) != len(now):
        return False
    if isinstance(now, bytes):
        return bool(before == now)
    return all(map(operator.is_, before, now))


def _fill(value: "Any", content: "Any") -> None:
    if isinstance(value, (list, bytearray)):
        value[:] = content
        return
    value.clear()
    if isinstance(value, dict):
        for key, part in content:
            value[key] = part
    elif isinstance(value, collections.deque):
        value.extend(content)
    else:
        value.update(content)
