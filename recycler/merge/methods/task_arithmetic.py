"""Task arithmetic: add the members' deltas to the base."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from recycler.merge.methods.delta_pipeline import keep_all, merge_deltas
from recycler.merge.methods.method import TensorContext


def task_arithmetic(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    lambda_: float = 1.0,
    normalize: bool = False,
) -> None:
    """Add the weighted deltas to the base (Ilharco et al. 2022, arXiv:2212.04089).

    1. Take each member's delta, `tau_k = t_k - b`, in float32, which is exact for close bfloat16
       numbers.
    2. Sum them: `sum_k w_k tau_k`. `normalize` divides by the sum of the weights: then a common
       factor on all of them cancels, and `lambda` alone sets the step.
    3. Write `b + lambda sum_k w_k tau_k`.

    Limitations: deltas that disagree cancel or add up unnoticed. `linear` with a base is the same
    merge in one pass less, and differs from this in the last bit where a result falls half-way
    between two bfloat16 numbers.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        keep_all,
        consensus=False,
        normalize=normalize,
        lambda_=lambda_,
    )
