"""Match the patterns of an adapter's configuration within a time limit.

A stranger wrote them. PEFT's rule: a regular expression on the whole module name, or on its end
after a dot. Python's own engine cannot be stopped and may backtrack for years on fifty characters;
`regex` reads the same language and takes a time limit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import regex

MAX_PATTERNS, MAX_CHARACTERS = 20_000, 1000
SECONDS = 5.0  # of CPU for all names; a real adapter's take milliseconds
# counts are unrolled: nested ones could fill the memory, and recursion and code of other dialects
# are not in Python's language
_TOO_MUCH = re.compile(r"\)\{|\{[\d,]*\d{4}|\(\?[^:=!<Pims-]|\(\?P[^<=]")


def compile_patterns(patterns: Mapping[str, Any]) -> Callable[[str], Any]:
    """A function of a module name: the value of the first pattern that matches it, or None.

    It raises ValueError after SECONDS. Raises ValueError that names the pattern for one that is no
    regular expression, or too long or too deep to be a module's name.
    """
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"holds {len(patterns):,} patterns; {MAX_PATTERNS:,} is the limit")
    compiled = [(_compiled(pattern), value) for pattern, value in patterns.items()]
    left = SECONDS

    def value_of(module: str) -> Any:
        nonlocal left
        for pattern, value in compiled:
            start = time.process_time()
            try:
                if pattern.match(module, timeout=max(left, 0.001)):
                    return value
            except TimeoutError:
                left = 0.0
            left -= time.process_time() - start
            if left <= 0:
                raise ValueError(
                    f"pattern {pattern.pattern[len(_PREFIX) + 1 : -2][:80]!r} takes too long to "
                    "match"
                )
        return None

    return value_of


_PREFIX = r"(.*\.)?"


def _compiled(pattern: str) -> regex.Pattern[str]:
    """The pattern as PEFT matches it. Raises ValueError."""
    if len(pattern) > MAX_CHARACTERS or _TOO_MUCH.search(pattern):
        raise ValueError(
            f"pattern {pattern[:80]!r} is longer than {MAX_CHARACTERS} characters, or repeats or "
            "recurses more than a module's name needs"
        )
    try:
        re.compile(pattern)
        return regex.compile(f"{_PREFIX}({pattern})$")
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern {pattern[:80]!r} is no regular expression ({error})") from None
