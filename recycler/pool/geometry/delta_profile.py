"""Distances of members from their base, by tensor and layer, from a sample or from all elements.

Large deltas decide what a merge may do. DARE drops most of each delta and rescales the rest; that
works while |delta| stays below about 0.005 (supervised fine-tuning) and breaks near 0.03 (continued
pretraining, or a base that is not the true one: Yu et al. 2024, arXiv:2311.03099, section 4.5 and
the abstract of v1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recycler.pool.storage.blocks import read_bytes, same_names, tensor_blocks
from recycler.pool.storage.dtypes import as_float32
from recycler.pool.storage.headers import DTYPE_BYTES
from recycler.types import Checkpoint, Pool, TensorInfo

NUM_RANGES = 8  # of a sample: ranges of elements, evenly spread over the tensor
MAX_LAYERS = 10_000
ElementRange = tuple[int, int]  # first element of a flat tensor, number of elements
_BIN_SHIFT = 16  # float32 bits per bin of the histogram: bins 0.8 % wide or less
_NUM_BINS = 1 << (31 - _BIN_SHIFT)  # without the sign
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDelta:
    """|member - base| of one tensor over the elements that were read; quantiles within 1 %."""

    name: str
    mean: float
    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberDelta:
    """One member's delta over all tensors, each weighted by its number of elements.

    Mean, p50, p99 and max are those of |delta|; `relative` is the delta's norm over the base's;
    `cosine` is that of member and base over matrices; `layers` has the mean |delta| of each layer.
    """

    member: str
    mean: float
    p50: float
    p99: float
    max: float
    relative: float
    cosine: float
    tensors: tuple[TensorDelta, ...]
    layers: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaProfile:
    """Deltas of all members to `base` (the pool's, else its first member), and all distances.

    `names` are the members and candidates; `distances` (N, N) and `to_base` (N) are norms of
    differences over the norm of the base; `cosines` (N, N) are those of deltas. `sample`: elements
    read per tensor, None for all; a sampled maximum is a lower bound.
    """

    base: str
    sample: int | None
    members: tuple[MemberDelta, ...]
    names: tuple[str, ...]
    to_base: tuple[float, ...]
    distances: tuple[tuple[float, ...], ...]
    cosines: tuple[tuple[float, ...], ...]


def delta_profile(
    pool: Pool, *, sample: int | None = 65_536, candidates: Sequence[Checkpoint] = ()
) -> DeltaProfile:
    """Measure deltas of the floating point tensors that all checkpoints share.

    Memory is a few times `sample` elements per checkpoint. Raises UnsafeInputError for files that
    were changed meanwhile.
    """
    base = pool.template
    others = [*(member for member in pool.members if member is not base), *candidates]
    checkpoints = [base, *others]
    sums = _DeltaSums(others, base)
    for name in same_names(checkpoints):
        sums.add(name, [checkpoint.tensors[name] for checkpoint in checkpoints], sample)
    return sums.profile(base.name, len(others) - len(candidates), sample)


class _TensorSums:
    """Sums over the elements of one tensor that were read, of N deltas and their base."""

    def __init__(self, num: int):
        self.num_read = 0
        self.counts = np.zeros((num, _NUM_BINS))  # histograms of |delta|
        self.gram = np.zeros((num + 1, num + 1))  # inner products: deltas, then the base
        self.sums, self.maxima = np.zeros(num), np.zeros(num)

    def add(self, base: np.ndarray, others: Sequence[np.ndarray]) -> None:
        """Add some elements of the tensor, (n,) float32 of each checkpoint."""
        rows = np.stack([*(other - base for other in others), base])
        self.gram += rows @ rows.T
        self.num_read += rows.shape[1]
        for index, row in enumerate(np.abs(rows[:-1])):
            bins = row.view(np.uint32) >> _BIN_SHIFT
            self.counts[index] += np.bincount(bins, minlength=_NUM_BINS)[:_NUM_BINS]
            self.sums[index] += row.sum(dtype=np.float64)
            self.maxima[index] = max(self.maxima[index], float(row.max()))

    def of_member(self, index: int, name: str) -> TensorDelta:
        """The figures of one checkpoint's delta."""
        largest = float(self.maxima[index])
        return TensorDelta(
            name=name,
            mean=float(self.sums[index] / self.num_read),
            p50=_quantile(self.counts[index], 0.5),
            p99=min(_quantile(self.counts[index], 0.99), largest),
            max=largest,
        )


class _DeltaSums:
    """Sums over tensors, each scaled to all of its elements, of N deltas and their base."""

    def __init__(self, others: Sequence[Checkpoint], base: Checkpoint):
        self.others, num = others, len(others)
        num_layers = max(min(base.num_layers, MAX_LAYERS), 1)
        self.count = 0.0  # of elements
        self.totals, self.maxima = np.zeros(num), np.zeros(num)
        self.histograms = np.zeros((num, _NUM_BINS))
        self.layer_sums, self.layer_counts = np.zeros((num, num_layers)), np.zeros(num_layers)
        self.gram = np.zeros((num + 1, num + 1))  # inner products: deltas, then the base
        self.matrices = np.zeros((num, 3))  # over matrices: member.base, |member|^2, |base|^2
        self.tensors: list[list[TensorDelta]] = [[] for _ in others]

    def add(self, name: str, infos: Sequence[TensorInfo], sample: int | None) -> None:
        """Add one tensor: `infos` of the base first, then of the others."""
        num = math.prod(infos[0].shape)
        if num == 0:
            return
        found = _TensorSums(len(self.others))
        for base, *others in zip(*(_values(info, sample) for info in infos), strict=True):
            found.add(base, others)
        scale = num / found.num_read
        self._add_scaled(found, scale)
        self._add_to_layer(name, found, scale)
        if len(infos[0].shape) > 1:
            self._add_matrix(found, scale)
        for index, tensors in enumerate(self.tensors):
            tensors.append(found.of_member(index, name))

    def _add_scaled(self, found: _TensorSums, scale: float) -> None:
        self.count += found.num_read * scale
        self.totals += found.sums * scale
        self.maxima = np.maximum(self.maxima, found.maxima)
        self.gram += found.gram * scale
        self.histograms += found.counts * scale

    def _add_to_layer(self, name: str, found: _TensorSums, scale: float) -> None:
        match = _LAYER.search(name)
        if match and int(match[1]) < len(self.layer_counts):
            self.layer_sums[:, int(match[1])] += found.sums * scale
            self.layer_counts[int(match[1])] += found.num_read * scale

    def _add_matrix(self, found: _TensorSums, scale: float) -> None:
        base = found.gram[-1, -1]
        for index, sums in enumerate(self.matrices):
            along = found.gram[index, -1]
            squared = found.gram[index, index] + 2 * along + base  # |base + delta|^2
            sums += np.array([along + base, squared, base]) * scale

    def profile(self, base: str, num_members: int, sample: int | None) -> DeltaProfile:
        """The profile of the first `num_members`, and the distances of all."""
        norm = float(np.sqrt(self.gram[-1, -1])) or 1.0
        products = self.gram[:-1, :-1]
        squares = np.diag(products)
        apart = squares[:, None] + squares[None, :] - 2 * products
        distances = np.sqrt(np.maximum(apart, 0.0)) / norm
        np.fill_diagonal(distances, 0.0)
        lengths = np.sqrt(np.maximum(squares, 0.0))
        cosines = products / np.maximum(np.outer(lengths, lengths), 1e-30)
        return DeltaProfile(
            base=base,
            sample=sample,
            members=tuple(self._member(index, norm) for index in range(num_members)),
            names=tuple(other.name for other in self.others),
            to_base=_floats(lengths / norm),
            distances=tuple(map(_floats, distances)),
            cosines=tuple(map(_floats, cosines)),
        )

    def _member(self, index: int, norm: float) -> MemberDelta:
        dot, own, base = self.matrices[index]
        layers = self.layer_sums[index] / np.maximum(self.layer_counts, 1.0)
        largest = float(self.maxima[index])
        return MemberDelta(
            member=self.others[index].name,
            mean=float(self.totals[index] / max(self.count, 1.0)),
            p50=_quantile(self.histograms[index], 0.5),
            p99=min(_quantile(self.histograms[index], 0.99), largest),
            max=largest,
            relative=float(np.sqrt(max(self.gram[index, index], 0.0))) / norm,
            cosine=float(dot / np.sqrt(own * base)) if own * base > 0 else 1.0,
            tensors=tuple(self.tensors[index]),
            layers=_floats(layers),
        )


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _values(info: TensorInfo, sample: int | None) -> Iterator[np.ndarray]:
    """float32 elements of a tensor: blocks of all of it, or one array of its sampled ranges."""
    size = DTYPE_BYTES[info.dtype]
    if sample is None:
        for block in tensor_blocks(info, block_bytes=size << 18):
            yield as_float32(block, info.dtype)
        return
    ranges = sampled_ranges(info.num_bytes // size, sample)
    raw = b"".join(read_bytes(info, size * start, size * count) for start, count in ranges)
    yield as_float32(raw, info.dtype)


def sampled_ranges(num: int, sample: int) -> list[ElementRange]:
    """The ranges that are read of a tensor of `num` elements: NUM_RANGES, or all of a small one."""
    if num <= sample:
        return [(0, num)]
    length = max(sample // NUM_RANGES, 1)
    return [(index * (num - length) // (NUM_RANGES - 1), length) for index in range(NUM_RANGES)]


def _quantile(histogram: np.ndarray, share: float) -> float:
    """The middle of the bin, of a histogram over float32 bits, below which `share` of it lies."""
    cumulated = np.cumsum(histogram)
    if cumulated[-1] == 0:
        return 0.0
    index = int(np.searchsorted(cumulated, share * cumulated[-1]))
    if index == 0:
        return 0.0
    middle = (index << _BIN_SHIFT) + (1 << (_BIN_SHIFT - 1))
    return float(np.array([middle], dtype=np.uint32).view(np.float32)[0])
