"""From a model's answers to figures: one function for each scorer, one line in the table.

Scorers see an item and an answer, nothing else, so a frozen suite scores the same on every machine.
Those that come from lm-eval return the values of lm-eval 0.4.13;
`tests/scoring/lmeval/test_parity.py` holds them to it.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Literal

from recycler.scoring.lmeval.answers import process_text
from recycler.scoring.sandbox.code import score_code
from recycler.types import Completion, Item, Loglikelihood, Objective

Values = dict[str, float]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_INVALID = "[invalid]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A way to ask and score items; exactly one of the three functions is given.

    `score_text` and `score_likelihoods` see one item; `start_texts` takes all its items at once and
    returns a function that waits for their values, so that slow checks run beside decoding.
    `weight_by_bytes` makes the mean a ratio of sums, as bits per byte is. `metrics` are the names
    of its values; an item whose names depend on its task lists them in its detail (see
    `item_metrics`).
    """

    kind: Literal["generate", "loglikelihood"]
    metrics: tuple[str, ...]
    score_text: Callable[[Item, Completion], Values] | None = None
    score_likelihoods: Callable[[Item, Sequence[Loglikelihood]], Values] | None = None
    start_texts: (
        Callable[[Sequence[Item], Sequence[Completion]], Callable[[], list[Values]]] | None
    ) = None
    weight_by_bytes: bool = False

    def start(
        self, items: Sequence[Item], completions: Sequence[Completion]
    ) -> Callable[[], list[Values]]:
        """Begin to score generated answers; the returned function waits for their values.

        Raises TypeError for a scorer of likelihoods.
        """
        if self.start_texts is not None:
            return self.start_texts(items, completions)
        if self.score_text is None:
            raise TypeError("a scorer of likelihoods was given texts")
        pairs = zip(items, completions, strict=True)
        values = [self.score_text(item, completion) for item, completion in pairs]
        return lambda: values

    def values_of(self, item: Item, likelihoods: Sequence[Loglikelihood]) -> Values:
        """Values of an item from the likelihoods of its continuations.

        Raises TypeError for a scorer of texts.
        """
        if self.score_likelihoods is None:
            raise TypeError("a scorer of texts was given likelihoods")
        return self.score_likelihoods(item, likelihoods)


def item_metrics(item: Item) -> tuple[str, ...]:
    """Names of the metrics of an item."""
    own = detail(item, "metrics")
    if own:
        return tuple(json.loads(own))
    return SCORERS[item.scorer].metrics


def items_of(objective: Objective, items: Iterable[Item]) -> list[Item]:
    """The items that an objective is a figure of, in their order."""
    return [
        item
        for item in items
        if item.suite == objective.suite
        and objective.task in (None, item.task)
        and objective.metric in item_metrics(item)
    ]


def item_weight(item: Item, metric: str) -> float:
    """Weight of an item in the mean of a metric.

    Its bytes for bits per byte, its instructions for lm-eval's inst_level_*, else 1.
    """
    if SCORERS[item.scorer].weight_by_bytes:
        return float(item.num_bytes)
    own = detail(item, "weights")
    if not own:
        return 1.0
    return float(json.loads(own).get(metric, 1.0))


def detail(item: Item, name: str) -> str:
    """One entry of `item.detail`, '' when it is not there."""
    return next((value for key, value in item.detail if key == name), "")


# ---------------------------------------------------------------- own


def exact_match(item: Item, completion: Completion) -> Values:
    """1 when the answer is the gold answer, spaces at both ends aside."""
    return {"exact_match": float(completion.text.strip() == item.gold.strip())}


def number_match(item: Item, completion: Completion) -> Values:
    """1 when the last number in the answer equals the gold number.

    They are compared as decimals: '$1,234.00' equals '1234'.
    """
    number = _last_number(completion.text)
    return {"exact_match": float(number is not None and number == _last_number(item.gold))}


def bits_per_byte(item: Item, likelihoods: Sequence[Loglikelihood]) -> Values:
    """Bits that the model needs for each UTF-8 byte of the gold answer, teacher-forced.

    That is -log2 p(gold | prompt) / bytes.
    """
    (gold,) = likelihoods
    return {"bits_per_byte": -gold.logprob / math.log(2) / item.num_bytes}


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "")).normalize()
    except InvalidOperation:
        return None


