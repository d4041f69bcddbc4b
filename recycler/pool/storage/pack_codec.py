"""Deltas as bytes: exact differences of bit patterns, and low-rank factors added to a base."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from recycler.pool.storage.dtypes import NUMPY_FLOATS, decoded
from recycler.pool.storage.lowrank import LowRank, num_ranks, unpack_codes

_INTEGERS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def encode_exact(raw: bytes, base: bytes, size: int) -> bytes:
    """The difference of `raw` to `base` as bytes, which are few when the two are near.

    `size` is that of one number in bytes. `decode_exact` inverts it.
    """
    kind = _INTEGERS[size]
    ours, theirs = _ordered(np.frombuffer(raw, kind)), _ordered(np.frombuffer(base, kind))
    difference = ours - theirs  # wraps, and so inverts
    zigzag = (difference << kind(1)) ^ (kind(0) - (difference >> kind(8 * size - 1)))
    planes = zigzag.view(np.uint8).reshape(-1, size).T
    return zlib.compress(planes.tobytes(), 1)


def decode_exact(content: bytes, base: bytes, size: int) -> bytes:
    """The inverse of `encode_exact`. Raises ValueError when the content is damaged."""
    try:
        planes = zlib.decompressobj().decompress(content, len(base) + 1) if base else b""
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(planes) != len(base):
        raise ValueError(f"{len(planes)} bytes where {len(base)} were expected")
    kind = _INTEGERS[size]
    interleaved = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(size, -1).T)
    zigzag = interleaved.view(kind).reshape(-1)
    difference = (zigzag >> kind(1)) ^ (kind(0) - (zigzag & kind(1)))
    return _unordered(difference + _ordered(np.frombuffer(base, kind))).tobytes()


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Float bit patterns as integers in the order of the numbers, one to one.

    Near numbers have near integers.
    """
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def _unordered(ordered: np.ndarray) -> np.ndarray:
    """The inverse of `_ordered`."""
    sign = ordered.dtype.type(1 << (8 * ordered.itemsize - 1))
    return np.where(ordered & sign, ordered ^ sign, ~ordered)


def add_lowrank(base: bytes, content: bytes, entry: dict[str, Any]) -> bytes:
    """Base plus a low-rank delta, rounded once to the tensor's dtype.

    Raises ValueError when the content is damaged.
    """
    rows, columns = entry["shape"]
    split = tuple((int(bits), int(count)) for bits, count in entry["split"])
    start = 4 * num_ranks(split)  # after the coefficients
    end = start + -(-sum(rows * bits * count for bits, count in split) // 8)
    found = LowRank(
        split=split,
        coefficients=np.frombuffer(content[:start], "<f4"),
        left=unpack_codes(content[start:end], rows, split),
        right=unpack_codes(content[end:], columns, split),
        error=0.0,
    )
    return _rounded(decoded(base, entry["dtype"]) + found.matrix().reshape(-1), entry["dtype"])


def _rounded(values: np.ndarray, dtype: str) -> bytes:
    """float32 numbers in another float dtype, to nearest, ties to even."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    return values.astype(NUMPY_FLOATS[dtype]).tobytes()
