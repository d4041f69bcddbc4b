"""Merge straight into files: blocks are merged, written and hashed while they are warm.

No output is ever held whole. Linear methods go by blocks of a tensor, the others by tensors; two
buffers are used again and again, so that one is written and hashed while the other is filled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from recycler.errors import Problem, UnsafeInputError
from recycler.merge.kernels.blocks import blocks
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.merge.stream import SHOWN, check_recipe, merge_one
from recycler.pool.storage.blocks import all_finite, count_not_finite
from recycler.pool.storage.gathered import GatheredTensor
from recycler.pool.storage.hashing import digest_head, tensor_bytes
from recycler.pool.storage.headers import FLOAT_DTYPES
from recycler.pool.storage.tensors import (
    DTYPES,
    SAFETENSORS_DTYPES,
    TORCH_DTYPES,
    ResidentPool,
    StreamedPool,
)
from recycler.pool.storage.writer import DEFAULT_SHARD_BYTES, ModelWriter, TensorSpec
from recycler.types import Pool, Recipe, TensorInfo

# 512 KiB of bfloat16 per member: read, merged, written and hashed while it is in the cache
STEP_ELEMENTS = 1 << 18


def merged_infos(recipe: Recipe, pool: Pool) -> dict[str, TensorSpec]:
    """safetensors dtype and shape of every tensor of a merge, in the template's order."""
    target = SAFETENSORS_DTYPES[TORCH_DTYPES[recipe.dtype]]
    return {
        name: (target if info.dtype in FLOAT_DTYPES else info.dtype, info.shape)
        for name, info in pool.template.tensors.items()
    }


def merge_to_folder(
    recipe: Recipe,
    resident: ResidentPool,
    folder: Path,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    allow_not_finite: bool = False,
) -> dict[str, str]:
    """Write the merge's weights as safetensors, and return the digest of each tensor by name.

    The same bytes as `write_model(merged_tensors(recipe, resident), ...)`, faster and with two
    buffers of a few megabytes (linear methods) or of the largest tensor. Write aside and rename, as
    export does. Raises UsageError, and UnsafeInputError when the merge holds NaN or infinities,
    unless `allow_not_finite`: every answer of such a model is one.
    """
    check_recipe(recipe, resident)
    infos = merged_infos(recipe, resident.pool)
    by_block = MERGE_METHODS[recipe.method].elementwise
    with (
        ModelWriter(infos, folder, max_shard_bytes=max_shard_bytes) as writer,
        ThreadPoolExecutor(1) as worker,
        StreamedPool(resident.pool) as streamed,
        torch.no_grad(),
    ):
        buffers = _Buffers()
        digests: dict[str, Future[str]] = {}
        spoiled: dict[str, None] = {}
        for name, (dtype, shape) in infos.items():
            sha = hashlib.sha256(digest_head(dtype, shape))
            whole = not by_block or dtype not in FLOAT_DTYPES
            for elements, out in buffers.parts(DTYPES[dtype], shape, whole=whole):
                merge_one(recipe, resident if whole else streamed, name, out, elements)
                done = worker.submit(_finish, writer, sha, spoiled, name, dtype, elements, out)
                buffers.busy(done)
            digests[name] = worker.submit(sha.hexdigest)  # one worker: after the updates
        buffers.wait()
        if spoiled and not allow_not_finite:
            raise UnsafeInputError(
                [_not_finite(recipe, resident.pool, name) for name in spoiled][:SHOWN]
            )
        return {name: digest.result() for name, digest in digests.items()}


def _finish(
    writer: ModelWriter,
    sha: hashlib._Hash,
    spoiled: dict[str, None],
    name: str,
    dtype: str,
    elements: slice | None,
    out: Tensor,
) -> None:
    """Write, hash and check one part of a tensor; `spoiled` gets the name of one not finite."""
    writer.write_part(name, elements.start if elements is not None else 0, out)
    raw = tensor_bytes(out)
    sha.update(raw)
    if dtype in FLOAT_DTYPES and not all_finite(raw, dtype):
        spoiled[name] = None


def _not_finite(recipe: Recipe, pool: Pool, name: str) -> Problem:
    """The origin of NaN or infinities: a checkpoint, or weights that overflow the dtype."""
    row = recipe.weights[recipe.group_of(name)]
    reads_all = MERGE_METHODS[recipe.method].reads_all
    holders = []
    for checkpoint, weight in zip(recipe.members, row, strict=True):
        if (weight != 0.0 or reads_all) and _holds_not_finite(pool, checkpoint, name):
            holders.append(checkpoint)
    if recipe.base and _holds_not_finite(pool, recipe.base, name):
        holders.append(recipe.base)
    if holders:
        return Problem(
            thing=f"tensor {name!r}",
            cause=f"holds NaN or infinite values in {', '.join(map(repr, holders))}, and so would "
            "the merge",
            remedy="That training run broke, or the file did; leave the checkpoint out, or go on "
            "with --allow values",
        )
    return Problem(
        thing=f"tensor {name!r}",
        cause="of the merge holds NaN or infinite values, which no checkpoint does: it overflows "
        f"{recipe.dtype}, or a step of the method does",
        remedy="Give smaller weights or a wider dtype, or go on with --allow values",
    )


def _holds_not_finite(pool: Pool, checkpoint: str, name: str) -> bool:
    """True when a checkpoint's tensor, as it is stored, holds NaN or infinities."""
    info: TensorInfo = pool.find(checkpoint).tensors[name]
    if isinstance(info, GatheredTensor):
        info = info.sources[info.own]
    return sum(count_not_finite(info)) > 0


class _Buffers:
    """Two buffers in turn; one is handed out again only when what was submitted with it is done."""

    def __init__(self) -> None:
        self._bytes = [torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)]
        self._done: list[Future[None] | None] = [None, None]
        self._turn = 0

    def parts(
        self, dtype: torch.dtype, shape: tuple[int, ...], *, whole: bool
    ) -> Iterator[tuple[slice | None, Tensor]]:
        """(elements, output to fill): once in its shape, or by parts of the flat tensor."""
        count = torch.Size(shape).numel()
        if whole:
            yield None, self._next(dtype, count).view(shape)
            return
        for elements in blocks(count, STEP_ELEMENTS):
            yield elements, self._next(dtype, elements.stop - elements.start)

    def busy(self, done: Future[None]) -> None:
        """Keep the last buffer until `done` is."""
        self._done[self._turn] = done

    def wait(self) -> None:
        """Wait until nothing is busy; raises the error of what failed."""
        for waiting in self._done:
            if waiting is not None:
                waiting.result()

    def _next(self, dtype: torch.dtype, count: int) -> Tensor:
        self._turn = 1 - self._turn
        waiting = self._done[self._turn]
        if waiting is not None:
            waiting.result()
        num_bytes = count * dtype.itemsize
        if self._bytes[self._turn].numel() < num_bytes:
            # give the old one back first
            self._bytes[self._turn] = torch.empty(0, dtype=torch.uint8)
            self._bytes[self._turn] = torch.empty(num_bytes, dtype=torch.uint8)
        return self._bytes[self._turn][:num_bytes].view(dtype)
