"""The configuration of a PEFT adapter: read strictly, and refused where it is more than plain LoRA.

Nothing is converted: 4.9 is no rank, and "false" is no truth value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recycler.errors import Problem, UnsafeInputError, UsageError, raise_problems
from recycler.pool.adapters.patterns import compile_patterns
from recycler.pool.storage.hf_folder import read_json

MAX_NUMBER = 1e9  # of ranks and alphas
ADAPTER_CONFIG = "adapter_config.json"
BY_PEFT = "Merge this adapter with PEFT, and give the result"
# options of PEFT that change what an adapter computes, or that changed the base it was trained on
# (pissa, olora, loftq); any value other than these is more than plain LoRA
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
_ABSENT: Mapping[str, Any] = {"use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
"""Values of keys that are left out, or null."""


def read_adapter_config(adapter: Path) -> dict[str, Any]:
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
    checked = dict(config)
    for key, value in _ABSENT.items():
        if checked.get(key) is None:
            checked[key] = value
    raise_problems(_wrong_values(path, config, checked), UnsafeInputError)
    raise_problems(_options_beyond_plain(path, config), UsageError)
    return checked


def module_scales(
    modules: Iterable[str], config: Mapping[str, Any], path: Path
) -> dict[str, tuple[int, float]]:
    """(rank, scale) of each module, by the patterns of the configuration at `path`.

    A module that no pattern matches has the common values. Raises UnsafeInputError for patterns
    that cannot be read.
    """
    ranks = _by_pattern(modules, config, "rank_pattern", path)
    alphas = _by_pattern(ranks, config, "alpha_pattern", path)
    scales: dict[str, tuple[int, float]] = {}
    for module, own_rank in ranks.items():
        rank = config["r"] if own_rank is None else own_rank
        alpha = config["lora_alpha"] if alphas[module] is None else alphas[module]
        scales[module] = (rank, _scale(rank, alpha, is_rank_stable=config["use_rslora"]))
    return scales


def _scale(rank: int, alpha: float, *, is_rank_stable: bool) -> float:
    if rank <= 0:
        return 0.0
    return alpha / (math.sqrt(rank) if is_rank_stable else rank)


def _by_pattern(
    modules: Iterable[str], config: Mapping[str, Any], key: str, path: Path
) -> dict[str, Any]:
    """The value of the first pattern that matches each module; None where none does."""
    try:
        value_of = compile_patterns(config[key])
        return {module: value_of(module) for module in modules}
    except ValueError as error:
        raise UnsafeInputError(
            Problem(
                thing=f"{path}: {key}",
                cause=str(error),
                remedy="Write the modules' names, or plain patterns of them",
            )
        ) from None


def _wrong_values(
    path: Path, config: Mapping[str, Any], checked: Mapping[str, Any]
) -> list[Problem]:
    """Values that are missing, or not of their type."""
    problems = []
    for key, (fits, wanted) in _VALUES.items():
        if fits(checked.get(key)):
            continue
        cause = "is missing"
        if key in config:
            cause = f"is {str(config[key])[:80]!r} where {wanted} is wanted"
        problems.append(
            Problem(thing=f"{path}: {key}", cause=cause, remedy="Save the adapter again")
        )
    return problems


def _options_beyond_plain(path: Path, config: Mapping[str, Any]) -> list[Problem]:
    """Options with which an adapter is more than plain LoRA."""
    return [
        Problem(
            thing=f"{path}: {key}",
            cause=f"is {str(config[key])[:80]}, which is more than plain LoRA",
            remedy=BY_PEFT,
        )
        for key, plain in _PLAIN.items()
        if key in config and not _is_one_of(config[key], plain)
    ]


def _is_one_of(given: object, values: tuple[object, ...]) -> bool:
    """True for an equal value of the same type: 0 is not False."""
    return any(given == value and type(given) is type(value) for value in values)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < MAX_NUMBER


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _are_ranks(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_rank, value.values()))


def _are_alphas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_alpha, value.values()))


_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, "a whole number from 1 on"),
    "lora_alpha": (_is_alpha, "a number"),
    "use_rslora": (_is_bool, "true or false"),
    "rank_pattern": (_are_ranks, "a mapping of patterns to whole numbers from 1 on"),
    "alpha_pattern": (_are_alphas, "a mapping of patterns to numbers"),
}
