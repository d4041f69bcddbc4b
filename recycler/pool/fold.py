"""Fold a LoRA adapter into its base: the full checkpoint that a merge needs.

W + scale * B @ A in float32, rounded once to the base tensor's dtype; one tensor at a time. What cannot be folded exactly
is refused: an adapter with more than plain LoRA in it would silently lose that.
"""

from __future__ import annotations

import json
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
from recycler.merge.writer import write_model
from recycler.pool.catalog import open_checkpoint
from recycler.pool.headers import FLOAT_DTYPES, read_header
from recycler.pool.tensors import iterate_tensors
from recycler.types import Checkpoint
from recycler.wholefolder import copy_companions, whole_folder

MAX_NUMBER = 1e9  # of ranks and alphas
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
BY_PEFT = "Merge this adapter with PEFT, and give the result"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>A|B)\.weight")
# options of PEFT that change what an adapter computes, or that changed the base it was trained on (pissa, olora, loftq);
# any value other than these is more than plain LoRA
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "use_dora": (False, None), "lora_bias": (False, None), "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []), "trainable_token_indices": (None,), "target_parameters": (None, []), "layer_replication": (None, []),
    "alora_invocation_tokens": (None,), "use_qalora": (False, None), "use_bdlora": (None, False), "arrow_config": (None,), "velora_config": (None,), "kasa_config": (None,),
    "monteclora_config": (None,), "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal")}


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


def fold_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Write `base` with `adapter` folded in to the new folder `out`, which appears whole or not at all.

    Raises UsageError or UnsafeInputError, with every problem, when the adapter is not plain LoRA or does not fit the base.
    """
    checkpoint = open_checkpoint(base, "base")
    factors = match_factors(read_factors(adapter)[0], checkpoint, adapter.name)
    infos = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    with whole_folder(out) as aside:
        write_model(_folded(checkpoint, factors), infos, aside)
        shutil.copyfile(base / "config.json", aside / "config.json")
        copy_companions(base, aside)


def _folded(checkpoint: Checkpoint, factors: Mapping[str, Factors]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in iterate_tensors(checkpoint):
        yield name, factors[name].delta().add_(tensor).to(tensor.dtype) if name in factors else tensor


def match_factors(found: Mapping[str, Factors], checkpoint: Checkpoint, adapter: str) -> dict[str, Factors]:
    """Factors by the checkpoint's tensor names. Raises UnsafeInputError when one has no tensor of its shape."""
    problems = []
    if checkpoint.config.get("tie_word_embeddings") and "lm_head.weight" in found:
        problems.append(Problem(thing=f"{adapter}: 'lm_head.weight'", cause="is tied to the embeddings in the base: folding would change both", remedy="Train without lm_head, or untie the base"))
    for name, factors in found.items():
        info = checkpoint.tensors.get(name)
        if info is None:
            problems.append(Problem(thing=f"{adapter}: {name!r}", cause="is not in the base", remedy="Fold it into the base it was trained on"))
        elif info.shape != factors.shape or info.dtype not in FLOAT_DTYPES:
            problems.append(Problem(thing=f"{adapter}: {name!r}", cause=f"is {factors.shape}, in the base {info.dtype} {info.shape}", remedy="Fold it into the base it was trained on"))
    raise_problems(problems, UnsafeInputError)
    return dict(found)


# ---------------------------------------------------------------- the adapter's folder

def read_factors(adapter: Path) -> tuple[dict[str, Factors], dict[str, Any]]:
    """Factors by the name of the base tensor they change, and the adapter's configuration. Raises UsageError or UnsafeInputError."""
    config = _read_config(adapter)
    path = adapter / ADAPTER_WEIGHTS
    if not path.is_file():
        raise UsageError(Problem(thing=str(adapter), cause=f"has no {ADAPTER_WEIGHTS}", remedy="Save the adapter with save_pretrained; pickles are not read"))
    pairs: dict[str, dict[str, str]] = {}
    problems = []
    for name in read_header(path):
        if (place := _NAME.fullmatch(name)) is None:
            problems.append(Problem(thing=f"{path.name}: {name!r}", cause="is not a factor of plain LoRA on a linear layer", remedy=BY_PEFT))
        else:
            pairs.setdefault(place["module"], {})[place["side"]] = name
    problems += [Problem(thing=f"{path.name}: {module!r}", cause="has only one of its two factors", remedy="Save the adapter again")
                 for module, pair in pairs.items() if len(pair) != 2]
    if not pairs and not problems:
        problems.append(Problem(thing=str(path), cause="holds no tensor", remedy="Save the adapter again"))
    raise_problems(problems, UnsafeInputError)
    with safe_open(path, framework="pt", device="cpu") as file:
        return {f"{module}.weight": _factors(file.get_tensor(pair["A"]), file.get_tensor(pair["B"]), module, config, path) for module, pair in pairs.items()}, config


def _factors(down: Tensor, up: Tensor, module: str, config: Mapping[str, Any], path: Path) -> Factors:
    rank = _by_pattern(config["rank_pattern"], module, config["r"])
    alpha = _by_pattern(config["alpha_pattern"], module, config["lora_alpha"])
    if rank < 1 or down.ndim != 2 or up.ndim != 2 or not down.shape[0] == up.shape[1] == rank:
        raise UnsafeInputError(Problem(thing=f"{path.name}: {module!r}", cause=f"factors are {tuple(up.shape)} and {tuple(down.shape)}, the configuration says rank {rank}",
                                       remedy="Configuration and weights belong to different adapters"))
    return Factors(down, up, alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """PEFT's rule: the first pattern that matches the whole name or its end after a dot."""
    return next((value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)), otherwise)


def _read_config(adapter: Path) -> dict[str, Any]:
    path = adapter / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text())
        known = {key: dict(config.get(key) or {}) for key in ("rank_pattern", "alpha_pattern")}
        for pattern in [*known["rank_pattern"], *known["alpha_pattern"]]:
            re.compile(pattern)
        numbers = [*known["rank_pattern"].values(), *known["alpha_pattern"].values(), config["r"], config["lora_alpha"]]
        if not all(type(number) in (int, float) and abs(number) < MAX_NUMBER for number in numbers) or not all(type(rank) is int for rank in known["rank_pattern"].values()):
            raise ValueError("a rank or alpha is not a number of a sane size")
        checked = {**config, **known, "r": int(config["r"]), "lora_alpha": float(config["lora_alpha"]), "use_rslora": bool(config.get("use_rslora"))}
    except FileNotFoundError:
        raise UsageError(Problem(thing=str(adapter), cause=f"has no {ADAPTER_CONFIG}", remedy="Give the folder of a PEFT adapter")) from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, RecursionError, re.error) as error:
        raise UnsafeInputError(Problem(thing=str(path), cause=f"is not the configuration of a LoRA adapter ({error!r})", remedy="Save the adapter again")) from None
    raise_problems([Problem(thing=f"{path}: {key}", cause=f"is {config.get(key)!r}, which is more than plain LoRA", remedy=BY_PEFT)
                    for key, plain in _PLAIN.items() if key in config and config[key] not in plain], UsageError)
    return checked
