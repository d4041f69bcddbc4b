"""Watch answers while they are made: hand each on as it ends, and stop at degenerate output.

A broken merge costs more than any other, since it runs every answer to the token limit. It is
recognised early and strictly: the first answers of those that may grow long are looked at once,
after GATE_TOKENS tokens; only when all of them still run and repeat themselves is the merge
hopeless.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recycler.errors import Problem, RecyclerError
from recycler.types import Completion, GenerateRequest, Loglikelihood

GATE_ANSWERS = 16
# looked at after this many; answers that may not grow to twice as many are no evidence
GATE_TOKENS = 64
# a token of a broken merge whose logits are nan counts as this unlikely: scored low, never an error
LOGPROB_FLOOR = -1e4
MIN_BYTES = 60  # of a text that is judged
# compressed size over size: prose and programs of this length stay above 0.4, a loop falls below
# 0.2
MAX_COMPRESSED = 0.22
ZLIB_BYTES = 12  # zlib's own, whatever the text

_REMEDY = "Nothing to do: the sampler is told that this is as bad as the worst"


class HopelessError(RecyclerError):
    """The live weights produce nothing worth scoring; the recipe is to blame, not the system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A listener for answers as they end.

    `done(index, completion)` is called once for each request, in any order. With `gate`, degenerate
    output raises HopelessError.
    """

    done: Callable[[int, Completion], None] = lambda index, completion: None
    gate: bool = False


def repeats_itself(text: str) -> bool:
    """True when a text says the same again and again, by how well it compresses.

    A short one never does.
    """
    data = text.encode()
    if len(data) < MIN_BYTES:
        return False
    return len(zlib.compress(data, 6)) < MAX_COMPRESSED * len(data) + ZLIB_BYTES


def refuse_non_finite(likelihoods: Sequence[Loglikelihood]) -> None:
    """Raise HopelessError when an answer has the floor that stands for what is not a number."""
    if any(value <= LOGPROB_FLOOR for answer in likelihoods for value in answer.token_logprobs):
        raise HopelessError(
            Problem(
                thing="merge",
                cause="its logits are not finite numbers: the weights have overflowed",
                remedy=_REMEDY,
            )
        )


def gate_sample(requests: Sequence[GenerateRequest], order: Sequence[int]) -> list[int]:
    """The first requests, in the order of submission, that may grow long.

    None when they are too few to judge by.
    """
    long = [index for index in order if requests[index].max_new_tokens >= 2 * GATE_TOKENS]
    return long[:GATE_ANSWERS] if len(long) >= GATE_ANSWERS else []


def refuse_degenerate(texts: Sequence[str]) -> None:
    """Raise HopelessError when every one of these unfinished answers repeats itself."""
    if texts and all(map(repeats_itself, texts)):
        raise HopelessError(
            Problem(
                thing="merge",
                cause=f"its first {len(texts)} answers repeat themselves without end, such as "
                f"{texts[0][:60]!r}",
                remedy=_REMEDY,
            )
        )
