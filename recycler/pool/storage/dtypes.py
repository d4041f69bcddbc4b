"""Bytes of floating point tensors as float32 arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

# by safetensors' spelling, but for BF16, which numpy does not have
NUMPY_FLOATS: dict[str, type[np.floating[Any]]] = {
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


def as_float32(raw: bytes | memoryview, dtype: str) -> np.ndarray:
    """A fresh float32 array from a tensor's bytes; values that are not finite become 0.

    `dtype` is BF16, F16, F32 or F64.
    """
    values = decoded(raw, dtype)
    if not np.isfinite(values).all():
        values[~np.isfinite(values)] = 0.0
    return values


def decoded(raw: bytes | memoryview, dtype: str) -> np.ndarray:
    """A fresh float32 array from a tensor's bytes, NaN and infinities included.

    A double too large for float32 becomes infinite. `dtype` is BF16, F16, F32 or F64.
    """
    if dtype == "BF16":
        return (np.frombuffer(raw, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return np.frombuffer(raw, dtype=NUMPY_FLOATS[dtype]).astype(np.float32)
