"""Inner products of the members' deltas: how far merges are from one another, whatever the members
are called.

From a sample, the same elements wherever the pool lies: RUNS stretches of each tensor, evenly
spread. What lies in a bucket and not on this machine is read by ranges, and no more than
`gram_bytes` of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recycler.errors import Problem, UsageError
from recycler.pool.geometry.delta_profile import stretches_of
from recycler.pool.storage.blocks import same_names
from recycler.pool.storage.dtypes import as_float32
from recycler.pool.storage.headers import DTYPE_BYTES
from recycler.pool.storage.stretches import Stretches
from recycler.types import Checkpoint, Pool, TensorInfo

SAMPLE = 16_384  # elements of each tensor
LEAST_SAMPLE, LEAST_TENSORS = (
    2_048,
    8,
)  # with fewer elements of each, fewer tensors are read instead
BLOCK = 1 << 18  # elements, where all are read
MOST_RANGES = 60_000  # requests to a bucket: two minutes at 30 ms each, 16 at once
DEFAULT_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What of a pool is read:

    `elements` of each tensor (None for all) of these `names`, of which each stands for `every`.
    """

    names: tuple[str, ...]
    elements: int | None
    every: int


def delta_gram(
    pool: Pool, *, sample: int | None = SAMPLE, most_bytes: int | None = None, seed: int = 0
) -> tuple[tuple[float, ...], ...]:
    """(K, K) inner products of the members' deltas over the base's squared norm, in the pool's
    order, from a sample.

    Without a base the first member stands for it: distances between averages are the same from any
    origin. `sample` elements of each floating point tensor that all hold in one shape, None for
    all. A tensor counts by its size, whatever was read of it. Of what only a bucket holds at most
    `most_bytes` (default `gram_bytes()`) in MOST_RANGES requests are read: where that is not enough
    for `sample`, fewer elements of each tensor, then every n-th tensor in order of size from a
    place that `seed` draws, each counted n times (systematic sampling: unbiased over the seeds).

    Raises UsageError where even that is too much or a packed pool would have to be fetched,
    InfrastructureError when a bucket does not answer well, UnsafeInputError for files that were
    changed.
    """
    base = pool.template
    checkpoints = (base, *(member for member in pool.members if member is not base))
    names = same_names(checkpoints)
    total = np.zeros((len(checkpoints),) * 2)
    with Stretches(checkpoints) as stretches:
        chosen = _within(
            checkpoints,
            names,
            sample,
            seed,
            stretches,
            gram_bytes() if most_bytes is None else most_bytes,
        )
        for name in chosen.names:
            infos = [checkpoint.tensors[name] for checkpoint in checkpoints]
            total += _products(infos, chosen.elements, stretches) * chosen.every
    gram = total / (total[0, 0] or 1.0)
    place = {checkpoint.name: index for index, checkpoint in enumerate(checkpoints)}
    origin = {base.name} if pool.base is None else set()
    return tuple(
        tuple(
            0.0 if {first, second} & origin else float(gram[place[first], place[second]])
            for second in pool.names
        )
        for first in pool.names
    )


def gram_bytes() -> int:
    """How many bytes of a pool in a bucket may be read for its Gram matrix (RECYCLER_GRAM_BYTES).

    Raises UsageError when it is no number.
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


def _products(infos: Sequence[TensorInfo], sample: int | None, stretches: Stretches) -> np.ndarray:
    """(1 + N, 1 + N) inner products of the base (first) and the deltas of the others in one tensor,
    as if all were read.
    """
    num = math.prod(infos[0].shape)
    found, read = np.zeros((len(infos),) * 2), 0
    for parts in _chunks(num, sample):
        wanted = [
            (info, start * DTYPE_BYTES[info.dtype], count * DTYPE_BYTES[info.dtype])
            for info in infos
            for start, count in parts
        ]
        raw = stretches.read(wanted)
        base, *others = [
            as_float32(b"".join(raw[index * len(parts) : (index + 1) * len(parts)]), info.dtype)
            for index, info in enumerate(infos)
        ]
        rows = np.stack([base, *(other - base for other in others)])
        found += rows @ rows.T
        read += rows.shape[1]
    return found * (num / max(read, 1))


def _chunks(num: int, sample: int | None) -> Iterator[list[tuple[int, int]]]:
    """(first element, number) of what is read of a tensor of `num` elements, a chunk that fits into
    memory at a time.
    """
    if sample is not None and num:
        yield stretches_of(num, sample)
    elif sample is None:
        yield from ([(start, min(BLOCK, num - start))] for start in range(0, num, BLOCK))


def _within(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    sample: int | None,
    seed: int,
    stretches: Stretches,
    most_bytes: int,
) -> Sample:
    """The largest sample that keeps what comes from buckets within bounds.

    Raises UsageError where none does.
    """
    base, elements, every, chosen = checkpoints[0], sample, 1, list(names)

    def far() -> list[TensorInfo]:
        return [
            info
            for checkpoint in checkpoints
            for name in chosen
            if stretches.far(info := checkpoint.tensors[name])
        ]

    if elements is None or not far():
        return Sample(names=tuple(chosen), elements=elements, every=every)

    def asked() -> tuple[int, int]:
        """Requests, and bytes."""
        parts = [
            (len(own), sum(count for _, count in own) * DTYPE_BYTES[info.dtype])
            for info in far()
            for own in [stretches_of(math.prod(info.shape), elements)]
        ]
        return sum(count for count, _ in parts), sum(num_bytes for _, num_bytes in parts)

    by_size = sorted(names, key=lambda name: (base.tensors[name].num_bytes, name))
    while (many := asked())[0] > MOST_RANGES or many[1] > most_bytes:
        if many[1] > most_bytes and elements >= 2 * LEAST_SAMPLE:
            elements //= 2
            continue
        every += max(every // 8, 1)
        chosen = by_size[int(np.random.default_rng([seed, every]).integers(every)) :: every]
        if len(chosen) < LEAST_TENSORS:
            raise UsageError(
                Problem(
                    thing="distances between members",
                    cause=f"cannot be told from {most_bytes:,} bytes of their bucket in "
                    f"{MOST_RANGES:,} requests",
                    remedy="Raise RECYCLER_GRAM_BYTES",
                )
            )
    return Sample(names=tuple(chosen), elements=elements, every=every)
