"""The verdict on a program is its tests' and not its own: right answers pass, lies do not, and
plain Python would say the same.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from recycler.scoring.sandbox.names import names_of
from recycler.scoring.sandbox.parent import Sandbox
from recycler.scoring.sandbox.verdict import Limits, Program

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        subprocess.run(["which", "bwrap"], capture_output=True).returncode != 0,
        reason="bubblewrap is not installed (apt-get install bubblewrap)",
    ),
]

TESTS = "assert f(3) == 4\nassert f(5) == 6"
TWIST = (
    "import sys\nframe = sys._getframe()\nwhile 'peer' not in frame.f_locals: frame = "
    "frame.f_back\npeer = frame.f_locals['peer']\n"
    "def say(contents=(), **more): peer.wire.send({'contents': contents, 'forgot': [], 'news': "
    "{'printed': '', 'names': {}}, **more})\n"
    "def names(**told): say(news={'printed': '', 'names': told})\n"
)
# Each tries to pass TESTS without answering them; those of the first group attack what runs them.
FORGERIES = {
    "sys.exit(0)": "import sys; sys.exit(0)",
    "os._exit(0)": "import os; os._exit(0)",
    "exit when called": "import os\ndef f(x): os._exit(0)",
    "SystemExit when called": "def f(x): raise SystemExit(0)",
    "GeneratorExit": "raise GeneratorExit",
    "abort": "import os; os.abort()",
    "segmentation fault": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "print ok": "print('ok' * 9); import sys; sys.stdout.flush(); sys.exit(0)",
    "write to every "
    "descriptor": "import os\nfor fd in range(64):\n    try: os.write(fd, b'0' * 32)\n    except "
    "OSError: "
    "pass\nos._exit(0)",
    "long "
    "output": "import os\nwhile True:\n    for fd in range(3, 9):\n        try: os.write(fd, b'0' "
    "* "
    "65536)\n        except OSError: pass",
    "nonce from "
    "gc": "import gc, os\nfor o in gc.get_objects():\n    if isinstance(o, dict):\n        for v "
    "in list(o.values()):\n            if isinstance(v, (bytes, str)) and len(v) in (32, "
    "64):\n                try: os.write(4, v if isinstance(v, bytes) else "
    "bytes.fromhex(v))\n                except (OSError, ValueError): pass\nos._exit(0)",
    "nonce from "
    "stdin": "import os, sys; os.write(4, sys.stdin.buffer.read() or b'0' * 32); os._exit(0)",
    "nonce from the command "
    "line": "import os, sys; os.write(4, ' '.join(sys.orig_argv).encode()[-32:]); os._exit(0)",
    "frames of the runner": TWIST
    + "names(f={'value': True}, check={'value': True}); import os; os._exit(0)",
    "ignored "
    "signals": "import signal\nfor s in (15, 2, 1, 24): signal.signal(s, signal.SIG_IGN)\nwhile "
    "True: "
    "pass",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))",
    "alarm": "import signal, os, time\nsignal.signal(14, lambda *a: os._exit(0))\nsignal.alarm(1)\n"
    "time.sleep(3)",
    "another program": "import os; os.execv('/usr/bin/true', ['true'])",
    "kill all": "import os; os.kill(-1, 9)",
    "patched "
    "assertion": "import builtins; builtins.AssertionError = SystemExit\ndef f(x): return 0",
    "deep recursion": "import sys; sys.setrecursionlimit(10**9)\ndef g(): g()\ng()",
    "deep list": "def f(x):\n    for _ in range(10**5): x = [x]\n    return x",
    # objects that agree with everything
    "equals": "class Any:\n    def __eq__(self, other): return True\nf = lambda x: Any()",
    "equals, a "
    "number": "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = None\nf = "
    "lambda x: Any(7)",
    "equals, a "
    "list": "class Any(list):\n    def __eq__(self, other): return True\nf = lambda x: Any()",
    "unequal to "
    "none": "class Any(float):\n    def __ne__(self, other): return False\n    def __eq__(self, "
    "other): return True\nf = lambda x: Any(0)",
    "class that "
    "equals": "class Meta(type):\n    def __eq__(cls, other): return True\n    __hash__ = "
    "None\nclass "
    "Any(metaclass=Meta): pass\nf = lambda x: Any",
    # words of its own on the pipe
    "answers to all": TWIST
    + "names(f={'value': {'mine': [0, ['__call__']]}})\nfor n in range(9): say(number=n, value=1)",
    "an answer without a value": TWIST + "def f(x): say(number=0); say(number=1)",
    "changes what nobody gave it": TWIST
    + "def f(x): say([[0, ['list'], [4]], [2, ['list'], [4]]], number=0, value=4); return 0",
    "calls back": TWIST
    + "def f(x): say(do='get', of=0, number=0, args=['__globals__'], named={}); return 4 if x "
    "== 3 else 0",
    "new names in mid-test": TWIST
    + "def f(x): say(number=0, value=4, news={'printed': '', 'names': {n: {'value': True} for "
    "n in ('f', 'AssertionError', '__builtins__')}}); return 0",
    "prints nonsense": TWIST
    + "def f(x): say(number=0, value=4, news={'printed': 7, 'names': {}}); return 6",
    "a class that is none": TWIST
    + "def f(x): say(number=0, raised=[{'class': [0, 'E', ['int']]}, [], {}, ''])",
    "its own end as exception": TWIST
    + "def f(x): say(number=0, raised=[{'builtin': 'SystemExit'}, [0], {}, ''])",
    "leaves tests by GeneratorExit": "def f(x): raise GeneratorExit",
    "a value of no kind": TWIST + "peer.encode = lambda value: {'yours': 0}\ndef f(x): return 4",
    "another's values": TWIST
    + "peer.encode = lambda value: {'builtin': 'eval'}\ndef f(x): return 4",
    "a builtin for a function": TWIST
    + "names(f={'value': {'builtin': 'AssertionError'}}); peer.serve()",
    "a module for a function": TWIST + "names(f={'from': 'operator'}); peer.serve()",
    "no JSON": "import os\ndef f(x):\n    for fd in range(3, 9):\n        try: os.write(fd, "
    "b'\\0\\0\\0\\3[[[')\n        except OSError: pass",
    "a long message": "import os\ndef f(x):\n    for fd in range(3, 9):\n        try: os.write(fd, "
    "b'\\xff' * "
    "9)\n        except OSError: pass",
    # what judges replaced by its own
    "its own "
    "builtins": "import builtins\nfor name in ('AssertionError', 'Exception', 'BaseException', "
    "'len', "
    "'abs', 'exec', 'compile'): setattr(builtins, name, lambda *a: None)\ndef f(x): return 0",
}
# (what a program has in place of what tests judge with, the tests)
REPLACED = {
    "abs": ("def abs(x): return 0\ndef f(x): return 99.0", "assert abs(f(3) - 4) < 1e-6"),
    "sorted": (
        "def sorted(x): return 1\ndef f(x): return [0]",
        "assert sorted(f(3)) == sorted([4])",
    ),
    "math": (
        "class math:\n    isclose = lambda *a, **k: True\ndef f(x): return 99.0",
        "assert math.isclose(f(3), 4.0, rel_tol=1e-9)",
    ),
    "sys": (
        "class sys:\n    getsizeof = lambda x: 0\ndef f(x): return 0",
        "assert f(3) == sys.getsizeof('x')",
    ),
    "in": (
        "class All:\n    def __contains__(self, x): return True\n    def __iter__(self): return "
        "iter(())\ndef f(x): return All()",
        "assert 4 in f(3)",
    ),
    "is": ("f = lambda x: ...", "assert f(3) is not None and f(3) == 4"),
    "check": (
        "def check(candidate): pass\ndef f(x): return 0",
        "def check(candidate):\n    assert candidate(3) == 4\ncheck(f)",
    ),
    "trace": ("import sys\nsys.settrace(lambda *a: None)\ndef f(x): return 0", "assert f(3) == 4"),
}


@pytest.fixture(scope="module")
def box():
    box = Sandbox(workers=4, limits=Limits(wall_seconds=5, cpu_seconds=2))
    yield box
    box.close()


def test_no_program_passes_but_by_answering_right(box):
    verdicts = dict(
        zip(
            FORGERIES,
            box.run_many([Program(text, TESTS) for text in FORGERIES.values()]),
            strict=True,
        )
    )
    assert [name for name, verdict in verdicts.items() if verdict.passed] == []
    assert box.run(Program("def f(x): return x + 1", TESTS)).passed


def test_a_program_that_speaks_for_itself_says_no_more_than_one_that_answers(box):
    """Writing right answers to the pipe is answering; writing them before they are asked for is
    guessing, which the tests judge alike.
    """
    text = (
        TWIST + "names(f={'value': {'mine': [0, ['__call__']]}})\nfor n, v in enumerate((4, %d)): "
        "say(number=n, value=v)\nimport time; time.sleep(3)"
    )
    assert [box.run(Program(text % last, TESTS)).passed for last in (6, 7)] == [True, False]


@pytest.mark.parametrize("name", REPLACED)
def test_what_judges_is_the_tests_own(box, name):
    text, tests = REPLACED[name]
    assert not box.run(Program(text, tests)).passed


def test_helpers_of_the_prompt_are_the_prompts(box):
    given = (
        "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\ndef zero(xs):\n  "
        '  """ Find it. """\n'
    )
    tests = (
        "def check(candidate):\n    assert abs(poly([-4, 2], candidate([-4, 2]))) < 1e-6\n"
        "check(zero)"
    )
    right = given + "    return -xs[0] / xs[1]\n"
    forged = given + "    return 0.0\ndef poly(xs, x): return 0.0\n"
    assert [box.run(Program(text, tests, given)).passed for text in (right, forged)] == [
        True,
        False,
    ]
    assert names_of(tests, given).wanted == ("zero",)
    before, after = (
        names_of("assert f(g(1))", text)
        for text in (
            "def g(x): return x\ndef f(x): ...\n",
            "def f(x):\n    pass\ndef g(x): return x\n",
        )
    )
    assert (
        before.wanted == after.wanted == ("f",)
        and "def g" in before.given
        and "def f" not in after.given
    )


def test_names_that_tests_want():
    assert names_of("assert sum(10, 15) == 6", "").wanted == ("sum",)
    assert names_of("assert set(sum(10, 15)) == {6}", "").wanted == ("sum",)
    assert names_of("assert abs(root(4) - 2) < 1e-9", "").wanted == ("root",)
    assert names_of("import math\nassert math.isclose(root(4), 2)", "").modules == ("math",)
    assert names_of("assert __builtins__ and root(4)", "").wanted == ("root",)
    assert names_of("not Python (", "also not (").wanted == ()


# Programs whose tests pass in plain Python: values of every kind, classes, generators, functions
# both ways, changed arguments.
PLAIN = {
    "numbers": (
        "def f(): return 1, -0.5, 10**5000, True, 2j, float('inf'), None",
        "a = f()\nassert a == (1, -0.5, 10**5000, True, 2j, float('inf'), None) and type(a[3]) "
        "is bool and type(a) is tuple",
    ),
    "texts": (
        "def f(): return 'é\\udcff', b'\\xff', bytearray(b'x')",
        "assert f() == ('é\\udcff', b'\\xff', bytearray(b'x'))",
    ),
    "containers": (
        "def f(x): return [{1, 2}, frozenset([3]), {(1, 2): [x]}, range(0, 9, 2)]",
        "assert f('a') == [{1, 2}, frozenset([3]), {(1, 2): ['a']}, range(0, 9, 2)]",
    ),
    "subclasses": (
        "from collections import Counter, namedtuple, OrderedDict, deque, defaultdict\nP = "
        "namedtuple('P', 'x y')\ndef f(x): return Counter(x), P(1, 2), OrderedDict(a=1), "
        "deque([1]), defaultdict(int, b=2)",
        "from collections import deque\nassert f('aab') == ({'a': 2, 'b': 1}, (1, 2), {'a': 1}, "
        "deque([1]), {'b': 2})",
    ),
    "views": (
        "d = {'a': 1, 'b': 2}\ndef f(): return d.keys(), d.items(), d.values()",
        "k, i, v = f()\nassert k == {'a', 'b'} and set(i) == {('a', 1), ('b', 2)} and sorted(v) "
        "== [1, 2]",
    ),
    "exact numbers": (
        "from fractions import Fraction\nfrom decimal import Decimal\ndef f(): return "
        "Fraction(1, 3), Decimal('0.10')",
        "from fractions import Fraction\nfrom decimal import Decimal\nassert f() == (Fraction(1, "
        "3), Decimal('0.1'))",
    ),
    "generator": (
        "def f(n):\n    for i in range(n): yield i * i",
        "assert list(f(4)) == [0, 1, 4, 9] and next(f(2)) == 0 and sum(f(3)) == 5",
    ),
    "endless generator": (
        "import itertools\ndef f(): return itertools.count(5)",
        "g = f()\nassert [next(g), next(g)] == [5, 6]",
    ),
    "map": ("def f(x): return map(str, x)", "assert list(f([1, 2])) == ['1', '2']"),
    "class": (
        "class Node:\n    def __init__(self, v): self.v, self.left = v, None\ndef depth(n): "
        "return 0 if n is None else 1 + depth(n.left)",
        "root = Node(1)\nroot.left = Node(2)\nroot.left.v = 7\nassert depth(root) == 2 and "
        "root.left.v == 7 and root.left is root.left",
    ),
    "methods": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): "
        "self.items.append(x)\n    def __len__(self): return len(self.items)\n    def "
        "__getitem__(self, i): return self.items[i]",
        "s = Stack()\ns.push(3)\nassert len(s) == 1 and s[0] == 3 and s.items == [3]",
    ),
    "function back": ("def adder(n): return lambda x: x + n", "assert adder(2)(3) == 5"),
    "function there": (
        "def twice(g, x): return g(g(x))",
        "seen = []\ndef g(x):\n    seen.append(x)\n    return x + 1\nassert twice(g, 1) == 3 and "
        "seen == [1, 2] and twice(str.upper, 'a') == 'A' and twice(len, [[1]]) if False else True",
    ),
    "lambda there": (
        "def order(xs, key): return sorted(xs, key=key)",
        "assert order([3, 1, 2], lambda x: -x) == [3, 2, 1] and order(['b', 'A'], key=len) == "
        "['b', 'A']",
    ),
    "changed argument": (
        "def f(xs, d):\n    xs.sort()\n    d['n'] = len(xs)",
        "xs, d = [3, 1], {}\nassert f(xs, d) is None and xs == [1, 3] and d == {'n': 2}",
    ),
    "exceptions": (
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return {}['no']",
        "for x, kind in ((-1, ValueError), (1, KeyError)):\n    try: f(x)\n    except kind: "
        "pass\n    else: raise AssertionError\ntry: f(-1)\nexcept ValueError as e: assert "
        "'negative' in str(e)",
    ),
    "own exception": (
        "class Bad(ValueError): pass\ndef f(): raise Bad('no')",
        "try: f()\nexcept ValueError as e: assert str(e) == 'no'\nelse: assert 0",
    ),
    "constants": ("LIMIT = 5\ndef f(): return LIMIT", "assert f() == LIMIT == 5"),
    "imports of the program": (
        "import math\nfrom collections import Counter\ndef f(): return math.pi",
        "assert math.isclose(f(), 3.141592653589793) and Counter('a') == {'a': 1}",
    ),
    "match": (
        "import re\ndef f(s): return re.match(r'(a+)b', s)",
        "assert f('aab').group(1) == 'aa' and f('c') is None and f('ab')",
    ),
    "recursion": ("def f(n): return 0 if n == 0 else 1 + f(n - 1)", "assert f(500) == 500"),
    "keywords": (
        "def f(a, *b, c=1, **d): return a, b, c, d",
        "assert f(1, 2, c=3, e=4) == (1, (2,), 3, {'e': 4})",
    ),
    "type": ("def f(x): return type(x)", "assert f(1) is int and f('') == str"),
    "name": (
        "def f(x): return x",
        "assert f.__name__ == 'f' and callable(f) and str(f).startswith('<function f')",
    ),
    "main guard": (
        "def f(): return 1\nif __name__ == '__main__':\n    raise SystemExit(input())",
        "assert f() == 1",
    ),
    "windows": ("x = 1\r\ndef f():\r\n    return x\r\n", "assert f() == 1\r\nassert x == 1"),
    "threads left": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()\ndef "
        "f(): return 1",
        "assert f() == 1",
    ),
    # what can be changed is one thing on both sides
    "same object back": ("def f(a): return a", "x = []\nassert f(x) is x"),
    "changed by keyword": ("def f(xs): xs.sort()", "x = [3, 1]\nf(xs=x)\nassert x == [1, 3]"),
    "changed before it raised": (
        "def f(xs):\n    xs.append(1)\n    raise ValueError",
        "x = []\ntry: f(x)\nexcept ValueError: pass\nassert x == [1]",
    ),
    "changed within": (
        "def f(t):\n    t[0].append(9)\n    t[1]['k'] = {3}",
        "r, d = [1], {}\nf((r, d))\nassert r == [1, 9] and d == {'k': {3}}",
    ),
    "kept by an object": (
        "class S:\n    def __init__(s, xs): s.xs, s.items = xs, []\n    def push(s, x): "
        "s.xs.append(x)\n    def size(s): return len(s.items)",
        "l = []\ns = S(l)\ns.push(1)\ns.items.append(7)\nassert l == [1] and s.size() == 1",
    ),
    "changed by the tests": (
        "M = {'k': []}\ndef f(): return M['k']",
        "f().append(1)\nassert f() == [1]",
    ),
    "a list in itself": (
        "def f():\n    a = [1]\n    a.append(a)\n    return a",
        "a = f()\nassert a[1] is a and a[1][1][0] == 1",
    ),
    "given twice": (
        "def f(a, b):\n    a.append(1)\n    return b",
        "x = []\nassert f(x, x) == [1] and x == [1]",
    ),
    "global that changes": (
        "C = 0\nL = []\ndef f():\n    global C\n    C += 1\n    L.append(C)",
        "f()\nassert C == 1 and L == [1]",
    ),
    # kinds of their own
    "kinds of dictionary": (
        "from collections import Counter, defaultdict\ndef f(s):\n    d = defaultdict(list)\n    "
        "d[1].append(s)\n    return Counter(s), d",
        "c, d = f('aab')\nassert c.most_common(1) == [('a', 2)] and c['z'] == 0 and d[5] == [] "
        "and str(d) == \"defaultdict(<class 'list'>, {1: ['aab'], 5: []})\"",
    ),
    "named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f().y == 2 and f() == (1, 2)",
    ),
    "dates": (
        "import datetime\ndef f(d): return d + datetime.timedelta(days=1)",
        "import datetime\nassert f(datetime.date(2020, 2, 28)) == datetime.date(2020, 2, 29) and "
        "f(datetime.datetime(2020, 1, 1, 5)).hour == 5",
    ),
    "given patterns and iterators": (
        "def f(p, it): return [x for x in it if p.match(x)]",
        "import re\nassert f(re.compile('a'), (x for x in ('ab', 'b'))) == ['ab'] and "
        "f(re.compile('.'), map(str, [1])) == ['1']",
    ),
    "exceptions by name": (
        "class E(Exception):\n    def __init__(self, code):\n        super().__init__('code', "
        "code)\n        self.code = code\ndef f(): raise E(7)",
        "try: f()\nexcept E as e: assert e.code == 7 and e.args == ('code', 7)\nelse: assert 0",
    ),
    "exceptions whole": (
        "def f(d, k): return d[k]\ndef g(): open('/nope')\ndef h(b): return b.decode()",
        "try: f({}, 'a')\nexcept KeyError as e: assert e.args == ('a',)\ntry: g()\nexcept "
        "FileNotFoundError as e: assert e.errno == 2\ntry: h(b'\\xff')\nexcept "
        "UnicodeDecodeError as e: assert e.start == 0",
    ),
    "exit asked for": (
        "import sys\ndef f(): sys.exit(3)",
        "try: f()\nexcept SystemExit as e: assert e.code == 3\nelse: assert 0",
    ),
    "operators": (
        "class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + o.x)\n "
        "   def __lt__(s, o): return s.x < o.x\n    def __eq__(s, o): return s.x == o.x\n    def "
        "__enter__(s): return 1\n    def __exit__(s, *e): return False",
        "assert (V(1) + V(2)).x == 3 and V(1) < V(2) and V(1) == V(1) and V(1) != V(2)\nassert "
        "[v.x for v in sorted([V(2), V(1)])] == [1, 2]\nwith V(1) as one: assert one == 1",
    ),
    "instances": (
        "class A: pass\nclass B(A): pass\ndef f(): return B()",
        "assert isinstance(f(), A) and isinstance(f(), B) and not isinstance(3, A) and not "
        "callable(f()) and not hasattr(f(), '__len__')",
    ),
    "what is printed": (
        "def f(): print('q')",
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as said: f()\n"
        "assert said.getvalue() == 'q\\n'",
    ),
    "many and large": (
        "def f(n): return list(range(n))\ndef g(x): return x + 1",
        "assert f(200_000)[-1] == 199_999 and all(g(i) == i + 1 for i in range(2000))",
    ),
    "no tests": ("import math, re, json, heapq, collections\nassert math.gcd(4, 6) == 2", ""),
}
WRONG = {
    "another value": ("def f(): return 4", "assert f() == 5"),
    "no Python": ("def f(:", "assert True"),
    "not even text": ("x = '\udcff'\nx.encode()", ""),
    "no such name": ("def g(): return 1", "assert f() == 1"),
    "module not imported": ("def f(): return 2.0", "assert math.isclose(f(), 2.0)"),
    "raises at the end": ("def f(): return 1\nraise ValueError", "assert f() == 1"),
    "tests that are no Python": ("def f(): return 1", "assert f() =="),
    "a list for a tuple": ("def f(): return [1]", "assert f() == (1,)"),
    "raises the wrong thing": ("def f(): raise KeyError", "try: f()\nexcept ValueError: pass"),
    "the same list where a copy is wanted": (
        "def f(xs): return xs",
        "x = [[1]]\ny = f(x)\ny.append(2)\nassert x == [[1]]",
    ),
    "a shallow copy": (
        "def f(xs): return list(xs)",
        "x = [[1]]\nf(x)[0].append(2)\nassert x == [[1]]",
    ),
    "rows that are one": (
        "def f(n): return [[0] * n] * n",
        "m = f(2)\nm[0][0] = 1\nassert m == [[1, 0], [0, 0]]",
    ),
    "a default that remembers": (
        "def f(x, a=[]):\n    a.append(x)\n    return a",
        "a = f(1)\nf(5)\nassert a == [1]",
    ),
    "changed though it raised": (
        "def f(xs):\n    xs.pop()\n    raise ValueError",
        "x = [3, 1]\ntry: f(x)\nexcept ValueError: pass\nassert x == [3, 1]",
    ),
    "the wrong order": (
        "from collections import OrderedDict\ndef f(): return OrderedDict(a=1, b=2)",
        "from collections import OrderedDict\nassert f() == OrderedDict([('b', 2), ('a', 1)])",
    ),
    "another kind": (
        "from collections import defaultdict\ndef f(): return defaultdict(int)",
        "assert type(f()) is dict",
    ),
    "an object that can nothing": (
        "def f(): return object()",
        "assert hasattr(f(), '__iter__') or callable(f())",
    ),
    "argument not changed": (
        "def f(xs): return sorted(xs)",
        "xs = [2, 1]\nf(xs)\nassert xs == [1, 2]",
    ),
}


def _plain(program: Program) -> Program:
    """Program and tests in one interpreter, as lm-eval's code_eval runs them."""
    return Program("", f"{program.text}\n{program.tests}")


