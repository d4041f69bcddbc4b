"""The pipeline that all delta methods share: thin each member's delta, weigh it, let signs vote or
not, add to the base.

`base + lambda * sum_k w_k thin_k(t_k - base)`, block by block, so that no delta is ever held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from recycler.merge.kernels.blocks import active, block_elements, blocks, flat_output
from recycler.merge.kernels.selection import DeltaBlocks
from recycler.merge.methods.linear import SMALLEST_DIVISOR

Thin = Callable[
    [int, Tensor], None
]  # (first element, float32 delta block): zero and rescale it in place; called in order
MakeThin = Callable[
    [int, DeltaBlocks], Thin | None
]  # (member's index, its delta) -> how to thin it; None keeps all


def delta_blocks(tensor: Tensor, base: Tensor, size: int) -> Iterator[Tensor]:
    """float32 blocks of tensor - base, in element order. The same buffer is used again for each."""
    tensor, base = tensor.reshape(-1), base.reshape(-1)
    buffer = torch.empty(2, min(size, base.numel()), dtype=torch.float32, device=base.device)
    for block in blocks(base.numel(), size):
        delta, origin = buffer[:, : block.stop - block.start]
        origin.copy_(base[block])
        yield delta.copy_(tensor[block]).sub_(origin)


def merge_deltas(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    out: Tensor,
    make_thin: MakeThin,
    *,
    consensus: bool,
    normalize: bool,
    lambda_: float,
) -> None:
    """Write the merge to `out`.

    With `consensus`, per element, only members that agree with the sign of the sum count.

    `normalize` divides by the sum of the weights (of the agreeing members, with consensus), unless
    that is zero.
    """
    with torch.no_grad():
        members = active(tensors, weights)
        if not members:
            out.copy_(base)
            return
        factor = lambda_ * (1.0 if normalize else weights[members[0]])
        thins = [
            make_thin(index, partial(delta_blocks, tensors[index], base, block_elements(out)))
            for index in members
        ]
        if len(members) == 1 and thins[0] is None and factor == 1.0:
            out.copy_(
                tensors[members[0]]
            )  # b + (t - b) may lose the last bits of a t that is much smaller than b
            return
        used = torch.tensor(
            [weights[index] for index in members], dtype=torch.float32, device=out.device
        )
        flats = [tensors[index].reshape(-1) for index in members]
        _run(
            flats,
            used,
            base.reshape(-1),
            out,
            thins,
            consensus=consensus,
            normalize=normalize,
            lambda_=lambda_,
        )


def _run(
    flats: Sequence[Tensor],
    weights: Tensor,
    base: Tensor,
    out: Tensor,
    thins: Sequence[Thin | None],
    *,
    consensus: bool,
    normalize: bool,
    lambda_: float,
) -> None:
    size = min(block_elements(out, len(flats)), max(out.numel(), 1))
    buffer = torch.empty(len(flats), size, dtype=torch.float32, device=out.device)
    origin_buffer = torch.empty(size, dtype=torch.float32, device=out.device)
    divisor = (
        float(weights.sum()) if normalize and abs(float(weights.sum())) >= SMALLEST_DIVISOR else 1.0
    )
    with flat_output(out) as target:
        for block in blocks(out.numel(), size):
            length = block.stop - block.start
            deltas, origin = buffer[:, :length], origin_buffer[:length].copy_(base[block])
            for row, flat, thin in zip(deltas, flats, thins, strict=True):
                row.copy_(flat[block]).sub_(origin)
                if thin is not None:
                    thin(block.start, row)
            deltas.mul_(weights[:, None])
            mixed = (
                _agreeing_mean(deltas, weights, normalize=normalize) if consensus else deltas.sum(0)
            )
            if divisor != 1.0 and not consensus:
                mixed.div_(divisor)
            if lambda_ != 1.0:
                mixed.mul_(lambda_)
            target[block].copy_(origin.add_(mixed))


def _agreeing_mean(weighted: Tensor, weights: Tensor, *, normalize: bool) -> Tensor:
    """Sum over members (K, n) of what has the sign of the total, divided by those members' weights
    if asked.

    Overwrites `weighted`. A total of zero elects the plus sign, as mergekit does. Signs are
    compared by multiplying with the elected sign, and masks are kept in the bits of the numbers:
    comparisons to bool cost ten times as much.
    """
    sign = weighted.sum(0)
    sign.sign_().add_(0.5).sign_()  # -1, or +1 also for zero
    agreeing = (
        weighted.mul_(sign).clamp_(min=0.0).abs_()
    )  # abs: -0.0 has a bit set, and would be counted below
    mixed = agreeing.sum(0).mul_(sign)
    if not normalize:
        return mixed
    taken = (
        agreeing.view(torch.int32).neg_().bitwise_right_shift_(31)
    )  # all ones where a member agrees
    divisor = taken.bitwise_and_(weights.view(torch.int32)[:, None]).view(torch.float32).sum(0)
    return mixed.div_(divisor.add_(divisor == 0))
