"""The pipeline of all delta methods: sparsify, weigh, let signs vote or not, add to the base.

`base + lambda * sum_k w_k sparsify_k(t_k - base)`, block by block, so that no delta is ever held
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from recycler.merge.kernels.blocks import active, block_elements, blocks, flat_output
from recycler.merge.kernels.selection import DeltaBlocks
from recycler.merge.methods.linear import MIN_DIVISOR

# (first element, float32 block of a delta): zero and rescale it in place. Called in element order.
Sparsify: TypeAlias = Callable[[int, Tensor], object]

# (member's index, its delta) -> the way to sparsify it; None keeps all of it.
MakeSparsify: TypeAlias = Callable[[int, DeltaBlocks], Sparsify | None]


def keep_all(index: int, delta: DeltaBlocks) -> None:
    """Sparsify nothing."""


def drop_all(start: int, block: Tensor) -> None:
    """Zero every element of a block."""
    block.zero_()


def delta_blocks(tensor: Tensor, base: Tensor, size: int) -> Iterator[Tensor]:
    """float32 blocks of tensor - base, in element order; the same buffer is used for each."""
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
    make_sparsify: MakeSparsify,
    *,
    consensus: bool,
    normalize: bool,
    lambda_: float,
) -> None:
    """Write the merge of sparsified deltas to `out`.

    With `consensus`, only members that agree with the sign of the sum count, element by element.
    `normalize` divides by the sum of the weights (of the agreeing members, with consensus), unless
    that is zero.
    """
    with torch.no_grad():
        members = active(tensors, weights)
        if not members:
            out.copy_(base)
            return
        sparsifies: list[Sparsify | None] = []
        for index in members:
            delta = partial(delta_blocks, tensors[index], base, block_elements(out))
            sparsifies.append(make_sparsify(index, delta))
        factor = lambda_ * (1.0 if normalize else weights[members[0]])
        if len(members) == 1 and sparsifies[0] is None and factor == 1.0:
            # b + (t - b) may lose the last bits of a t that is much smaller than b
            out.copy_(tensors[members[0]])
            return
        _run(
            [tensors[index].reshape(-1) for index in members],
            torch.tensor(
                [weights[index] for index in members], dtype=torch.float32, device=out.device
            ),
            base.reshape(-1),
            out,
            sparsifies,
            consensus=consensus,
            normalize=normalize,
            lambda_=lambda_,
        )


def _run(
    flats: Sequence[Tensor],
    weights: Tensor,
    base: Tensor,
    out: Tensor,
    sparsifies: Sequence[Sparsify | None],
    *,
    consensus: bool,
    normalize: bool,
    lambda_: float,
) -> None:
    """Merge block by block; `flats` are K tensors of one dimension, `weights` is float32 (K)."""
    size = min(block_elements(out, len(flats)), max(out.numel(), 1))
    buffer = torch.empty(len(flats), size, dtype=torch.float32, device=out.device)
    origin_buffer = torch.empty(size, dtype=torch.float32, device=out.device)
    total = float(weights.sum())
    divisor = total if normalize and abs(total) >= MIN_DIVISOR else 1.0
    with flat_output(out) as target:
        for block in blocks(out.numel(), size):
            length = block.stop - block.start
            deltas, origin = buffer[:, :length], origin_buffer[:length].copy_(base[block])
            for row, flat, sparsify in zip(deltas, flats, sparsifies, strict=True):
                row.copy_(flat[block]).sub_(origin)
                if sparsify is not None:
                    sparsify(block.start, row)
            deltas.mul_(weights[:, None])
            if consensus:
                mixed = _agreeing_mean(deltas, weights, normalize=normalize)
            else:
                mixed = deltas.sum(0)
                if divisor != 1.0:
                    mixed.div_(divisor)
            if lambda_ != 1.0:
                mixed.mul_(lambda_)
            target[block].copy_(origin.add_(mixed))


def _agreeing_mean(weighted: Tensor, weights: Tensor, *, normalize: bool) -> Tensor:
    """Sum over members (K, n) of the numbers that have the sign of the total.

    `normalize` divides it by the weights of the members that agree. Overwrites `weighted`. A total
    of zero elects the plus sign, as mergekit does. Signs are compared by multiplying with the
    elected sign, and masks are kept in the bits of the numbers: comparisons to bool cost ten times
    as much.
    """
    sign = weighted.sum(0)
    sign.sign_().add_(0.5).sign_()  # -1, or +1 also for zero
    agreeing = weighted.mul_(sign).clamp_(min=0.0)
    agreeing.abs_()  # -0.0 has a bit set, and would be counted below
    mixed = agreeing.sum(0).mul_(sign)
    if not normalize:
        return mixed
    taken = agreeing.view(torch.int32).neg_().bitwise_right_shift_(31)  # all ones: a member agrees
    divisor = taken.bitwise_and_(weights.view(torch.int32)[:, None]).view(torch.float32).sum(0)
    return mixed.div_(divisor.add_(divisor == 0))
