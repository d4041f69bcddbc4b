"""The slope of a loss along the weights of a linear merge.

It takes one inner product per tensor and member.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recycler.merge.kernels.blocks import block_elements, blocks
from recycler.pool.storage.tensors import ResidentPool
from recycler.types import Recipe


def weight_slopes(
    gradients: Mapping[str, Tensor], recipe: Recipe, resident: ResidentPool
) -> NDArray[np.float64]:
    """Gradient (G, K) of a loss by the recipe's weights, from its gradient by each merged tensor.

    A merge is b + sum_k w_k (t_k - b), without a base sum_k w_k t_k, so by the chain rule dL/dw_gk
    is the sum of <dL/dt, t_k - b> over the tensors of group g. Blocks are float32, summed in
    float64.
    """
    slopes = np.zeros((len(recipe.groups), len(recipe.members)))
    with torch.no_grad():
        for name, gradient in gradients.items():
            flat, row = gradient.reshape(-1), recipe.group_of(name)
            members = [resident.tensor(member, name).reshape(-1) for member in recipe.members]
            base = resident.tensor(recipe.base, name).reshape(-1) if recipe.base else None
            for block in blocks(flat.numel(), block_elements(flat, len(members))):
                own = flat[block].float().cpu()
                origin = base[block].float() if base is not None else None
                for index, member in enumerate(members):
                    delta = member[block].float()
                    if origin is not None:
                        delta = delta - origin
                    slopes[row, index] += float(own @ delta)
    return slopes
