"""Bytes of tensors, one block at a time: read, digested, searched for NaN and infinities.

Blocks are read into one buffer and not mapped: memory is bounded, and a file that is cut short
while it is read is an error and not a SIGBUS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from recycler.pool.storage.files import open_file
from recycler.pool.storage.headers import FLOAT_DTYPES, broken, changed_since
from recycler.types import Checkpoint, TensorInfo

BLOCK_BYTES = 1 << 23
BLOCK_ELEMENTS = 1 << 18
_EXPONENTS = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "F64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}  # bits, mask without the sign, first that is not finite


def tensor_blocks(info: TensorInfo, block_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """The tensor's bytes in order; each block is valid until the next.

    Raises UnsafeInputError when the file is shorter by now.
    """
    buffer = memoryview(bytearray(min(block_bytes, max(info.num_bytes, 1))))
    with open_file(info) as file:
        file.seek(info.start)
        left = info.num_bytes
        while left:
            block = buffer[: min(left, len(buffer))]
            if file.readinto(block) != len(block):
                raise broken(
                    info.file, f"ends within tensor {info.name!r}: it was changed while it was read"
                )
            yield block
            left -= len(block)


def tensor_digest(info: TensorInfo, spoiled: list[str] | None = None) -> str:
    """SHA-256 (hex) of dtype, shape and bytes, as `hashing.tensor_digest` makes it of a tensor.

    The name of a tensor that is not finite is put into `spoiled`, where that is given.
    """
    sha, is_finite = hashlib.sha256(f"{info.dtype} {list(info.shape)}".encode()), True
    is_searched = spoiled is not None and info.dtype in FLOAT_DTYPES
    for block in tensor_blocks(info):
        sha.update(block)
        if is_searched and is_finite:
            is_finite = all_finite(block, info.dtype)
    if spoiled is not None and not is_finite:
        spoiled.append(info.name)
    return sha.hexdigest()


def count_not_finite(info: TensorInfo) -> tuple[int, int]:
    """(number of NaN, number of infinities) in a floating point tensor; (0, 0) for others."""
    if info.dtype not in FLOAT_DTYPES:
        return 0, 0
    kind, mask, first = _EXPONENTS[info.dtype]
    nans = infinities = 0
    for block in tensor_blocks(info):
        values = np.frombuffer(block, dtype=kind) & kind(mask)
        if values.size and values.max() >= first:
            nans += int((values > first).sum())
            infinities += int((values == first).sum())
    return nans, infinities


def all_finite(raw: memoryview, dtype: str) -> bool:
    """True when the bytes of a floating point `dtype` hold neither NaN nor infinities."""
    kind, mask, first = _EXPONENTS[dtype]
    values = np.frombuffer(raw, dtype=kind)
    return all(
        (values[start : start + BLOCK_ELEMENTS] & kind(mask)).max() < first
        for start in range(0, values.size, BLOCK_ELEMENTS)
    )


def read_bytes(info: TensorInfo, start: int, count: int) -> bytes:
    """`count` bytes of a tensor from its byte `start` on. Raises UnsafeInputError."""
    with open_file(info) as file:
        file.seek(info.start + start)
        raw = file.read(count)
    if len(raw) != count:
        raise changed_since(info)
    return raw


def same_names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Floating point tensors that all checkpoints hold in one shape, in the first one's order."""
    first, *others = checkpoints
    names = []
    for name, info in first.tensors.items():
        alike = [other.tensors.get(name) for other in others]
        if info.dtype in FLOAT_DTYPES and all(_is_float_of(info.shape, one) for one in alike):
            names.append(name)
    return names


def _is_float_of(shape: tuple[int, ...], info: TensorInfo | None) -> bool:
    return info is not None and info.shape == shape and info.dtype in FLOAT_DTYPES
