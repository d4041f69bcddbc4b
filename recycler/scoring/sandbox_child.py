"""What runs inside the two boxes of a verdict (see sandbox.py): given to `python -c` as text, with the side as its argument.

The *program* side runs what a model wrote and answers calls. The *tests* side runs the tests, where each name that the program defines
is a stand-in whose calls go through a pipe. Only plain values come back, built anew here from JSON: numbers, strings, containers of
such. What is none of these stays on its own side and is spoken of by number; it equals nothing but itself. So whatever a program
does to its own interpreter, its tests compare what it answered with what they know, in an interpreter that it cannot reach.
"""

import builtins
import collections
import itertools
import json
import operator
import os
import resource
import struct
import sys

MOST_BYTES = 32 * 1024**2  # of one message
CHANGEABLE = (list, dict, set, bytearray, collections.deque)
DOINGS = {"call": lambda thing, *args, **named: thing(*args, **named), "get": getattr, "set": setattr, "iter": iter, "next": next, "len": len,
          "item": operator.getitem, "put": operator.setitem, "bool": bool, "str": str, "repr": repr}
_PLAIN = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}  # tag: what a list of values becomes
_TEXTS = {"bytes": bytes, "bytearray": bytearray}
_VIEWS = {"keys": {}.keys().__class__, "values": {}.values().__class__, "items": {}.items().__class__}


class Broken(BaseException):
    """The other side has ended, or speaks nonsense; tests that catch exceptions do not catch this one."""


