"""Inference with vLLM: one engine that lives as long as the run, its weights merged in place by a
worker extension.

Two things are kept from vLLM's freedom. Weights that change under a prefix cache make its old
blocks wrong, and vLLM does not notice: the cache is reset after every `apply`, which must succeed,
and each version of the weights salts its prompts. On a CPU, vLLM packs linear weights into private
copies after loading; that step is replaced by one that leaves them (`vllm_patches`). With
`tensor_parallel` ranks, vLLM runs one process a rank on this machine, and each merges its own part.
With `lora_batch`, so many linear merges of a pool of folded adapters can answer in one batch
(`vllm_lora`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from recycler.engines import parallel_problems
from recycler.engines.live import check_generate, check_loglikelihood
from recycler.engines.vllm.lora import MergeAdapters
from recycler.engines.vllm.patches import patch_vllm
from recycler.engines.vllm.wire import pool_to_json, read_answer
from recycler.engines.watch import GATE_TOKENS, LOGPROB_FLOOR, Watch, gate_sample, refuse_babble
from recycler.errors import InfrastructureError, Problem, UsageError, raise_problems
from recycler.pool.storage.files import local_folder
from recycler.recipe_json import recipe_to_json
from recycler.types import (
    Completion,
    GenerateRequest,
    Loglikelihood,
    LoglikelihoodRequest,
    Pool,
    Recipe,
)

DEFAULT_MAX_MODEL_LEN = 4096
WORKER = "recycler.engines.vllm.worker.RecyclerWorker"


def _tells_death(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that says so when one of vLLM's processes has died: as RuntimeError, upon which a
    worker builds a new engine.

    vLLM itself notices within seconds, ends the other ranks, and raises whatever its queues say by
    then.
    """

    @wraps(method)
    def told(self: VLLMEngine, *arguments: Any, **named: Any) -> Any:
        try:
            return method(self, *arguments, **named)
        except Exception as error:
            if self._has_died(error):
                raise RuntimeError(
                    f"a process of vLLM has died, and with it the engine ({error})"
                ) from error
            raise

    return told


