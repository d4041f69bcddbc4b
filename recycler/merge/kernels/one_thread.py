"""The same bits with any number of threads: reductions and LAPACK split their sums by the threads
they get.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def one_thread(function: Function) -> Function:
    """`function` with one thread inside PyTorch; the caller's number is put back, whatever happens."""

    @wraps(function)
    def alone(*arguments: Any, **keywords: Any) -> Any:
        before = torch.get_num_threads()
        if before == 1:
            return function(*arguments, **keywords)
        torch.set_num_threads(1)
        try:
            return function(*arguments, **keywords)
        finally:
            torch.set_num_threads(before)

    return alone  # type: ignore[return-value]
