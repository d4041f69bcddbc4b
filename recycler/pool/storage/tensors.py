"""The tensors of a pool, mapped into memory or read as a stream.

Mapped files are read from disk by the first merge and from the page cache by the next ones, and
workers of one machine share the same pages. Shards in a bucket are fetched into the local cache
first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from recycler.location import Location
from recycler.pool.storage.files import local_file
from recycler.pool.storage.gathered import GatheredTensor, gather_elements, gather_rows
from recycler.pool.storage.headers import DTYPE_BYTES, changed_since
from recycler.types import Checkpoint, Pool, TensorInfo

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}

DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
MAX_VIEWS = 100_000
_NOTHING = torch.empty(0, dtype=torch.uint8)


class ResidentPool:
    """Random access to the mapped tensors of a pool by (checkpoint, tensor) name.

    Each file is opened once and nothing is copied. Views are kept: making one costs more than
    merging a small tensor.
    """

    def __init__(self, pool: Pool):
        self.pool = pool
        self._files: dict[Location, safe_open] = {}
        self._views: dict[tuple[str, str], Tensor] = {}

    def elements(self, checkpoint: str, name: str, elements: slice) -> Tensor:
        """These elements of the flat tensor, in row-major order."""
        info = self.pool.find(checkpoint).tensors[name]
        if isinstance(info, GatheredTensor):
            return gather_elements(info, self._stored, elements)
        return self.tensor(checkpoint, name).reshape(-1)[elements]

    def tensor(self, checkpoint: str, name: str) -> Tensor:
        """The tensor as it is stored: a read-only view of the file's pages.

        A gathered tensor is a fresh copy. Raises KeyError.
        """
        if (view := self._views.get((checkpoint, name))) is not None:
            return view
        info = self.pool.find(checkpoint).tensors[name]
        if isinstance(info, GatheredTensor):  # as large as the embeddings: not kept
            return gather_rows(info, self._stored, 0, info.shape[0])
        view = self._stored(info)
        if len(self._views) < MAX_VIEWS:
            self._views[checkpoint, name] = view
        return view

    def _stored(self, info: TensorInfo) -> Tensor:
        if info.file not in self._files:
            self._files[info.file] = safe_open(local_file(info), framework="pt", device="cpu")
        return self._files[info.file].get_tensor(info.name)


class StreamedPool(ResidentPool):
    """A pool whose tensors are read in parts, into one small buffer per checkpoint.

    It is for merges that read everything once. Half the cost of mapping the files, whose pages are
    faulted in one by one; and a file that is cut short while it is read is an error and not a
    SIGBUS. Close it when done.
    """

    def __init__(self, pool: Pool):
        super().__init__(pool)
        self._buffers: dict[str, Tensor] = {}
        self._descriptors: dict[Location, int] = {}

    def elements(self, checkpoint: str, name: str, elements: slice) -> Tensor:
        """These elements of the flat tensor; valid until the next call for the same checkpoint.

        Raises UnsafeInputError.
        """
        info = self.pool.find(checkpoint).tensors[name]
        if isinstance(info, GatheredTensor):
            return super().elements(checkpoint, name, elements)
        size = DTYPE_BYTES[info.dtype]
        assert size * elements.stop <= info.num_bytes, "callers compare shapes first"
        count = size * (elements.stop - elements.start)
        if self._buffers.get(checkpoint, _NOTHING).numel() < count:
            self._buffers[checkpoint] = torch.empty(count, dtype=torch.uint8)
        buffer = self._buffers[checkpoint][:count]
        if info.file not in self._descriptors:
            self._descriptors[info.file] = os.open(local_file(info), os.O_RDONLY | os.O_CLOEXEC)
        read_into(
            self._descriptors[info.file],
            _memory(buffer),
            info.start + size * elements.start,
            info,
        )
        return buffer.view(DTYPES[info.dtype])

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> StreamedPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _memory(buffer: Tensor) -> memoryview:
    array: np.ndarray = buffer.numpy()
    return array.data


def read_into(file: int, target: memoryview, position: int, info: TensorInfo) -> None:
    """Fill `target` from a position of an open file.

    Raises UnsafeInputError when the file ends before.
    """
    while target.nbytes:
        count = os.preadv(file, [target], position)
        if not count:
            raise changed_since(info)
        target, position = target[count:], position + count


def iterate_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) pairs of one checkpoint, in file order."""
    resident = ResidentPool(Pool(members=(checkpoint,)))
    for name in checkpoint.tensors:
        yield name, resident.tensor(checkpoint.name, name)
