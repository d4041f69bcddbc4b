"""Merges that drop elements of the deltas first: DARE and DELLA at random, Breadcrumbs by size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recycler.errors import Problem, UsageError
from recycler.merge.kernels.counter_random import STEPS, mask_key, random_u16, steps_of
from recycler.merge.kernels.selection import Cut, DeltaBlocks, magnitude_bits, smallest
from recycler.merge.methods.delta_pipeline import MakeThin, Thin, delta_blocks, merge_deltas
from recycler.merge.methods.method import TensorContext, per_member
from recycler.merge.methods.sign_consensus import l1_ratio

# ---------------------------------------------------------------- DARE


def dare_linear(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """DARE, then task arithmetic (Yu et al. 2024, arXiv:2311.03099, eq. 1-3): b + lambda sum_k w_k
    m_k tau_k / d_k.

    m_k is 1 with probability d_k = `density` (the paper's 1 - p) for each element by itself;
    dividing by d_k (`rescale`) keeps the expectation. Probabilities come in steps of 1/65536, and
    the division is by the step that is used. Breaks for large deltas (above about 0.01: another
    base, continued pretraining): look at the preflight first.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _random_thins(context, density, len(tensors), rescale),
        consensus=False,
        normalize=normalize,
        lambda_=lambda_,
    )


def dare_ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """DARE, then sign election and disjoint merge as in TIES (arXiv:2311.03099 with
    arXiv:2306.01708). Limits as dare_linear.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _random_thins(context, density, len(tensors), rescale),
        consensus=True,
        normalize=normalize,
        lambda_=lambda_,
    )


def _random_thins(
    context: TensorContext, density: float | Sequence[float], num_members: int, rescale: bool
) -> MakeThin:
    densities = per_member("density", density, num_members)

    def make_thin(index: int, delta: DeltaBlocks) -> Thin | None:
        steps = steps_of(densities[index])
        key = mask_key(context.seed, context.members[index], context.name)
        if steps == STEPS:
            return None

        def thin(start: int, block: Tensor) -> None:
            mask = (
                random_u16(key, start, block.numel(), block.device)
                .sub_(steps)
                .bitwise_right_shift_(31)
            )
            block.view(torch.int32).bitwise_and_(mask)
            if rescale and steps:
                block.mul_(STEPS / steps)

        return thin

    return make_thin


# ---------------------------------------------------------------- DELLA


def della(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    epsilon: float | Sequence[float] = 0.15,
    rescale: bool = True,
    normalize: bool = True,
    lambda_: float = 1.0,
) -> None:
    """DELLA: MagPrune, elect, fuse (Deep et al. 2024, arXiv:2406.11617).

    Within each row (last dimension) elements are ranked by |tau|: the smallest stays with
    probability density - epsilon, the largest with density + epsilon, linearly between; what stays
    is divided by its own probability (`rescale`), so the expectation is kept. Then signs vote as in
    TIES. Needs 0 < density - epsilon and density + epsilon < 1, or density 1.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _magprune_thins(context, density, epsilon, tensors, base, rescale),
        consensus=True,
        normalize=normalize,
        lambda_=lambda_,
    )


