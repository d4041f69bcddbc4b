"""Samplers: they propose the next weights.

    proposer   the port that every sampler fills, Optuna's samplers, and the table of all
    baselines  members, soups and base, which are scored first
    grid cma   evenly spaced merges of two members; CMA-ES on the average
    simplex/   a Gaussian process on the weights, noisy expected hypervolume improvement
    optuna/    the same as a sampler for Optuna, and the trials to ship of its study

Names load on first use, so importing this package loads nothing heavy.
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
