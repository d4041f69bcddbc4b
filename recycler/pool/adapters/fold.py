"""Fold a LoRA adapter into its base: the full checkpoint that a merge needs.

W + scale * B @ A in float32, rounded once to the base tensor's dtype, one tensor at a time. An
adapter with more than plain LoRA in it is refused, for it would silently lose that.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from recycler.errors import Problem, UnsafeInputError, UsageError, raise_problems
from recycler.io.atomic import atomic_folder, copy_companions
from recycler.pool.adapters.config import (
    ADAPTER_CONFIG,
    BY_PEFT,
    module_scales,
    read_adapter_config,
)
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.headers import FLOAT_DTYPES, read_header
from recycler.pool.storage.tensors import iterate_tensors
from recycler.pool.storage.writer import write_model
from recycler.types import Checkpoint

SHOWN = 20  # problems that are told
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>A|B)\.weight")


@dataclass(frozen=True, slots=True)
class Factors:
    """One LoRA pair: scale * B @ A is added to its base tensor."""

    down: Tensor  # A: (r, in)
    up: Tensor  # B: (out, r)
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the tensor that they change."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> Tensor:
        """The float32 tensor that is added, (out, in)."""
        return (self.up.float() @ self.down.float()).mul_(self.scale)


@dataclass(slots=True)
class Rounding:
    """Sums over all tensors of an adapter's step, and of the move that rounding leaves of it.

    The weights' dtype is that of the base. `step` and `error` are sums of squares of the step and
    of move - step; `product` sums their products move * step.
    """

    step: float = 0.0
    product: float = 0.0
    error: float = 0.0

    def add(self, delta: Tensor, before: Tensor, after: Tensor) -> None:
        """Add one tensor before and after folding `delta` into it."""
        # a float32 tensor is its own .float(): nothing may be done to it in place
        moved = after.float() - before
        self.step += float(delta.square().sum())
        self.product += float((moved * delta).sum())
        self.error += float(moved.sub_(delta).square().sum())

    @property
    def kept(self) -> float:
        """The share of the adapter's step that the weights moved along it."""
        return self.product / self.step if self.step else 1.0

    @property
    def noise(self) -> float:
        """|what the weights moved - the step| / |the step|."""
        return math.sqrt(self.error / self.step) if self.step else 0.0


def fold_adapter(base: Path, adapter: Path, out: Path) -> Rounding:
    """Write `base` with `adapter` folded in to the new folder `out`, atomically.

    Returns what rounding left of the adapter. Raises UsageError or UnsafeInputError, with every
    problem, when the adapter is not plain LoRA or does not fit the base.
    """
    checkpoint = open_checkpoint(base, "base")
    factors = match_factors(read_factors(adapter)[0], checkpoint, adapter.name)
    infos = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    with atomic_folder(out) as aside:
        write_model(_folded_tensors(checkpoint, factors, rounding := Rounding()), infos, aside)
        shutil.copyfile(base / "config.json", aside / "config.json")
        copy_companions(base, aside)
    return rounding


