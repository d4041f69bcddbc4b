"""Functions of vLLM that are replaced on a CPU, in every process that loads a model.

There are six of them, for three reasons:

1. The packing of linear weights, so that a merge into the live weights reaches the products.
2. The count of tokens above a prompt's token, so that a compiler is not started for it.
3. The products with LoRA factors, so that tokens without an adapter get none.

Nothing is replaced on a GPU. Each replacement was written for the vLLM releases in `KNOWN`, and
compares the parameters of the function that it takes the place of. `docs/design/vllm-patches.md`
says why vLLM's own settings do not suffice, and links the threads upstream.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from recycler.errors import Problem, UnsafeInputError

KNOWN = ("0.32.", "0.33.")  # releases that pyproject.toml admits
Function: TypeAlias = Callable[..., Any]
_REPLACED: dict[tuple[str, str], tuple[Function, Function]] = {}  # place -> vLLM's own, ours


def patch_vllm() -> None:
    """Replace vLLM's functions in this process, once; none on a GPU.

    Raises UnsafeInputError when vLLM is not as we know it and merges would be computed wrongly.
    """
    from vllm.platforms import current_platform  # heavy, and not installed everywhere

    if current_platform.is_cpu():
        _keep_cpu_weights()
        _count_ranks_at_once()
        _multiply_once_an_adapter()


# ---------------------------------------------------------------- replacing a function, guarded


def _takes(function: Function, parameters: str) -> bool:
    """True when a function's parameters have these names, in this order."""
    return list(inspect.signature(function).parameters) == parameters.split()


def _is_ours(module: ModuleType, name: str) -> bool:
    _, ours = _REPLACED.get((module.__name__, name), (None, None))
    return ours is not None and getattr(module, name, None) is ours


def _replace(module: ModuleType, name: str, ours: Function) -> None:
    _REPLACED[module.__name__, name] = (getattr(module, name), ours)
    setattr(module, name, ours)


def _unknown(cause: str) -> UnsafeInputError:
    return UnsafeInputError(
        Problem(
            thing="vllm",
            cause=cause,
            remedy="pip install 'recycler[vllm]', or use engine: transformers",
        )
    )


# ---------------------------------------------------------------- 1. weights stay live


def _keep_cpu_weights() -> None:
    """Compute with the weights that vLLM has loaded instead of packed copies.

    `dispatch_cpu_unquantized_gemm` packs the weights of linear layers, of the head and of the
    embedding into private copies that no merge reaches, and frees the originals where it can.
    Raises UnsafeInputError when it is elsewhere, or takes other parameters.
    """
    try:
        from vllm.model_executor.layers import utils  # heavy

        packing = utils.dispatch_cpu_unquantized_gemm
    except (ImportError, AttributeError) as error:
        raise _unknown(f"this version keeps CPU weights in an unknown place ({error})") from None
    if _is_ours(utils, "dispatch_cpu_unquantized_gemm"):
        return
    if not _takes(packing, "layer remove_weight"):
        raise _unknown("this version packs CPU weights in an unknown way")

    def keep(layer: Any, remove_weight: bool) -> None:
        if layer.weight.is_meta or layer.weight.ndim == 2:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            packing(layer, remove_weight)

    _replace(utils, "dispatch_cpu_unquantized_gemm", keep)


# ---------------------------------------------------------------- 2. no compiler for a count


def _count_ranks_at_once() -> None:
    """Count the ranks of prompt tokens, which nobody here reads, with plain torch.

    vLLM compiles this one line, which takes half a minute per process on a CPU. Only speed is at
    stake, so an unknown version keeps its own.
    """
    import vllm  # heavy
    from vllm.v1.sample import sampler

    if _is_ours(sampler, "batched_count_greater_than"):
        return
    own = getattr(sampler, "batched_count_greater_than", None)
    if own is None or not vllm.__version__.startswith(KNOWN) or not _takes(own, "x values"):
        return

    def count(x: Tensor, values: Tensor) -> Tensor:
        return (x >= values).sum(-1)

    _replace(sampler, "batched_count_greater_than", count)


