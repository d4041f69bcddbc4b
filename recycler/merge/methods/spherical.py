"""Merges along arcs instead of chords:

SLERP, NuSLERP, Multi-SLERP, Karcher mean; and Model Stock, which measures angles too.

The result always lies in the span of the members, so the geometry is done on K x K inner products
in float64 and the tensors are only read twice: once to measure, once for a weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recycler.errors import Problem, UsageError
from recycler.merge.kernels.blocks import active, weighted_sum
from recycler.merge.kernels.gram import gram
from recycler.merge.methods.linear import SMALLEST_DIVISOR, linear
from recycler.merge.methods.method import TensorContext, require_members

COLLINEAR = 0.9995  # |cos| above which slerp is taken for linear interpolation
TINY = 1e-8


def slerp(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
) -> None:
    """Spherical interpolation of two members at t = w_1 / (w_0 + w_1) (Shoemake 1985).

    sin((1-t) a) / sin a * t_0 + sin(t a) / sin a * t_1, with a the angle between the flattened
    tensors; linear when |cos a| > 0.9995. With a base the arc is drawn between the deltas.
    mergekit's `t`, with `base_model` as t_0, is this without a base and with weights (1 - t, t).
    """
    require_members("slerp", tensors, 2)
    _arc(tensors, weights, base, out, collinear=lambda cosine: abs(cosine) > COLLINEAR)


def nuslerp(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> None:
    """SLERP of two members, or of their deltas to a base, whole or by rows (Goddard 2024,
    mergekit).

    t = w_1 / (w_0 + w_1), 0.5 when the sum is nearly zero. `nuslerp_flatten=False` draws one arc
    for each vector along the last dimension, or along the first with `nuslerp_row_wise` (mergekit's
    names).
    """
    require_members("nuslerp", tensors, 2)
    if nuslerp_flatten or len(active(tensors, weights)) < 2 or out.ndim == 0:
        _arc(tensors, weights, base, out, collinear=lambda cosine: 1 - cosine**2 <= TINY**2)
    else:
        _arcs_by_vector(tensors, _fraction(weights), base, out, dim=0 if nuslerp_row_wise else -1)


def multislerp(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    normalize_weights: bool = True,
) -> None:
    """Barycentre on the sphere by one tangent step from the weighted mean direction (Goddard 2025,
    mergekit).

    With u_k the unit tensors (of the deltas when a base is given): direction of sum_k w_k u_k,
    length sum_k w_k |t_k|. The tangent term at that mean is zero by construction, so nothing more
    remains of the step. Undefined when the weighted directions cancel: two members are then
    interpolated linearly, more raise UsageError.
    """
    members = active(tensors, weights)
    if len(members) < 2:
        _lone(tensors, weights, members, base, out, normalize=normalize_weights)
        return
    chosen = [tensors[index] for index in members]
    shares = torch.tensor(
        _shares([weights[index] for index in members])
        if normalize_weights
        else [weights[index] for index in members],
        dtype=torch.float64,
    )
    products = gram(chosen, base)
    lengths = products.diagonal().clamp(min=0).sqrt()
    directions = torch.where(
        lengths > TINY,
        shares / (lengths + TINY),
        0.0,
        # a member that has not moved points nowhere: a large factor on it would only cancel against
        # the
        # base's
    )
    mean_length = float((directions @ products @ directions).clamp(min=0).sqrt())
    if mean_length >= TINY:
        coefficients = directions / mean_length * (lengths * shares).sum()
    elif len(members) == 2 or not bool(
        (lengths > TINY).any()
    ):  # a tensor that no member has changed has no directions at all
        coefficients = shares
    else:
        raise UsageError(
            Problem(
                thing=f"tensor {context.name!r}",
                cause="the weighted directions of the members cancel, so there is no mean direction",
                remedy="Use other weights, or linear",
            )
        )
    _combine(chosen, coefficients, base, out)


def karcher(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    max_iter: int = 10,
    tol: float = 1e-5,
) -> None:
    """Weighted Karcher (Riemannian) mean of the members' directions, times their weighted mean
    length.

    Iterates u <- exp_u(sum_k a_k log_u u_k) from the mean direction, at most `max_iter` times or
    until the step is below `tol` (Karcher 1977; mergekit, where weights are always equal). Weights
    are normalised. Members shorter than `tol` have no direction and only count for the length. With
    a base: of the deltas.
    """
    members = active(tensors, weights)
    if len(members) < 2:
        _lone(tensors, weights, members, base, out, normalize=True)
        return
    chosen = [tensors[index] for index in members]
    shares = _shares([weights[index] for index in members])
    products = gram(chosen, base)
    lengths = products.diagonal().clamp(min=0).sqrt()
    pointing = [k for k in range(len(chosen)) if float(lengths[k]) > tol]
    if not pointing:
        _combine([], torch.zeros(0), base, out)
        return
    cosines = (products / lengths.outer(lengths))[pointing][:, pointing]
    alphas = torch.tensor([shares[k] for k in pointing], dtype=torch.float64)
    mean = _karcher_mean(cosines, alphas / alphas.sum(), max_iter, tol)
    scale = sum(share * float(length) for share, length in zip(shares, lengths, strict=True))
    _combine([chosen[k] for k in pointing], scale * mean / lengths[pointing], base, out)


def _karcher_mean(cosines: Tensor, alphas: Tensor, max_iter: int, tol: float) -> Tensor:
    """Coefficients, over unit vectors with these mutual cosines, of their mean on the sphere."""

    def length(vector: Tensor) -> float:
        return float((vector @ cosines @ vector).clamp(min=0).sqrt())

    mean = alphas.clone()
    if length(mean) < tol:
        mean = torch.zeros_like(alphas)
        mean[0] = 1.0
    mean = mean / length(mean)
    for _ in range(max_iter):
        dots = (cosines @ mean).clamp(-1, 1)
        angles = dots.arccos()
        pull = torch.where(angles < tol, 0.0, alphas * angles / angles.sin().clamp(min=1e-300))
        tangent = pull - (pull * dots).sum() * mean
        step = length(tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean = mean / length(mean)
    return mean


def model_stock(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    filter_wise: bool = False,
) -> None:
    """Model Stock (Jang et al. 2024, arXiv:2403.19522, eq. 4): t mean + (1 - t) base, t = N c / (1
    + (N - 1) c).

    c is the mean cosine between pairs of deltas, per tensor or per row (`filter_wise`). N counts
    the members of non-zero weight, and the mean is weighted by them (equal weights are the
    paper's). t = 0 where 1 + (N - 1) c vanishes. One member alone is returned as it is.
    """
    assert base is not None
    members = active(tensors, weights)
    if len(members) < 2:
        _lone(tensors, weights, members, base, out, normalize=True)
        return
    chosen, shares = (
        [tensors[index] for index in members],
        _shares([weights[index] for index in members]),
    )
    if not (filter_wise and out.ndim > 1):
        step = _stock_step(gram(chosen, base))
        linear(chosen, [step * share for share in shares], base=base, context=context, out=out)
        return
    for row in range(out.shape[0]):
        rows = [tensor[row] for tensor in chosen]
        step = _stock_step(gram(rows, base[row]))
        linear(
            rows, [step * share for share in shares], base=base[row], context=context, out=out[row]
        )


def _stock_step(products: Tensor) -> float:
    count = products.shape[0]
    lengths = products.diagonal().clamp(min=0).sqrt()
    cosines = (products / lengths.outer(lengths).clamp(min=1e-6)).clamp(-1, 1)
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
    divisor = 1 + (count - 1) * cosine
    return count * cosine / divisor if abs(divisor) >= 1e-6 else 0.0


# ---------------------------------------------------------------- shared


def _combine(
    tensors: Sequence[Tensor], coefficients: Tensor, base: Tensor | None, out: Tensor
) -> None:
    """out = sum_k c_k t_k, of deltas when there is a base: b + sum_k c_k (t_k - b)."""
    terms = list(zip(tensors, coefficients.tolist(), strict=True))
    if base is not None:
        terms.append((base, 1.0 - float(coefficients.sum())))
    weighted_sum(terms, out)


def _lone(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    members: Sequence[int],
    base: Tensor | None,
    out: Tensor,
    *,
    normalize: bool,
) -> None:
    """No arc with fewer than two members: the one there is, or the base, or zeros."""
    weight = [1.0 if normalize else weights[index] for index in members]
    _combine(
        [tensors[index] for index in members], torch.tensor(weight, dtype=torch.float64), base, out
    )


def _shares(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    if abs(total) < SMALLEST_DIVISOR:
        raise UsageError(
            Problem(
                thing="weights",
                cause="sum to zero and cannot be normalised",
                remedy="Give weights with another sum",
            )
        )
    return [weight / total for weight in weights]


def _fraction(weights: Sequence[float]) -> float:
    total = sum(weights)
    return 0.5 if abs(total) < 1e-6 else weights[1] / total


def _arc(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None,
    out: Tensor,
    *,
    collinear,
) -> None:
    members = active(tensors, weights)
    if len(members) < 2:
        _lone(tensors, weights, members, base, out, normalize=True)
        return
    products = gram(tensors, base)
    t = _fraction(weights)
    length = [math.sqrt(max(float(entry), 0.0)) or 1.0 for entry in products.diagonal()]
    cosine = max(-1.0, min(1.0, float(products[0, 1]) / (length[0] * length[1])))
    if collinear(cosine):
        pair = (1 - t, t)
    else:
        angle = math.acos(cosine)
        pair = (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
    _combine(tensors, torch.tensor(pair, dtype=torch.float64), base, out)


def _arcs_by_vector(
    tensors: Sequence[Tensor], t: float, base: Tensor | None, out: Tensor, *, dim: int
) -> None:
    """One arc for each vector along `dim`, over slabs of a million elements where vectors are rows."""
    with torch.no_grad():
        first, second = (tensor.movedim(dim, -1) for tensor in tensors)
        origin = base.movedim(dim, -1) if base is not None else None
        target = out.movedim(dim, -1)
        slab = max(1, (1 << 20) // max(target.shape[-1], 1)) if target.ndim > 1 else 1
        pieces = (
            [slice(start, start + slab) for start in range(0, target.shape[0], slab)]
            if target.ndim > 1
            else [...]
        )
        for piece in pieces:
            zero = origin[piece].float() if origin is not None else 0.0
            a, b = first[piece].float() - zero, second[piece].float() - zero
            cosine = (
                (
                    torch.nn.functional.normalize(a, dim=-1, eps=1e-7)
                    * torch.nn.functional.normalize(b, dim=-1, eps=1e-7)
                )
                .sum(-1, keepdim=True)
                .clamp(-1, 1)
            )
            flat = 1 - cosine.square() <= TINY**2
            angle = torch.where(flat, torch.ones_like(cosine), cosine).acos().clamp(min=1e-12)
            arc = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()
            target[piece] = (torch.where(flat, (1 - t) * a + t * b, arc) + zero).to(out.dtype)
