"""Merges of LoRA adapters of any ranks on one base: of their deltas s B A, never of A and B apart.

PEFT's `linear`, `ties` and `dare_*` combine the A's and the B's separately, which puts cross terms
B_i A_j into the result and needs equal ranks; here those names mean the merge of the deltas.
Concatenation (`cat`) is the one merge that stays exact in adapter form: rank adds up, sum_k w_k s_k
B_k A_k (Prabhakar et al. 2024, arXiv:2410.13025).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from recycler.errors import Problem, UnsafeInputError, UsageError, did_you_mean, raise_problems
from recycler.merge.methods.method import TensorContext, as_keywords
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.pool.adapters.fold import read_factors

SHOWN = 20  # problems that are shown; another architecture has hundreds of the same
CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """The delta of one Linear: scale * up @ down, with up `(out, r)` and down `(r, in)`."""

    up: Tensor
    down: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> Tensor:
        """The delta, float32 `(out, in)`."""
        return (self.up.float() @ self.down.float()).mul_(self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter: its factors by module name (as in the base model, without '.weight')."""

    name: str
    modules: Mapping[str, LowRank]
    base_model: str = ""


# ---------------------------------------------------------------- files


def read_adapter(folder: Path, name: str | None = None) -> Adapter:
    """The adapter in a PEFT folder.

    Raises UsageError or UnsafeInputError for what is not plain LoRA: DoRA, biases, saved modules.
    """
    factors, config = read_factors(folder)
    modules = {
        tensor.removesuffix(".weight"): LowRank(up=part.up, down=part.down, scale=part.scale)
        for tensor, part in factors.items()
    }
    return Adapter(
        name=name or folder.name,
        modules=modules,
        base_model=str(config.get("base_model_name_or_path") or ""),
    )


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write it as PEFT reads it, in float32; ranks may differ by module.

    The config is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for module, factors in adapter.modules.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = factors.down.float().contiguous()
        scaled = factors.up.float().mul(factors.scale)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = scaled.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    ranks = {module: factors.rank for module, factors in adapter.modules.items()}
    largest = max(ranks.values(), default=1)
    other = {re.escape(module): rank for module, rank in ranks.items() if rank != largest}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


# ---------------------------------------------------------------- merges


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseWeights:
    """Facts of the base that some methods need."""

    num_layers: int
    tensor: Callable[[str], Tensor]  # by its name


Weights = Sequence[float] | Mapping[str, Sequence[float]]  # one row for all modules, or one each


def cat(adapters: Sequence[Adapter], weights: Weights, name: str = "cat") -> Adapter:
    """The exact sum of deltas as one adapter, whose rank is the sum of ranks (CAT).

    sum_k w_k s_k B_k A_k for each module (arXiv:2410.13025). Factors are put side by side in
    float32, with w_k s_k in B; adapters of weight 0, or without the module, add no rank.
    """
    merged: dict[str, LowRank] = {}
    for module in modules_of(adapters):
        ups, downs = [], []
        row = _row(weights, module, len(adapters))
        for adapter, weight in zip(adapters, row, strict=True):
            part = adapter.modules.get(module)
            if part is not None and weight != 0.0:
                ups.append(part.up.float() * (weight * part.scale))
                downs.append(part.down.float())
        if ups:
            merged[module] = LowRank(up=torch.cat(ups, 1), down=torch.cat(downs, 0), scale=1.0)
    return Adapter(name=name, modules=merged, base_model=adapters[0].base_model)


