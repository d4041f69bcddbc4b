"""Samplers: who proposes the next weights.

Names load on first use, so importing this package loads nothing heavy.

simplex_gp      ask / tell core: GP on the weights, noisy expected hypervolume improvement
gp acquisition  its mathematics
domain proposals  which weights are allowed, and where new ones are drawn
optuna_sampler optuna_front  the same as an Optuna sampler, and what to ship of its study
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "SimplexGP": "recycler.search.simplex.simplex_gp",
    "SimplexGPSampler": "recycler.search.optuna.sampler",
    "posterior_front": "recycler.search.optuna.front",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
