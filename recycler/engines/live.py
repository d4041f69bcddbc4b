"""The work that engines share: refuse requests without an answer, and merge into live weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recycler.errors import Problem, UsageError
from recycler.merge.stream import merge_into, merged_tensors
from recycler.pool.storage.hashing import model_digest
from recycler.pool.storage.tensors import ResidentPool
from recycler.types import GenerateRequest, LoglikelihoodRequest, Recipe


def merge_live(recipe: Recipe, resident: ResidentPool, weights: Mapping[str, Tensor]) -> str:
    """Write the merge into `weights` in place, and return the digest of what they then hold.

    The arithmetic stays on the CPU, where the pool lies and an export does it too: the same bits on
    every device.
    """
    if all(weight.device.type == "cpu" for weight in weights.values()):
        merge_into(recipe, resident, weights)
    else:
        with torch.no_grad():
            for name, tensor in merged_tensors(recipe, resident):
                weights[name].copy_(tensor)
    return model_digest(weights.items())


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A part of a checkpoint's tensor, and its place in an engine's memory.

    `view` holds `tensor[index]`; all of the tensor where the index is empty.
    """

    view: Tensor
    index: tuple[slice, ...] = ()

    def of(self, whole: Tensor) -> Tensor:
        """The part of the whole tensor that belongs into the view."""
        return whole[self.index]


def merge_shards(
    recipe: Recipe, resident: ResidentPool, shards: Mapping[str, Sequence[Shard]]
) -> str:
    """Write this rank's parts of the merge in place, and return the digest of the whole merge.

    The digest is the same on every rank and in an export. Each rank does the arithmetic of the
    whole model and keeps its slices: N ranks take N times the CPU time of one, side by side. A rank
    that merged its slices alone could not do the methods that rank or mask a whole tensor, nor tell
    the digest of one. What the digest says is what was written: every part is read back and
    compared.
    """

    def written() -> Iterator[tuple[str, Tensor]]:
        for name, whole in merged_tensors(recipe, resident):
            for shard in shards[name]:
                shard.view.copy_(shard.of(whole))
                if not same_bits(shard.view, shard.of(whole)):
                    raise RuntimeError(
                        f"the engine's memory does not hold what was written to it: {name}"
                    )
            yield name, whole

    with torch.no_grad():
        return model_digest(written())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """True when two tensors agree in dtype, shape and every bit.

    NaN equals itself, and 0.0 is not -0.0.
    """
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, in host memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def check_generate(requests: Sequence[GenerateRequest], limit: int, *, alone: bool = True) -> None:
    """Raise UsageError for a request without a prompt, for no token, or longer than `limit`.

    Where the live weights are `alone`, also for one that asks another merge.
    """
    _check_merge(requests, alone)
    for request in requests:
        if not request.prompt_ids or request.max_new_tokens < 1:
            raise _no_answer(
                f"has {len(request.prompt_ids)} prompt tokens and asks for "
                f"{request.max_new_tokens} new ones"
            )
    lengths = [len(request.prompt_ids) + request.max_new_tokens for request in requests]
    _check_length(max(lengths, default=0), limit)


def check_loglikelihood(
    requests: Sequence[LoglikelihoodRequest], limit: int, *, alone: bool = True
) -> None:
    """Raise UsageError for a request of no tokens, after no tokens, or longer than `limit`.

    An empty continuation would be certain, and so would win every comparison.
    """
    _check_merge(requests, alone)
    for request in requests:
        if not request.context_ids or not request.continuation_ids:
            raise _no_answer(
                f"has {len(request.context_ids)} tokens of context and "
                f"{len(request.continuation_ids)} of continuation"
            )
    lengths = [len(request.context_ids) + len(request.continuation_ids) for request in requests]
    _check_length(max(lengths, default=0), limit)


def _check_merge(requests: Sequence[GenerateRequest | LoglikelihoodRequest], alone: bool) -> None:
    """Raise UsageError when a merge is asked for, and the live weights are alone."""
    if alone and (names := {request.merge for request in requests} - {""}):
        raise UsageError(
            Problem(
                thing=f"merge {min(names)!r}",
                cause="is asked of an engine that holds one model",
                remedy="Use engine: vllm with lora_batch",
            )
        )


def _no_answer(cause: str) -> UsageError:
    return UsageError(
        Problem(
            thing="request",
            cause=f"{cause}; each must be at least one",
            remedy="Leave that item out, or word it so that both parts have tokens of their own",
        )
    )


def _check_length(longest: int, limit: int) -> None:
    if longest > limit:
        raise UsageError(
            Problem(
                thing="request",
                cause=f"needs {longest} tokens, the engine takes {limit}",
                remedy="Raise engine.max_model_len",
            )
        )
