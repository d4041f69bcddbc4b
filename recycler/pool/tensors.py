"""The pool's tensors, resident: every checkpoint mapped into memory once, shared by all workers of a machine.

Files are mapped, not read: the first merge reads them from disk, the next ones from the page cache, and workers of one
machine share the same pages. Shards in a bucket are fetched into the local cache first.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors import safe_open

from recycler.pool.files import local_file
from recycler.types import Checkpoint, Pool

TORCH_DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
}
SAFETENSORS_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
                      torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


class ResidentPool:
    """Random access to the tensors of a pool by (checkpoint, tensor) name; opens each file once, copies nothing."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self._files: dict[str, safe_open] = {}

    def tensor(self, checkpoint: str, name: str) -> torch.Tensor:
        """The tensor as it is stored: a read-only view of the file's pages. Raises KeyError."""
        info = self.pool.find(checkpoint).tensors[name]
        if info.file not in self._files:
            self._files[info.file] = safe_open(local_file(info), framework="pt", device="cpu")
        return self._files[info.file].get_tensor(name)


def iterate_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) pairs of one checkpoint, in file order."""
    resident = ResidentPool(Pool(members=(checkpoint,)))
    for name in checkpoint.tensors:
        yield name, resident.tensor(checkpoint.name, name)
