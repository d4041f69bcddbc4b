"""DELLA: drop elements of the deltas at random, the small ones more often."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recycler.errors import Problem, UsageError
from recycler.merge.kernels.counter_random import STEPS, drop_mask, mask_key
from recycler.merge.kernels.selection import DeltaBlocks, magnitude_bits
from recycler.merge.methods.delta_pipeline import (
    MakeSparsify,
    Sparsify,
    delta_blocks,
    drop_all,
    merge_deltas,
)
from recycler.merge.methods.method import TensorContext, per_member

RANKED_AT_ONCE = 1 << 18  # elements whose ranks are made in one go, in whole rows


def della(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    epsilon: float | Sequence[float] = 0.15,
    rescale: bool = True,
    normalize: bool = True,
    lambda_: float = 1.0,
) -> None:
    """Drop by magnitude, elect signs, fuse (DELLA: Deep et al. 2024, arXiv:2406.11617).

    1. Drop (MagPrune): within each row (last dimension) elements are ranked by |tau|. The smallest
       is kept with probability density - epsilon, the largest with density + epsilon, linearly
       between.
    2. `rescale` divides what is kept by its own probability, so the expectation stays.
    3. Elect the sign of `sum_k w_k tau_k` for each element, as in TIES.
    4. Fuse: write `b + lambda` times the sum of the `w_k tau_k` that have this sign; `normalize`
       divides by the sum of their weights.

    Limitations: needs 0 < density - epsilon and density + epsilon < 1, or density 1; raises
    UsageError otherwise. Every row is sorted, which makes it the slowest of the delta methods.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _drop_by_rank(context, density, epsilon, tensors, base, rescale),
        consensus=True,
        normalize=normalize,
        lambda_=lambda_,
    )


def della_linear(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    epsilon: float | Sequence[float] = 0.15,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """Drop by magnitude and add, without a vote on signs (arXiv:2406.11617).

    1. Drop and rescale each delta as `della` does (steps 1 and 2).
    2. Write `b + lambda sum_k w_k tau_k`; `normalize` divides by the sum of the weights.

    Limitations: those of `della`.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _drop_by_rank(context, density, epsilon, tensors, base, rescale),
        consensus=False,
        normalize=normalize,
        lambda_=lambda_,
    )


def _drop_by_rank(
    context: TensorContext,
    density: float | Sequence[float],
    epsilon: float | Sequence[float],
    tensors: Sequence[Tensor],
    base: Tensor,
    rescale: bool,
) -> MakeSparsify:
    """Keep each element with the probability of its rank. Raises UsageError outside (0, 1)."""
    densities = per_member("density", density, len(tensors))
    epsilons = per_member("epsilon", epsilon, len(tensors))
    for index, (middle, half) in enumerate(zip(densities, epsilons, strict=True)):
        if 0 < middle < 1 and not (middle - half > 0 and middle + half < 1):
            raise UsageError(
                Problem(
                    thing=f"density {middle:g} and epsilon {half:g} of {context.members[index]!r}",
                    cause="leave (0, 1) when added or subtracted",
                    remedy=f"Choose epsilon below {min(middle, 1 - middle):g}",
                )
            )

    def make_sparsify(index: int, delta: DeltaBlocks) -> Sparsify | None:
        if densities[index] >= 1.0:
            return None
        if densities[index] <= 0.0:
            return drop_all
        return _MagPrune(
            mask_key(context.seed, context.members[index], context.name),
            tensors[index],
            base,
            densities[index],
            epsilons[index],
            rescale,
        )

    return make_sparsify


class _MagPrune:
    """Keep each element of a row with the probability of its rank.

    Ranks are made for whole rows and used in blocks, which need not end where rows do.
    """

    def __init__(
        self,
        key: tuple[int, int],
        tensor: Tensor,
        base: Tensor,
        density: float,
        epsilon: float,
        rescale: bool,
    ):
        self._key, self._rescale = key, rescale
        self._width = base.shape[-1] if base.ndim else 1
        self._low, self._span = density - epsilon, 2 * epsilon
        rows_at_once = max(1, RANKED_AT_ONCE // max(self._width, 1))
        self._chunks = delta_blocks(tensor, base, rows_at_once * max(self._width, 1))
        self._ready: list[Tensor] = []  # probabilities of the elements that come next
        self._num_ready = 0

    def __call__(self, start: int, block: Tensor) -> None:
        probability = self._take(block.numel())
        steps = (probability * STEPS).to(torch.int32)
        block.view(torch.int32).bitwise_and_(drop_mask(self._key, start, block, steps))
        if self._rescale:
            block.mul_(STEPS).div_(steps)

    def _take(self, count: int) -> Tensor:
        """The probabilities of the next `count` elements."""
        while self._num_ready < count:
            rows = next(self._chunks).view(-1, self._width)
            probability = rank_in_rows(rows).mul_(self._span / max(self._width - 1, 1))
            self._ready.append(probability.add_(self._low).view(-1))
            self._num_ready += rows.numel()
        joined = self._ready[0] if len(self._ready) == 1 else torch.cat(self._ready)
        self._ready, self._num_ready = [joined[count:]], joined.numel() - count
        return joined[:count]


def rank_in_rows(rows: Tensor) -> Tensor:
    """float32 rank of each |element| within its row `(R, n)`, 0 for the smallest.

    Among equals the earlier element comes first. Ranks of all elements are a sort by nature; rows
    are short, and magnitude and position packed into one integer sort several times faster than an
    argsort.
    """
    if rows.is_cuda:
        return rows.abs().argsort(dim=1, stable=True).argsort(dim=1).to(torch.float32)
    width = rows.shape[1]
    keys = magnitude_bits(rows).to(torch.int64).bitwise_left_shift_(32)
    keys.bitwise_or_(torch.arange(width))
    keys.numpy().sort(axis=1)
    position = keys.bitwise_and_(0xFFFFFFFF)
    rank = torch.arange(width, dtype=torch.float32).expand(rows.shape)
    return torch.empty(rows.shape, dtype=torch.float32).scatter_(1, position, rank)
