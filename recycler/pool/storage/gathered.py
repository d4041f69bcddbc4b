"""Tensors whose rows lie in other tensors: embeddings in the order of another vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recycler.types import TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatheredTensor(TensorInfo):
    """A floating point tensor whose rows are those of the checkpoint's own tensor, or stand-ins.

    `sources` is the tensor as every checkpoint of the pool stores it; `rows` is (sources, shape[0])
    int32, the row of each source that means the same token, -1 where it has none. A row that source
    `own` lacks is that of source `base`, else the mean of the sources that have it (float32,
    rounded once to this tensor's dtype). Every row is in one source at least.
    """

    sources: tuple[TensorInfo, ...]
    rows: np.ndarray
    own: int
    base: int | None


def gather_rows(
    info: GatheredTensor, stored: Callable[[TensorInfo], Tensor], first: int, stop: int
) -> Tensor:
    """Rows `first` to `stop` as a fresh tensor; `stored` returns a source as it is stored."""
    rows = info.rows[:, first:stop].astype(np.int64)
    own = rows[info.own]
    found = stored(info.sources[info.own]).index_select(0, torch.from_numpy(own.clip(min=0)))
    missing = np.flatnonzero(own < 0)
    if missing.size:
        found[torch.from_numpy(missing)] = _stand_ins(info, stored, rows[:, missing], found)
    return found


def gather_elements(
    info: GatheredTensor, stored: Callable[[TensorInfo], Tensor], elements: slice
) -> Tensor:
    """These elements of the flat tensor in row-major order; only the rows they touch are read."""
    width = math.prod(info.shape[1:])
    first = elements.start // width
    found = gather_rows(info, stored, first, -(-elements.stop // width)).reshape(-1)
    return found[elements.start - first * width : elements.stop - first * width]


def _stand_ins(
    info: GatheredTensor, stored: Callable[[TensorInfo], Tensor], rows: np.ndarray, like: Tensor
) -> Tensor:
    """Rows for tokens that the checkpoint's own tensor lacks: the base's, else the sources' mean.

    `rows` (sources, tokens) is changed.
    """
    if info.base is not None:
        others = np.arange(len(rows)) != info.base
        rows[np.ix_(others, rows[info.base] >= 0)] = -1
    total = torch.zeros(
        (rows.shape[1], *like.shape[1:]), dtype=torch.promote_types(like.dtype, torch.float32)
    )
    count = np.zeros(rows.shape[1], dtype=np.int64)
    for source, its in zip(info.sources, rows, strict=True):
        has = np.flatnonzero(its >= 0)
        if has.size:
            values = stored(source).index_select(0, torch.from_numpy(its[has])).to(total.dtype)
            once, at = torch.from_numpy(count[has] == 0), torch.from_numpy(has)
            total[at[once]] = values[once]  # and not 0 + x, which turns -0 into 0
            total[at[~once]] += values[~once]
            count[has] += 1
    return (total / torch.from_numpy(count).view(-1, *[1] * (total.dim() - 1))).to(like.dtype)
