"""How far members are from their base, tensor by tensor and layer by layer: from a sample of each
tensor, or from all of it.

Large deltas decide what a merge may do. DARE drops most of each delta and rescales the rest; that
works while |delta| stays below about 0.005 (supervised fine-tuning) and breaks near 0.03 (continued
pretraining, or a base that is not the true one: Yu et al. 2024, arXiv:2311.03099, section 4.5 and
the abstract of v1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recycler.pool.storage.blocks import read_bytes, same_names, tensor_blocks
from recycler.pool.storage.dtypes import as_float32
from recycler.pool.storage.headers import DTYPE_BYTES
from recycler.types import Checkpoint, Pool, TensorInfo

RUNS = 8  # a sample is this many stretches, evenly spread over the tensor
_BIN_SHIFT = 16  # float32 bits per bin of the histogram: bins 0.8 % wide or less


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDelta:
    """|member - base| of one tensor: mean, quantiles (within 1 %) and maximum, over the elements
    that were read.
    """

    name: str
    mean: float
    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberDelta:
    """One member's delta. Over all tensors, by their number of elements: mean, p50, p99, max of |delta|; `relative` is
    its norm over the base's; `cosine` that of member and base over matrices. `layers`: mean |delta| of each layer."""

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
    """Deltas of all members to `base` (the pool's, else its first member), and distances of all
    pairs.

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
    """Measure deltas of floating point tensors that all checkpoints share; memory is a few times
    `sample` per checkpoint.
    """
    base = pool.template
    others = [*(member for member in pool.members if member is not base), *candidates]
    sums = _Sums(others, base)
    for name in same_names([base, *others]):
        sums.add(name, [base.tensors[name], *(other.tensors[name] for other in others)], sample)
    return sums.profile(base.name, len(others) - len(candidates), sample)


class _Sums:
    """What is added up over tensors: histograms of |delta|, layer sums, and inner products of
    deltas and base.
    """

    def __init__(self, others: Sequence[Checkpoint], base: Checkpoint):
        self.others, self.num = others, len(others)
        self.histograms = [np.zeros(1 << (31 - _BIN_SHIFT)) for _ in others]
        self.tensors: list[list[TensorDelta]] = [[] for _ in others]
        self.layer_sums, self.layer_counts = (
            np.zeros((self.num, max(min(base.num_layers, 10_000), 1))),
            np.zeros(max(min(base.num_layers, 10_000), 1)),
        )
        self.totals, self.maxima, self.count = np.zeros(self.num), np.zeros(self.num), 0.0
        self.gram = np.zeros((self.num + 1, self.num + 1))  # deltas, then the base
        self.matrices = np.zeros((self.num, 3))  # over matrices: member.base, |member|^2, |base|^2

    def add(self, name: str, infos: Sequence[TensorInfo], sample: int | None) -> None:
        """Add one tensor: `infos` of the base first, then of the others."""
        num = int(np.prod(infos[0].shape, dtype=np.int64))
        if num == 0:
            return
        counts, gram, read = (
            [np.zeros(1 << (31 - _BIN_SHIFT)) for _ in self.others],
            np.zeros_like(self.gram),
            0,
        )
        sums, maxima = np.zeros(self.num), np.zeros(self.num)
        for values in zip(*(_values(info, sample) for info in infos), strict=True):
            rows = np.stack([*(value - values[0] for value in values[1:]), values[0]])
            gram += rows @ rows.T
            read += rows.shape[1]
            for index, row in enumerate(np.abs(rows[:-1])):
                counts[index] += np.bincount(
                    row.view(np.uint32) >> _BIN_SHIFT, minlength=1 << (31 - _BIN_SHIFT)
                )[: 1 << (31 - _BIN_SHIFT)]
                sums[index] += row.sum(dtype=np.float64)
                maxima[index] = max(maxima[index], float(row.max()))
        self._keep(name, num / read, counts, gram, sums, maxima, is_matrix=len(infos[0].shape) > 1)

    def _keep(
        self,
        name: str,
        scale: float,
        counts: list[np.ndarray],
        gram: np.ndarray,
        sums: np.ndarray,
        maxima: np.ndarray,
        *,
        is_matrix: bool,
    ) -> None:
        read = max(float(counts[0].sum()) if counts else 1.0, 1.0)
        self.gram += gram * scale
        self.count += read * scale
        self.totals += sums * scale
        self.maxima = np.maximum(self.maxima, maxima)
        layer = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.", name)
        if layer and int(layer[1]) < len(self.layer_counts):
            self.layer_sums[:, int(layer[1])] += sums * scale
            self.layer_counts[int(layer[1])] += read * scale
        for index in range(self.num):
            self.histograms[index] += counts[index] * scale
            self.tensors[index].append(
                TensorDelta(
                    name=name,
                    mean=float(sums[index] / read),
                    p50=_quantile(counts[index], 0.5),
                    p99=min(_quantile(counts[index], 0.99), float(maxima[index])),
                    max=float(maxima[index]),
                )
            )
            if is_matrix:
                dot, base = gram[index, -1] + gram[-1, -1], gram[-1, -1]
                self.matrices[index] += (
                    np.array([dot, gram[index, index] + 2 * gram[index, -1] + base, base]) * scale
                )

    def profile(self, base: str, num_members: int, sample: int | None) -> DeltaProfile:
        norm = float(np.sqrt(self.gram[-1, -1])) or 1.0
        squares = np.diag(self.gram)[:-1]
        distances = (
            np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * self.gram[:-1, :-1], 0.0))
            / norm
        )
        np.fill_diagonal(distances, 0.0)
        lengths = np.sqrt(np.maximum(squares, 0.0))
        cosines = self.gram[:-1, :-1] / np.maximum(np.outer(lengths, lengths), 1e-30)
        members = tuple(self._member(index, norm) for index in range(num_members))
        return DeltaProfile(
            base=base,
            sample=sample,
            members=members,
            names=tuple(other.name for other in self.others),
            to_base=_floats(lengths / norm),
            distances=tuple(map(_floats, distances)),
            cosines=tuple(map(_floats, cosines)),
        )

    def _member(self, index: int, norm: float) -> MemberDelta:
        dot, own, base = self.matrices[index]
        layers = self.layer_sums[index] / np.maximum(self.layer_counts, 1.0)
        histogram = self.histograms[index]
        return MemberDelta(
            member=self.others[index].name,
            mean=float(self.totals[index] / max(self.count, 1.0)),
            p50=_quantile(histogram, 0.5),
            p99=min(_quantile(histogram, 0.99), float(self.maxima[index])),
            max=float(self.maxima[index]),
            relative=float(np.sqrt(max(self.gram[index, index], 0.0))) / norm,
            cosine=float(dot / np.sqrt(own * base)) if own * base > 0 else 1.0,
            tensors=tuple(self.tensors[index]),
            layers=_floats(layers),
        )


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _values(info: TensorInfo, sample: int | None):
    """float32 stretches of a tensor: all of it in blocks, or RUNS stretches of sample / RUNS
    elements.
    """
    size, num = DTYPE_BYTES[info.dtype], info.num_bytes // DTYPE_BYTES[info.dtype]
    if sample is None:
        for block in tensor_blocks(info, block_bytes=size << 18):
            yield as_float32(block, info.dtype)
        return
    parts = [
        read_bytes(info, size * start, size * count) for start, count in stretches_of(num, sample)
    ]
    yield as_float32(b"".join(parts), info.dtype)


def stretches_of(num: int, sample: int) -> list[tuple[int, int]]:
    """(first element, number) of the stretches that are read of a tensor of `num` elements: all of
    a small one, else RUNS of them.
    """
    if num <= sample:
        return [(0, num)]
    length = max(sample // RUNS, 1)
    return [(run * (num - length) // (RUNS - 1), length) for run in range(RUNS)]


def _quantile(histogram: np.ndarray, share: float) -> float:
    """The value below which `share` of a histogram over float32 bit patterns lies; the bin's
    middle.
    """
    cumulated = np.cumsum(histogram)
    if cumulated[-1] == 0:
        return 0.0
    index = int(np.searchsorted(cumulated, share * cumulated[-1]))
    if index == 0:
        return 0.0
    return float(
        np.array([(index << _BIN_SHIFT) + (1 << (_BIN_SHIFT - 1))], dtype=np.uint32).view(
            np.float32
        )[0]
    )
