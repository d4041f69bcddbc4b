"""One BLAS thread around small matrices.

A Gaussian process over a few hundred trials factorises matrices of a few hundred rows. OpenBLAS
splits these among all cores, where handing out the parts and spinning for the next costs far more
than the arithmetic, the more so the busier the machine is. Only the decorated call is limited,
not the process: whoever calls keeps the threads that they had.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import scipy.linalg  # noqa: F401  (brings its own OpenBLAS, which must be loaded to be found)
from threadpoolctl import ThreadpoolController

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def one_blas_thread(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """Run `function` with one thread in every BLAS of this process, then put back what was set."""

    @wraps(function)
    def limited(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Value:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*arguments, **keywords)

    return limited


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    """The BLAS libraries that numpy and scipy loaded; found once, since the search takes 3 ms."""
    return ThreadpoolController()
