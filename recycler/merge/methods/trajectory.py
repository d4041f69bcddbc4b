"""Averages of the checkpoints of one training run, as rows of weights for `linear`.

Checkpoints are given from the oldest to the newest. PMA (Li et al. 2025, arXiv:2505.12082) finds
WMA best early in training and all three alike late; WSM (arXiv:2507.17634) chooses the weights so
that the average imitates a learning rate decay. Each function returns K weights that sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise


def sma(num_checkpoints: int) -> tuple[float, ...]:
    """Simple moving average: 1/K each (LAWA, arXiv:2209.14981, when K is a sliding window)."""
    _require(num_checkpoints)
    return (1.0 / num_checkpoints,) * num_checkpoints


def wma(num_checkpoints: int) -> tuple[float, ...]:
    """Linearly weighted: checkpoint i of 1..K weighs i / (1 + ... + K)."""
    _require(num_checkpoints)
    total = num_checkpoints * (num_checkpoints + 1) / 2
    return tuple(i / total for i in range(1, num_checkpoints + 1))


def ema(num_checkpoints: int, alpha: float = 0.2) -> tuple[float, ...]:
    """Exponential: A_1 = M_1, A_i = alpha M_i + (1 - alpha) A_{i-1}; PMA uses alpha 0.1 and 0.2.

    Raises ValueError when alpha is outside (0, 1].
    """
    _require(num_checkpoints)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}, outside (0, 1]")
    first = (1 - alpha) ** (num_checkpoints - 1)
    return (
        first,
        *(alpha * (1 - alpha) ** (num_checkpoints - i) for i in range(2, num_checkpoints + 1)),
    )


def decay(curve: Sequence[float]) -> tuple[float, ...]:
    """Weights that imitate a learning rate decay (WSM).

    `curve` is the factor on each of K updates: the first is 1, and none is larger than the one
    before. The update that led to checkpoint i is in checkpoints i..K, so w_i = c_i - c_{i+1}, with
    c_{K+1} = 0. Raises ValueError for another curve.
    """
    _require(len(curve))
    rises = any(there > here for here, there in pairwise(curve))
    if curve[0] != 1.0 or rises or curve[-1] < 0:
        raise ValueError("a decay curve starts at 1 and never rises or becomes negative")
    return tuple(here - there for here, there in pairwise((*curve, 0.0)))


def _require(num_checkpoints: int) -> None:
    if num_checkpoints < 1:
        raise ValueError("an average needs at least one checkpoint")


TRAJECTORY_WEIGHTS: Mapping[str, Callable[..., tuple[float, ...]]] = {
    "sma": sma,
    "wma": wma,
    "ema": ema,
    "decay": decay,
}
