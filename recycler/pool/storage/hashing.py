"""Digests of tensors, equal for equal bits, so that scored and exported weights can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from recycler.digest import weights_digest
from recycler.pool.storage.tensors import SAFETENSORS_DTYPES


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes in row-major order, without a copy where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw: np.ndarray = flat.view(torch.uint8).numpy()
    return raw.data


def digest_head(dtype: str, shape: Iterable[int]) -> bytes:
    """The bytes that a tensor's digest starts with: safetensors dtype and shape."""
    return f"{dtype} {list(shape)}".encode()


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 (hex) of dtype, shape and bytes."""
    sha = hashlib.sha256(digest_head(SAFETENSORS_DTYPES[tensor.dtype], tensor.shape))
    sha.update(tensor_bytes(tensor))
    return sha.hexdigest()


def model_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of a model from its (name, tensor) pairs, whatever their order or shard."""
    return weights_digest((name, tensor_digest(tensor)) for name, tensor in tensors)
