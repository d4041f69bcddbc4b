"""Inner products of the members' deltas in every tensor, from all elements, for exact distances."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recycler.objectives.costs import DeltaProducts
from recycler.pool.storage.blocks import same_names, tensor_blocks
from recycler.pool.storage.dtypes import as_float32
from recycler.pool.storage.headers import DTYPE_BYTES
from recycler.types import Pool, TensorInfo

BLOCK_ELEMENTS = 1 << 18


def delta_products(pool: Pool) -> DeltaProducts:
    """(K, K) inner products of deltas in each floating point tensor, over the base's squared norm.

    Every tensor is read once. Memory is K + 1 blocks; products are added up in float64. Raises
    ValueError without a base, UnsafeInputError for files that were changed meanwhile.
    """
    if pool.base is None:
        raise ValueError("a pool without a base has no deltas")
    names = same_names([pool.base, *pool.members])
    table, power = np.zeros((len(names), len(pool.members), len(pool.members))), 0.0
    for index, name in enumerate(names):
        streams = [_blocks(one.tensors[name]) for one in (pool.base, *pool.members)]
        for base, *members in zip(*streams, strict=True):
            deltas = np.stack(members) - base
            table[index] += deltas @ deltas.T
            power += float(base @ base)
    return DeltaProducts(tensors=tuple(names), table=table / (power or 1.0))


def _blocks(info: TensorInfo) -> Iterator[np.ndarray]:
    """float64 blocks of a tensor, each of BLOCK_ELEMENTS elements but the last."""
    for block in tensor_blocks(info, block_bytes=DTYPE_BYTES[info.dtype] * BLOCK_ELEMENTS):
        yield as_float32(block, info.dtype).astype(np.float64)
