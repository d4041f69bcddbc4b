"""Fold a LoRA adapter into its base: the full checkpoint that a merge needs.

W + scale * B @ A in float32, rounded once to the base tensor's dtype; one tensor at a time. What
cannot be folded exactly is refused: an adapter with more than plain LoRA in it would silently lose
that.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from recycler.errors import Problem, UnsafeInputError, UsageError, raise_problems
from recycler.io.atomic import atomic_folder, copy_companions
from recycler.pool.adapters.patterns import compile_patterns
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.headers import FLOAT_DTYPES, read_header
from recycler.pool.storage.hf_folder import read_json
from recycler.pool.storage.tensors import iterate_tensors
from recycler.pool.storage.writer import write_model
from recycler.types import Checkpoint

SHOWN = 20  # problems that are told
MAX_NUMBER = 1e9  # of ranks and alphas
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
BY_PEFT = "Merge this adapter with PEFT, and give the result"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>A|B)\.weight")
# options of PEFT that change what an adapter computes, or that changed the base it was trained on
# (pissa, olora, loftq);
# any value other than these is more than plain LoRA
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "velora_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True, slots=True)
class Factors:
    """One LoRA pair: scale * B @ A is added to its base tensor."""

    down: Tensor  # A: (r, in)
    up: Tensor  # B: (out, r)
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> Tensor:
        return (self.up.float() @ self.down.float()).mul_(self.scale)


@dataclass(slots=True)
class Rounding:
    """What rounding to the base's dtype leaves of an adapter, over all tensors: sums of squares of
    its step, of what is left beside it, and their product.
    """

    step: float = 0.0
    product: float = 0.0
    error: float = 0.0

    def add(self, delta: Tensor, before: Tensor, after: Tensor) -> None:
        moved = (
            after.float() - before
        )  # a float32 tensor is its own .float(): nothing may be done to it in place
        self.step += float(delta.square().sum())
        self.product += float((moved * delta).sum())
        self.error += float(moved.sub_(delta).square().sum())

    @property
    def kept(self) -> float:
        """How far the weights moved along the adapter's step, as a share of it."""
        return self.product / self.step if self.step else 1.0

    @property
    def noise(self) -> float:
        """|what the weights moved - the step| / |the step|."""
        return math.sqrt(self.error / self.step) if self.step else 0.0


def fold_adapter(base: Path, adapter: Path, out: Path) -> Rounding:
    """Write `base` with `adapter` folded in to the new folder `out`, which appears whole or not at
    all; tell what rounding left of it.

    Raises UsageError or UnsafeInputError, with every problem, when the adapter is not plain LoRA or
    does not fit the base.
    """
    checkpoint = open_checkpoint(base, "base")
    factors = match_factors(read_factors(adapter)[0], checkpoint, adapter.name)
    infos = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    with atomic_folder(out) as aside:
        write_model(_folded(checkpoint, factors, rounding := Rounding()), infos, aside)
        shutil.copyfile(base / "config.json", aside / "config.json")
        copy_companions(base, aside)
    return rounding


