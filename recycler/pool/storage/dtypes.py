"""Bytes of floating point tensors as float32 arrays."""

from __future__ import annotations

import numpy as np


def as_float32(raw: bytes | memoryview, dtype: str) -> np.ndarray:
    """A fresh float32 array from the bytes of a BF16, F16, F32 or F64 tensor; values that are not
    finite become 0.
    """
    values = decoded(raw, dtype)
    if not np.isfinite(values).all():
        values[~np.isfinite(values)] = 0.0
    return values


def decoded(raw: bytes | memoryview, dtype: str) -> np.ndarray:
    """A fresh float32 array from the bytes of a BF16, F16, F32 or F64 tensor, values as they are; a
    double too large for float32 becomes infinite.
    """
    if dtype == "BF16":
        return (np.frombuffer(raw, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return np.frombuffer(
            raw, dtype={"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
        ).astype(np.float32)