# ---------------------------------------------------------------- lm-eval's


def choice(item: Item, likelihoods: Sequence[Loglikelihood]) -> Values:
    """Multiple choice as lm-eval has it.

    `acc` takes the likeliest choice, `acc_norm` the likeliest by character of its text. The texts
    are in the item's detail `choices` (JSON); without them `acc_norm` divides by tokens. The first
    of equals wins.
    """
    right = int(item.gold)
    sums = [entry.logprob for entry in likelihoods]
    texts = detail(item, "choices")
    if texts:
        lengths = [len(text) for text in json.loads(texts)]
    else:
        lengths = [len(entry.token_logprobs) for entry in likelihoods]
    means = [total / length for total, length in zip(sums, lengths, strict=True)]
    return {
        "acc": float(sums.index(max(sums)) == right),
        "acc_norm": float(means.index(max(means)) == right),
    }


def lm_eval_match(item: Item, completion: Completion) -> Values:
    """lm-eval's exact_match after each of the task's filters.

    The filters are regex, remove_whitespace and take_first.
    """
    settings = _settings(detail(item, "match"))
    gold = _normal(item.gold, settings["exact_match"])
    values: Values = {}
    for name, steps in settings["filters"].items():
        answer = _normal(lm_eval_filter(steps, completion.text), settings["exact_match"])
        values[name] = float(answer == gold)
    return values


def lm_eval_filter(steps: Sequence[dict[str, Any]], text: str) -> str:
    """One answer through one filter of a task, as lm_eval/filters/extraction.py does it."""
    for step in steps:
        if step["function"] == "remove_whitespace":
            text = text.strip()
        elif step["function"] == "regex":
            text = _extract(step, text)
    return text


def _extract(step: dict[str, Any], text: str) -> str:
    fallback = step.get("fallback", _INVALID)
    found = _compiled(step.get("regex_pattern", r"#### (\-?[0-9\.\,]+)")).findall(text)
    if not found:
        return fallback
    match = found[step.get("group_select", 0)]
    if isinstance(match, tuple):
        match = next((part for part in match if part), fallback)
    return match.strip()


def _normal(text: str, settings: dict[str, Any]) -> str:
    for pattern in settings.get("regexes_to_ignore") or ():
        text = _compiled(pattern).sub("", text)
    if settings.get("ignore_case"):
        text = text.lower()
    if settings.get("ignore_punctuation"):
        text = text.translate(_PUNCTUATION)
    if settings.get("ignore_numbers"):
        text = text.translate(_DIGITS)
    return text


def lm_eval_any(item: Item, completion: Completion) -> Values:
    """Any other generating task of lm-eval, scored by lm-eval's own filters and process_results."""
    return process_text(detail(item, "task"), json.loads(detail(item, "doc")), completion.text)


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DIGITS = str.maketrans("", "", string.digits)
_compiled = lru_cache(maxsize=256)(re.compile)
_settings = lru_cache(maxsize=256)(json.loads)

SCORERS: dict[str, Scorer] = {
    "exact_match": Scorer(kind="generate", metrics=("exact_match",), score_text=exact_match),
    "number_match": Scorer(kind="generate", metrics=("exact_match",), score_text=number_match),
    "bits_per_byte": Scorer(
        kind="loglikelihood",
        metrics=("bits_per_byte",),
        score_likelihoods=bits_per_byte,
        weight_by_bytes=True,
    ),
    "choice": Scorer(kind="loglikelihood", metrics=("acc", "acc_norm"), score_likelihoods=choice),
    "humaneval": Scorer(kind="generate", metrics=("pass@1",), start_texts=score_code),
    "mbpp": Scorer(kind="generate", metrics=("pass@1",), start_texts=score_code),
    "lm_eval_match": Scorer(kind="generate", metrics=(), score_text=lm_eval_match),
    "lm_eval": Scorer(kind="generate", metrics=(), score_text=lm_eval_any),
}
