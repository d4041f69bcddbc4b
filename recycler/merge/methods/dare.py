"""DARE: drop elements of the deltas at random, and rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recycler.merge.kernels.counter_random import STEPS, drop_mask, mask_key, steps_of
from recycler.merge.kernels.selection import DeltaBlocks
from recycler.merge.methods.delta_pipeline import MakeSparsify, Sparsify, merge_deltas
from recycler.merge.methods.method import TensorContext, per_member


def dare_linear(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """Drop and rescale, then add (Yu et al. 2024, arXiv:2311.03099, eq. 1-3).

    1. Take each member's delta, `tau_k = t_k - b`.
    2. Keep each element by itself with probability d_k = `density` (the paper's 1 - p): m_k is 1
       or 0, from (seed, member, tensor name) alone.
    3. `rescale` divides by d_k, which keeps the expectation.
    4. Write `b + lambda sum_k w_k m_k tau_k / d_k`; `normalize` divides by the sum of the weights.

    Limitations: breaks for large deltas (above about 0.01: another base, continued pretraining), so
    look at the preflight first. Probabilities come in steps of 1/65536, and the division is by the
    step that is used.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _drop_at_random(context, density, len(tensors), rescale),
        consensus=False,
        normalize=normalize,
        lambda_=lambda_,
    )


def dare_ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """Drop and rescale, then elect signs (arXiv:2311.03099 with arXiv:2306.01708).

    1. Drop and rescale each delta as `dare_linear` does (steps 1 to 3).
    2. Elect the sign of `sum_k w_k tau_k` for each element.
    3. Write `b + lambda` times the sum of the `w_k tau_k` that have this sign; `normalize` divides
       by the sum of their weights.

    Limitations: those of `dare_linear`. Where few elements are kept, most elements have one member
    left, and nothing to vote on.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _drop_at_random(context, density, len(tensors), rescale),
        consensus=True,
        normalize=normalize,
        lambda_=lambda_,
    )


def _drop_at_random(
    context: TensorContext, density: float | Sequence[float], num_members: int, rescale: bool
) -> MakeSparsify:
    """Keep each element with its member's density, and rescale what is kept."""
    densities = per_member("density", density, num_members)

    def make_sparsify(index: int, delta: DeltaBlocks) -> Sparsify | None:
        steps = steps_of(densities[index])
        key = mask_key(context.seed, context.members[index], context.name)
        if steps == STEPS:
            return None

        def sparsify(start: int, block: Tensor) -> None:
            block.view(torch.int32).bitwise_and_(drop_mask(key, start, block, steps))
            if rescale and steps:
                block.mul_(STEPS / steps)

        return sparsify

    return make_sparsify
