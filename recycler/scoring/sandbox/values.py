"""Values between two boxes as JSON: built anew where they can be, by number else.

The third of the texts that run alone inside a box (see child.py).

Plain values are copied, and what can be changed is shared (shared.py). Anything else stays where it
is and the other side has a stand-in, whose calls and operators come back here (stand_ins.py).
"""

import builtins
import collections
import operator
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is slow to import, and a verdict starts two boxes
    from collections.abc import Sequence
    from typing import Any

if __name__ != "__main__":  # in a box their texts stand above
    from recycler.scoring.sandbox.shared import CHANGEABLE, Shared
    from recycler.scoring.sandbox.stand_ins import DOINGS, StandIn, abilities_of, make_stand_in

_VIEWS: "dict[str, type[Any]]" = {
    "keys": type({}.keys()),
    "values": type({}.values()),
    "items": type({}.items()),
}
_COPIED: "dict[str, type[Any]]" = {"tuple": tuple, "frozenset": frozenset, **_VIEWS}
# types of the standard library that are slow to import, by what they are made of
_PARTS = {
    ("datetime", "date"): ("year", "month", "day"),
    ("datetime", "timedelta"): ("days", "seconds", "microseconds"),
    ("datetime", "time"): ("hour", "minute", "second", "microsecond"),
    ("datetime", "datetime"): ("year", "month", "day", "hour", "minute", "second", "microsecond"),
    ("fractions", "Fraction"): ("numerator", "denominator"),
    ("uuid", "UUID"): ("hex",),
}
# what is made anew by calling these
_MADE = {*_PARTS, ("decimal", "Decimal"), ("array", "array"), ("re", "compile")}
_SINGLE = {"Ellipsis": ..., "NotImplemented": NotImplemented, "NoneType": type(None)}


class Broken(BaseException):
    """The other side has ended, or speaks nonsense.

    Tests that catch exceptions do not catch this one.
    """