def _folded(
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
    config = _read_config(adapter)
    path = adapter / ADAPTER_WEIGHTS
    if not path.is_file():
        raise UsageError(
            Problem(
                thing=str(adapter),
                cause=f"has no {ADAPTER_WEIGHTS}",
                remedy="Save the adapter with save_pretrained; pickles are not read",
            )
        )
    pairs: dict[str, dict[str, str]] = {}
    problems = []
    for name, info in read_header(path).items():
        if (place := _NAME.fullmatch(name)) is None:
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
            pairs.setdefault(place["module"], {})[place["side"]] = name
    problems += [
        Problem(
            thing=f"{path}: {module!r}",
            cause="has only one of its two factors",
            remedy="Save the adapter again",
        )
        for module, pair in pairs.items()
        if len(pair) != 2
    ]
    if not pairs and not problems:
        problems.append(
            Problem(thing=str(path), cause="holds no tensor", remedy="Save the adapter again")
        )
    raise_problems(problems[:SHOWN], UnsafeInputError)
    scales = _scales(pairs, config, adapter / ADAPTER_CONFIG)
    with safe_open(path, framework="pt", device="cpu") as file:
        return {
            f"{module}.weight": _factors(
                file.get_tensor(pair["A"]),
                file.get_tensor(pair["B"]),
                module,
                *scales[module],
                path,
            )
            for module, pair in pairs.items()
        }, config


def _no_factor(path: Path, name: str) -> Problem:
    if name.endswith(
        ".base_layer.weight"
        # PEFT adds it for embeddings and heads, by itself when it cannot tell that they are as
        # before
    ):
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


def _scales(
    modules: Iterable[str], config: Mapping[str, Any], path: Path
) -> dict[str, tuple[int, float]]:
    """(rank, scale) of each module: what a pattern of the configuration says about it, else the
    common value.
    """
    found = {}
    key = "rank_pattern"
    try:
        own_rank = compile_patterns(config[key])
        key = "alpha_pattern"
        own_alpha = compile_patterns(config[key])
        for module in modules:
            key = "rank_pattern"
            rank = own_rank(module)
            key = "alpha_pattern"
            alpha = own_alpha(module)
            rank, alpha = (
                config["r"] if rank is None else rank,
                config["lora_alpha"] if alpha is None else alpha,
            )
            found[module] = (
                rank,
                alpha / (math.sqrt(rank) if config["use_rslora"] else rank) if rank > 0 else 0.0,
            )
    except ValueError as error:
        raise UnsafeInputError(
            Problem(
                thing=f"{path}: {key}",
                cause=str(error),
                remedy="Write the modules' names, or plain patterns of them",
            )
        ) from None
    return found


def _read_config(adapter: Path) -> dict[str, Any]:
    """adapter_config.json with the values that matter here checked and filled in.

    Raises UsageError or UnsafeInputError, with file and key.
    """
    path = adapter / ADAPTER_CONFIG
    if not os.path.lexists(path):
        raise UsageError(
            Problem(
                thing=str(adapter),
                cause=f"has no {ADAPTER_CONFIG}",
                remedy="Give the folder of a PEFT adapter",
            )
        )
    config = read_json(path)
    if not isinstance(config, dict):
        raise UnsafeInputError(
            Problem(thing=str(path), cause="is not a JSON object", remedy="Save the adapter again")
        )
    absent: dict[str, Any] = {"use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    checked = {**config, **{key: value for key, value in absent.items() if config.get(key) is None}}
    wrong = [(key, wanted) for key, (fits, wanted) in _VALUES.items() if not fits(checked.get(key))]
    raise_problems(
        [
            Problem(
                thing=f"{path}: {key}",
                cause=f"is {str(config.get(key))[:80]!r} where {wanted} is wanted"
                if key in config
                else "is missing",
                remedy="Save the adapter again",
            )
            for key, wanted in wrong
        ],
        UnsafeInputError,
    )
    raise_problems(
        [
            Problem(
                thing=f"{path}: {key}",
                cause=f"is {str(config.get(key))[:80]}, which is more than plain LoRA",
                remedy=BY_PEFT,
            )
            for key, plain in _PLAIN.items()
            if key in config
            and not any(
                config[key] == value and type(config[key]) is type(value) for value in plain
            )
        ],
        UsageError,
    )
    return checked


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < MAX_NUMBER


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


_VALUES: Mapping[
    str, tuple[Callable[[Any], bool], str]
] = {  # nothing is converted: 4.9 is no rank, and "false" is no truth value
    "r": (_is_rank, "a whole number from 1 on"),
    "lora_alpha": (_is_alpha, "a number"),
    "use_rslora": (lambda value: type(value) is bool, "true or false"),
    "rank_pattern": (
        lambda value: isinstance(value, dict) and all(map(_is_rank, value.values())),
        "a mapping of patterns to whole numbers from 1 on",
    ),
    "alpha_pattern": (
        lambda value: isinstance(value, dict) and all(map(_is_alpha, value.values())),
        "a mapping of patterns to numbers",
    ),
}
