"""Walk tensors in blocks that stay in a core's own cache.

A merge on a CPU spends its time on moving numbers, not on arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from recycler.merge.kernels import native

BLOCK_ELEMENTS = 1 << 17  # a float32 block of 512 KiB
# All members' float32 blocks fill at most 4 MiB together; smaller blocks cost more in calls than
# they save.
CACHE_ELEMENTS = 1 << 20
CUDA_BLOCK_ELEMENTS = 1 << 25


def block_elements(like: Tensor, num_rows: int = 1) -> int:
    """Elements per block when `num_rows` float32 blocks live at once; a multiple of 4096."""
    if like.is_cuda:
        return CUDA_BLOCK_ELEMENTS
    return max(1 << 13, min(BLOCK_ELEMENTS, CACHE_ELEMENTS // num_rows) & ~4095)


def blocks(num_elements: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` elements that cover `num_elements`."""
    for start in range(0, num_elements, size):
        yield slice(start, min(start + size, num_elements))


@contextmanager
def flat_output(out: Tensor) -> Iterator[Tensor]:
    """`out` as a one-dimensional tensor to be filled; strided outputs are filled through a copy."""
    if out.is_contiguous():
        yield out.view(-1)
        return
    flat = torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    yield flat
    out.copy_(flat.view(out.shape))


def active(tensors: Sequence[Tensor], weights: Sequence[float]) -> list[int]:
    """Indices of the members whose weight is not zero; the others are never read."""
    if len(tensors) != len(weights):
        raise ValueError(f"{len(tensors)} tensors but {len(weights)} weights")
    return [index for index, weight in enumerate(weights) if weight != 0.0]


def weighted_sum(terms: Sequence[tuple[Tensor, float]], out: Tensor, divisor: float = 1.0) -> None:
    """Write round(sum_j w_j t_j / divisor) to `out`: float32 block by block, one rounding.

    Zero weights are skipped; without any term left `out` is zero.
    """
    tensors = [tensor.reshape(-1) for tensor, weight in terms if weight != 0.0]
    weights = [weight for _, weight in terms if weight != 0.0]
    if not tensors:
        out.zero_()
        return
    with torch.no_grad(), flat_output(out) as target:
        if native.weighted_sum_bf16(tensors, weights, target, divisor):
            return
        size = block_elements(out)
        buffer = torch.empty(min(size, out.numel()), dtype=torch.float32, device=out.device)
        for block in blocks(out.numel(), size):
            total = buffer[: block.stop - block.start]
            total.copy_(tensors[0][block]).mul_(weights[0])  # 0 + w t would lose the sign of -0.0
            for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
                total.add_(tensor[block], alpha=weight)
            if divisor != 1.0:
                total.div_(divisor)
            target[block].copy_(total)
