"""Inner products of the members' deltas in every tensor, from all of their elements: what exact
distances are reckoned from.
"""

from __future__ import annotations

import numpy as np

from recycler.objectives.costs import DeltaProducts
from recycler.pool.storage.blocks import same_names, tensor_blocks
from recycler.pool.storage.dtypes import as_float32
from recycler.pool.storage.headers import DTYPE_BYTES
from recycler.types import Pool, TensorInfo

BLOCK_ELEMENTS = 1 << 18


def delta_products(pool: Pool) -> DeltaProducts:
    """Read every floating point tensor of the pool and its base once: memory is K + 1 blocks,
    products are added up in float64.

    Raises ValueError without a base, UnsafeInputError for files that were changed meanwhile.
    """
    if pool.base is None:
        raise ValueError("a pool without a base has no deltas")
    names = same_names([pool.base, *pool.members])
    table, power = np.zeros((len(names), len(pool.members), len(pool.members))), 0.0
    for index, name in enumerate(names):
        own = pool.base.tensors[name]
        for base, *members in zip(
            _floats(own), *(_floats(member.tensors[name]) for member in pool.members), strict=True
        ):
            deltas = np.stack(members) - base
            table[index] += deltas @ deltas.T
            power += float(base @ base)
    return DeltaProducts(tensors=tuple(names), table=table / (power or 1.0))


def _floats(info: TensorInfo):
    """float64 blocks of a tensor, each of BLOCK_ELEMENTS elements but the last."""
    for block in tensor_blocks(info, block_bytes=DTYPE_BYTES[info.dtype] * BLOCK_ELEMENTS):
        yield as_float32(block, info.dtype).astype(np.float64)
