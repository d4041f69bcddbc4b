"""What every engine does alike: refuse requests that have no answer, and merge a recipe into live weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recycler.errors import Problem, UsageError
from recycler.merge.hashing import model_digest
from recycler.merge.stream import merge_into, merged_tensors
from recycler.pool.tensors import ResidentPool
from recycler.types import GenerateRequest, LoglikelihoodRequest, Recipe


def merge_live(recipe: Recipe, resident: ResidentPool, weights: Mapping[str, Tensor]) -> str:
    """Write the merge into `weights` in place and give the digest of what they then hold.

    The arithmetic stays on the CPU, where the pool lies and an export does it too: the same bits on every device.
    """
    if all(weight.device.type == "cpu" for weight in weights.values()):
        merge_into(recipe, resident, weights)
    else:
        with torch.no_grad():
            for name, tensor in merged_tensors(recipe, resident):
                weights[name].copy_(tensor)
    return model_digest(weights.items())


def check_generate(requests: Sequence[GenerateRequest], limit: int) -> None:
    """Raise UsageError unless every request has a prompt, asks for a token, and fits into `limit` tokens."""
    for request in requests:
        if not request.prompt_ids or request.max_new_tokens < 1:
            raise _no_answer(f"has {len(request.prompt_ids)} prompt tokens and asks for {request.max_new_tokens} new ones")
    _check_length(max((len(request.prompt_ids) + request.max_new_tokens for request in requests), default=0), limit)


def check_loglikelihood(requests: Sequence[LoglikelihoodRequest], limit: int) -> None:
    """The same for likelihoods: an empty continuation would be certain, and so would win every comparison."""
    for request in requests:
        if not request.context_ids or not request.continuation_ids:
            raise _no_answer(f"has {len(request.context_ids)} tokens of context and {len(request.continuation_ids)} of continuation")
    _check_length(max((len(request.context_ids) + len(request.continuation_ids) for request in requests), default=0), limit)


def _no_answer(cause: str) -> UsageError:
    return UsageError(Problem(thing="request", cause=f"{cause}; each must be at least one", remedy="Leave that item out, or word it so that both parts have tokens of their own"))


def _check_length(longest: int, limit: int) -> None:
    if longest > limit:
        raise UsageError(Problem(thing="request", cause=f"needs {longest} tokens, the engine takes {limit}", remedy="Raise engine.max_model_len"))
