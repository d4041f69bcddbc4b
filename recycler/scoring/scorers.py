"""From what a model said to figures: one function a scorer, one line in the table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from recycler.types import Completion, Item, Loglikelihood

Values = dict[str, float]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """How items of one kind are asked and scored. `weight_by_bytes` makes the mean a ratio of sums, as bits per byte is."""

    kind: str
    metrics: tuple[str, ...]
    score_text: Callable[[Item, Completion], Values] | None = None
    score_likelihoods: Callable[[Item, Sequence[Loglikelihood]], Values] | None = None
    weight_by_bytes: bool = False


def exact_match(item: Item, completion: Completion) -> Values:
    """1 when the answer is the gold answer, spaces at both ends aside."""
    return {"exact_match": float(completion.text.strip() == item.gold.strip())}


def number_match(item: Item, completion: Completion) -> Values:
    """1 when the last number in the answer equals the gold number; '$1,234.00' equals '1234' (compared as decimals)."""
    return {"exact_match": float(_last_number(completion.text) is not None and _last_number(completion.text) == _last_number(item.gold))}


def bits_per_byte(item: Item, likelihoods: Sequence[Loglikelihood]) -> Values:
    """Bits that the model needs for each UTF-8 byte of the gold answer, teacher-forced: -log2 p(gold | prompt) / bytes."""
    (gold,) = likelihoods
    return {"bits_per_byte": -gold.logprob / math.log(2) / item.num_bytes}


def choice(item: Item, likelihoods: Sequence[Loglikelihood]) -> Values:
    """Multiple choice as lm-eval has it: `acc` takes the likeliest continuation, `acc_norm` the likeliest by token."""
    right = int(item.gold)
    sums = [entry.logprob for entry in likelihoods]
    means = [entry.logprob / len(entry.token_logprobs) for entry in likelihoods]
    return {"acc": float(sums.index(max(sums)) == right), "acc_norm": float(means.index(max(means)) == right)}


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")).normalize() if found else None
    except InvalidOperation:
        return None


SCORERS: dict[str, Scorer] = {
    "exact_match": Scorer(kind="generate", metrics=("exact_match",), score_text=exact_match),
    "number_match": Scorer(kind="generate", metrics=("exact_match",), score_text=number_match),
    "bits_per_byte": Scorer(kind="loglikelihood", metrics=("bits_per_byte",), score_likelihoods=bits_per_byte, weight_by_bytes=True),
    "choice": Scorer(kind="loglikelihood", metrics=("acc", "acc_norm"), score_likelihoods=choice),
}
