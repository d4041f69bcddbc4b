"""Inference engines behind one port. Each is imported only when it is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from recycler.engines.port import Engine
from recycler.errors import Problem, UsageError, did_you_mean
from recycler.types import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """One row of the table of engines.

    `home` is module:class, imported when an engine is built. `library` must be installed for it;
    `is_parallel` engines can share one model among several GPUs.
    """

    home: str
    library: str
    is_parallel: bool = False


ENGINES: dict[str, EngineEntry] = {
    "transformers": EngineEntry(
        home="recycler.engines.transformers_engine:TransformersEngine", library="transformers"
    ),
    "vllm": EngineEntry(
        home="recycler.engines.vllm.engine:VLLMEngine", library="vllm", is_parallel=True
    ),
}


def build_engine(name: str, pool: Pool, **settings: Any) -> Engine:
    """A live engine over `pool`.

    Raises UsageError when the name is unknown or its library is not installed.
    """
    if name not in ENGINES:
        raise UsageError(
            Problem(thing=f"engine {name!r}", cause="unknown", remedy=did_you_mean(name, ENGINES))
        )
    entry = ENGINES[name]
    if find_spec(entry.library) is None:
        raise UsageError(
            Problem(
                thing=f"engine {name!r}",
                cause=f"{entry.library} is not installed",
                remedy=f"pip install 'recycler[{entry.library}]', or use engine: transformers",
            )
        )
    if not entry.is_parallel and settings.get("tensor_parallel", 1) > 1:
        raise UsageError(
            Problem(
                thing="engine.tensor_parallel",
                cause=f"{name} runs a model on one device",
                remedy="Use engine: vllm, or leave tensor_parallel out",
            )
        )
    module, _, class_name = entry.home.partition(":")
    return getattr(import_module(module), class_name)(pool, **settings)


def parallel_problems(pool: Pool, num_ranks: int, where: str = "") -> Iterator[Problem]:
    """The reasons why N tensor-parallel ranks cannot share the pool's architecture.

    Each rank holds whole attention heads, and all hold the same number.
    """
    config = pool.template.config
    heads = int(config.get("num_attention_heads") or num_ranks)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("intermediate_size") or num_ranks)
    for count, what, fits in (
        (heads, "attention heads", heads % num_ranks == 0),
        (size, "rows of an MLP", size % num_ranks == 0),
        (kv_heads, "key/value heads", kv_heads % num_ranks == 0 or num_ranks % kv_heads == 0),
    ):
        if not fits:
            yield Problem(
                thing="engine.tensor_parallel",
                cause=f"is {num_ranks}, and {num_ranks} ranks cannot share {count} {what} evenly",
                remedy="Take another number, 1 in doubt",
                where=where,
            )


def default_engine_name() -> str:
    """vllm where it and a GPU are present, else transformers."""
    if find_spec("vllm") is None:
        return "transformers"
    import torch  # heavy

    return "vllm" if torch.cuda.is_available() else "transformers"
