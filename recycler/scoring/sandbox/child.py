"""What runs inside the two boxes of a verdict (see sandbox.py): given to `python -c` as text, after
that of values.py, with the side as its argument.

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

try:
    from recycler.scoring.sandbox.values import Broken, Values
except ImportError:  # in a box, where nothing of recycler is: its text stands above
    pass

MOST_BYTES = 256 * 1024**2  # of one message
MOST_PRINTED = 1024**2  # characters that one answer brings along


class Wire:
    """Messages of JSON with their length before them, over two descriptors."""

    def __init__(self, inward, outward):
        self.inward, self.outward = inward, outward

    def send(self, message):
        body = json.dumps(message).encode()
        body = memoryview(struct.pack(">I", len(body)) + body)
        while body:
            body = body[os.write(self.outward, body) :]

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


class Peer(Values):
    """One side of the conversation: asks the other to do something with a thing of its own, and
    meanwhile does what it asks.
    """

    def __init__(self, wire, shares_all, news=dict):
        """`news`: what each answer brings along beside values."""
        super().__init__(shares_all)
        self.wire, self.news, self.count, self.heard = (
            wire,
            news,
            itertools.count(),
            lambda news: None,
        )

    def send(self, message):
        """With what changed, last: what is encoded may be shared for the first time.

        The tests' side says what nobody needs any more.
        """
        contents, forgot = self.contents(), [] if self.shares_all else self.unseen()
        self.wire.send(message | {"contents": contents, "forgot": forgot})
        self.forget(forgot)

    def receive(self):
        message = self.wire.receive()
        self.take(message["contents"])
        self.forget(message["forgot"] if self.shares_all else ())
        return message

    def ask(self, doing, of, args=(), named=None):
        """What the other side answers; its exception where it raised one."""
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
            error = self.decode_error(said["raised"]) if "raised" in said else None
            value = self.decode(said.get("value"))
        except Exception as found:
            raise Broken("an answer of no kind") from found
        if error is not None:
            raise error
        return value

    def answer(self, asked):
        """Do one thing and tell what came of it."""
        try:
            args, named = (
                [self.decode(value) for value in asked["args"]],
                {name: self.decode(value) for name, value in asked["named"].items()},
            )
            told = {
                "value": self.encode(self.do(asked["do"], self.things[asked["of"]], args, named))
            }
        except Broken:
            raise
        except BaseException as error:
            told = {"raised": self.encode_error(error)}
        self.send(told | {"number": asked["number"], "news": self.news()})

    def serve(self):
        """Do what is asked until the other side ends."""
        while True:
            self.answer(self.receive())


# ---------------------------------------------------------------- the program's side


def program_side():
    """Run the program that the tests' side sends, tell what it has of the names asked for, then
    answer until the pipe closes.
    """
    wire = Wire(os.dup(0), os.dup(1))
    asked = wire.receive()
    _close_up(asked["limits"])
    wire.send("here")  # from here on, what happens is the program's doing
    names, process = (
        {"__builtins__": builtins},
        os.getpid(),
        # as exec(program, {}) has it: lm-eval's code_eval does not run `if __name__ == "__main__"`
        # either
    )
    printed = sys.stdout = io.TextIOWrapper(
        io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    told = dict.fromkeys(asked["names"], names)

    def news():
        """What was printed, and names that mean something else by now."""
        text, changed = (
            printed.buffer.getvalue(),
            [name for name in asked["names"] if names.get(name, names) is not told[name]],
        )
        printed.buffer.seek(0)
        printed.buffer.truncate()
        told.update({name: names.get(name, names) for name in changed})
        return {
            "printed": text[:MOST_PRINTED].decode("utf-8", "replace"),
            "names": {
                name: _origin(name, names[name]) or {"value": peer.encode(names[name])}
                for name in changed
                if name in names
            },
        }

    peer = Peer(wire, shares_all=True, news=news)
    exec(compile(asked["program"], "<program>", "exec"), names)
    if os.getpid() != process:
        os._exit(0)
    peer.send({"news": news()})
    peer.serve()


def _origin(name, value):
    """Where the tests' side can get a thing by itself: a module or something of the standard
    library, under its own name.
    """
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


def _close_up(limits):
    """No way in or out but the pipes, and no more than the limits."""
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


def tests_side():
    """Have the program run, run the tests on stand-ins for what it defines, and give the verdict:

    the nonce, or an exit code.
    """
    asked = Wire(0, 1).receive()
    verdict, wire = os.dup(1), Wire(*asked["pipes"])
    _close_up(asked["limits"])
    wire.send({"program": asked["program"], "names": asked["names"], "limits": asked["limits"]})
    if wire.receive() != "here":
        raise Broken("no program's side")
    os.write(verdict, b"\x01")  # sandbox.STARTED: both boxes stand
    peer, names = Peer(wire, shares_all=False), {"__builtins__": builtins}

    def heard(news):
        for name, told in news["names"].items():
            if name in asked["names"]:
                names.update(
                    _bound(peer, name, {"module": ""} if name in asked["modules"] else told)
                )
        sys.stdout.write(news["printed"])

    peer.heard = heard
    heard(peer.receive()["news"])
    exec(asked["given"], names)
    exec(compile(asked["tests"], "<tests>", "exec"), names)
    os.write(verdict, bytes.fromhex(asked["nonce"]))
    os._exit(0)


def _bound(peer, name, told):
    """{name: value} for one name of the program, {} where the tests' side has no such thing.

    Of the standard library it takes its own.
    """
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