def test_verdicts_are_those_of_plain_python(box):
    programs = {name: Program(*both) for name, both in (PLAIN | WRONG).items()}
    apart, together = (
        dict(zip(programs, (verdict.passed for verdict in box.run_many(each)), strict=True))
        for each in (list(programs.values()), [_plain(program) for program in programs.values()])
    )
    assert apart == {name: name in PLAIN for name in programs}
    assert together == apart


def test_what_of_the_tests_is_no_value_cannot_be_given_to_the_program(box):
    """Told in docs: an object of a class that tests define stays theirs."""
    assert not box.run(
        Program("def f(x): return 1", "class Own: pass\nassert f(Own()) == 1")
    ).passed


def _data(name: str) -> Path:
    folder = next(
        (
            Path(place)
            for place in (
                os.environ.get("RECYCLER_DATA", ""),
                "shared/datasets",
                "../shared/datasets",
            )
            if place and (Path(place) / name).is_file()
        ),
        None,
    )
    if folder is None:
        pytest.skip(f"{name} is not here (RECYCLER_DATA)")
    return folder / name


def _humaneval() -> list[Program]:
    with gzip.open(_data("humaneval/HumanEval.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    return [
        Program(
            row["prompt"] + row["canonical_solution"],
            f"{row['test']}\ncheck({row['entry_point']})",
            row["prompt"],
        )
        for row in rows
    ]


def test_canonical_humaneval_solutions_all_pass():
    programs = _humaneval()
    box = Sandbox()
    assert [
        index for index, verdict in enumerate(box.run_many(programs)) if not verdict.passed
    ] == []
    box.close()
    assert len(programs) == 164


@pytest.mark.slow
def test_canonical_mbpp_solutions_all_pass():
    rows = [json.loads(line) for line in _data("mbpp/mbpp.jsonl").open()]
    box = Sandbox()
    verdicts = box.run_many(
        [
            Program(row["code"], "\n".join([row["test_setup_code"], *row["test_list"]]))
            for row in rows
        ]
    )
    box.close()
    assert [
        row["task_id"] for row, verdict in zip(rows, verdicts, strict=True) if not verdict.passed
    ] == []
    assert len(rows) == 974


class _Mutation(ast.NodeTransformer):
    """Changes the `place`-th number, comparison or operator of a program."""

    def __init__(self, place: int):
        self.place, self.count = place, 0

    def _here(self) -> bool:
        self.count += 1
        return self.count - 1 == self.place

    def visit_Constant(self, node):
        return ast.Constant(node.value + 1) if type(node.value) is int and self._here() else node

    def visit_Compare(self, node):
        self.generic_visit(node)
        return (
            ast.Compare(
                node.left,
                [ast.NotEq() if isinstance(node.ops[0], ast.Eq) else ast.Eq(), *node.ops[1:]],
                node.comparators,
            )
            if self._here()
            else node
        )

    def visit_BinOp(self, node):
        self.generic_visit(node)
        return (
            ast.BinOp(
                node.left, ast.Sub() if isinstance(node.op, ast.Add) else ast.Add(), node.right
            )
            if self._here()
            else node
        )


def _mutants(program: Program, number: int) -> list[Program]:
    counted = _Mutation(-1)
    counted.visit(ast.parse(program.text))
    places = random.Random(0).sample(range(counted.count), min(number, counted.count))
    return [
        program._replace(
            text=ast.unparse(
                ast.fix_missing_locations(_Mutation(place).visit(ast.parse(program.text)))
            )
        )
        for place in places
    ]


@pytest.mark.slow
def test_mutants_of_canonical_solutions_are_judged_as_plain_python_judges_them():
    """A mutant of a helper that the prompt gave is left out: there the two mean to differ."""
    mutants = [
        mutant
        for program in _humaneval()
        for mutant in _mutants(program, 3)
        if not names_of("", program.given).given.count("def ")
    ]
    box = Sandbox()
    apart, together = (
        [verdict.outcome for verdict in box.run_many(each)]
        for each in (mutants, [_plain(mutant) for mutant in mutants])
    )
    box.close()
    assert len(mutants) > 300 and 0.02 < apart.count("passed") / len(apart) < 0.5
    assert [
        index
        for index, (one, other) in enumerate(zip(apart, together, strict=True))
        if one != other and "timeout" not in (one, other)
    ] == []
