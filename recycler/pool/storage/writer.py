"""Write a model as safetensors while its tensors are still being made.

Headers come first, and every tensor goes to its final offset. Sizes are known before any number is,
so offsets are too. Nothing is collected, tensors may come in any order, and a file has the same
bytes as one written by `safetensors.torch.save_file`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from recycler.pool.storage.hashing import tensor_bytes, tensor_digest
from recycler.pool.storage.headers import DTYPE_BYTES
from recycler.pool.storage.hf_folder import INDEX
from recycler.pool.storage.tensors import SAFETENSORS_DTYPES

DEFAULT_SHARD_BYTES = 5_000_000_000
_LIBRARY_ORDER = "U64 I64 F64 F32 U32 I32 BF16 F16 U16 I16 F8_E4M3 F8_E5M2 I8 U8 BOOL".split()
TensorSpec = tuple[str, tuple[int, ...]]  # safetensors dtype (BF16, F32 ...) and shape


def write_model(
    tensors: Iterable[tuple[str, Tensor]],
    infos: Mapping[str, TensorSpec],
    folder: Path,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> dict[str, str]:
    """Write (name, tensor) pairs to `folder` as they come; returns the digest of each by name.

    `infos` says beforehand what will come: dtype in safetensors' spelling and shape. One file when
    it fits into `max_shard_bytes`, else shards and their index. At most three tensors are alive at
    a time: one made, one written, one hashed. A folder that was not finished has no index and files
    with holes: write aside and rename, as export does. Raises ValueError when a tensor is missing,
    comes twice, or is not what `infos` says.
    """
    with (
        ModelWriter(infos, folder, max_shard_bytes=max_shard_bytes) as writer,
        ThreadPoolExecutor(1) as hasher,
    ):
        digests: dict[str, Future[str]] = {}
        previous: Future[str] | None = None
        for name, tensor in tensors:
            if previous is not None:
                previous.result()  # never more than one tensor waits for its digest
            previous = digests[name] = hasher.submit(tensor_digest, tensor)
            writer.write(name, tensor)
        return {name: future.result() for name, future in digests.items()}


def shard_plan(infos: Mapping[str, TensorSpec], max_shard_bytes: int) -> list[list[str]]:
    """Names by shard, filled in the order of `infos`; a tensor larger than a shard has its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in infos.items():
        size = num_bytes(spec)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def num_bytes(spec: TensorSpec) -> int:
    """The size of a tensor."""
    return math.prod(spec[1]) * DTYPE_BYTES[spec[0]]


def header_bytes(
    infos: Mapping[str, TensorSpec], names: Sequence[str]
) -> tuple[bytes, dict[str, int]]:
    """The start of a safetensors file that holds `names`, and the byte at which each tensor begins.

    Widest dtype first, then by name, padded to 8 bytes: the library's own order, so that the files
    are equal too.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name in sorted(names, key=lambda name: (_library_rank(infos[name][0]), name)):
        dtype, shape = infos[name]
        offsets[name], end = end, end + num_bytes(infos[name])
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    raw = len(text).to_bytes(8, "little") + text
    return raw, {name: start + offset for name, offset in offsets.items()}


def _library_rank(dtype: str) -> int:
    """The rank of a dtype in safetensors' own order: its enum, descending."""
    return _LIBRARY_ORDER.index(dtype)


class ModelWriter:
    """The files of a model, open for tensors in any order; a context manager.

    Leaving it without an exception checks that every byte was written and then writes the index,
    last.
    """

    def __init__(
        self,
        infos: Mapping[str, TensorSpec],
        folder: Path,
        *,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ):
        self.infos = infos
        self.folder = folder
        self._missing = {name: num_bytes(spec) for name, spec in infos.items()}
        self._files: list[int] = []
        self._place: dict[str, tuple[int, int]] = {}  # tensor -> file descriptor, first byte
        self._shard_of: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        shards = shard_plan(infos, max_shard_bytes)
        if len(shards) == 1:
            self._open_shard("model.safetensors", shards[0])
            return
        for number, names in enumerate(shards, start=1):
            self._open_shard(f"model-{number:05d}-of-{len(shards):05d}.safetensors", names)

    def _open_shard(self, file_name: str, names: Sequence[str]) -> None:
        header, offsets = header_bytes(self.infos, names)
        file = os.open(
            self.folder / file_name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644
        )
        self._files.append(file)
        write_all(file, memoryview(header), 0)
        for name in names:
            self._place[name] = (file, offsets[name])
            self._shard_of[name] = file_name

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a whole tensor to its place."""
        self._check(name, SAFETENSORS_DTYPES[tensor.dtype], tuple(tensor.shape))
        self.write_part(name, 0, tensor)

    def write_part(self, name: str, first_element: int, part: Tensor) -> None:
        """Write consecutive elements of a tensor (row-major) from `first_element` on.

        The caller keeps parts disjoint. Raises ValueError for more than was announced.
        """
        raw = tensor_bytes(part)
        if name not in self._missing or raw.nbytes > self._missing[name]:
            raise ValueError(f"tensor {name!r} was not announced, or comes twice")
        file, start = self._place[name]
        write_all(file, raw, start + first_element * part.element_size())
        self._missing[name] -= raw.nbytes

    def _check(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        announced = self.infos.get(name)
        if announced is not None and (announced[0], tuple(announced[1])) != (dtype, shape):
            raise ValueError(
                f"tensor {name!r} was announced as {announced[0]} {tuple(announced[1])} and came "
                f"as {dtype} {shape}"
            )

    def finish(self) -> None:
        """Check that nothing is missing and write the index. Raises ValueError."""
        missing = sorted(name for name, left in self._missing.items() if left)
        if missing:
            raise ValueError(
                f"{len(missing)} tensors were announced and did not come, first {missing[0]!r}"
            )
        if len(self._files) > 1:
            index = {
                "metadata": {"total_size": sum(map(num_bytes, self.infos.values()))},
                "weight_map": self._shard_of,
            }
            (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def close(self) -> None:
        """Close the files, finished or not."""
        while self._files:
            os.close(self._files.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()


def write_all(file: int, raw: memoryview, position: int) -> None:
    """pwrite until everything is written; the kernel takes at most 2 GiB at a time."""
    while raw.nbytes:
        count = os.pwrite(file, raw[: 1 << 30], position)
        raw, position = raw[count:], position + count
