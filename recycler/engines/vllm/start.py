"""Start vLLM: its environment, its settings, and errors that say what this machine lacks."""

from __future__ import annotations

import os
from typing import Any

import torch

from recycler.engines import parallel_problems
from recycler.errors import InfrastructureError, Problem, UsageError, raise_problems
from recycler.types import Pool

DEFAULT_MAX_MODEL_LEN = 4096
MEMORY_WORDS = ("kv cache", "memory", "engine core")  # of errors that more memory would cure


def start(**settings: Any) -> Any:
    """A `vllm.LLM`.

    Raises InfrastructureError when this machine has too little memory for it; on a GPU vLLM's child
    keeps the cause.
    """
    import vllm  # heavy, and reads the environment

    try:
        return vllm.LLM(**settings)
    except (ValueError, RuntimeError, MemoryError) as error:
        message = str(error).strip().partition("See https")[0].strip()
        if not any(word in message.lower() for word in MEMORY_WORDS):
            raise
        raise InfrastructureError(
            Problem(
                thing="vLLM",
                cause=f"could not start with a context of {settings['max_model_len']} tokens "
                f"({message})",
                remedy="Ask with fewer tokens (max_new_tokens, num_fewshot), set "
                "engine.max_model_len, or use a machine with more free memory; its log names "
                "the cause",
            )
        ) from None


def parallel_settings(pool: Pool, num_ranks: int) -> dict[str, Any]:
    """vLLM's settings for N ranks.

    The ranks are child processes on this machine (`mp`), inside a Ray actor too: Ray has given it
    all their GPUs already. Raises UsageError when they cannot share the model, InfrastructureError
    when GPUs are missing.
    """
    if num_ranks == 1:
        return {}
    raise_problems(list(parallel_problems(pool, num_ranks)), UsageError)
    if torch.cuda.is_available() and torch.cuda.device_count() < num_ranks:
        raise InfrastructureError(
            Problem(
                thing="engine.tensor_parallel",
                cause=f"is {num_ranks}, this worker sees {torch.cuda.device_count()} GPUs",
                remedy="Lower it, or use a machine with more GPUs",
            )
        )
    return {"tensor_parallel_size": num_ranks, "distributed_executor_backend": "mp"}


def context_lengths(pool: Pool, wanted: int | None) -> tuple[int, int]:
    """The longest request that is taken, and the context that vLLM is built with.

    The context is one longer, for the token that vLLM insists on making. Raises UsageError for more
    than the model was made for.
    """
    positions = int(pool.template.config.get("max_position_embeddings", DEFAULT_MAX_MODEL_LEN))
    limit = wanted or min(positions, DEFAULT_MAX_MODEL_LEN)
    if limit > positions:
        raise UsageError(
            Problem(
                thing="engine.max_model_len",
                cause=f"is {limit}, the model was made for {positions}",
                remedy="Lower it, or leave out the items that are longer",
            )
        )
    return limit, min(limit + 1, positions)


def set_environment(on_cpu: bool, kv_cache_gib: int, num_ranks: int) -> None:
    """Set the variables that vLLM reads when it is imported.

    No network, no telemetry; on a CPU no child process but the ranks of more than one. Ranks wait
    for each other in busy loops: with more threads than cores they take a hundred times as long.
    """
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if on_cpu:
        settings |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    os.environ.update(settings)
    if on_cpu and num_ranks > 1:
        threads_per_rank = max(1, torch.get_num_threads() // num_ranks)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_rank))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def engine_facts(config: Any, dtype: str, context: int, on_cpu: bool) -> list[str]:
    """Versions, device and settings that may change an answer, from vLLM's own config."""
    import vllm  # heavy, and reads the environment
    from vllm.platforms import current_platform

    batch = config.scheduler_config
    return [
        f"vllm {vllm.__version__}",
        f"torch {torch.__version__}",
        dtype,
        current_platform.get_device_name() or current_platform.device_type,
        f"context {context}",
        f"batch {batch.max_num_batched_tokens}/{batch.max_num_seqs}",
        f"block {config.cache_config.block_size}",
        "eager" if on_cpu else "compiled",
    ]