# ---------------------------------------------------------------- 3. one product per adapter

# Functions of vllm.lora.ops.torch_ops, and the parameters that they take
SHRINK = "inputs lora_b_weights output_tensor lora_indices_tensor scaling"
EXPAND_SLICE = (
    "inputs lora_b_weights output_tensor lora_indices_tensor slice_offset slice_size add_inputs"
)
BY_SEQUENCE = "b_seq_start_loc seq_len_tensor lora_indices_tensor batches max_seq_length token_nums"
KERNELS = {
    "bgmv_shrink": SHRINK,
    "bgmv_expand_slice": EXPAND_SLICE,
    "sgmv_shrink": f"inputs lora_a_weights output_tensor {BY_SEQUENCE} scaling",
    "sgmv_expand_slice": f"inputs lora_b_weights output_tensor {BY_SEQUENCE} slice_offset "
    "slice_size add_inputs",
}


def _multiply_once_an_adapter() -> None:
    """Multiply all tokens of an adapter with its factors at once, and those of none with nothing.

    vLLM's CPU kernels copy the factors once per token, and take an index of -1, which means no
    adapter, for the last one. Raises UnsafeInputError when a kernel is missing or takes other
    parameters.
    """
    from vllm.lora.punica_wrapper import punica_cpu  # heavy

    if all(_is_ours(punica_cpu, name) for name in KERNELS):
        return
    for name, parameters in KERNELS.items():
        own = getattr(punica_cpu, name, None)
        if own is None or not _takes(own, parameters):
            raise _unknown(f"this version has another CPU kernel {name} for adapters")
    _replace(punica_cpu, "bgmv_shrink", shrink)
    _replace(punica_cpu, "bgmv_expand_slice", expand_slice)
    _replace(punica_cpu, "sgmv_shrink", _by_sequence(shrink))
    _replace(punica_cpu, "sgmv_expand_slice", _by_sequence(expand_slice))


def _rows_of(indices: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(adapter, its rows) for every adapter among the tokens' indices."""
    for adapter in torch.unique(indices).tolist():
        if adapter >= 0:
            yield adapter, (indices == adapter).nonzero().squeeze(1)


def shrink(x: Tensor, down: Tensor, out: Tensor, indices: Tensor, scale: float = 1.0) -> None:
    """Write `scale * x A^T` into `out` (T, R), each token with the A of its adapter.

    `x` is (T, D), `down` (adapters, 1, R, D), `indices` (T,). Rows of index -1 stay as they are.
    """
    for adapter, rows in _rows_of(indices):
        product = x[rows].to(out.dtype) @ down[adapter, 0].to(out.dtype).T
        out[rows] = product.mul_(scale)


def expand_slice(
    x: Tensor,
    up: Tensor,
    out: Tensor,
    indices: Tensor,
    start: int,
    size: int,
    add_inputs: bool = True,
) -> None:
    """Add `x B^T` to columns [start, start + size) of `out`, each token with the B of its adapter.

    `x` is (T, R), `up` (adapters, 1, size, R), `indices` (T,). Rows of index -1 stay as they are;
    without `add_inputs` the product takes the place of what stood there.
    """
    for adapter, rows in _rows_of(indices):
        product = x[rows].to(out.dtype) @ up[adapter, 0].to(out.dtype).T
        if add_inputs:
            product = out[rows, start : start + size] + product
        out[rows, start : start + size] = product


def _by_sequence(kernel: Function) -> Function:
    """A kernel that takes an adapter per sequence, from one that takes an adapter per token."""

    def kernel_by_sequence(
        x: Tensor,
        factor: Tensor,
        out: Tensor,
        starts: Tensor,
        lengths: Tensor,
        adapters: Tensor,
        num_sequences: int,
        longest: int,
        num_tokens: int,
        *rest: Any,
    ) -> None:
        kernel(x, factor, out, torch.repeat_interleave(adapters, lengths), *rest)

    return kernel_by_sequence
