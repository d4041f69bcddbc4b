"""Stand-ins for things that live in the other box, which is asked for all that is done to them.

The first of the texts that run alone inside a box (see child.py).

A stand-in equals no value, only other stand-ins: comparing answers with what they should be is for
the tests, in an interpreter that a program cannot reach.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is slow to import, and a verdict starts two boxes
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    class Asks(Protocol):
        """A side that can ask the other one."""

        def ask(
            self, doing: str, of: int, args: Sequence[Any] = (), named: dict[str, Any] | None = None
        ) -> Any: ...


COMPARED = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
FORWARDED = (
    "__iter__",
    "__next__",
    "__len__",
    "__getitem__",
    "__setitem__",
    "__delitem__",
    "__enter__",
    "__int__",
    "__float__",
    "__index__",
    "__neg__",
    "__abs__",
    "__add__",
    "__radd__",
    "__sub__",
    "__rsub__",
    "__mul__",
    "__rmul__",
    "__truediv__",
    "__floordiv__",
    "__mod__",
    "__pow__",
    "__and__",
    "__or__",
    "__xor__",
    "__matmul__",
    "__call__",
    "__exit__",
)
# how the thing's own side does what a stand-in asks for; all else is done by `operator`
DOINGS: "dict[str, Callable[..., Any]]" = {
    "call": lambda thing, *args, **named: thing(*args, **named),
    "get": getattr,
    "set": setattr,
    "str": str,
    "repr": repr,
    "bool": bool,
    "isinstance": lambda thing, one: isinstance(one, thing),
    "exit": lambda thing: thing.__exit__(None, None, None),
    "__iter__": iter,
    "__next__": next,
    "__len__": len,
    "__int__": int,
    "__float__": float,
    "__enter__": lambda thing: thing.__enter__(),
    "__radd__": lambda thing, other: other + thing,
    "__rsub__": lambda thing, other: other - thing,
    "__rmul__": lambda thing, other: other * thing,
}


class StandIn:
    """A thing that lives on the other side; subclasses have the operators that it has there."""

    __slots__ = ("peer", "of")

    def __init__(self, peer: "Asks", of: int) -> None:
        object.__setattr__(self, "peer", peer)
        object.__setattr__(self, "of", of)

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: "Any") -> None:
        _ask(self, "set", name, value)

    def __bool__(self) -> bool:
        return _ask(self, "bool") is True

    def __str__(self) -> str:
        return str(_ask(self, "str"))

    def __repr__(self) -> str:
        return str(_ask(self, "repr"))

    def __instancecheck__(self, one: object) -> bool:
        return isinstance(one, StandIn) and _ask(self, "isinstance", one) is True

    def __reduce_ex__(self, protocol: object) -> "Any":
        raise TypeError("what lives in the program cannot be copied")


def abilities_of(thing: object) -> list[str]:
    """Names of the operators that a thing has, as far as a stand-in can have them."""
    defined = [vars(base) for base in type(thing).__mro__]
    return [name for name in (*COMPARED, *FORWARDED) if any(name in own for own in defined)]


def make_stand_in(peer: "Asks", of: int, abilities: "Sequence[str]") -> StandIn:
    """A stand-in for thing number `of` of the other side, with those operators."""
    methods: dict[str, object] = {"__slots__": ()}
    for name in abilities:
        if name in COMPARED or name in FORWARDED:
            methods[name] = _forwarding(name)
    methods["__hash__"] = object.__hash__
    return type("StandIn", (StandIn,), methods)(peer, of)


def _ask(stand_in: StandIn, doing: str, *args: "Any", **named: "Any") -> "Any":
    peer = object.__getattribute__(stand_in, "peer")
    return peer.ask(doing, object.__getattribute__(stand_in, "of"), args, named)


def _forwarding(name: str) -> "Callable[..., Any]":
    """The method of that name of a stand-in: the other side is asked to do it.

    It is asked to compare only with another stand-in.
    """
    if name in COMPARED:

        def compared(self: StandIn, other: object) -> bool:
            if self is other:
                return name in ("__eq__", "__le__", "__ge__")
            if not isinstance(other, StandIn):
                return NotImplemented
            return _ask(self, name, other) is True

        return compared
    if name == "__exit__":
        return lambda self, *error: _ask(self, "exit") is True and False
    if name == "__call__":
        return lambda self, *args, **named: _ask(self, "call", *args, **named)
    return lambda self, *args: _ask(self, name, *args)