def della_linear(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    epsilon: float | Sequence[float] = 0.15,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """DELLA's MagPrune followed by task arithmetic, without the vote on signs (arXiv:2406.11617).

    Options as della.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _magprune_thins(context, density, epsilon, tensors, base, rescale),
        consensus=False,
        normalize=normalize,
        lambda_=lambda_,
    )


def _magprune_thins(
    context: TensorContext,
    density: float | Sequence[float],
    epsilon: float | Sequence[float],
    tensors: Sequence[Tensor],
    base: Tensor,
    rescale: bool,
) -> MakeThin:
    densities = per_member("density", density, len(tensors))
    epsilons = per_member("epsilon", epsilon, len(tensors))
    for index, (middle, half) in enumerate(zip(densities, epsilons, strict=True)):
        if 0 < middle < 1 and not (0 < middle - half and middle + half < 1):
            raise UsageError(
                Problem(
                    thing=f"density {middle:g} and epsilon {half:g} of {context.members[index]!r}",
                    cause="leave (0, 1) when added or subtracted",
                    remedy=f"Choose epsilon below {min(middle, 1 - middle):g}",
                )
            )
    width = base.shape[-1] if base.ndim else 1

    def make_thin(index: int, delta: DeltaBlocks) -> Thin | None:
        if densities[index] >= 1.0:
            return None
        if densities[index] <= 0.0:
            return lambda start, block: block.zero_()
        return _MagPrune(
            mask_key(context.seed, context.members[index], context.name),
            tensors[index],
            base,
            width,
            densities[index],
            epsilons[index],
            rescale,
        )

    return make_thin


class _MagPrune:
    """Keeps element i of a row with the probability of its rank; ranks are made for whole rows, and
    used in blocks.
    """

    def __init__(
        self,
        key: tuple[int, int],
        tensor: Tensor,
        base: Tensor,
        width: int,
        density: float,
        epsilon: float,
        rescale: bool,
    ):
        self._key, self._width, self._rescale = key, width, rescale
        self._low, self._span = density - epsilon, 2 * epsilon
        rows_at_once = max(1, (1 << 18) // max(width, 1))
        self._chunks = delta_blocks(tensor, base, rows_at_once * max(width, 1))
        self._ready: list[Tensor] = []  # probabilities of elements from self._start on
        self._num_ready = 0

    def __call__(self, start: int, block: Tensor) -> None:
        probability = self._take(block.numel())
        steps = (probability * STEPS).to(torch.int32)
        mask = (
            random_u16(self._key, start, block.numel(), block.device)
            .sub_(steps)
            .bitwise_right_shift_(31)
        )
        block.view(torch.int32).bitwise_and_(mask)
        if self._rescale:
            block.mul_(STEPS).div_(steps)

    def _take(self, count: int) -> Tensor:
        while self._num_ready < count:
            rows = next(self._chunks).view(-1, self._width)
            ranks = rank_in_rows(rows)
            self._ready.append(
                ranks.mul_(self._span / max(self._width - 1, 1)).add_(self._low).view(-1)
            )
            self._num_ready += rows.numel()
        joined = self._ready[0] if len(self._ready) == 1 else torch.cat(self._ready)
        self._ready, self._num_ready = [joined[count:]], joined.numel() - count
        return joined[:count]


def rank_in_rows(rows: Tensor) -> Tensor:
    """float32 rank of each |element| within its row `(R, n)`: 0 for the smallest; earlier elements
    first among equals.

    A rank of every element is a sort by nature; rows are short, and magnitude and position packed
    into one integer sort several times faster than an argsort.
    """
    if rows.is_cuda:
        return rows.abs().argsort(dim=1, stable=True).argsort(dim=1).to(torch.float32)
    width = rows.shape[1]
    keys = (
        magnitude_bits(rows)
        .to(torch.int64)
        .bitwise_left_shift_(32)
        .bitwise_or_(torch.arange(width))
    )
    keys.numpy().sort(axis=1)
    ranks = torch.empty(rows.shape, dtype=torch.float32)
    return ranks.scatter_(
        1,
        keys.bitwise_and_(0xFFFFFFFF),
        torch.arange(width, dtype=torch.float32).expand(rows.shape),
    )


# ---------------------------------------------------------------- Breadcrumbs


def breadcrumbs(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    gamma: float | Sequence[float] = 0.01,
    rescale: bool = False,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """Model Breadcrumbs (Davari and Belilovsky 2023, arXiv:2312.06795): b + lambda sum_k w_k
    thin(tau_k).

    thin drops the int(gamma n) largest magnitudes and as many of the smallest as leaves int(density
    n); when that is not possible, fewer of the largest are dropped. Among equal magnitudes the
    later elements count as larger.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _middle_thins(out.numel(), density, gamma, len(tensors), rescale),
        consensus=False,
        normalize=normalize,
        lambda_=lambda_,
    )


def breadcrumbs_ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    density: float | Sequence[float] = 1.0,
    gamma: float | Sequence[float] = 0.01,
    rescale: bool = False,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> None:
    """Breadcrumbs' thinning followed by the vote on signs of TIES (arXiv:2312.06795,
    arXiv:2306.01708).
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        _middle_thins(out.numel(), density, gamma, len(tensors), rescale),
        consensus=True,
        normalize=normalize,
        lambda_=lambda_,
    )


def _middle_thins(
    num_elements: int,
    density: float | Sequence[float],
    gamma: float | Sequence[float],
    num_members: int,
    rescale: bool,
) -> MakeThin:
    densities, gammas = (
        per_member("density", density, num_members),
        per_member("gamma", gamma, num_members),
    )

    def make_thin(index: int, delta: DeltaBlocks) -> Thin | None:
        if densities[index] >= 1.0 or num_elements == 0:
            return None
        target = int(densities[index] * num_elements)
        bottom = max(0, num_elements - target - int(gammas[index] * num_elements))
        return keep_between(delta, num_elements, bottom, bottom + target, rescale=rescale)

    return make_thin


def keep_between(
    delta: DeltaBlocks, num_elements: int, first: int, last: int, *, rescale: bool
) -> Thin:
    """Keep the elements whose rank by magnitude, from the smallest, lies in [first, last); equal
    ones rank in element order.
    """
    if last <= first:
        return lambda start, block: block.zero_()

    upto, below = smallest(delta, last, num_elements), smallest(delta, first, num_elements)
    scale = l1_ratio(delta, _between(upto.again(), below.again())) if rescale else 1.0
    mask_of = _between(upto, below)

    def thin(start: int, block: Tensor) -> None:
        block.view(torch.int32).bitwise_and_(mask_of(magnitude_bits(block)))
        if scale != 1.0:
            block.mul_(scale)

    return thin


def _between(upto: Cut, below: Cut) -> Callable[[Tensor], Tensor]:
    return lambda bits: upto.inside(bits).bitwise_and_(below.inside(bits).bitwise_not_())
