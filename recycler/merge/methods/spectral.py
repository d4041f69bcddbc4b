"""Merges of the singular vectors of deltas: TSV-Merge and Iso-C.

Cost: one SVD per member or one per tensor, O(m n min(m, n)) for a matrix, so minutes for a 1B model
on a CPU, and float32 copies of all deltas of one matrix. Embeddings and heads, whose rows are
tokens and not features, and tensors that are not matrices are averaged instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recycler.merge.kernels.blocks import active
from recycler.merge.kernels.one_thread import one_thread
from recycler.merge.methods.layers import layer_of
from recycler.merge.methods.method import TensorContext
from recycler.merge.methods.task_arithmetic import task_arithmetic


@one_thread
def tsv_merge(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    lambda_: float = 1.0,
) -> None:
    """Merge the task singular vectors (TSV-Merge: Gargiulo et al. 2024, arXiv:2412.00081).

    1. Take the SVD of each of the T deltas, and keep its first r/T singular triplets, scaled by
       w_k. Triplets that are zero but for rounding, as most of a LoRA's delta, are left out: their
       vectors are noise.
    2. Put all left vectors side by side to U, all right ones to V, all values to S.
    3. Replace U and V by the nearest orthogonal matrices (Procrustes: `U -> P Q'` with
       `U = P D Q'`), which takes the interference out.
    4. Write `b + lambda U S V'`.

    Limitations: matrices within layers only; other tensors get `b + lambda mean_k w_k tau_k`. Holds
    the float32 delta and the SVD of one matrix at a time.
    """
    assert base is not None
    members = active(tensors, weights)
    if not _spectral(out, context) or len(members) < 2:
        _mean(tensors, weights, members, base, context, out, lambda_)
        return
    origin = base.float()
    share = max(1, min(out.shape) // len(members))
    lefts, values, rights = [], [], []
    for index in members:
        left, value, right = torch.linalg.svd(tensors[index].float() - origin, full_matrices=False)
        kept = min(share, _rank(value, out))
        lefts.append(left[:, :kept].clone())  # a view would keep the whole
        values.append(weights[index] * value[:kept])
        rights.append(right[:kept].clone())
    if not any(len(value) for value in values):
        out.copy_(base)
        return
    left, right = _nearest_orthogonal(torch.cat(lefts, 1)), _nearest_orthogonal(torch.cat(rights))
    out.copy_(torch.add(origin, (left * torch.cat(values)) @ right, alpha=lambda_))


@one_thread
def iso_c(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    lambda_: float = 1.0,
) -> None:
    """Give every direction of the summed deltas one strength (Marczak et al. 2025).

    Isotropic merge in the common space, Iso-C (arXiv:2502.04959).

    1. Take the SVD of the sum, `sum_k w_k tau_k = U S V'`.
    2. Leave out directions whose singular value is zero but for rounding, as most of a LoRA's.
    3. Write `b + lambda mean(S) U V'`.

    Limitations: matrices within layers only; other tensors get `b + lambda mean_k w_k tau_k`.
    """
    assert base is not None
    members = active(tensors, weights)
    if not _spectral(out, context) or not members:
        _mean(tensors, weights, members, base, context, out, lambda_)
        return
    origin = base.float()
    delta = torch.zeros_like(origin)
    for index in members:
        delta.add_(tensors[index].float() - origin, alpha=weights[index])
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    rank = _rank(values, out)
    if rank == 0:
        out.copy_(base)
        return
    strength = float(values[:rank].mean())
    out.copy_(torch.add(origin, left[:, :rank] @ right[:rank], alpha=lambda_ * strength))


def _spectral(out: Tensor, context: TensorContext) -> bool:
    """True for a matrix within a layer, whose singular vectors mean something."""
    return out.ndim == 2 and layer_of(context.name) is not None


def _rank(values: Tensor, out: Tensor) -> int:
    """Number of singular values (descending) above the rounding of a float32 SVD.

    The rule is that of numpy's matrix_rank.
    """
    if not len(values):
        return 0
    rounding = values[0] * max(out.shape) * torch.finfo(torch.float32).eps
    return int((values > rounding).sum())


def _mean(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    members: Sequence[int],
    base: Tensor,
    context: TensorContext,
    out: Tensor,
    lambda_: float,
) -> None:
    """Write `b + lambda mean_k w_k tau_k`."""
    step = lambda_ / max(len(members), 1)
    task_arithmetic(tensors, weights, base=base, context=context, out=out, lambda_=step)


def _nearest_orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to this one in Frobenius norm."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right