def _folded_tensors(
    checkpoint: Checkpoint, factors: Mapping[str, Factors], rounding: Rounding
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in iterate_tensors(checkpoint):
        if name not in factors:
            yield name, tensor
            continue
        delta = factors[name].delta()
        folded = delta.clone().add_(tensor).to(tensor.dtype)
        rounding.add(delta, tensor, folded)
        yield name, folded


def match_factors(
    found: Mapping[str, Factors], checkpoint: Checkpoint, adapter: str
) -> dict[str, Factors]:
    """Factors by the checkpoint's tensor names.

    Raises UnsafeInputError when one has no tensor of its shape.
    """
    problems = []
    if checkpoint.config.get("tie_word_embeddings") and "lm_head.weight" in found:
        problems.append(
            Problem(
                thing=f"{adapter}: 'lm_head.weight'",
                cause="is tied to the embeddings in the base: folding would change both",
                remedy="Train without lm_head, or untie the base",
            )
        )
    for name, factors in found.items():
        info = checkpoint.tensors.get(name)
        if info is None:
            problems.append(
                Problem(
                    thing=f"{adapter}: {name!r}",
                    cause="is not in the base",
                    remedy="Fold it into the base it was trained on",
                )
            )
        elif info.shape != factors.shape or info.dtype not in FLOAT_DTYPES:
            problems.append(
                Problem(
                    thing=f"{adapter}: {name!r}",
                    cause=f"is {factors.shape}, in the base {info.dtype} {info.shape}",
                    remedy="Fold it into the base it was trained on",
                )
            )
    raise_problems(problems, UnsafeInputError)
    return dict(found)


# ---------------------------------------------------------------- the adapter's folder


def read_factors(adapter: Path) -> tuple[dict[str, Factors], dict[str, Any]]:
    """Factors by the name of the base tensor they change, and the adapter's configuration.

    Raises UsageError or UnsafeInputError.
    """
    config = read_adapter_config(adapter)
    path = adapter / ADAPTER_WEIGHTS
    if not path.is_file():
        raise UsageError(
            Problem(
                thing=str(adapter),
                cause=f"has no {ADAPTER_WEIGHTS}",
                remedy="Save the adapter with save_pretrained; pickles are not read",
            )
        )
    pairs = _pairs(path)
    scales = module_scales(pairs, config, adapter / ADAPTER_CONFIG)
    factors: dict[str, Factors] = {}
    with safe_open(path, framework="pt", device="cpu") as file:
        for module, pair in pairs.items():
            down, up = file.get_tensor(pair["A"]), file.get_tensor(pair["B"])
            factors[f"{module}.weight"] = _factors(down, up, module, *scales[module], path)
    return factors, config


def _pairs(path: Path) -> dict[str, dict[str, str]]:
    """Tensor names by side, A and B, for each module of an adapter.

    Raises UnsafeInputError for other tensors, and for modules with one side only.
    """
    pairs: dict[str, dict[str, str]] = {}
    problems = []
    for name, info in read_header(path).items():
        match = _NAME.fullmatch(name)
        if match is None:
            problems.append(_no_factor(path, name))
        elif info.dtype not in FLOAT_DTYPES:
            problems.append(
                Problem(
                    thing=f"{path}: {name!r}",
                    cause=f"is {info.dtype}, where a factor is one of "
                    f"{', '.join(sorted(FLOAT_DTYPES))}",
                    remedy="Save the adapter again, not quantized",
                )
            )
        else:
            pairs.setdefault(match["module"], {})[match["side"]] = name
    for module, pair in pairs.items():
        if len(pair) != 2:
            problems.append(
                Problem(
                    thing=f"{path}: {module!r}",
                    cause="has only one of its two factors",
                    remedy="Save the adapter again",
                )
            )
    if not pairs and not problems:
        problems.append(
            Problem(thing=str(path), cause="holds no tensor", remedy="Save the adapter again")
        )
    raise_problems(problems[:SHOWN], UnsafeInputError)
    return pairs


def _no_factor(path: Path, name: str) -> Problem:
    """The problem of a tensor in an adapter that is no factor of plain LoRA."""
    # PEFT adds it for embeddings and heads, by itself when it cannot tell that they are as before
    if name.endswith(".base_layer.weight"):
        return Problem(
            thing=f"{path}: {name!r}",
            cause="is the base's own weight, which PEFT saves along with an adapter on embeddings "
            "or head",
            remedy="Save it with save_pretrained(..., save_embedding_layers=False) if that layer "
            "has not been resized",
        )
    return Problem(
        thing=f"{path}: {name!r}",
        cause="is not a factor of plain LoRA on a linear layer",
        remedy=BY_PEFT,
    )


def _factors(down: Tensor, up: Tensor, module: str, rank: int, scale: float, path: Path) -> Factors:
    """A pair of factors. Raises UnsafeInputError when they do not fit, or are not finite."""
    if rank < 1 or down.ndim != 2 or up.ndim != 2 or not down.shape[0] == up.shape[1] == rank:
        raise UnsafeInputError(
            Problem(
                thing=f"{path}: {module!r}",
                cause=f"factors are {tuple(up.shape)} and {tuple(down.shape)}, the configuration "
                f"says rank {rank}",
                remedy="Configuration and weights belong to different adapters",
            )
        )
    for side, factor in (("A", down), ("B", up)):
        if not bool(factor.isfinite().all()):
            raise UnsafeInputError(
                Problem(
                    thing=f"{path}: {module!r}",
                    cause=f"holds {int((~factor.isfinite()).sum())} NaN or infinite values in "
                    f"lora_{side}",
                    remedy="That training run broke, or the file did; leave the adapter out",
                )
            )
    return Factors(down, up, scale)