class Wire:
    """Messages of JSON with their length before them, over two descriptors."""

    def __init__(self, inward, outward):
        self.inward, self.outward = inward, outward

    def send(self, message):
        body = json.dumps(message).encode()
        body = memoryview(struct.pack(">I", len(body)) + body)
        while body:
            body = body[os.write(self.outward, body):]

    def receive(self):
        (size,) = struct.unpack(">I", self._read(4))
        if size > MOST_BYTES:
            raise Broken("a message too long")
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise Broken("no JSON") from error
        if not isinstance(message, (dict, str)):
            raise Broken("no message")
        return message

    def _read(self, size):
        parts = []
        while size:
            part = os.read(self.inward, min(size, 1 << 16))
            if not part:
                raise Broken("the other side has ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Peer:
    """One side of the conversation: asks the other to do something with a thing of its own, and meanwhile does what it asks.

    `shares_all`: the program shows any object by number and does anything with it. The tests show functions alone, and call them.
    """

    def __init__(self, wire, shares_all):
        self.wire, self.shares_all = wire, shares_all
        self.things, self.numbers, self.stand_ins, self.count = [], {}, {}, itertools.count()

    def ask(self, doing, of, args=(), named=None):
        """What the other side answers; its exception where it raised one. Lists and the like that it changed are changed here."""
        number = next(self.count)
        self.wire.send({"do": doing, "of": of, "number": number, "args": [self.encode(value) for value in args], "named": {name: self.encode(value) for name, value in (named or {}).items()}})
        while "do" in (said := self.wire.receive()):
            self.answer(said)
        try:
            if said["number"] != number:
                raise Broken("an answer to something else")
            error = _exception(*said["raised"]) if "raised" in said else None
            for place, content in said.get("changed", ()):
                _replace(args[place], self.decode(content))
            value = self.decode(said.get("value"))
        except Exception as found:
            raise Broken("an answer of no kind") from found
        if error is not None:
            raise error
        return value

    def answer(self, asked):
        """Do one thing and tell what came of it."""
        try:
            if not self.shares_all and asked["do"] != "call":
                raise TypeError("tests are called, not looked at")
            args = [self.decode(value) for value in asked["args"]]
            named = {name: self.decode(value) for name, value in asked["named"].items()}
            value = DOINGS[asked["do"]](self.things[asked["of"]], *args, **named)
            told = {"value": self.encode(value)}
            if self.shares_all:
                told["changed"] = [[place, after] for place, arg in enumerate(args) if isinstance(arg, CHANGEABLE) and (after := self.encode(arg)) != asked["args"][place]]
        except Broken:
            raise
        except BaseException as error:
            kind = next(base for base in type(error).__mro__ if getattr(builtins, base.__name__, None) is base)
            told = {"raised": [kind.__name__, str(error)[:1000]]}
        self.wire.send(told | {"number": asked["number"]})

    def serve(self):
        """Do what is asked until the other side ends."""
        while True:
            self.answer(self.wire.receive())

    def encode(self, value):
        """A plain value as JSON; anything else by number. Subclasses of plain types go as what they are made of."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, list):
            return [self.encode(part) for part in value]
        for tag, kind in (*_PLAIN.items(), *_VIEWS.items()):
            if isinstance(value, kind):
                return {tag: [self.encode(part) for part in value]}
        if isinstance(value, dict):
            return {"dict": [[self.encode(key), self.encode(part)] for key, part in value.items()]}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes" if isinstance(value, bytes) else "bytearray": value.decode("latin-1")}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, range):
            return {"range": [value.start, value.stop, value.step]}
        if _is_a("fractions", "Fraction", value):
            return {"fraction": [value.numerator, value.denominator]}
        if _is_a("decimal", "Decimal", value):
            return {"decimal": str(value)}
        if isinstance(value, StandIn):
            return {"yours": object.__getattribute__(value, "of")}
        name = getattr(value, "__name__", None) if callable(value) else None
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return {"builtin": name}
        return {"mine": self.number(value)}

    def number(self, thing):
        """The number by which the other side speaks of a thing, which is kept from now on."""
        if not self.shares_all and not callable(thing):
            raise TypeError(f"a {type(thing).__name__} of the tests cannot be given to the program")
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.things)
            self.things.append(thing)
        return self.numbers[id(thing)]

    def decode(self, said):
        """The value that was encoded, of the plain type itself. Raises Broken for what nobody encodes."""
        if isinstance(said, list):
            return [self.decode(part) for part in said]
        if not isinstance(said, dict):
            return said
        ((tag, content),) = said.items()
        if tag in _PLAIN:
            return _PLAIN[tag](self.decode(content))
        if tag == "dict":
            return {self.decode(key): self.decode(part) for key, part in content}
        if tag == "keys":
            return dict.fromkeys(self.decode(content)).keys()
        if tag == "values":
            return dict(enumerate(self.decode(content))).values()
        if tag == "items":
            return dict(self.decode(content)).items()
        if tag in _TEXTS:
            return _TEXTS[tag](content.encode("latin-1"))
        if tag in ("complex", "range"):
            return getattr(builtins, tag)(*map(float if tag == "complex" else operator.index, content))
        if tag == "fraction":
            return __import__("fractions").Fraction(*map(operator.index, content))
        if tag == "decimal":
            return __import__("decimal").Decimal(content)
        if tag == "builtin" and (self.shares_all or isinstance(getattr(builtins, content), type)):
            return getattr(builtins, content)
        if tag == "yours" and (self.shares_all or callable(self.things[content])):
            return self.things[content]
        if tag == "mine" and isinstance(content, int):
            return self.stand_ins.setdefault(content, StandIn(self, content))
        raise Broken("a value of no kind")


class StandIn:
    """Something that lives on the other side. Equal to nothing but itself: comparing is what the tests do, with values."""

    __slots__ = ("peer", "of")

    def __init__(self, peer, of):
        object.__setattr__(self, "peer", peer)
        object.__setattr__(self, "of", of)

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return _ask(self, "get", name)

    def __call__(self, *args, **named):
        return object.__getattribute__(self, "peer").ask("call", object.__getattribute__(self, "of"), args, named)

    def __setattr__(self, name, value):
        _ask(self, "set", name, value)

    def __getitem__(self, key):
        return _ask(self, "item", key)

    def __setitem__(self, key, value):
        _ask(self, "put", key, value)

    def __iter__(self):
        return _ask(self, "iter")

    def __next__(self):
        return _ask(self, "next")

    def __len__(self):
        return operator.index(_ask(self, "len"))

    def __bool__(self):
        return _ask(self, "bool") is True

    def __str__(self):
        return str(_ask(self, "str"))

    def __repr__(self):
        return str(_ask(self, "repr"))

    def __reduce_ex__(self, protocol):
        raise TypeError("what lives in the program cannot be copied")


def _ask(stand_in, doing, *args):
    return object.__getattribute__(stand_in, "peer").ask(doing, object.__getattribute__(stand_in, "of"), args)


def _is_a(module, name, value):
    """Whether a value is one of a type of a module that is seldom there, and dear to import."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _exception(name, text):
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise Broken("an exception of no kind")
    if not issubclass(kind, Exception):
        return Broken(f"it answered by {name}")
    try:
        return kind(text)
    except TypeError:  # those that want more than a text
        return Exception(text)


def _replace(value, content):
    if isinstance(value, (list, bytearray)):
        value[:] = content
    elif isinstance(value, CHANGEABLE):
        value.clear()
        (value.extend if isinstance(value, collections.deque) else value.update)(content)


# ---------------------------------------------------------------- the program's side

def program_side():
    """Run the program that the tests' side sends, tell what it has of the names asked for, then answer until the pipe closes."""
    wire = Wire(os.dup(0), os.dup(1))
    asked = wire.receive()
    _close_up(asked["limits"])
    wire.send("here")  # from here on, what happens is the program's doing
    peer, process = Peer(wire, shares_all=True), os.getpid()
    names = {"__builtins__": builtins}  # as exec(program, {}) has it: lm-eval's code_eval does not run `if __name__ == "__main__"` either
    exec(compile(asked["program"], "<program>", "exec"), names)
    if os.getpid() != process:
        os._exit(0)
    wire.send({name: _origin(name, names[name]) or {"value": peer.encode(names[name])} for name in asked["names"] if name in names})
    peer.serve()


def _origin(name, value):
    """Where the tests' side can get a thing by itself: a module or something of the standard library, under its own name."""
    if isinstance(value, type(os)):
        return {"module": name}
    place = getattr(value, "__module__", None)
    if isinstance(place, str) and place != "builtins" and place in sys.modules and getattr(sys.modules[place], name, None) is value:
        return {"from": place}
    return None


def _close_up(limits):
    """No way in or out but the pipes, and no more than the limits."""
    sys.set_int_max_str_digits(0)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    for name, size in (("CPU", limits["cpu_seconds"]), ("AS", limits["memory_bytes"]), ("FSIZE", limits["file_bytes"]),
                       ("NOFILE", limits["open_files"]), ("NPROC", limits["processes"]), ("CORE", 0)):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (size, size))


