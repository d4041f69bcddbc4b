"""Merges where the members vote on the sign of every element: TIES and SCE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from recycler.merge.kernels.blocks import active, block_elements, blocks, flat_output
from recycler.merge.kernels.selection import Cut, DeltaBlocks, largest, magnitude_bits
from recycler.merge.methods.delta_pipeline import Sparsify, drop_all, merge_deltas
from recycler.merge.methods.method import TensorContext, per_member


def ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> None:
    """Trim, elect sign, disjoint mean (TIES: Yadav et al. 2023, arXiv:2306.01708, section 3).

    1. Trim: tau_k keeps its int(density n) elements of largest magnitude, at least one; of equal
       ones the first. `rescale` restores each delta's L1 norm.
    2. Elect the sign of `sum_k w_k tau_k` for each element; a sum of zero elects plus.
    3. Merge: write `b + lambda` times the sum of the `w_k tau_k` that have this sign, divided by
       the sum of their weights (`normalize`).

    Limitations: trims per tensor, as mergekit and PEFT do, where the paper's code trims the model
    as a whole. Two members never outvote each other: the larger one decides.
    """
    assert base is not None
    densities = per_member("density", density, len(tensors))

    def make_sparsify(index: int, delta: DeltaBlocks) -> Sparsify | None:
        return keep_largest(delta, out.numel(), densities[index], rescale=rescale)

    merge_deltas(
        tensors,
        weights,
        base,
        out,
        make_sparsify,
        consensus=True,
        normalize=normalize,
        lambda_=lambda_,
    )


def keep_largest(
    delta: DeltaBlocks, num_elements: int, density: float, *, rescale: bool
) -> Sparsify | None:
    """Keep the int(density * n) elements of largest magnitude; None when that is all of them."""
    if density >= 1.0 or num_elements == 0:
        return None
    if density <= 0.0:
        return drop_all
    count = max(1, int(density * num_elements))
    cut = largest(delta, count)
    scale = l1_ratio(delta, cut.again().inside) if rescale else 1.0

    def sparsify(start: int, block: Tensor) -> None:
        block.view(torch.int32).bitwise_and_(cut.inside(magnitude_bits(block)))
        if scale != 1.0:
            block.mul_(scale)

    return sparsify


def l1_ratio(delta: DeltaBlocks, mask_of: Callable[[Tensor], Tensor]) -> float:
    """Sum of |delta| over the sum of what a mask of magnitude bits leaves; 1 if either is zero."""
    before = after = 0.0
    for block in delta():
        bits = magnitude_bits(block)
        before += float(bits.view(torch.float32).sum(dtype=torch.float64))
        after += float(bits.bitwise_and(mask_of(bits)).view(torch.float32).sum(dtype=torch.float64))
    return before / after if before > 1e-7 and after > 1e-7 else 1.0


def sce(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    select_topk: float = 1.0,
) -> None:
    """Select, calculate, erase (SCE: Wan et al. 2024, arXiv:2408.07990).

    1. Select the elements where the variance of the deltas over members is among the `select_topk`
       largest, of those that vary at all.
    2. Calculate each member's coefficient from the energy of what is left,
       `c_k = w_k mean(tau_k^2)`, with energies normalised over members.
    3. Erase minority signs: an element takes the sign of `sum_k tau_k`, and deltas of the other
       sign do not count.
    4. Write `b + sum c_k tau_k / sum c_k`, both over the members that agree.

    Limitations: weights other than 1 are ours, the paper has none. One member alone, which has no
    variance, is returned as it is.
    """
    assert base is not None
    (share,) = per_member("select_topk", select_topk, 1)
    with torch.no_grad():
        members = active(tensors, weights)
        if not members or out.numel() == 0:
            out.copy_(base)
            return
        if len(members) == 1:
            out.copy_(tensors[members[0]])
            return
        flats, flat_base = [tensors[index].reshape(-1) for index in members], base.reshape(-1)
        used = torch.tensor([weights[index] for index in members], device=out.device)
        size = block_elements(out, len(flats))
        cut = _variance_cut(flats, flat_base, size, share)
        energies = torch.zeros(len(flats), dtype=torch.float64, device=out.device)
        for _, deltas in _stacks(flats, flat_base, size, cut and cut.again()):
            energies += deltas.square().sum(1, dtype=torch.float64)
        coefficients = (_normalised(energies / out.numel()) * used).float()
        with flat_output(out) as target:
            for block, deltas in _stacks(flats, flat_base, size, cut and cut.again()):
                sign = deltas.sum(0).sign_().add_(0.5).sign_()
                agree = (deltas * sign > 0) * coefficients[:, None]
                mixed = (deltas * agree).sum(0) / agree.sum(0).clamp_(min=1e-6)
                target[block].copy_(mixed.add_(flat_base[block]))


def _normalised(energies: Tensor) -> Tensor:
    """Energies (K) over their sum; all alike when there is next to none."""
    total = energies.sum()
    if float(total) >= 1e-6:
        return energies / total
    return torch.full_like(energies, 1 / len(energies))


def _variance_cut(flats: Sequence[Tensor], base: Tensor, size: int, share: float) -> Cut | None:
    """The cut of float32 variances that leaves a `share` of them inside; None for all of them.

    Nothing is inside a cut at infinity.
    """
    if share >= 1.0:
        return None

    def variances() -> Iterator[Tensor]:
        for _, deltas in _stacks(flats, base, size, None):
            yield _variance(deltas)

    count = int(sum(int(torch.count_nonzero(variance)) for variance in variances()) * share)
    return largest(variances, count) if count else Cut(0x7F800000, 0, take_all=False)


def _stacks(
    flats: Sequence[Tensor], base: Tensor, size: int, cut: Cut | None
) -> Iterator[tuple[slice, Tensor]]:
    """(block, float32 deltas `(K, n)`), zero where `cut` leaves the element's variance outside."""
    for block in blocks(base.numel(), size):
        origin = base[block].float()
        deltas = torch.stack([flat[block].float() - origin for flat in flats])
        if cut is not None:
            deltas.view(torch.int32).bitwise_and_(cut.inside(magnitude_bits(_variance(deltas))))
        yield block, deltas


def _variance(deltas: Tensor) -> Tensor:
    """Population variance (n) over members (K, n).

    Two passes are several times faster than `torch.var` over a leading axis.
    """
    return (deltas - deltas.mean(0)).square_().mean(0)