class Values(Shared):
    """Values as JSON and back, for one side.

    `shares_all`: the program's side shows any object by number, the tests' side only functions and
    iterators.
    """

    def __init__(self, shares_all: bool) -> None:
        super().__init__(odd=shares_all)
        self.shares_all = shares_all
        self.things: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.stand_ins: dict[int, StandIn] = {}
        self.classes: dict[int, type] = {}

    def ask(
        self,
        doing: str,
        of: int,
        args: "Sequence[Any]" = (),
        named: "dict[str, Any] | None" = None,
    ) -> "Any":
        """The other side's answer; child.py says how it is asked."""
        raise NotImplementedError

    # ---- any value

    def encode(self, value: "Any") -> "Any":
        """A value as JSON: None, a bool, a number or a text as it is, else {tag: content}."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, tuple(CHANGEABLE.values())):
            return {"shared": self.number_of_shared(value)}
        if isinstance(value, StandIn):
            return {"yours": object.__getattribute__(value, "of")}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            parts = [self.encode(part) for part in value]
            return {"namedtuple": [type(value).__name__, list(value._fields), parts]}
        for tag, kind in _COPIED.items():
            if isinstance(value, kind):
                return {tag: [self.encode(part) for part in value]}
        if isinstance(value, bytes):
            return {"bytes": value.decode("latin-1")}
        if isinstance(value, (range, slice)):
            parts = [self.encode(part) for part in (value.start, value.stop, value.step)]
            return {type(value).__name__: parts}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        return self._made(value) or self._named(value) or {"mine": self._number(value)}

    def decode(self, said: "Any") -> "Any":
        """The value that was encoded. Raises Broken for what nobody encodes."""
        if not isinstance(said, dict):
            return said
        ((tag, content),) = said.items()
        if tag == "shared":
            return self.shared[content]
        if tag == "yours":
            return self.things[content]
        if tag == "mine":
            return self._stand_in(*content)
        if tag == "builtin" and content in _SINGLE:
            return _SINGLE[content]
        if tag == "builtin" and (self.shares_all or isinstance(getattr(builtins, content), type)):
            return getattr(builtins, content)
        if tag == "class":
            return self._class(*content)
        return self._copy(tag, content)

    def _copy(self, tag: str, content: "Any") -> "Any":
        """A value of the other side built anew."""
        if tag == "bytes":
            return content.encode("latin-1")
        if tag == "namedtuple":
            return collections.namedtuple(content[0], content[1])(*map(self.decode, content[2]))
        parts = [self.decode(part) for part in content]
        if tag == "made" and tuple(parts[:2]) in _MADE:
            return getattr(__import__(parts[0]), parts[1])(*parts[2:])
        if tag in ("tuple", "frozenset"):
            return _COPIED[tag](parts)
        if tag in ("range", "slice", "complex"):
            return getattr(builtins, tag)(*parts)
        if tag == "keys":
            return dict.fromkeys(parts).keys()
        if tag == "values":
            return dict(enumerate(parts)).values()
        if tag == "items":
            return dict(parts).items()
        raise Broken("a value of no kind")

    def _made(self, value: "Any") -> "dict[str, Any] | None":
        """Values of types of the standard library that are slow to import, by their parts."""
        kind = (type(value).__module__, type(value).__name__)
        if (
            kind in _PARTS
            and getattr(sys.modules.get(kind[0]), kind[1], None) is type(value)
            and getattr(value, "tzinfo", None) is None
        ):
            return {"made": [*kind, *(getattr(value, part) for part in _PARTS[kind])]}
        if kind == ("decimal", "Decimal"):
            return {"made": [*kind, str(value)]}
        if kind == ("array", "array"):
            return {"made": [*kind, value.typecode, self.encode(tuple(value))]}
        if kind == ("re", "Pattern"):
            return {"made": ["re", "compile", self.encode(value.pattern), value.flags]}
        return None

    def _named(self, value: "Any") -> "dict[str, Any] | None":
        """Builtins by their names, and exception classes, which tests may catch, by their bases."""
        name = getattr(value, "__name__", None) if callable(value) else None
        name = next((single for single, one in _SINGLE.items() if one is value), name)
        if isinstance(name, str) and (
            name in _SINGLE
            or getattr(builtins, name, None) is value
            and (isinstance(value, type) or not self.shares_all)
        ):
            return {"builtin": name}
        if self.shares_all and isinstance(value, type) and issubclass(value, BaseException):
            number, _ = self._number(value)
            bases = [base for base in value.__bases__ if issubclass(base, BaseException)]
            return {"class": [number, value.__name__, [self.encode(base) for base in bases]]}
        return None

    def _class(self, number: int, name: str, bases: "Sequence[Any]") -> type:
        """An exception class of the program, for the tests to catch: its name and its bases."""
        if number not in self.classes:
            methods = {"__str__": lambda self: self.__dict__.get("_said", "")}
            self.classes[number] = type(name, tuple(map(self.decode, bases)), methods)
        return self.classes[number]

    def _number(self, thing: "Any") -> "tuple[int, list[str]]":
        """(number, abilities) by which the other side speaks of a thing, which is kept from now on.

        Raises TypeError for what the tests do not show.
        """
        if not self.shares_all and not callable(thing) and not hasattr(type(thing), "__next__"):
            raise TypeError(f"a {type(thing).__name__} of the tests cannot be given to the program")
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.things)
            self.things.append(thing)
        return self.numbers[id(thing)], abilities_of(thing)

    def _stand_in(self, number: int, abilities: "Sequence[str]") -> StandIn:
        if number not in self.stand_ins:
            self.stand_ins[number] = make_stand_in(self, number, abilities)
        return self.stand_ins[number]

    def do(self, doing: str, thing: "Any", args: "Sequence[Any]", named: "dict[str, Any]") -> "Any":
        """Do one thing that the other side asks for.

        The tests' functions are called and their iterators asked for more, no more than that.
        """
        if not self.shares_all and doing not in ("call", "__call__", "__next__", "__iter__"):
            raise TypeError("tests are called, not looked at")
        done = DOINGS.get(doing) or getattr(operator, doing)
        return done(thing, *args, **named)

    # ---- exceptions

    def encode_error(self, error: BaseException) -> "list[Any]":
        """[class, args, attributes, text]; what is no value is left out."""
        kind = type(error)
        if not self.shares_all or _is_of_the_library(kind):
            kind = _builtin_base(kind)
        try:
            args = [self.encode(arg) for arg in error.args]
            attributes = {str(name): self.encode(value) for name, value in vars(error).items()}
            return [self.encode(kind), args, attributes, str(error)[:10000]]
        except Exception:
            return [self.encode(_builtin_base(kind)), [], {}, ""]

    def decode_error(self, said: "Any") -> BaseException:
        """The exception that was encoded. Raises Broken for what is none."""
        kind = self.decode(said[0])
        args = [self.decode(arg) for arg in said[1]]
        attributes, text = said[2], said[3]
        if not issubclass(kind, BaseException) or issubclass(kind, Broken):
            raise Broken("an exception of no kind")
        try:
            error = kind(*args)
        except TypeError:
            error = Exception(text)
        decoded = {name: self.decode(value) for name, value in attributes.items()}
        vars(error).update(decoded | {"_said": str(text)})
        return error


def _is_of_the_library(kind: type) -> bool:
    """True for a class of the standard library that is no builtin."""
    return kind.__module__.partition(".")[0] in sys.stdlib_module_names - {"builtins"}


def _builtin_base(kind: "Any") -> "Any":
    """The nearest builtin that an exception class derives from, or itself."""
    return next(base for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base)
