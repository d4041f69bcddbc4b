"""One thread inside PyTorch, so that bits do not depend on the number of threads.

Reductions and LAPACK split their sums by the threads they get.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def one_thread(function: Function) -> Function:
    """Run `function` with one thread inside PyTorch, and put the caller's number back after it."""

    @wraps(function)
    def with_one_thread(*arguments: Any, **keywords: Any) -> Any:
        before = torch.get_num_threads()
        if before == 1:
            return function(*arguments, **keywords)
        torch.set_num_threads(1)
        try:
            return function(*arguments, **keywords)
        finally:
            torch.set_num_threads(before)

    return with_one_thread  # type: ignore[return-value]
