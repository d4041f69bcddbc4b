"""Inference engines behind one port. Each is imported only when it is built."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from recycler.engines.port import Engine
from recycler.errors import Problem, UsageError, did_you_mean
from recycler.types import Pool

ENGINES = {
    "transformers": "recycler.engines.transformers_engine:TransformersEngine",
    "vllm": "recycler.engines.vllm_engine:VLLMEngine",
}


def build_engine(name: str, pool: Pool, **settings: Any) -> Engine:
    """A live engine over `pool`. Raises UsageError when the name is unknown or its library is not installed."""
    if name not in ENGINES:
        raise UsageError(Problem(thing=f"engine {name!r}", cause="unknown", remedy=did_you_mean(name, ENGINES)))
    if find_spec(name) is None:
        raise UsageError(Problem(thing=f"engine {name!r}", cause=f"{name} is not installed", remedy=f"pip install 'recycler[{name}]', or use engine: transformers"))
    module, _, class_name = ENGINES[name].partition(":")
    return getattr(import_module(module), class_name)(pool, **settings)


def default_engine_name() -> str:
    """vllm where it and a GPU are present, else transformers."""
    if find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"
