"""Merges along arcs: SLERP, NuSLERP, Multi-SLERP, Karcher mean; and Model Stock, by angles.

The result always lies in the span of the members, so the geometry is done on K x K inner products
in float64 and the tensors are only read twice: once to measure, once for a weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from recycler.errors import Problem, UsageError
from recycler.merge.kernels.blocks import active, weighted_sum
from recycler.merge.kernels.gram import gram
from recycler.merge.methods.linear import MIN_DIVISOR, linear
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
    """Interpolate two members along the arc between them (SLERP: Shoemake 1985).

    1. Measure the angle a between the flattened tensors t_0 and t_1, or between their deltas when
       there is a base.
    2. Take `t = w_1 / (w_0 + w_1)`, or 0.5 when that sum is nearly zero.
    3. Write `sin((1 - t) a) / sin(a) t_0 + sin(t a) / sin(a) t_1`; the linear interpolation when
       |cos a| > 0.9995.

    mergekit's `t`, with `base_model` as t_0, is this without a base and with weights (1 - t, t).

    Limitations: exactly two members. Opposite tensors are interpolated linearly too, since any arc
    between them is as good as another.
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
    """Interpolate two members along one arc, or one per vector (NuSLERP: Goddard 2024, mergekit).

    1. Take `t = w_1 / (w_0 + w_1)`, or 0.5 when that sum is nearly zero.
    2. With `nuslerp_flatten`, draw the arc of `slerp` between the flattened tensors, or between
       their deltas when there is a base.
    3. Otherwise draw one arc for each vector along the last dimension, or along the first with
       `nuslerp_row_wise` (mergekit's names).

    Limitations: exactly two members. Arcs become chords only where the vectors are parallel within
    rounding, so nearly opposite ones may pass through large numbers.
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
    """Take the weighted mean direction and the weighted mean length (Goddard 2025, mergekit).

    1. Divide the weights by their sum (`normalize_weights`).
    2. Take the unit tensors u_k, of the deltas when there is a base.
    3. Write the direction of `sum_k w_k u_k` with the length `sum_k w_k |t_k|`. mergekit adds one
       step in the tangent space at that mean, which is zero by construction.

    Limitations: there is no mean direction when the weighted directions cancel. Two members are
    then interpolated linearly; more raise UsageError.
    """
    members = active(tensors, weights)
    if len(members) < 2:
        _lone(tensors, weights, members, base, out, normalize=normalize_weights)
        return
    chosen = [tensors[index] for index in members]
    used = [weights[index] for index in members]
    shares = torch.tensor(_shares(used) if normalize_weights else used, dtype=torch.float64)
    products = gram(chosen, base)
    lengths = products.diagonal().clamp(min=0).sqrt()
    # A member that has not moved points nowhere: a large factor on it would only cancel the base's
    directions = torch.where(lengths > TINY, shares / (lengths + TINY), 0.0)
    mean_length = float((directions @ products @ directions).clamp(min=0).sqrt())
    nobody_moved = not bool((lengths > TINY).any())
    if mean_length >= TINY:
        coefficients = directions / mean_length * (lengths * shares).sum()
    elif len(members) == 2 or nobody_moved:
        coefficients = shares
    else:
        raise UsageError(
            Problem(
                thing=f"tensor {context.name!r}",
                cause="the weighted directions of the members cancel, so there is no mean "
                "direction",
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
    """Take the Karcher mean of the directions, times the mean length (Karcher 1977).

    1. Divide the weights by their sum to a_k, and take the unit tensors u_k, of the deltas when
       there is a base. Members shorter than `tol` have no direction.
    2. From the mean direction, repeat `u <- exp_u(sum_k a_k log_u u_k)`, at most `max_iter` times
       or until the step is shorter than `tol`.
    3. Write u with the length `sum_k a_k |t_k|`, of all members.

    Limitations: the mean is unique only when the directions lie within a half-sphere. mergekit's
    method of this name knows equal weights only.
    """
    members = active(tensors, weights)
    if len(members) < 2:
        _lone(tensors, weights, members, base, out, normalize=True)
        return
    chosen = [tensors[index] for index in members]
    shares = _shares([weights[index] for index in members])
    products = gram(chosen, base)
    lengths = products.diagonal().clamp(min=0).sqrt()
    pointing = [k for k, length in enumerate(lengths.tolist()) if length > tol]
    if not pointing:
        _combine([], torch.zeros(0), base, out)
        return
    cosines = (products / lengths.outer(lengths))[pointing][:, pointing]
    alphas = torch.tensor([shares[k] for k in pointing], dtype=torch.float64)
    mean = _karcher_mean(cosines, alphas / alphas.sum(), max_iter, tol)
    scale = sum(share * float(length) for share, length in zip(shares, lengths, strict=True))
    _combine([chosen[k] for k in pointing], scale * mean / lengths[pointing], base, out)


def _karcher_mean(cosines: Tensor, alphas: Tensor, max_iter: int, tol: float) -> Tensor:
    """Coefficients (K) of the mean of unit vectors, from their cosines (K, K)."""

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
    """Pull the members' mean towards the base (Model Stock: Jang et al. 2024, arXiv:2403.19522).

    1. Measure c, the mean cosine between pairs of deltas, per tensor or per row (`filter_wise`).
    2. Take `t = N c / (1 + (N - 1) c)` (eq. 4) for the N members of non-zero weight; 0 where the
       divisor vanishes.
    3. Write `t mean + (1 - t) b`, with the mean weighted by the weights over their sum.

    Limitations: made for fine-tunings of one task, whose deltas are alike in length. Weights other
    than equal ones are ours. One member alone is returned as it is.
    """
    assert base is not None
    members = active(tensors, weights)
    if len(members) < 2:
        _lone(tensors, weights, members, base, out, normalize=True)
        return
    chosen = [tensors[index] for index in members]
    shares = _shares([weights[index] for index in members])
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
    """t of eq. 4, from the inner products (N, N) of the deltas."""
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
    """Write the one member there is, else the base, else zeros: no arc has fewer than two ends."""
    chosen = [tensors[index] for index in members]
    used = [1.0 if normalize else weights[index] for index in members]
    _combine(chosen, torch.tensor(used, dtype=torch.float64), base, out)


def _shares(weights: Sequence[float]) -> list[float]:
    """Weights over their sum. Raises UsageError when that is zero."""
    total = sum(weights)
    if abs(total) < MIN_DIVISOR:
        raise UsageError(
            Problem(
                thing="weights",
                cause="sum to zero and cannot be normalised",
                remedy="Give weights with another sum",
            )
        )
    return [weight / total for weight in weights]


def _fraction(weights: Sequence[float]) -> float:
    """The place t on the arc: 0 is the first member, 1 the second."""
    total = sum(weights)
    return 0.5 if abs(total) < 1e-6 else weights[1] / total


def _arc(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None,
    out: Tensor,
    *,
    collinear: Callable[[float], bool],
) -> None:
    """Write the point at `_fraction(weights)` of the arc; of the chord where `collinear(cos a)`."""
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
    """Write one arc for each vector along `dim`, in slabs of a million elements."""
    normalize = torch.nn.functional.normalize
    with torch.no_grad():
        first, second = (tensor.movedim(dim, -1) for tensor in tensors)
        origin = base.movedim(dim, -1) if base is not None else None
        target = out.movedim(dim, -1)
        for piece in _slabs(target):
            zero = origin[piece].float() if origin is not None else 0.0
            a, b = first[piece].float() - zero, second[piece].float() - zero
            products = normalize(a, dim=-1, eps=1e-7) * normalize(b, dim=-1, eps=1e-7)
            cosine = products.sum(-1, keepdim=True).clamp(-1, 1)
            flat = 1 - cosine.square() <= TINY**2
            angle = torch.where(flat, torch.ones_like(cosine), cosine).acos().clamp(min=1e-12)
            arc = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()
            target[piece] = (torch.where(flat, (1 - t) * a + t * b, arc) + zero).to(out.dtype)


def _slabs(target: Tensor) -> Iterator[slice | EllipsisType]:
    """Parts of a tensor with about a million elements each; a single vector is one part."""
    if target.ndim == 1:
        yield ...
        return
    rows = max(1, (1 << 20) // max(target.shape[-1], 1))
    for start in range(0, target.shape[0], rows):
        yield slice(start, start + rows)
