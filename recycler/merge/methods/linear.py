"""Linear merges: weighted sums of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from recycler.merge.kernels.blocks import weighted_sum
from recycler.merge.methods.method import TensorContext

MIN_DIVISOR = 1e-8  # below this a sum of weights is taken for zero and not divided by


def linear(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    base: Tensor | None,
    context: TensorContext,
    out: Tensor,
    normalize: bool = False,
) -> None:
    """Write the weighted sum of same-shaped tensors.

    1. Without a base: `sum_k w_k t_k` (Wortsman et al. 2022, arXiv:2203.05482; Khalifa et al. 2024,
       arXiv:2412.04144).
    2. With a base, weights act on deltas: `b + sum_k w_k (t_k - b)` (Ilharco et al. 2022,
       arXiv:2212.04089). It is computed as `(1 - sum_k w_k) b + sum_k w_k t_k`, the same number, so
       a one-hot weight returns its member bit for bit.
    3. `normalize` divides by the sum of the weights, unless that is nearly zero. Otherwise weights
       are used as given, since normalising is the space's job.

    Accumulates in float32 and rounds once, to `out`'s dtype. Zero weights are skipped, so an inf in
    an unused checkpoint cannot become nan.

    Limitations: members must come from one base and lie close to each other; between distant ones
    the sum passes through weights that no training has seen.
    """
    total = sum(weights)
    divisor = total if normalize and abs(total) >= MIN_DIVISOR else 1.0
    terms = list(zip(tensors, weights, strict=True))
    if base is not None:
        terms.append((base, divisor - total))
    weighted_sum(terms, out, divisor)
