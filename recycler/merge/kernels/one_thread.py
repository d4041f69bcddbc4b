"""One thread inside PyTorch, so that bits do not depend on the number of threads.

Reductions and LAPACK split their sums by the threads they get.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
Result = TypeVar("Result")


def one_thread(function: Callable[P, Result]) -> Callable[P, Result]:
    """Run `function` with one thread inside PyTorch, and put the caller's number back after it."""

    @wraps(function)
    def with_one_thread(*arguments: P.args, **keywords: P.kwargs) -> Result:
        before = torch.get_num_threads()
        if before == 1:
            return function(*arguments, **keywords)
        torch.set_num_threads(1)
        try:
            return function(*arguments, **keywords)
        finally:
            torch.set_num_threads(before)

    return with_one_thread
