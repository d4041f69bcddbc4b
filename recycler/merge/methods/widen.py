"""WIDEN: weigh each delta column by how much its direction and its length have changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recycler.merge.kernels.blocks import active
from recycler.merge.kernels.one_thread import one_thread
from recycler.merge.methods.layers import layer_of, place_of
from recycler.merge.methods.method import TensorContext


@one_thread
def widen(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    ratio: float = 1.0,
    calibration: float = 1.0,
) -> None:
    """Weigh columns by how their length and direction changed (Yu et al. 2024, arXiv:2408.03092).

    WIDEN is for members whose deltas differ in size, continued pretraining among them.

    1. Split a matrix into column lengths and directions. Columns are input features; embeddings and
       heads are taken by token (row).
    2. Rank each member's change of length and change of direction, 1 - cos, over columns to [0, 1).
    3. Score a column by the softmax of its ranks over members; by `calibration` where a rank
       exceeds `ratio` times the member's mean rank.
    4. Write `b + sum_k w_k (score_m + score_d) / 2 tau_k`, per column.
    5. In tensors that are not matrices, rank and score |tau| by element.

    Limitations: weights are ours, 1 in the paper. Holds the float32 deltas of all members of one
    tensor.
    """
    assert base is not None
    members = active(tensors, weights)
    with torch.no_grad():
        origin = base.float()
        if not members or out.numel() == 0:
            out.copy_(base)
            return
        dim = 1 if layer_of(context.name) is None and place_of(context.name) != "final_norm" else 0
        if out.ndim == 2:
            changes = [_column_changes(tensors[index].float(), origin, dim) for index in members]
            of_length, of_direction = (torch.stack(kind) for kind in zip(*changes, strict=True))
            by_length = _scores(of_length, ratio, calibration)
            by_direction = _scores(of_direction, ratio, calibration)
            factors = ((by_length + by_direction) / 2).unsqueeze(dim + 1)
        else:
            deltas = [(tensors[index].float() - origin).abs() for index in members]
            scores = _scores(torch.stack(deltas).view(len(members), -1), ratio, calibration)
            factors = scores.view(len(members), *out.shape)
        total = origin.clone()
        for index, factor in zip(members, factors, strict=True):
            total.add_((tensors[index].float() - origin).mul_(factor), alpha=weights[index])
        out.copy_(total)


def _column_changes(tensor: Tensor, base: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Change of length and of direction (1 - cos) for each vector along `dim`.

    A zero vector has turned by 1.
    """
    length, base_length = tensor.norm(dim=dim), base.norm(dim=dim)
    cosine = (tensor * base).sum(dim) / (length * base_length).clamp(min=1e-30)
    return (length - base_length).abs(), 1 - cosine


def _scores(changes: Tensor, ratio: float, calibration: float) -> Tensor:
    """Importance `(K, n)` of changes `(K, n)`: softmax over members of ranks in [0, 1).

    It is `calibration` where a rank is clearly above the mean.
    """
    count = changes.shape[1]
    rank = torch.arange(count, dtype=changes.dtype, device=changes.device).div_(count)
    order = changes.argsort(dim=1, stable=True)
    ranks = torch.empty_like(changes).scatter_(1, order, rank.expand_as(changes))
    scores = ranks.softmax(dim=0)
    return scores.masked_fill_(ranks > ranks.mean(dim=1, keepdim=True) * ratio, calibration)