class VLLMEngine:
    """One `vllm.LLM` over a pool; fills `recycler.engines.port.Engine`."""

    def __init__(
        self,
        pool: Pool,
        *,
        dtype: str = "bfloat16",
        max_model_len: int | None = None,
        tensor_parallel: int = 1,
        kv_cache_gib: int = 1,
        gpu_memory_utilization: float = 0.9,
        lora_batch: int = 1,
        adapters: str = "",
    ):
        self._dtype, self._pool = dtype, pool
        self._merges = MergeAdapters(pool, Path(adapters), lora_batch) if lora_batch > 1 else None
        self._limit, room = _lengths(pool, max_model_len)
        on_cpu = not torch.cuda.is_available()
        _set_environment(on_cpu, kv_cache_gib, tensor_parallel)
        import vllm
        from vllm.platforms import current_platform

        patch_vllm()
        self._llm: Any = _started(
            model=str(local_folder(pool.template).absolute()),
            dtype=dtype,
            max_model_len=room,
            seed=0,
            trust_remote_code=False,
            worker_extension_cls=WORKER,
            enforce_eager=on_cpu,
            gpu_memory_utilization=gpu_memory_utilization,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **_parallel(pool, tensor_parallel),
            **(self._merges.settings if self._merges else {}),
        )
        self._version = 0
        self._dirty = ""
        try:
            self._ask("recycler_start", pool_to_json(pool), dtype)
        except BaseException:
            self.close()
            raise
        config = self._llm.llm_engine.vllm_config
        self.fingerprint = (
            f"vllm {vllm.__version__}, torch {torch.__version__}, {dtype}, "
            f"{current_platform.get_device_name() or current_platform.device_type}, context "
            f"{room}, "
            "batch "
            f"{config.scheduler_config.max_num_batched_tokens}/{config.scheduler_config.max_num_seqs}, "
            f"block {config.cache_config.block_size}, {'eager' if on_cpu else 'compiled'}"
            + (
                f", tensor parallel {tensor_parallel}" if tensor_parallel > 1 else ""
            )  # sums are added in another order
            + (f", LoRA batch {lora_batch}" if lora_batch > 1 else "")
        )

    # ---------------------------------------------------------------- weights

    @_tells_death
    def apply(self, recipe: Recipe) -> str:
        if recipe.dtype != self._dtype:
            raise UsageError(
                Problem(
                    thing="recipe",
                    cause=f"is in {recipe.dtype}, the engine runs {self._dtype}",
                    remedy="Use one dtype for both",
                )
            )
        self._dirty = "the last merge failed half-way"
        if self._merges:
            self._merges.unload(self._live().llm_engine)
        digest = self._ask("recycler_apply", recipe_to_json(recipe))
        if self._llm.reset_prefix_cache() is not True:
            raise RuntimeError(
                "vLLM refused to drop its prefix cache, which holds the state of other weights"
            )
        self._version += 1
        self._dirty = ""
        return digest

    @_tells_death
    def side_by_side(self, recipes: Sequence[Recipe]) -> tuple[str, ...]:
        """Put the base into the live weights and each recipe beside it, unmerged; their names for
        requests, until the next `apply`.

        Raises UsageError for a recipe that is no plain linear merge on the base, and in an engine
        without `lora_batch`.
        """
        if self._merges is None:
            raise UsageError(
                Problem(
                    thing="engine",
                    cause="was not built to hold several merges",
                    remedy="Set engine.lora_batch and engine.adapters",
                )
            )
        names = self._pool.names
        self.apply(
            Recipe(
                method="linear",
                members=names,
                weights=((0.0,) * len(names),),
                base=self._pool.template.name,
                dtype=self._dtype,
            )
        )
        return self._merges.load(recipes, self._live().llm_engine)

    def _ask(self, method: str, *arguments: str) -> str:
        """What the worker answers, or the error it met."""
        answers = {
            read_answer(answer) for answer in self._live().collective_rpc(method, args=arguments)
        }
        if len(answers) != 1:
            raise RuntimeError(f"vLLM's workers disagree about {method}: {sorted(answers)}")
        return answers.pop()

    # ---------------------------------------------------------------- text

    @_tells_death
    def generate(
        self, requests: Sequence[GenerateRequest], watch: Watch | None = None
    ) -> list[Completion]:
        """All in one submission, those that may grow longest first, so that none of them is left
        over at the end.
        """
        self._check_clean()
        check_generate(requests, self._limit, alone=self._merges is None)
        watch, found = watch or Watch(), {}
        order = sorted(
            range(len(requests)), key=lambda index: -requests[index].max_new_tokens
        )  # stable: items of a task share a prefix
        gate = dict.fromkeys(gate_sample(requests, order) if watch.gate else (), "")
        with closing(self._stream(requests, order, gate)) as stream:
            for index, output in stream:
                text = output.outputs[0]
                if output.finished:
                    found[index] = _completion(text)
                    watch.done(index, found[index])
                    gate = {} if index in gate else gate  # an answer that ends is no babble
                elif index in gate and len(text.token_ids) >= GATE_TOKENS:
                    gate[index] = text.text
                    if all(gate.values()):
                        refuse_babble(list(gate.values()))
                        gate = {}
        return [found[index] for index in range(len(requests))]

    def _stream(
        self, requests: Sequence[GenerateRequest], order: Sequence[int], shown: Container[int]
    ) -> Iterator[tuple[int, Any]]:
        """(index, output) of every request as it ends, and of those `shown` after every step;
        closed early, it leaves nothing behind.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine, adapters = self._llm.llm_engine, self._adapters(requests)
        try:
            for index in order:
                request, kind = (
                    requests[index],
                    RequestOutputKind.CUMULATIVE
                    if index in shown
                    else RequestOutputKind.FINAL_ONLY,
                )
                params = SamplingParams(
                    temperature=0.0,
                    max_tokens=request.max_new_tokens,
                    stop=list(request.stop) or None,
                    output_kind=kind,
                )
                engine.add_request(
                    f"{self._version}-{index}",
                    self._salted(request.prompt_ids),
                    params,
                    lora_request=adapters[index],
                )
            while engine.has_unfinished_requests():
                for output in engine.step():
                    yield int(output.request_id.rpartition("-")[2]), output
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request([f"{self._version}-{index}" for index in order])
                while engine.has_unfinished_requests():
                    engine.step()

    # ---------------------------------------------------------------- likelihood

    @_tells_death
    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        from vllm import SamplingParams

        self._check_clean()
        check_loglikelihood(requests, self._limit, alone=self._merges is None)
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        outputs = self._run(
            [request.context_ids + request.continuation_ids for request in requests],
            [params] * len(requests),
            self._adapters(requests),
        )
        return [
            _likelihood(output.prompt_logprobs, request)
            for output, request in zip(outputs, requests, strict=True)
        ]

    # ---------------------------------------------------------------- plumbing

    def close(self) -> None:
        """Shut the engine down, with its child processes where it has any."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    def _has_died(self, error: Exception) -> bool:
        in_process = getattr(
            self._llm and self._llm.llm_engine.engine_core, "engine_core", None
        )  # on a CPU; else vLLM's client knows
        return type(error).__name__ == "EngineDeadError" or getattr(
            in_process and in_process.model_executor, "is_failed", False
        )

    def _live(self) -> Any:
        if self._llm is None:
            raise RuntimeError("the engine is closed")
        return self._llm

    def _check_clean(self) -> None:
        self._live()
        if self._dirty:
            raise RuntimeError(f"the engine's weights are not those of any recipe: {self._dirty}")

    def _run(
        self, prompts: Sequence[tuple[int, ...]], params: list[Any], adapters: list[Any]
    ) -> list[Any]:
        """Everything in one submission: vLLM batches it as it likes and answers in order."""
        if not prompts:
            return []
        return self._llm.generate(
            [self._salted(prompt) for prompt in prompts],
            params,
            use_tqdm=False,
            lora_request=adapters,
        )

    def _adapters(self, requests: Sequence[GenerateRequest | LoglikelihoodRequest]) -> list[Any]:
        """What vLLM is told to answer each request with: a merge that is loaded, or None for the
        live weights.
        """
        return [
            self._merges.request(request.merge) if self._merges else None for request in requests
        ]

    def _salted(self, prompt: Sequence[int]) -> Any:
        """A prompt that shares cached blocks with prompts to the same weights only."""
        from vllm import TokensPrompt

        return TokensPrompt(prompt_token_ids=list(prompt), cache_salt=f"version-{self._version}")


