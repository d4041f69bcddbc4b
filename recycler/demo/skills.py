"""The demo's three skills: sums in English, the same sums in Spanish, and small string programs.

Every problem has one right answer. A problem is for training, searching or holding out by the hash of what it asks, so
the splits are disjoint by construction, and a sum and its translation are always on the same side (one cluster).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "search", "holdout"]

ENGLISH_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SPANISH_ONES = ("cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciseis diecisiete dieciocho diecinueve veinte "
                "veintiuno veintidos veintitres veinticuatro veinticinco veintiseis veintisiete veintiocho veintinueve").split()
SPANISH_TENS = "treinta cuarenta cincuenta sesenta setenta ochenta noventa".split()
LETTERS = "abcdefgh"
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
        bucket = hashlib.sha256(self.cluster.encode()).digest()[0]
        return "train" if bucket < 180 else "search" if bucket < 205 else "holdout"  # 70, 10 and 20 percent


def english_number(number: int) -> str:
    """0 to 99 in words."""
    if number < 20:
        return ENGLISH_ONES[number]
    tens, ones = divmod(number, 10)
    return ENGLISH_TENS[tens - 2] + (f" {ENGLISH_ONES[ones]}" if ones else "")


def spanish_number(number: int) -> str:
    """0 to 99 in words, without accents."""
    if number < 30:
        return SPANISH_ONES[number]
    tens, ones = divmod(number, 10)
    return SPANISH_TENS[tens - 3] + (f" y {SPANISH_ONES[ones]}" if ones else "")


def _sum(rng: random.Random, words: Callable[[int], str], plus: str, minus: str) -> Problem:
    first, second = rng.randint(0, 99), rng.randint(0, 99)
    if rng.random() < 0.5:
        return Problem(f"{words(first)} {plus} {second} = ", str(first + second), f"{first}+{second}")
    first, second = max(first, second), min(first, second)
    return Problem(f"{words(first)} {minus} {second} = ", str(first - second), f"{first}-{second}")


def english(rng: random.Random) -> Problem:
    """'forty two plus 13 = ' -> '55'"""
    return _sum(rng, english_number, "plus", "minus")


def spanish(rng: random.Random) -> Problem:
    """'cuarenta y dos mas 13 = ' -> '55'"""
    return _sum(rng, spanish_number, "mas", "menos")


def code(rng: random.Random) -> Problem:
    """'rev(badc) = ' -> 'cdab'"""
    name = rng.choice(sorted(PROGRAMS))
    text = "".join(rng.choices(LETTERS, k=rng.randint(4, 7)))
    return Problem(f"{name}({text}) = ", PROGRAMS[name](text), f"{name}({text})")


SKILLS: dict[str, Callable[[random.Random], Problem]] = {"english": english, "spanish": spanish, "code": code}


def problems(skill: str, split: Split, seed: int) -> Iterator[Problem]:
    """Endless problems of one skill and split, in an order that depends on the seed alone; they may repeat."""
    rng = random.Random(f"{skill} {split} {seed}")
    while True:
        problem = SKILLS[skill](rng)
        if problem.split == split:
            yield problem


def distinct_problems(skill: str, split: Split, count: int, seed: int) -> list[Problem]:
    """The first `count` problems that differ. The count must be well below what the skill has."""
    found: dict[str, Problem] = {}
    for problem in problems(skill, split, seed):
        found.setdefault(problem.prompt, problem)
        if len(found) == count:
            return list(found.values())
    raise AssertionError("problems() is endless")
