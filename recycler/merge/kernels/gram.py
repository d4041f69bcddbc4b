"""Inner products of the members of a merge: all that methods on angles need to know of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recycler.merge.kernels.blocks import block_elements, blocks


def gram(tensors: Sequence[Tensor], base: Tensor | None) -> Tensor:
    """float64 `(K, K)` inner products of the tensors, or of their deltas when there is a base.

    Within a block they are summed in float32.
    """
    flats = [tensor.reshape(-1) for tensor in tensors]
    origin = base.reshape(-1) if base is not None else None
    total = torch.zeros(len(flats), len(flats), dtype=torch.float64)
    num_elements = flats[0].numel()
    size = block_elements(flats[0], len(flats))
    buffer = torch.empty(
        len(flats), min(size, max(num_elements, 1)), dtype=torch.float32, device=flats[0].device
    )
    with torch.no_grad():
        for block in blocks(num_elements, size):
            rows = buffer[:, : block.stop - block.start]
            for row, flat in zip(rows, flats, strict=True):
                row.copy_(flat[block])
            if origin is not None:
                rows.sub_(origin[block].to(torch.float32))
            total += (rows @ rows.T).double().cpu()
    return total