# ---------------------------------------------------------------- the tests' side

def tests_side():
    """Have the program run, run the tests on stand-ins for what it defines, and give the verdict: the nonce, or an exit code."""
    asked = Wire(0, 1).receive()
    verdict, wire = os.dup(1), Wire(*asked["pipes"])
    _close_up(asked["limits"])
    wire.send({"program": asked["program"], "names": asked["names"], "limits": asked["limits"]})
    if wire.receive() != "here":
        raise Broken("no program's side")
    os.write(verdict, b"\x01")  # sandbox.STARTED: both boxes stand
    peer, names = Peer(wire, shares_all=False), {"__builtins__": builtins}
    for name, told in wire.receive().items():
        if name in asked["names"]:
            names.update(_bound(peer, name, {"module": ""} if name in asked["modules"] else told))
    exec(asked["given"], names)
    exec(compile(asked["tests"], "<tests>", "exec"), names)
    os.write(verdict, bytes.fromhex(asked["nonce"]))
    os._exit(0)


def _bound(peer, name, told):
    """{name: value} for one name of the program, {} where the tests' side has no such thing. Of the standard library it takes its own."""
    ((kind, content),) = told.items()
    if kind == "value":
        return {name: peer.decode(content)}
    place = name if kind == "module" else content
    if place.partition(".")[0] not in sys.stdlib_module_names:
        return {}
    __import__(place)
    return {name: sys.modules[place] if kind == "module" else getattr(sys.modules[place], name)}


if __name__ == "__main__":
    try:
        {"program": program_side, "tests": tests_side}[sys.argv[1]]()
    except BaseException:
        os._exit(1)
