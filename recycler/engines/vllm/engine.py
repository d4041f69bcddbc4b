"""Inference with vLLM: one engine that lives as long as the run, its weights merged in place.

    start     settings and environment that vLLM is built with
    worker    the extension inside each of vLLM's workers: it maps the pool and merges recipes
    shards    the map from checkpoint names to a rank's live parameters
    wire      JSON between this process and the workers
    patches   functions of vLLM that are replaced on a CPU
    lora      several linear merges as adapters in one batch

Weights that change under a prefix cache make its old blocks wrong, and vLLM does not notice: the
cache is reset after every `apply`, which must succeed, and each version of the weights salts its
prompts. With `tensor_parallel` ranks, vLLM runs one process per rank on this machine, and each
merges its own part. With `lora_batch`, that many linear merges of a pool of folded adapters can
answer in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Generator, Sequence
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from recycler.engines.live import check_generate, check_loglikelihood
from recycler.engines.vllm.lora import MergeAdapters
from recycler.engines.vllm.patches import patch_vllm
from recycler.engines.vllm.start import (
    context_lengths,
    engine_facts,
    parallel_settings,
    set_environment,
    start,
)
from recycler.engines.vllm.wire import pool_to_json, read_answer
from recycler.engines.watch import GATE_TOKENS, LOGPROB_FLOOR, Watch, gate_sample, refuse_degenerate
from recycler.errors import Problem, UsageError
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

WORKER = "recycler.engines.vllm.worker.RecyclerWorker"
P = ParamSpec("P")
Result = TypeVar("Result")


def _raise_if_dead(
    method: Callable[Concatenate[VLLMEngine, P], Result],
) -> Callable[Concatenate[VLLMEngine, P], Result]:
    """Let a method raise RuntimeError when one of vLLM's processes has died.

    A worker builds a new engine then. vLLM itself notices within seconds, ends the other ranks, and
    raises whatever its queues say by then.
    """

    @wraps(method)
    def guarded(self: VLLMEngine, *arguments: P.args, **named: P.kwargs) -> Result:
        try:
            return method(self, *arguments, **named)
        except Exception as error:
            if self._has_died(error):
                raise RuntimeError(
                    f"a process of vLLM has died, and with it the engine ({error})"
                ) from error
            raise

    return guarded


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
        self._limit, room = context_lengths(pool, max_model_len)
        on_cpu = not torch.cuda.is_available()
        set_environment(on_cpu, kv_cache_gib, tensor_parallel)
        patch_vllm()  # imports vLLM, after the environment that it reads
        self._llm: Any = start(
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
            **parallel_settings(pool, tensor_parallel),
            **(self._merges.settings if self._merges else {}),
        )
        self._version = 0
        self._dirty = ""
        try:
            self._ask("recycler_start", pool_to_json(pool), dtype)
        except BaseException:
            self.close()
            raise
        facts = engine_facts(self._llm.llm_engine.vllm_config, dtype, room, on_cpu)
        if tensor_parallel > 1:  # sums are added in another order
            facts.append(f"tensor parallel {tensor_parallel}")
        if lora_batch > 1:
            facts.append(f"LoRA batch {lora_batch}")
        self.fingerprint = ", ".join(facts)

    # ---------------------------------------------------------------- weights

    @_raise_if_dead
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

    @_raise_if_dead
    def side_by_side(self, recipes: Sequence[Recipe]) -> tuple[str, ...]:
        """Put the base into the live weights, and each recipe beside it unmerged.

        Returns their names, for requests until the next `apply`. Raises UsageError for a recipe
        that is no plain linear merge on the base, and in an engine without `lora_batch`.
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
        """The answer of all workers. Raises the error that one of them met."""
        packed = self._live().collective_rpc(method, args=arguments)
        answers = {read_answer(answer) for answer in packed}
        if len(answers) != 1:
            raise RuntimeError(f"vLLM's workers disagree about {method}: {sorted(answers)}")
        return answers.pop()

    # ---------------------------------------------------------------- text

    @_raise_if_dead
    def generate(
        self, requests: Sequence[GenerateRequest], watch: Watch | None = None
    ) -> list[Completion]:
        """Submit all at once, those that may grow longest first, so that none is left over."""
        self._check_clean()
        check_generate(requests, self._limit, alone=self._merges is None)
        watch = watch or Watch()
        found: dict[int, Completion] = {}
        # stable, since items of a task share a prefix
        order = sorted(range(len(requests)), key=lambda index: -requests[index].max_new_tokens)
        gated = gate_sample(requests, order) if watch.gate else []
        gate = dict.fromkeys(gated, "")
        with closing(self._stream(requests, order, gate)) as stream:
            for index, output in stream:
                text = output.outputs[0]
                if output.finished:
                    found[index] = _completion(text)
                    watch.done(index, found[index])
                    if index in gate:
                        gate = {}  # an answer that ends is not degenerate
                elif index in gate and len(text.token_ids) >= GATE_TOKENS:
                    gate[index] = text.text
                    if all(gate.values()):
                        refuse_degenerate(list(gate.values()))
                        gate = {}
        return [found[index] for index in range(len(requests))]

    def _stream(
        self, requests: Sequence[GenerateRequest], order: Sequence[int], shown: Container[int]
    ) -> Generator[tuple[int, Any], None, None]:
        """(index, output) of every request as it ends, and of those `shown` after every step.

        Closed early, it leaves nothing behind.
        """
        from vllm import SamplingParams  # heavy, and reads the environment
        from vllm.sampling_params import RequestOutputKind

        engine, adapters = self._llm.llm_engine, self._adapters(requests)
        try:
            for index in order:
                request, kind = requests[index], RequestOutputKind.FINAL_ONLY
                if index in shown:
                    kind = RequestOutputKind.CUMULATIVE
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

    @_raise_if_dead
    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        from vllm import SamplingParams  # heavy, and reads the environment

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
        """True when vLLM's client says so, or its executor where that is in this process (CPU)."""
        if type(error).__name__ == "EngineDeadError":
            return True
        client = self._llm and self._llm.llm_engine.engine_core
        in_process = getattr(client, "engine_core", None)
        return bool(getattr(in_process and in_process.model_executor, "is_failed", False))

    def _live(self) -> Any:
        """vLLM's engine. Raises RuntimeError when it is closed."""
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
        """Submit everything at once: vLLM batches it as it likes and answers in order."""
        if not prompts:
            return []
        return self._llm.generate(
            [self._salted(prompt) for prompt in prompts],
            params,
            use_tqdm=False,
            lora_request=adapters,
        )

    def _adapters(self, requests: Sequence[GenerateRequest | LoglikelihoodRequest]) -> list[Any]:
        """vLLM's request for each one's adapter: a merge that is loaded, None for live weights."""
        if self._merges is None:
            return [None] * len(requests)
        return [self._merges.request(request.merge) for request in requests]

    def _salted(self, prompt: Sequence[int]) -> Any:
        """A prompt that shares cached blocks with prompts to the same weights only."""
        from vllm import TokensPrompt  # heavy, and reads the environment

        return TokensPrompt(prompt_token_ids=list(prompt), cache_salt=f"version-{self._version}")


def _completion(output: Any) -> Completion:
    """A completion from vLLM's CompletionOutput."""
    return Completion(
        text=output.text,
        num_tokens=len(output.token_ids),
        finish="stop" if output.finish_reason == "stop" else "length",
    )


def _likelihood(prompt_logprobs: Sequence[Any], request: LoglikelihoodRequest) -> Loglikelihood:
    """The likelihood of the continuation's tokens, from vLLM's logprobs of a whole prompt.

    A token that ties for the first place is greedy too.
    """
    values: list[float] = []
    is_greedy = True
    logprobs = prompt_logprobs[len(request.context_ids) :]
    for token, found in zip(request.continuation_ids, logprobs, strict=True):
        value = found[token].logprob
        if not math.isfinite(value):
            values.append(LOGPROB_FLOOR)
            is_greedy = False
            continue
        values.append(max(value, LOGPROB_FLOOR))
        is_greedy = is_greedy and value >= max(other.logprob for other in found.values())
    return Loglikelihood(
        logprob=math.fsum(values), token_logprobs=tuple(values), is_greedy=is_greedy
    )
