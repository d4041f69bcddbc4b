"""Task arithmetic: add the members' deltas to the base."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from recycler.merge.methods.delta_pipeline import merge_deltas
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
    """b + lambda sum_k w_k (t_k - b) (Ilharco et al. 2022, arXiv:2212.04089).

    Computed on float32 deltas, which are exact for close bfloat16 numbers; `linear` with a base is
    the same merge in one pass less, and differs from this in the last bit where a result falls
    half-way between two bfloat16 numbers. `normalize` divides by the sum of the weights: then a
    common factor on all of them cancels, and only `lambda` sets the step.
    """
    assert base is not None
    merge_deltas(
        tensors,
        weights,
        base,
        out,
        lambda index, delta: None,
        consensus=False,
        normalize=normalize,
        lambda_=lambda_,
    )
