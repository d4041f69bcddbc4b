"""Find the k-th largest magnitude of a delta exactly, by counting instead of sorting.

It takes two passes over blocks. The bits of a non-negative float32 order like integers. The first
pass counts their upper 16 bits, the second the lower 16 bits of the elements in the one bin where
the k-th lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

MAGNITUDE = 0x7FFFFFFF
LOW_BITS = 16
DeltaBlocks: TypeAlias = Callable[[], Iterator[Tensor]]  # each call walks the float32 delta


@dataclass(slots=True)
class Cut:
    """Elements divided by magnitude at `bits`: the larger (or smaller) ones are inside.

    Of the equal ones, the first `num_equal` are inside; `take_all` says that all of them are, which
    spares counting them.
    """

    bits: int
    num_equal: int
    take_all: bool
    larger: bool = True

    def inside(self, magnitudes: Tensor) -> Tensor:
        """int32 mask of a block of magnitude bits, all ones where inside.

        Call it for each block once, in order.
        """
        if self.larger:
            beyond = self.bits - int(self.take_all) - magnitudes
        else:
            beyond = magnitudes - (self.bits + int(self.take_all))
        mask = beyond.bitwise_right_shift_(31)  # the sign bit, all over
        if not self.take_all and self.num_equal > 0:
            positions = (magnitudes == self.bits).nonzero().view(-1)[: self.num_equal]
            self.num_equal -= positions.numel()
            mask[positions] = -1
        return mask

    def again(self) -> Cut:
        """The same cut for another walk; take it before the first."""
        return replace(self)


def magnitude_bits(delta: Tensor) -> Tensor:
    """The float32 bits of |delta| as int32, in a new tensor."""
    return delta.view(torch.int32).bitwise_and(MAGNITUDE)


def largest(delta_blocks: DeltaBlocks, count: int) -> Cut:
    """The cut with the `count` elements of largest magnitude inside, earlier ones among equals.

    `count` must be at least 1 and at most the number of elements.
    """
    bits, num_larger, num_equal = _kth_largest(delta_blocks, count)
    return Cut(bits, count - num_larger, take_all=count - num_larger == num_equal)


def smallest(delta_blocks: DeltaBlocks, count: int, num_elements: int) -> Cut:
    """The cut with the `count` elements of smallest magnitude inside, earlier ones among equals."""
    if count == 0:
        return Cut(0, 0, take_all=False, larger=False)
    bits, num_larger, num_equal = _kth_largest(delta_blocks, num_elements - count + 1)
    wanted = count - (num_elements - num_larger - num_equal)
    return Cut(bits, wanted, take_all=wanted == num_equal, larger=False)


def _kth_largest(delta_blocks: DeltaBlocks, count: int) -> tuple[int, int, int]:
    """Magnitude bits of the count-th largest element; how many are larger; how many are equal."""

    def high_bits(bits: Tensor) -> Tensor:
        return bits.bitwise_right_shift_(LOW_BITS)

    upper = _histogram(delta_blocks, high_bits, 1 << (31 - LOW_BITS))
    bin_, above = _kth_bin(upper, count)
    lower = _histogram(delta_blocks, lambda bits: _low_bits_in(bits, bin_), 1 << LOW_BITS)
    low, above_low = _kth_bin(lower, count - above)
    return (bin_ << LOW_BITS) | low, above + above_low, int(lower[low])


def _histogram(
    delta_blocks: DeltaBlocks, bin_of: Callable[[Tensor], Tensor], num_bins: int
) -> Tensor:
    """Number of elements in each bin, on the CPU."""
    total: Tensor | None = None
    for delta in delta_blocks():
        bins = bin_of(magnitude_bits(delta))
        counts = torch.bincount(bins, minlength=num_bins)
        total = counts if total is None else total.add_(counts)
    assert total is not None
    return total.cpu()


def _low_bits_in(bits: Tensor, bin_: int) -> Tensor:
    """Lower bits of the elements whose upper bits are `bin_`."""
    if not bits.is_cuda:
        values = bits.numpy()
        return torch.from_numpy(values[(values >> LOW_BITS) == bin_] & ((1 << LOW_BITS) - 1))
    return bits[bits.bitwise_right_shift(LOW_BITS) == bin_].bitwise_and_((1 << LOW_BITS) - 1)


def _kth_bin(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin that holds the count-th largest element, and how many elements lie in higher bins."""
    from_top = histogram.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_top, count))
    return histogram.numel() - 1 - index, int(from_top[index - 1]) if index else 0