def _completion(output: Any) -> Completion:
    return Completion(
        text=output.text,
        num_tokens=len(output.token_ids),
        finish="stop" if output.finish_reason == "stop" else "length",
    )


def _likelihood(prompt_logprobs: Sequence[Any], request: LoglikelihoodRequest) -> Loglikelihood:
    """Of the continuation's tokens only; a token that ties for the first place is greedy too."""
    values: list[float] = []
    is_greedy = True
    for token, found in zip(
        request.continuation_ids, prompt_logprobs[len(request.context_ids) :], strict=True
    ):
        value = found[token].logprob
        is_greedy = (
            is_greedy
            and math.isfinite(value)
            and value >= max(other.logprob for other in found.values())
        )
        values.append(max(value, LOGPROB_FLOOR) if math.isfinite(value) else LOGPROB_FLOOR)
    return Loglikelihood(
        logprob=math.fsum(values), token_logprobs=tuple(values), is_greedy=is_greedy
    )


def _started(**settings: Any) -> Any:
    """A `vllm.LLM`.

    Raises InfrastructureError when this machine has too little memory for it; on a GPU vLLM's child
    keeps the cause.
    """
    import vllm

    try:
        return vllm.LLM(**settings)
    except (ValueError, RuntimeError, MemoryError) as error:
        told = str(error).strip().partition("See https")[0].strip()
        if not any(word in told.lower() for word in ("kv cache", "memory", "engine core")):
            raise
        raise InfrastructureError(
            Problem(
                thing="vLLM",
                cause=f"could not start with a context of {settings['max_model_len']} tokens "
                f"({told})",
                remedy="Ask with fewer tokens (max_new_tokens, num_fewshot), set "
                "engine.max_model_len, or use a machine with more free memory; its log names "
                "the cause",
            )
        ) from None


def _parallel(pool: Pool, num_ranks: int) -> dict[str, Any]:
    """vLLM's settings for so many ranks.

    Raises UsageError when they cannot share the model, InfrastructureError when GPUs are missing.

    The ranks are child processes on this machine (`mp`), inside a Ray actor too: Ray has given it
    all their GPUs already.
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


def _lengths(pool: Pool, wanted: int | None) -> tuple[int, int]:
    """The longest request that is taken, and the context vLLM is built with: one more, for the
    token it insists on.
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


def _set_environment(on_cpu: bool, kv_cache_gib: int, num_ranks: int) -> None:
    """What vLLM reads when it is imported.

    No network, no telemetry; on a CPU no child process but the ranks of more than one.

    Ranks wait for each other in busy loops: with more threads than cores they take a hundred times
    as long on a CPU.
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
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // num_ranks)))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
