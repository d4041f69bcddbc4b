"""How two boxes speak of values (see child.py, before whose text this one stands there):

built anew where they can be, by number else.

Plain values are copied. What can be changed (lists, dictionaries, sets ...) is shared: both sides
have it under one number, and each message carries what its sender changed of all that is shared, so
that it is the same thing on both sides, as in one interpreter. Anything else stays where it is and
the other side has a stand-in, whose calls and operators come back here. A stand-in equals no value,
only other stand-ins: comparing answers with what they should be is for the tests, in an interpreter
that a program cannot reach.
"""

import builtins
import collections
import itertools
import operator
import sys

CHANGEABLE = {
    "list": list,
    "dict": dict,
    "set": set,
    "bytearray": bytearray,
    "deque": collections.deque,
    "OrderedDict": collections.OrderedDict,
    "defaultdict": collections.defaultdict,
    "Counter": collections.Counter,
}
_VIEWS = {"keys": type({}.keys()), "values": type({}.values()), "items": type({}.items())}
_PARTS = {
    ("datetime", "date"): ("year", "month", "day"),
    ("datetime", "timedelta"): ("days", "seconds", "microseconds"),
    ("datetime", "time"): ("hour", "minute", "second", "microsecond"),
    ("datetime", "datetime"): ("year", "month", "day", "hour", "minute", "second", "microsecond"),
    ("fractions", "Fraction"): ("numerator", "denominator"),
    ("uuid", "UUID"): ("hex",),
}
_MADE = {
    *_PARTS,
    ("decimal", "Decimal"),
    ("array", "array"),
    ("re", "compile"),
}  # what is made anew by calling these
_SINGLE = {"Ellipsis": ..., "NotImplemented": NotImplemented, "NoneType": type(None)}
_DOINGS = {
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
}  # all others are operator's
_COMPARED = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_FORWARDED = (
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


class Broken(BaseException):
    """The other side has ended, or speaks nonsense; tests that catch exceptions do not catch this
    one.
    """


class Values:
    """Values as JSON and back, for one side.

    `shares_all`: the program shows any object by number, the tests functions and iterators alone.
    """

    def __init__(self, shares_all):
        self.shares_all = shares_all
        self.things, self.numbers, self.stand_ins, self.classes = [], {}, {}, {}
        self.shared, self.keys, self.seen, self.counted = {}, {}, {}, itertools.count(shares_all, 2)

    # ---- what can be changed

    def contents(self):
        """[[number, kind, parts]] of what this side changed, or shares for the first time, since
        the last message.
        """
        found, looked = [], set()
        while new := [
            key for key in self.shared if key not in looked
        ]:  # its parts may be shared for the first time as well
            for key in new:
                looked.add(key)
                value = self.shared[key]
                if not _unchanged(self.seen.get(key), now := _snapshot(value)):
                    self.seen[key] = now
                    found.append([key, self._kind(value), self._parts(value)])
        return found

    def take(self, contents):
        """Make what is shared what the other side says it is now."""
        for key, (kind, *more), _ in contents:
            if key not in self.shared:
                self._share(CHANGEABLE[kind](*[self.decode(part) for part in more]), key)
        for key, _, parts in contents:
            _fill(
                self.shared[key],
                parts.encode("latin-1")
                if isinstance(parts, str)
                else [self.decode(part) for part in parts],
            )
            self.seen[key] = _snapshot(self.shared[key])

    def unseen(self):
        """Numbers of what nobody on this side can see any more, which need not be shared any
        longer.
        """
        return [key for key, holders in _holders(self.shared) if holders <= _ALONE]

    def forget(self, keys):
        for key in keys:
            self.keys.pop(id(self.shared.pop(key, None)), None)
            self.seen.pop(key, None)

    def _share(self, value, key=None):
        key = (
            next(number for number in self.counted if number not in self.shared)
            if key is None
            else key
        )
        self.shared[key], self.keys[id(value)] = value, key
        return key

    def _kind(self, value):
        kind = next(name for name, kind in reversed(CHANGEABLE.items()) if isinstance(value, kind))
        return (
            [kind, self.encode(value.default_factory)]
            if kind == "defaultdict" and isinstance(value.default_factory, (type, type(None)))
            else [kind]
        )

    def _parts(self, value):
        if isinstance(value, bytearray):
            return value.decode("latin-1")
        return [self.encode(part) for part in (value.items() if isinstance(value, dict) else value)]

    # ---- any value

    def encode(self, value):
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, tuple(CHANGEABLE.values())):
            return {
                "shared": self.keys[id(value)] if id(value) in self.keys else self._share(value)
            }
        if isinstance(value, StandIn):
            return {"yours": object.__getattribute__(value, "of")}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {
                "namedtuple": [
                    type(value).__name__,
                    list(value._fields),
                    [self.encode(part) for part in value],
                ]
            }
        for tag, kind in (("tuple", tuple), ("frozenset", frozenset), *_VIEWS.items()):
            if isinstance(value, kind):
                return {tag: [self.encode(part) for part in value]}
        if isinstance(value, bytes):
            return {"bytes": value.decode("latin-1")}
        if isinstance(value, (range, slice)):
            return {
                type(value).__name__: [
                    self.encode(part) for part in (value.start, value.stop, value.step)
                ]
            }
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        return self._made(value) or self._named(value) or {"mine": self._number(value)}

    def decode(self, said):
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
        if tag == "builtin" and (
            self.shares_all or content in _SINGLE or isinstance(getattr(builtins, content), type)
        ):
            return _SINGLE[content] if content in _SINGLE else getattr(builtins, content)
        if tag == "class":
            return self._class(*content)
        if tag == "bytes":
            return content.encode("latin-1")
        if tag == "namedtuple":
            return collections.namedtuple(content[0], content[1])(*map(self.decode, content[2]))
        parts = [self.decode(part) for part in content]
        if tag == "made" and tuple(parts[:2]) in _MADE:
            return getattr(__import__(parts[0]), parts[1])(*parts[2:])
        if tag in ("tuple", "frozenset", "range", "slice", "complex"):
            return (
                getattr(builtins, tag)(parts)
                if tag in ("tuple", "frozenset")
                else getattr(builtins, tag)(*parts)
            )
        if tag in _VIEWS:
            return {
                "keys": lambda: dict.fromkeys(parts).keys(),
                "values": lambda: dict(enumerate(parts)).values(),
                "items": lambda: dict(parts).items(),
            }[tag]()
        raise Broken("a value of no kind")

    def _made(self, value):
        """Values of types of the standard library that are dear to import, by what they are made
        of.
        """
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

    def _named(self, value):
        """Builtins by their names; exception classes with what they derive from, so that tests can
        catch them.
        """
        name = next(
            (name for name, one in _SINGLE.items() if one is value),
            getattr(value, "__name__", None) if callable(value) else None,
        )
        if isinstance(name, str) and (
            name in _SINGLE
            or getattr(builtins, name, None) is value
            and (isinstance(value, type) or not self.shares_all)
        ):
            return {"builtin": name}
        if self.shares_all and isinstance(value, type) and issubclass(value, BaseException):
            return {
                "class": [
                    self._number(value)[0],
                    value.__name__,
                    [
                        self.encode(base)
                        for base in value.__bases__
                        if issubclass(base, BaseException)
                    ],
                ]
            }
        return None

    def _class(self, number, name, bases):
        """An exception class of the program, for the tests to catch: its name and what it derives
        from.
        """
        if number not in self.classes:
            self.classes[number] = type(
                name,
                tuple(map(self.decode, bases)),
                {"__str__": lambda self: self.__dict__.get("_said", "")},
            )
        return self.classes[number]

    def _number(self, thing):
        """[number, abilities] by which the other side speaks of a thing, which is kept from now on."""
        if not self.shares_all and not callable(thing) and not hasattr(type(thing), "__next__"):
            raise TypeError(f"a {type(thing).__name__} of the tests cannot be given to the program")
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.things)
            self.things.append(thing)
        return [
            self.numbers[id(thing)],
            [
                name
                for name in (*_COMPARED, *_FORWARDED)
                if any(name in vars(base) for base in type(thing).__mro__)
            ],
        ]

    def _stand_in(self, number, abilities):
        if number not in self.stand_ins:
            kind = type(
                "StandIn",
                (StandIn,),
                {
                    "__slots__": (),
                    **{
                        name: _forwarding(name)
                        for name in abilities
                        if name in _COMPARED or name in _FORWARDED
                    },
                    "__hash__": object.__hash__,
                },
            )
            self.stand_ins[number] = kind(self, number)
        return self.stand_ins[number]

    def do(self, doing, thing, args, named):
        """One thing that the other side asks for.

        The tests' functions are called and their iterators asked for more, no more than that.
        """
        if not self.shares_all and doing not in ("call", "__call__", "__next__", "__iter__"):
            raise TypeError("tests are called, not looked at")
        return (_DOINGS.get(doing) or getattr(operator, doing))(thing, *args, **named)

    # ---- exceptions

    def encode_error(self, error):
        """[class, args, attributes, text]; what is no value is left out."""
        kind = (
            type(error)
            if self.shares_all
            and type(error).__module__.partition(".")[0]
            not in sys.stdlib_module_names - {"builtins"}
            else next(
                base
                for base in type(error).__mro__
                if getattr(builtins, base.__name__, None) is base
            )
        )
        try:
            return [
                self.encode(kind),
                [self.encode(arg) for arg in error.args],
                {str(name): self.encode(value) for name, value in vars(error).items()},
                str(error)[:10000],
            ]
        except Exception:
            return [
                self.encode(
                    next(
                        base
                        for base in kind.__mro__
                        if getattr(builtins, base.__name__, None) is base
                    )
                ),
                [],
                {},
                "",
            ]

    def decode_error(self, said):
        kind, args, attributes, text = (
            self.decode(said[0]),
            [self.decode(arg) for arg in said[1]],
            said[2],
            said[3],
        )
        if not issubclass(kind, BaseException) or issubclass(kind, Broken):
            raise Broken("an exception of no kind")
        try:
            error = kind(*args)
        except TypeError:
            error = Exception(text)
        vars(error).update(
            {name: self.decode(value) for name, value in attributes.items()} | {"_said": str(text)}
        )
        return error


