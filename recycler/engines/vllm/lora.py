"""Several merges of LoRA adapters in one batch of vLLM, each as one more adapter on the base.

A linear merge of members that are the base with an adapter folded in is the base with one adapter:
CAT, sum_k w_k s_k B_k A_k (Prabhakar et al. 2024, arXiv:2410.13025). It rounds elsewhere than the
dense merge that is exported: what is scored so is to be scored again before it ships. A name and
number are used once in an engine's life, since vLLM knows cached blocks and adapters by them alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recycler.engines.live import same_bits
from recycler.errors import Problem, UnsafeInputError, UsageError
from recycler.merge.lora.factors import (
    Adapter,
    cat,
    check_fit,
    modules_of,
    read_adapter,
    write_adapter,
)
from recycler.pool.storage.tensors import ResidentPool
from recycler.types import Pool, Recipe

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM keeps room for
# vLLM loses an adapter's share of these in likelihoods (its issues 16668 and 51594)
NOT_BATCHED = ("lm_head", "embed_tokens")


class MergeAdapters:
    """The adapters of a pool's members, and the merges of them that an engine holds at present."""

    def __init__(self, pool: Pool, folder: Path, max_loaded: int):
        """Read the members' adapters from the folders of their names.

        Raises UsageError or UnsafeInputError unless each member is the base with its adapter folded
        in, bit for bit.
        """
        self._adapters, self._pool = read_adapters(pool, folder), pool
        self._max_loaded = max_loaded
        check_folded(pool, self._adapters)
        self._loaded: dict[str, Any] = {}  # name -> vLLM's LoRARequest
        self._used = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that vLLM must be built with.

        Only the adapters' own modules are wrapped: with lm_head among them it fails on likelihoods
        (its issue 29955).
        """
        needed = rank_sum(self._adapters)
        modules = {module.rpartition(".")[2] for module in modules_of(self._adapters)}
        return {
            "enable_lora": True,
            "max_loras": self._max_loaded,
            "max_lora_rank": next(rank for rank in RANKS if rank >= needed),
            "lora_target_modules": sorted(modules),
        }

    def load(self, recipes: Sequence[Recipe], engine: Any) -> tuple[str, ...]:
        """Load each recipe's merge into vLLM's engine, and return their names.

        The name is "" for a merge that is the base itself.
        """
        from vllm.lora.request import LoRARequest  # heavy

        if self._loaded or len(recipes) > self._max_loaded:
            raise RuntimeError(
                f"{len(self._loaded)} adapters are loaded and {len(recipes)} are to be, of "
                f"{self._max_loaded} at most"
            )
        names = []
        with tempfile.TemporaryDirectory(prefix="recycler-adapters-") as aside:
            for merge in [self.merge_of(recipe) for recipe in recipes]:
                self._used += 1
                name = f"merge-{self._used}" if merge.modules else ""
                names.append(name)
                if name:
                    write_adapter(merge, Path(aside) / name)
                    self._loaded[name] = LoRARequest(name, self._used, str(Path(aside) / name))
                    if not engine.add_lora(self._loaded[name]):
                        raise RuntimeError(f"vLLM did not load adapter {name}")
        return tuple(names)

    def unload(self, engine: Any) -> None:
        """Remove every merge from vLLM's engine; their names are gone for good."""
        while self._loaded:
            name, request = self._loaded.popitem()
            if not engine.remove_lora(request.lora_int_id):
                raise RuntimeError(f"vLLM did not remove adapter {name}")

    def request(self, name: str) -> Any:
        """vLLM's request for the adapter of that name; None for the live weights."""
        if name and name not in self._loaded:
            raise UsageError(
                Problem(
                    thing=f"merge {name!r}",
                    cause="is not loaded",
                    remedy="Load it first; each name holds until the weights change",
                )
            )
        return self._loaded.get(name)

    def merge_of(self, recipe: Recipe) -> Adapter:
        """A linear recipe over the pool as one adapter. Raises UsageError for any other recipe."""
        base = self._pool.base.name if self._pool.base else None
        has_options = any(value for _, value in recipe.options)
        if recipe.method != "linear" or recipe.base != base or has_options:
            with_options = " with options" if recipe.options else ""
            raise UsageError(
                Problem(
                    thing="recipe",
                    cause=f"is {recipe.method!r}{with_options}, and only plain linear merges on "
                    "the base are sums of adapters",
                    remedy="Merge it densely",
                )
            )
        own = dict(zip(self._pool.names, self._adapters, strict=True))
        chosen = [own[name] for name in recipe.members]
        rows = {
            module: recipe.weights[recipe.group_of(f"{module}.weight")]
            for module in modules_of(chosen)
        }
        return cat(chosen, rows)


def read_adapters(pool: Pool, folder: Path) -> tuple[Adapter, ...]:
    """The adapter of each member, from the folder of its name in `folder`.

    Raises UsageError or UnsafeInputError for a pool without a base, a missing adapter, and adapters
    that vLLM cannot hold or answers wrongly with.
    """
    if pool.base is None:
        raise UsageError(
            Problem(
                thing="engine.lora_batch",
                cause="merges adapters on a base, and the pool has none",
                remedy="Add base: under pool:",
            )
        )
    missing = [name for name in pool.names if not (folder / name).is_dir()]
    if missing:
        raise UsageError(
            [
                Problem(
                    thing=f"member {name!r}",
                    cause=f"has no adapter {folder / name}",
                    remedy="Give engine.adapters the folder that holds each member's adapter under "
                    "its name",
                )
                for name in missing
            ]
        )
    adapters = tuple(read_adapter(folder / name, name) for name in pool.names)
    check_fit(adapters)
    if rank_sum(adapters) > RANKS[-1]:
        raise UsageError(
            Problem(
                thing="engine.lora_batch",
                cause=f"needs adapters of rank {rank_sum(adapters)}, vLLM takes {RANKS[-1]}",
                remedy="Use fewer members, or leave lora_batch out",
            )
        )
    outside = sorted(
        module for module in modules_of(adapters) if module.rpartition(".")[2] in NOT_BATCHED
    )
    if outside:
        raise UsageError(
            Problem(
                thing="engine.lora_batch",
                cause=f"cannot take adapters on {outside[0]}, whose likelihoods vLLM gets wrong",
                remedy="Leave lora_batch out",
            )
        )
    return adapters


def rank_sum(adapters: Sequence[Adapter]) -> int:
    """The largest rank that a module of their concatenation can have."""
    total = 0
    for adapter in adapters:
        total += max((factors.rank for factors in adapter.modules.values()), default=0)
    return total


def check_folded(pool: Pool, adapters: Sequence[Adapter]) -> None:
    """Raise UnsafeInputError unless each member is the base with its adapter folded in.

    Every bit is compared: otherwise a sum of adapters is another model than the merge.
    """
    resident = ResidentPool(pool)
    for member, adapter in zip(pool.members, adapters, strict=True):
        unknown = [module for module in adapter.modules if f"{module}.weight" not in member.tensors]
        for name in member.tensors:
            expected = base = resident.tensor(pool.template.name, name)
            factors = adapter.modules.get(name.removesuffix(".weight"))
            if factors is not None:
                expected = factors.delta().add_(base).to(base.dtype)
            if unknown or not same_bits(expected, resident.tensor(member.name, name)):
                raise UnsafeInputError(
                    Problem(
                        thing=f"member {member.name!r}",
                        cause="is not the base with its adapter folded in: "
                        f"{(unknown or [name])[0]!r} differs",
                        remedy="Fold it with `recycler fold`, or leave engine.lora_batch out",
                    )
                )
