"""The two sides of a verdict (see verdict.py), each alone in a box of its own.

Given to `python -c` as text, after those of stand_ins.py, shared.py and values.py, with the side as
its argument. So all four need the standard library only, and have no `from __future__` import:
`compile` would hand it on to the program.

The *program* side runs what a model wrote and answers calls. The *tests* side runs the tests, where
each name that the program defines is a stand-in whose calls go through a pipe, and only values come
back. So whatever a program does to its own interpreter, its tests compare what it answered with
what they know, in an interpreter that it cannot reach.
"""

import builtins
import io
import itertools
import json
import os
import resource
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is slow to import, and a verdict starts two boxes
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

if __name__ != "__main__":  # in a box its text stands above
    from recycler.scoring.sandbox.values import Broken, Values

MAX_MESSAGE_BYTES = 256 * 1024**2
MAX_PRINTED = 1024**2  # characters that one answer brings along


class Wire:
    """Messages of JSON with their length before them, over two descriptors."""

    def __init__(self, inward: int, outward: int) -> None:
        self.inward, self.outward = inward, outward

    def send(self, message: object) -> None:
        body = json.dumps(message).encode()
        left = memoryview(struct.pack(">I", len(body)) + body)
        while left:
            left = left[os.write(self.outward, left) :]

    def receive(self) -> "Any":
        """The next message, a dictionary or a text. Raises Broken for anything else."""
        (size,) = struct.unpack(">I", self._read(4))
        if size > MAX_MESSAGE_BYTES:
            raise Broken("a message too long")
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise Broken("no JSON") from error
        if not isinstance(message, (dict, str)):
            raise Broken("no message")
        return message

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = os.read(self.inward, min(size, 1 << 16))
            if not part:
                raise Broken("the other side has ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Peer(Values):
    """One side of the conversation.

    It asks the other to do something with a thing of its own, and meanwhile does what that asks.
    `news`: what each answer brings along beside values. `heard`: is given the other side's news.
    """

    def __init__(
        self, wire: Wire, shares_all: bool, news: "Callable[[], dict[str, Any]]" = dict
    ) -> None:
        super().__init__(shares_all)
        self.wire, self.news, self.count = wire, news, itertools.count()
        self.heard: Callable[[dict[str, Any]], None] = lambda news: None

    def send(self, message: "dict[str, Any]") -> None:
        """Send a message with what changed, which is read off last: encoding may share more.

        The tests' side says what nobody needs any more.
        """
        contents = self.contents()
        forgot: list[int] = []
        if not self.shares_all:
            forgot = self.unseen()
        self.wire.send(message | {"contents": contents, "forgot": forgot})
        self.forget(forgot)

    def receive(self) -> "dict[str, Any]":
        message = self.wire.receive()
        self.take(message["contents"])
        if self.shares_all:
            self.forget(message["forgot"])
        return message

    def ask(
        self,
        doing: str,
        of: int,
        args: "Sequence[Any]" = (),
        named: "Mapping[str, Any] | None" = None,
    ) -> "Any":
        """The other side's answer. Raises its exception where it raised one."""
        number = next(self.count)
        self.send(
            {
                "do": doing,
                "of": of,
                "number": number,
                "args": [self.encode(value) for value in args],
                "named": {name: self.encode(value) for name, value in (named or {}).items()},
            }
        )
        try:
            while "do" in (said := self.receive()):
                self.answer(said)
            if said["number"] != number:
                raise Broken("an answer to something else")
            self.heard(said.get("news") or {})
            error: BaseException | None = None
            if "raised" in said:
                error = self.decode_error(said["raised"])
            value = self.decode(said.get("value"))
        except Exception as found:
            raise Broken("an answer of no kind") from found
        if error is not None:
            raise error
        return value

    def answer(self, asked: "dict[str, Any]") -> None:
        """Do one thing and send the value or the exception that came of it."""
        try:
            args = [self.decode(value) for value in asked["args"]]
            named = {name: self.decode(value) for name, value in asked["named"].items()}
            value = self.do(asked["do"], self.things[asked["of"]], args, named)
            outcome = {"value": self.encode(value)}
        except Broken:
            raise
        except BaseException as error:
            outcome = {"raised": self.encode_error(error)}
        self.send(outcome | {"number": asked["number"], "news": self.news()})

    def serve(self) -> "NoReturn":
        """Do what is asked until the other side ends."""
        while True:
            self.answer(self.receive())


# ---------------------------------------------------------------- the program's side


def program_side() -> "NoReturn":
    """Run the program that the tests' side sends, then answer until the pipe closes.

    The first message says which of the names asked for the program has.
    """
    wire = Wire(os.dup(0), os.dup(1))
    asked = wire.receive()
    _close_up(asked["limits"])
    wire.send("here")  # from here on, what happens is the program's doing
    # no __name__, as exec(program, {}) has it: lm-eval's code_eval does not run what stands under
    # `if __name__ == "__main__"` either
    names: dict[str, Any] = {"__builtins__": builtins}
    process = os.getpid()
    printed = sys.stdout = io.TextIOWrapper(
        io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    told = dict.fromkeys(asked["names"], names)  # `names` itself stands for nothing

    def news() -> "dict[str, Any]":
        """Printed text, and names that mean something else by now."""
        text = printed.buffer.getvalue()
        changed = [name for name in asked["names"] if names.get(name, names) is not told[name]]
        printed.buffer.seek(0)
        printed.buffer.truncate()
        told.update({name: names.get(name, names) for name in changed})
        meanings = {
            name: _origin(name, names[name]) or {"value": peer.encode(names[name])}
            for name in changed
            if name in names
        }
        return {"printed": text[:MAX_PRINTED].decode("utf-8", "replace"), "names": meanings}

    peer = Peer(wire, shares_all=True, news=news)
    exec(compile(asked["program"], "<program>", "exec"), names)
    if os.getpid() != process:
        os._exit(0)
    peer.send({"news": news()})
    peer.serve()


def _origin(name: str, value: "Any") -> "dict[str, Any] | None":
    """The module from which the tests' side can get a thing by itself, under its own name."""
    if isinstance(value, type(os)):
        return {"module": name}
    place = getattr(value, "__module__", None)
    if (
        isinstance(place, str)
        and place != "builtins"
        and place in sys.modules
        and getattr(sys.modules[place], name, None) is value
    ):
        return {"from": place}
    return None


def _close_up(limits: "Mapping[str, int]") -> None:
    """Leave no way in or out but the pipes, and no more than the limits."""
    sys.set_int_max_str_digits(0)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    for name, size in (
        ("CPU", limits["cpu_seconds"]),
        ("AS", limits["memory_bytes"]),
        ("FSIZE", limits["file_bytes"]),
        ("NOFILE", limits["open_files"]),
        ("NPROC", limits["processes"]),
        ("CORE", 0),
    ):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (size, size))


# ---------------------------------------------------------------- the tests' side


def tests_side() -> "NoReturn":
    """Have the program run, and run the tests on stand-ins for what it defines.

    The verdict is the nonce where they pass, else an exit code.
    """
    asked = Wire(0, 1).receive()
    verdict, wire = os.dup(1), Wire(*asked["pipes"])
    _close_up(asked["limits"])
    wire.send({"program": asked["program"], "names": asked["names"], "limits": asked["limits"]})
    if wire.receive() != "here":
        raise Broken("no program's side")
    os.write(verdict, b"\x01")  # verdict.STARTED: both boxes stand
    peer = Peer(wire, shares_all=False)
    names: dict[str, Any] = {"__builtins__": builtins}

    def heard(news: "dict[str, Any]") -> None:
        for name, told in news["names"].items():
            if name not in asked["names"]:
                continue
            if name in asked["modules"]:
                told = {"module": ""}
            names.update(_bound(peer, name, told))
        sys.stdout.write(news["printed"])

    peer.heard = heard
    heard(peer.receive()["news"])
    exec(asked["given"], names)
    exec(compile(asked["tests"], "<tests>", "exec"), names)
    os.write(verdict, bytes.fromhex(asked["nonce"]))
    os._exit(0)


def _bound(peer: Peer, name: str, told: "dict[str, Any]") -> "dict[str, Any]":
    """{name: value} for one name of the program, {} where the tests' side has no such thing.

    Of the standard library it takes its own.
    """
    ((kind, content),) = told.items()
    if kind == "value":
        return {name: peer.decode(content)}
    if kind == "module":
        content = name
    if content.partition(".")[0] not in sys.stdlib_module_names:
        return {}
    __import__(content)
    if kind == "module":
        return {name: sys.modules[content]}
    return {name: getattr(sys.modules[content], name)}


if __name__ == "__main__":
    try:
        {"program": program_side, "tests": tests_side}[sys.argv[1]]()
    except BaseException:
        os._exit(1)
