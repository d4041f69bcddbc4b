"""The demo's three skills: sums in English, the same sums in Spanish, and small string programs.

Standard library only.

Every problem has one right answer. A problem is for training, searching or holding out by the hash
of what it asks, so the splits are disjoint by construction, and a sum and its translation are
always on the same side (one cluster).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "search", "holdout"]

ENGLISH_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SPANISH_ONES = (
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince "
    "dieciseis diecisiete dieciocho diecinueve veinte "
    "veintiuno veintidos veintitres veinticuatro veinticinco veintiseis veintisiete veintiocho "
    "veintinueve"
).split()
SPANISH_TENS = "treinta cuarenta cincuenta sesenta setenta ochenta noventa".split()
LETTERS = "abcdefghij"
PROGRAMS: dict[str, Callable[[str], str]] = {
    "rev": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "rot": lambda text: text[1:] + text[0],
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt, its one right answer, and the cluster of problems that ask the same thing."""

    prompt: str
    answer: str
    cluster: str

    @property
    def split(self) -> Split:
        """The split by hash: 70, 10 and 20 percent of the clusters, whatever the seed."""
        bucket = hashlib.sha256(self.cluster.encode()).digest()[0]
        if bucket < 179:
            return "train"
        if bucket < 205:
            return "search"
        return "holdout"


def english_number(number: int) -> str:
    """A number from 0 to 99 in words."""
    if number < 20:
        return ENGLISH_ONES[number]
    tens, ones = divmod(number, 10)
    return ENGLISH_TENS[tens - 2] + (f" {ENGLISH_ONES[ones]}" if ones else "")


def spanish_number(number: int) -> str:
    """A number from 0 to 99 in words, without accents."""
    if number < 30:
        return SPANISH_ONES[number]
    tens, ones = divmod(number, 10)
    return SPANISH_TENS[tens - 3] + (f" y {SPANISH_ONES[ones]}" if ones else "")


def english(rng: random.Random) -> Problem:
    """Draw a sum in English: 'forty two plus 13 =' -> '55'."""
    first, second = rng.randint(0, 99), rng.randint(0, 99)
    return Problem(
        f"{english_number(first)} plus {second} =", str(first + second), f"{first}+{second}"
    )


def spanish(rng: random.Random) -> Problem:
    """Draw a sum in Spanish: 'cuarenta y dos mas 13 =' -> '55'."""
    first, second = rng.randint(0, 99), rng.randint(0, 99)
    return Problem(
        f"{spanish_number(first)} mas {second} =", str(first + second), f"{first}+{second}"
    )


def code(rng: random.Random) -> Problem:
    """Draw a string program: 'rev(badc) =' -> 'cdab'."""
    name = rng.choice(sorted(PROGRAMS))
    text = "".join(rng.choices(LETTERS, k=rng.randint(5, 8)))
    return Problem(f"{name}({text}) =", PROGRAMS[name](text), f"{name}({text})")


SKILLS: dict[str, Callable[[random.Random], Problem]] = {
    "english": english,
    "spanish": spanish,
    "code": code,
}


def make_items(skill: str, split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems of one skill and split, in an order that depends on the seed alone.

    The two languages draw alike, so with the same arguments they ask the same sums. The count must
    be well below what there is: a split of the sums has 7000, 1000 and 2000 problems.
    """
    rng = random.Random(f"{split} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = SKILLS[skill](rng)
        if problem.split == split:
            found.setdefault(problem.cluster, problem)
    return list(found.values())
