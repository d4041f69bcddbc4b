"""What is changed in vLLM on a CPU, in every process that loads a model: weights stay where a merge reaches them."""

from __future__ import annotations

import torch

from recycler.errors import Problem, UnsafeInputError


def patch_vllm() -> None:
    """Change vLLM for this process, once; nothing on a GPU. Raises UnsafeInputError when vLLM is not as we know it."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _keep_cpu_weights()
        _count_ranks_at_once()


def _keep_cpu_weights() -> None:
    """Make vLLM's CPU path compute with the weights it has loaded instead of packed copies that no merge can reach."""
    try:
        from vllm.model_executor.layers import utils

        packing = utils.dispatch_cpu_unquantized_gemm
    except (ImportError, AttributeError) as error:
        raise UnsafeInputError(Problem(thing="vllm", cause=f"this version keeps CPU weights in an unknown place ({error})", remedy="pip install 'recycler[vllm]', or use engine: transformers")) from None

    def keep(layer: torch.nn.Module, remove_weight: bool) -> None:
        if layer.weight.is_meta or layer.weight.ndim == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            packing(layer, remove_weight)

    keep.keeps_weights = True  # type: ignore[attr-defined]
    if not getattr(packing, "keeps_weights", False):
        utils.dispatch_cpu_unquantized_gemm = keep


def _count_ranks_at_once() -> None:
    """vLLM compiles a one-line count for the ranks of prompt tokens, which we do not read: half a minute per process on a CPU."""
    from vllm.v1.sample import sampler

    if hasattr(sampler, "batched_count_greater_than"):
        sampler.batched_count_greater_than = lambda logprobs, values: (logprobs >= values).sum(-1)
