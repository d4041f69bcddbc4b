"""Gram matrix of the members' deltas: the distances between merges, whatever members are called.

It comes from a sample, the same elements wherever the pool lies: NUM_RANGES ranges of each tensor,
evenly spread. Shards in a bucket that are not on this machine are read by byte ranges, and no more
than `gram_bytes` of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recycler.errors import Problem, UsageError
from recycler.pool.geometry.delta_profile import ElementRange, sampled_ranges
from recycler.pool.storage.blocks import same_names
from recycler.pool.storage.byte_ranges import RangeReader
from recycler.pool.storage.dtypes import as_float32
from recycler.pool.storage.headers import DTYPE_BYTES
from recycler.types import Checkpoint, Pool, TensorInfo

SAMPLE = 16_384  # elements of each tensor
MIN_SAMPLE = 2_048  # below it, fewer tensors are read rather than fewer elements of each
MIN_TENSORS = 8
BLOCK = 1 << 18  # elements, where all are read
MAX_RANGES = 60_000  # requests to a bucket: two minutes at 30 ms each, 16 at once
DEFAULT_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The part of a pool that is read: `elements` of each tensor in `names`, None for all.

    Each tensor stands for `every` tensors.
    """

    names: tuple[str, ...]
    elements: int | None
    every: int


def delta_gram(
    pool: Pool, *, sample: int | None = SAMPLE, max_bytes: int | None = None, seed: int = 0
) -> tuple[tuple[float, ...], ...]:
    """(K, K) inner products of the members' deltas over the base's squared norm, from a sample.

    Rows are in the pool's order. Without a base the first member stands for it: distances between
    averages are the same from any origin. `sample` elements are read of each floating point tensor
    that all checkpoints hold in one shape, None for all. A tensor counts by its size, whatever was
    read of it. Of shards that only a bucket holds at most `max_bytes` (default `gram_bytes()`) are
    read, in MAX_RANGES requests. Where that is not enough for `sample`, fewer elements of each
    tensor are read, then every n-th tensor in order of size from a place that `seed` draws, each
    counted n times (systematic sampling: unbiased over the seeds).

    Raises UsageError where even that is too much or a packed pool would have to be fetched,
    InfrastructureError when a bucket does not answer well, UnsafeInputError for files that were
    changed.
    """
    base = pool.template
    checkpoints = (base, *(member for member in pool.members if member is not base))
    names = same_names(checkpoints)
    if max_bytes is None:
        max_bytes = gram_bytes()
    total = np.zeros((len(checkpoints),) * 2)
    with RangeReader(checkpoints) as reader:
        chosen = _fitting_sample(checkpoints, names, sample, seed, reader, max_bytes)
        for name in chosen.names:
            infos = [checkpoint.tensors[name] for checkpoint in checkpoints]
            total += _products(infos, chosen.elements, reader) * chosen.every
    gram = total / (total[0, 0] or 1.0)
    if pool.base is None:  # the first member is the origin: its delta is zero
        gram[0, :] = gram[:, 0] = 0.0
    row_of = {checkpoint.name: row for row, checkpoint in enumerate(checkpoints)}
    rows = [row_of[name] for name in pool.names]
    in_order = gram[np.ix_(rows, rows)]
    return tuple(tuple(float(value) for value in row) for row in in_order)


def gram_bytes() -> int:
    """The bytes of a pool in a bucket that may be read for its Gram matrix (RECYCLER_GRAM_BYTES).

    Raises UsageError when the variable is no number.
    """
    text = os.environ.get("RECYCLER_GRAM_BYTES") or str(DEFAULT_BYTES)
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise UsageError(
            Problem(
                thing="RECYCLER_GRAM_BYTES",
                cause=f"is {text[:40]!r}, not a number of bytes",
                remedy="Give one, such as 2e9, or 0 to read nothing",
            )
        ) from None


def _products(infos: Sequence[TensorInfo], sample: int | None, reader: RangeReader) -> np.ndarray:
    """(1 + N, 1 + N) inner products of the base and the deltas of the others in one tensor.

    The base comes first. They are scaled as if all elements were read.
    """
    num = math.prod(infos[0].shape)
    found, num_read = np.zeros((len(infos),) * 2), 0
    for ranges in _chunks(num, sample):
        base, *others = _read_values(infos, ranges, reader)
        rows = np.stack([base, *(other - base for other in others)])
        found += rows @ rows.T
        num_read += rows.shape[1]
    return found * (num / max(num_read, 1))


def _read_values(
    infos: Sequence[TensorInfo], ranges: Sequence[ElementRange], reader: RangeReader
) -> list[np.ndarray]:
    """These elements of each tensor, joined, as float32."""
    wanted = []
    for info in infos:
        size = DTYPE_BYTES[info.dtype]
        wanted += [(info, start * size, count * size) for start, count in ranges]
    raw = iter(reader.read(wanted))
    return [as_float32(b"".join(next(raw) for _ in ranges), info.dtype) for info in infos]


def _chunks(num: int, sample: int | None) -> Iterator[list[ElementRange]]:
    """Ranges of a tensor of `num` elements, as many at a time as fit into memory."""
    if sample is None:
        for start in range(0, num, BLOCK):
            yield [(start, min(BLOCK, num - start))]
    elif num:
        yield sampled_ranges(num, sample)


def _fitting_sample(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    sample: int | None,
    seed: int,
    reader: RangeReader,
    max_bytes: int,
) -> Sample:
    """The largest sample for which buckets are asked for no more than the limits.

    Raises UsageError where there is none.
    """
    far = _far_tensors(checkpoints, names, reader)
    if sample is None or not far:
        return Sample(names=tuple(names), elements=sample, every=1)
    base, elements, every, chosen = checkpoints[0], sample, 1, list(names)
    by_size = sorted(names, key=lambda name: (base.tensors[name].num_bytes, name))
    while True:
        num_ranges, num_bytes = _requests(far, elements)
        if num_ranges <= MAX_RANGES and num_bytes <= max_bytes:
            return Sample(names=tuple(chosen), elements=elements, every=every)
        if num_bytes > max_bytes and elements >= 2 * MIN_SAMPLE:
            elements //= 2
            continue
        every += max(every // 8, 1)
        first = int(np.random.default_rng([seed, every]).integers(every))
        chosen = by_size[first::every]
        if len(chosen) < MIN_TENSORS:
            raise UsageError(
                Problem(
                    thing="distances between members",
                    cause=f"cannot be told from {max_bytes:,} bytes of their bucket in "
                    f"{MAX_RANGES:,} requests",
                    remedy="Raise RECYCLER_GRAM_BYTES",
                )
            )
        far = _far_tensors(checkpoints, chosen, reader)


def _far_tensors(
    checkpoints: Sequence[Checkpoint], names: Sequence[str], reader: RangeReader
) -> list[TensorInfo]:
    """These tensors of every checkpoint, where they have to come from a bucket."""
    tensors = [checkpoint.tensors[name] for checkpoint in checkpoints for name in names]
    return [info for info in tensors if reader.is_far(info)]


def _requests(tensors: Sequence[TensorInfo], sample: int) -> tuple[int, int]:
    """(requests, bytes) that reading a sample of these tensors takes."""
    num_ranges = num_bytes = 0
    for info in tensors:
        ranges = sampled_ranges(math.prod(info.shape), sample)
        num_ranges += len(ranges)
        num_bytes += sum(count for _, count in ranges) * DTYPE_BYTES[info.dtype]
    return num_ranges, num_bytes