def merged_deltas(
    adapters: Sequence[Adapter],
    weights: Weights,
    method: str = "linear",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    base: BaseWeights | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """(module, merged delta) with any merge method, as folding first and merging then would do.

    Deltas are float32 `(out, in)`. An adapter without the module takes part with a delta of zeros.
    Raises UsageError, also for a method that depends on the base (layer_swap and lines on its
    depth, widen on its weights) without one.
    """
    if method not in MERGE_METHODS:
        raise UsageError(
            Problem(
                thing=f"method {method!r}",
                cause="unknown",
                remedy=did_you_mean(method, MERGE_METHODS),
            )
        )
    for module in modules_of(adapters):
        row = _row(weights, module, len(adapters))
        yield module, merged_delta(adapters, row, module, method, options, seed, base)


def merged_delta(
    adapters: Sequence[Adapter],
    row: Sequence[float],
    module: str,
    method: str = "linear",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    base: BaseWeights | None = None,
) -> Tensor:
    """One module's merged delta, float32 `(out, in)`.

    Raises UsageError for a method that depends on the base without one.
    """
    entry = MERGE_METHODS[method]
    if base is None and (entry.by_depth or entry.reads_base):
        needed = "number of layers" if entry.by_depth else "own weights"
        raise UsageError(
            Problem(
                thing=f"method {method!r}",
                cause=f"depends on the base's {needed}",
                remedy="Give base: FOLDER",
            )
        )
    parts = [adapter.modules.get(module) for adapter in adapters]
    shape = next(part.shape for part in parts if part is not None)
    deltas = [torch.zeros(shape) if part is None else part.delta() for part in parts]
    out = torch.empty(shape)
    context = TensorContext(
        name=f"{module}.weight",
        members=tuple(adapter.name for adapter in adapters),
        seed=seed,
        num_layers=base.num_layers if base else 0,
    )
    # on deltas the base is zero, which rounds less than adding the base and taking it off again
    origin = torch.zeros(shape)
    if base is not None and entry.reads_base:
        origin = base.tensor(f"{module}.weight").float()
        deltas = [delta.add_(origin) for delta in deltas]
    entry.function(
        deltas,
        row,
        base=origin if entry.needs_base else None,
        context=context,
        out=out,
        **as_keywords(options or {}),
    )
    return out.sub_(origin) if entry.reads_base else out


def factor(
    deltas: Mapping[str, Tensor], rank: int, name: str = "svd", base_model: str = ""
) -> tuple[Adapter, dict[str, float]]:
    """The best adapter of a rank for given deltas, and its relative Frobenius error by module.

    By SVD (Eckart and Young 1936).
    """
    modules, errors = {}, {}
    for module, delta in deltas.items():
        left, values, right = torch.linalg.svd(delta.float(), full_matrices=False)
        modules[module], errors[module] = _truncated(left, values, right, rank)
    return Adapter(name=name, modules=modules, base_model=base_model), errors


def truncate(adapter: Adapter, rank: int) -> tuple[Adapter, dict[str, float]]:
    """The adapter at a lower rank, and its relative Frobenius error by module.

    The SVD is of the small product of both factors' R (QR first), so it costs r^2 (in + out) and
    not in * out.
    """
    modules, errors = {}, {}
    for module, factors in adapter.modules.items():
        up_basis, up_small = torch.linalg.qr(factors.up.float() * factors.scale)
        down_basis, down_small = torch.linalg.qr(factors.down.float().T)
        left, values, right = torch.linalg.svd(up_small @ down_small.T, full_matrices=False)
        modules[module], errors[module] = _truncated(
            up_basis @ left, values, right @ down_basis.T, rank
        )
    return Adapter(name=adapter.name, modules=modules, base_model=adapter.base_model), errors


def fold(tensors: Iterator[tuple[str, Tensor]], adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) pairs of the base with the adapter's deltas added.

    Computed in float32, and rounded once to the base's dtype. Raises UsageError at the end when a
    module of the adapter did not meet its tensor.
    """
    open_modules = set(adapter.modules)
    for name, tensor in tensors:
        module = name.removesuffix(".weight")
        if module in open_modules:
            open_modules.remove(module)
            tensor = (tensor.float() + adapter.modules[module].delta()).to(tensor.dtype)
        yield name, tensor
    if open_modules:
        raise UsageError(
            Problem(
                thing=f"adapter {adapter.name!r}",
                cause=f"changes {sorted(open_modules)[0]!r}, which the base does not have",
                remedy="It was trained on another base",
            )
        )


def check_fit(adapters: Sequence[Adapter]) -> None:
    """Raise UnsafeInputError when adapters change one module with weights of different shapes."""
    first: dict[str, tuple[str, tuple[int, int]]] = {}  # module -> adapter, shape
    problems = []
    for adapter in adapters:
        for module, factors in adapter.modules.items():
            name, shape = first.setdefault(module, (adapter.name, factors.shape))
            if factors.shape != shape:
                cause = f"changes a weight of {list(factors.shape)}, {name!r} one of {list(shape)}"
                problems.append(
                    Problem(
                        thing=f"adapter {adapter.name!r}: {module!r}",
                        cause=cause,
                        remedy="They were trained on different bases, and cannot be merged",
                    )
                )
    raise_problems(problems[:SHOWN], UnsafeInputError)


def modules_of(adapters: Sequence[Adapter]) -> list[str]:
    """Every module that an adapter changes, in the order of first appearance."""
    return list(dict.fromkeys(module for adapter in adapters for module in adapter.modules))


def _row(weights: Weights, module: str, count: int) -> Sequence[float]:
    """A module's weights, one per adapter. Raises UsageError for another number of them."""
    row = weights[module] if isinstance(weights, Mapping) else weights
    if len(row) != count:
        raise UsageError(
            Problem(
                thing="weights",
                cause=f"has {len(row)} numbers for {count} adapters",
                remedy="Give one an adapter",
            )
        )
    return row


def _truncated(left: Tensor, values: Tensor, right: Tensor, rank: int) -> tuple[LowRank, float]:
    """The factors of the first singular triplets, and the relative error without the others."""
    energy = float(values.square().sum())
    error = math.sqrt(float(values[rank:].square().sum()) / energy) if energy > 0 else 0.0
    root = values[:rank].sqrt()
    return LowRank(up=left[:, :rank] * root, down=root[:, None] * right[:rank], scale=1.0), error