class StandIn:
    """Something that lives on the other side; subclasses have the operators that it has there."""

    __slots__ = ("peer", "of")

    def __init__(self, peer, of):
        object.__setattr__(self, "peer", peer)
        object.__setattr__(self, "of", of)

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return _ask(self, "get", name)

    def __setattr__(self, name, value):
        _ask(self, "set", name, value)

    def __bool__(self):
        return _ask(self, "bool") is True

    def __str__(self):
        return str(_ask(self, "str"))

    def __repr__(self):
        return str(_ask(self, "repr"))

    def __instancecheck__(self, one):
        return isinstance(one, StandIn) and _ask(self, "isinstance", one) is True

    def __reduce_ex__(self, protocol):
        raise TypeError("what lives in the program cannot be copied")


def _ask(stand_in, doing, *args, **named):
    return object.__getattribute__(stand_in, "peer").ask(
        doing, object.__getattribute__(stand_in, "of"), args, named
    )


def _forwarding(name):
    """The method of that name of a stand-in: a comparison with another stand-in alone, else
    whatever comes.
    """
    if name in _COMPARED:

        def compared(self, other):
            if self is other:
                return name in ("__eq__", "__le__", "__ge__")
            return _ask(self, name, other) is True if isinstance(other, StandIn) else NotImplemented

        return compared
    if name == "__exit__":
        return lambda self, *error: _ask(self, "exit") is True and False
    if name == "__call__":
        return lambda self, *args, **named: _ask(self, "call", *args, **named)
    return lambda self, *args: _ask(self, name, *args)


def _holders(shared):
    """(number, references to it) of each thing."""
    for key in list(shared):
        yield key, sys.getrefcount(shared[key])


_ALONE = next(count for _, count in _holders({0: []}))


def _snapshot(value):
    """What a thing holds now, cheap to compare with later."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return bytes(value) if isinstance(value, bytearray) else list(value)


def _unchanged(before, now):
    if before is None or len(before) != len(now):
        return False
    return before == now if isinstance(now, bytes) else all(map(operator.is_, before, now))


def _fill(value, content):
    if isinstance(value, (list, bytearray)):
        value[:] = content
        return
    value.clear()
    if isinstance(value, dict):
        for key, part in content:
            value[key] = part
    else:
        (value.extend if isinstance(value, collections.deque) else value.update)(content)
