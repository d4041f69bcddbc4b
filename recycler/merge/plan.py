"""The cost of a merge, from headers alone: bytes, peak memory, time at a stated bandwidth.

Linear in the number of tensors: one look at each, and one regex search for each kind of name and
group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from recycler.merge.methods.registry import MERGE_METHODS
from recycler.pool.storage.headers import DTYPE_BYTES, FLOAT_DTYPES
from recycler.pool.storage.tensors import SAFETENSORS_DTYPES, TORCH_DTYPES
from recycler.types import Checkpoint, Recipe, TensorInfo

# times that a member's tensor is walked; later walks hit the page cache
PASSES = {
    "ties": 3,
    "breadcrumbs": 5,
    "breadcrumbs_ties": 5,
    "della": 2,
    "della_linear": 2,
    "sce": 6,
    "slerp": 2,
    "nuslerp": 2,
    "multislerp": 2,
    "karcher": 2,
    "model_stock": 2,
    "widen": 3,
    "tsv_merge": 1,
    "iso_c": 1,
}
# whole float32 tensors held at once, by methods that cannot go by block
FLOAT32_COPIES = {"widen": 5.0, "tsv_merge": 6.0, "iso_c": 6.0}
FIXED_BYTES = 64_000_000  # blocks, buffers and histograms


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan:
    """Figures of one merge.

    `peak_bytes` is anonymous memory; pages of the input files come and go besides.
    """

    num_tensors: int
    num_parameters: int
    bytes_read: int  # from the members and the base, each tensor once
    bytes_written: int
    peak_bytes: int
    largest_tensor_bytes: int
    passes: int

    def seconds(self, bytes_per_second: float) -> float:
        """Time to read once and write once at a bandwidth; further passes hit the page cache."""
        return (self.bytes_read + self.bytes_written) / bytes_per_second


def plan_merge(
    recipe: Recipe,
    tensors: Mapping[str, TensorInfo],
    num_bytes_of: Mapping[str, Mapping[str, int]] | None = None,
) -> MergePlan:
    """Plan `recipe` over the template's `tensors`.

    `num_bytes_of` has the bytes of each checkpoint's tensors, when these differ. A member whose
    weight is zero in a tensor's group is not read for it. Raises ValueError for a tensor that no
    group takes.
    """
    used = [
        [name for name, weight in zip(recipe.members, row, strict=True) if weight != 0.0]
        for row in recipe.weights
    ]
    out_bytes = DTYPE_BYTES[SAFETENSORS_DTYPES[TORCH_DTYPES[recipe.dtype]]]
    patterns = [re.compile(group.match) for group in recipe.groups]
    read = written = parameters = largest = 0
    for name, info in tensors.items():
        count = math.prod(info.shape)
        is_float = info.dtype in FLOAT_DTYPES
        readers = used[_group(patterns, name)] if is_float else list(recipe.members)
        if recipe.base and is_float:
            readers = [*readers, recipe.base]
        if num_bytes_of:
            read += sum(num_bytes_of[reader][name] for reader in readers)
        else:
            read += info.num_bytes * len(readers)
        written += count * out_bytes if is_float else info.num_bytes
        parameters += count
        largest = max(largest, count * max(out_bytes, DTYPE_BYTES[info.dtype]))
    whole = 0
    if not MERGE_METHODS[recipe.method].elementwise:
        copies = FLOAT32_COPIES.get(recipe.method, 0.0)
        whole = 2 * largest + int(copies * 4 * largest / out_bytes)
    return MergePlan(
        num_tensors=len(tensors),
        num_parameters=parameters,
        bytes_read=read,
        bytes_written=written,
        peak_bytes=FIXED_BYTES + whole,
        largest_tensor_bytes=largest,
        passes=PASSES.get(recipe.method, 1),
    )


def plan_checkpoints(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> MergePlan:
    """Plan over opened checkpoints by name; the base, else the first member, is the template."""
    template = checkpoints[recipe.base or recipe.members[0]]
    sizes = {
        name: {tensor: info.num_bytes for tensor, info in checkpoint.tensors.items()}
        for name, checkpoint in checkpoints.items()
    }
    return plan_merge(recipe, template.tensors, sizes)


def _group(patterns: list[re.Pattern[str]], name: str) -> int:
    """Index of the first pattern found in a name."""
    for index, pattern in enumerate(patterns):
        if pattern.search(name):
            return index
    raise ValueError(
        f"no group of the recipe matches tensor {name!r}; add a last group with match: ''"
    )
