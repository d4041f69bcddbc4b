"""What is changed in vLLM on a CPU, in every process that loads a model: weights stay where a merge
reaches them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from recycler.errors import Problem, UnsafeInputError


def patch_vllm() -> None:
    """Change vLLM for this process, once; nothing on a GPU.

    Raises UnsafeInputError when vLLM is not as we know it.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _keep_cpu_weights()
        _count_ranks_at_once()
        _multiply_once_an_adapter()


def _keep_cpu_weights() -> None:
    """Make vLLM's CPU path compute with the weights it has loaded instead of packed copies that no
    merge can reach.
    """
    try:
        from vllm.model_executor.layers import utils

        packing = utils.dispatch_cpu_unquantized_gemm
    except (ImportError, AttributeError) as error:
        raise UnsafeInputError(
            Problem(
                thing="vllm",
                cause=f"this version keeps CPU weights in an unknown place ({error})",
                remedy="pip install 'recycler[vllm]', or use engine: transformers",
            )
        ) from None

    def keep(layer: torch.nn.Module, remove_weight: bool) -> None:
        if layer.weight.is_meta or layer.weight.ndim == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            packing(layer, remove_weight)

    keep.keeps_weights = True  # type: ignore[attr-defined]
    if not getattr(packing, "keeps_weights", False):
        utils.dispatch_cpu_unquantized_gemm = keep


def _count_ranks_at_once() -> None:
    """vLLM compiles a one-line count for the ranks of prompt tokens, which we do not read: half a
    minute per process on a CPU.
    """
    from vllm.v1.sample import sampler

    if hasattr(sampler, "batched_count_greater_than"):
        sampler.batched_count_greater_than = lambda logprobs, values: (logprobs >= values).sum(-1)


def _multiply_once_an_adapter() -> None:
    """vLLM's CPU kernels for adapters copy the factors once a token (lora/ops/torch_ops); here all
    tokens of an adapter share a product.

    An index of -1, no adapter, leaves its rows as they are; vLLM's take the last adapter then.
    """
    from vllm.lora.punica_wrapper import punica_cpu

    def rows_of(indices: Tensor) -> Iterator[tuple[int, Tensor]]:
        return (
            (adapter, (indices == adapter).nonzero().squeeze(1))
            for adapter in torch.unique(indices).tolist()
            if adapter >= 0
        )

    def shrink(x: Tensor, down: Tensor, out: Tensor, indices: Tensor, scale: float = 1.0) -> None:
        for adapter, rows in rows_of(indices):
            out[rows] = (x[rows].to(out.dtype) @ down[adapter, 0].to(out.dtype).T).mul_(scale)

    def expand(
        x: Tensor,
        up: Tensor,
        out: Tensor,
        indices: Tensor,
        start: int,
        size: int,
        add_inputs: bool = True,
    ) -> None:
        for adapter, rows in rows_of(indices):
            product = x[rows].to(out.dtype) @ up[adapter, 0].to(out.dtype).T
            out[rows, start : start + size] = (
                out[rows, start : start + size] + product if add_inputs else product
            )

    def by_sequence(kernel):  # noqa: ANN001, ANN202 - vLLM's own signatures
        return lambda x, factor, out, starts, lengths, adapters, batches, longest, count, *rest: (
            kernel(x, factor, out, torch.repeat_interleave(adapters, lengths), *rest)
        )

    punica_cpu.bgmv_shrink, punica_cpu.bgmv_expand_slice = shrink, expand
    punica_cpu.sgmv_shrink, punica_cpu.sgmv_expand_slice = by_sequence(shrink), by_sequence(expand)
