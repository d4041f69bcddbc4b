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
    """WIDEN (Yu et al. 2024, arXiv:2408.03092): for members whose deltas differ in size, continued
    pretraining among them.

    A matrix is split into column lengths m and directions; each member's |m - m_0| and 1 - cos to
    the base's columns are ranked over columns to [0, 1); scores are the softmax of ranks over
    members, but `calibration` where a rank exceeds `ratio` times the member's mean rank; out = b +
    sum_k w_k (score_m + score_d) / 2 * tau_k, per column. Columns are input features; embeddings
    and heads are taken by token (row). Other tensors rank |tau| by element. Weights are ours, 1 in
    the paper. Needs the float32 deltas of one tensor at a time, and one float32 accumulator.
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
            scores = (
                sum(
                    _scores(torch.stack(kind), ratio, calibration)
                    for kind in zip(*changes, strict=True)
                )
                / 2
            )
            factors = [score.unsqueeze(dim) for score in scores]
        else:
            scores = _scores(
                torch.stack(
                    [(tensors[index].float() - origin).abs().reshape(-1) for index in members]
                ),
                ratio,
                calibration,
            )
            factors = [score.view(out.shape) for score in scores]
        total = origin.clone()
        for index, factor in zip(members, factors, strict=True):
            total.add_((tensors[index].float() - origin).mul_(factor), alpha=weights[index])
        out.copy_(total)


def _column_changes(tensor: Tensor, base: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Change of length and of direction (1 - cos) for each vector along `dim`; a zero vector has
    turned by 1.
    """
    length, base_length = tensor.norm(dim=dim), base.norm(dim=dim)
    cosine = (tensor * base).sum(dim) / (length * base_length).clamp(min=1e-30)
    return (length - base_length).abs(), 1 - cosine


def _scores(changes: Tensor, ratio: float, calibration: float) -> Tensor:
    """Importance `(K, n)` of changes `(K, n)`: softmax over members of ranks in [0, 1), calibrated
    where clearly above the mean.
    """
    count = changes.shape[1]
    ranks = torch.empty_like(changes).scatter_(
        1,
        changes.argsort(dim=1, stable=True),
        torch.arange(count, dtype=changes.dtype, device=changes.device)
        .div_(count)
        .expand_as(changes),
    )
    scores = ranks.softmax(dim=0)
    return scores.masked_fill_(ranks > ranks.mean(dim=1, keepdim=True) * ratio, calibration)
