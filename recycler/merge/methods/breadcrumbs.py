"""Model Breadcrumbs: drop the largest and the smallest elements of the deltas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recycler.merge.kernels.selection import Cut, DeltaBlocks, magnitude_bits, smallest
from recycler.merge.methods.delta_pipeline import MakeSparsify, Sparsify, drop_all, merge_deltas
from recycler.merge.methods.method import TensorContext, per_member
from recycler.merge.methods.sign_consensus import l1_ratio


def breadcrumbs(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    gamma: float | Sequence[float] = 0.01,
    rescale: bool = False,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """Drop outliers and noise, then add (Davari and Belilovsky 2023, arXiv:2312.06795).

    1. Rank the n elements of each delta by magnitude; of equal ones the later counts as larger.
    2. Drop the int(gamma n) largest, and as many of the smallest as leaves int(density n). Where
       that is not possible, fewer of the largest are dropped.
    3. `rescale` restores each delta's L1 norm.
    4. Write `b + lambda sum_k w_k tau_k`; `normalize` divides by the sum of the weights.

    Limitations: ranks are per tensor, so a tensor that a member has hardly changed keeps the same
    share as one that it has changed much.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _keep_the_middle(out.numel(), density, gamma, len(tensors), rescale),
        consensus=False,
        normalize=normalize,
        lambda_=lambda_,
    )


def breadcrumbs_ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    gamma: float | Sequence[float] = 0.01,
    rescale: bool = False,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """Drop outliers and noise, then elect signs (arXiv:2312.06795 with arXiv:2306.01708).

    1. Sparsify each delta as `breadcrumbs` does (steps 1 to 3).
    2. Elect the sign of `sum_k w_k tau_k` for each element.
    3. Write `b + lambda` times the sum of the `w_k tau_k` that have this sign; `normalize` divides
       by the sum of their weights.

    Limitations: those of `breadcrumbs`.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _keep_the_middle(out.numel(), density, gamma, len(tensors), rescale),
        consensus=True,
        normalize=normalize,
        lambda_=lambda_,
    )


def _keep_the_middle(
    num_elements: int,
    density: float | Sequence[float],
    gamma: float | Sequence[float],
    num_members: int,
    rescale: bool,
) -> MakeSparsify:
    """Keep the elements of middle magnitude, by each member's density and gamma."""
    densities = per_member("density", density, num_members)
    gammas = per_member("gamma", gamma, num_members)

    def make_sparsify(index: int, delta: DeltaBlocks) -> Sparsify | None:
        if densities[index] >= 1.0 or num_elements == 0:
            return None
        target = int(densities[index] * num_elements)
        first = max(0, num_elements - target - int(gammas[index] * num_elements))
        return keep_between(delta, num_elements, first, first + target, rescale=rescale)

    return make_sparsify


def keep_between(
    delta: DeltaBlocks, num_elements: int, first: int, last: int, *, rescale: bool
) -> Sparsify:
    """Keep the elements whose rank by magnitude, from the smallest, lies in [first, last).

    Equal magnitudes rank in element order.
    """
    if last <= first:
        return drop_all

    upto, below = smallest(delta, last, num_elements), smallest(delta, first, num_elements)
    scale = l1_ratio(delta, _between(upto.again(), below.again())) if rescale else 1.0
    mask_of = _between(upto, below)

    def sparsify(start: int, block: Tensor) -> None:
        block.view(torch.int32).bitwise_and_(mask_of(magnitude_bits(block)))
        if scale != 1.0:
            block.mul_(scale)

    return sparsify


def _between(upto: Cut, below: Cut) -> Callable[[Tensor], Tensor]:
    return lambda bits: upto.inside(bits).bitwise_and_(below.inside(bits).bitwise_not_())
