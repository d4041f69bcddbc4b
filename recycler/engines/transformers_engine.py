"""Inference with plain transformers: batches by length, a KV cache, weights swapped in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from recycler.engines.live import check_generate, check_loglikelihood, merge_live
from recycler.engines.watch import GATE_TOKENS, LOGPROB_FLOOR, Watch, gate_sample, refuse_degenerate
from recycler.errors import Problem, UnsafeInputError, UsageError, raise_problems
from recycler.pool.storage.files import local_folder
from recycler.pool.storage.tensors import TORCH_DTYPES, ResidentPool
from recycler.types import (
    Completion,
    GenerateRequest,
    Loglikelihood,
    LoglikelihoodRequest,
    Pool,
    Recipe,
)

BATCH_TOKENS = 16384  # tokens in flight; keeps the cache of one batch small
# tokens times vocabulary of one batch of likelihoods: half a gigabyte in bfloat16
BATCH_LOGITS = 2**28
MAX_BATCH = 256
SHOWN = 20  # problems that are shown; another architecture has hundreds of the same


class TransformersEngine:
    """One model of `transformers` over a pool; fills `recycler.engines.port.Engine`."""

    def __init__(
        self,
        pool: Pool,
        *,
        dtype: str = "bfloat16",
        max_model_len: int | None = None,
        device: str | None = None,
    ):
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype, self._resident = dtype, ResidentPool(pool)
        self._max_model_len = max_model_len or int(
            pool.template.config.get("max_position_embeddings", 2048)
        )
        location = str(local_folder(pool.template))
        self._tokenizer = AutoTokenizer.from_pretrained(
            location, local_files_only=True, trust_remote_code=False
        )
        model: Any = AutoModelForCausalLM.from_pretrained(
            location, dtype=TORCH_DTYPES[dtype], local_files_only=True, trust_remote_code=False
        )
        self._model = model.to(self._device).eval()
        self._weights = self._live_weights(pool)
        self._ends = self._end_ids()
        self._dirty = ""
        self.fingerprint = (
            f"transformers {transformers.__version__}, torch {torch.__version__}, {dtype}, "
            f"{self._device.type}, context {self._max_model_len}, batch "
            f"{BATCH_TOKENS}/{MAX_BATCH}, logits {BATCH_LOGITS}"
        )

    # ---------------------------------------------------------------- weights

    def apply(self, recipe: Recipe) -> str:
        if recipe.dtype != self._dtype:
            raise UsageError(
                Problem(
                    thing="recipe",
                    cause=f"is in {recipe.dtype}, the engine runs {self._dtype}",
                    remedy="Use one dtype for both",
                )
            )
        self._check_open()
        self._dirty = "the last merge failed half-way"
        digest = merge_live(recipe, self._resident, self._weights)
        self._dirty = ""
        return digest

    def _live_weights(self, pool: Pool) -> dict[str, Tensor]:
        """Checkpoint name -> live parameter, each found to hold the checkpoint's numbers."""
        state = self._model.state_dict(keep_vars=True)
        dtype = TORCH_DTYPES[self._dtype]
        live: dict[str, Tensor] = {}
        wrong: list[str] = []
        for name in pool.template.tensors:
            if name in state:
                live[name] = state[name]
                stored = self._resident.tensor(pool.template.name, name).to(dtype)
                if torch.equal(live[name].detach().cpu(), stored):
                    continue
            wrong.append(name)
        owners = {parameter.data_ptr() for parameter in live.values()}
        for name, parameter in self._model.named_parameters():
            if parameter.data_ptr() not in owners:
                wrong.append(name)
        problems = [
            Problem(
                thing=f"tensor {name!r}",
                cause="transformers does not load it as the checkpoint stores it",
                remedy="This architecture cannot be swapped in place by name",
            )
            for name in wrong[:SHOWN]
        ]
        raise_problems(problems, UnsafeInputError)
        return live

    def _end_ids(self) -> set[int]:
        """Token ids that end a text."""
        ends = {self._tokenizer.eos_token_id}
        configured = self._model.generation_config.eos_token_id
        ends |= set(configured) if isinstance(configured, list) else {configured}
        return {token for token in ends if token is not None}

    # ---------------------------------------------------------------- text

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[GenerateRequest], watch: Watch | None = None
    ) -> list[Completion]:
        self._check_clean()
        check_generate(requests, self._max_model_len)
        found: dict[int, Completion] = {}
        watch = watch or Watch()
        sizes = [(len(request.prompt_ids), request.max_new_tokens) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: sizes[index])
        for batch in _batches(order, lambda index: sum(sizes[index]), BATCH_TOKENS):
            gate = gate_sample(requests, batch) if watch.gate and not found else []
            completions = self._decode(
                [requests[index] for index in batch], [batch.index(index) for index in gate]
            )
            for index, completion in zip(batch, completions, strict=True):
                found[index] = completion
                watch.done(index, completion)
        return [found[index] for index in range(len(requests))]

    def _decode(self, requests: Sequence[GenerateRequest], gate: Sequence[int]) -> list[Completion]:
        """Decode one left-padded batch greedily.

        Rows that have ended leave the batch when half of it has. After GATE_TOKENS steps the rows
        of `gate` are looked at, unless one of them has ended.
        """
        rows = list(range(len(requests)))
        tokens: list[list[int]] = [[] for _ in requests]
        done: dict[int, Completion] = {}
        ids, mask = self._pad_left([request.prompt_ids for request in requests])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        while rows:
            gate_is_due = gate and len(tokens[gate[0]]) == GATE_TOKENS
            if gate_is_due and not any(row in done for row in gate):
                refuse_degenerate([self._text(tokens[row]) for row in gate])
            logits = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen = logits.float().nan_to_num(nan=-math.inf).argmax(dim=-1)
            for place, row in enumerate(rows):
                if row not in done:
                    tokens[row].append(int(chosen[place]))
                    if (completion := self._finished(requests[row], tokens[row])) is not None:
                        done[row] = completion
            keep = [place for place, row in enumerate(rows) if row not in done]
            if not keep:
                break
            if len(keep) <= len(rows) // 2:
                index = torch.tensor(keep, device=self._device)
                cache.batch_select_indices(index)
                chosen, mask, positions = chosen[index], mask[index], positions[index]
                rows = [rows[place] for place in keep]
            ids = chosen.unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [done[row] for row in range(len(requests))]

    def _finished(self, request: GenerateRequest, tokens: list[int]) -> Completion | None:
        """The completion, when its last token ended it; text stops before the first stop string."""
        ended = tokens[-1] in self._ends
        is_full = len(tokens) >= request.max_new_tokens
        if not (ended or is_full or request.stop):
            return None
        text = self._text(tokens[:-1] if ended else tokens)
        cuts = [text.index(stop) for stop in request.stop if stop in text]
        if cuts or ended:
            text = text[: min(cuts)] if cuts else text
            return Completion(text=text, num_tokens=len(tokens), finish="stop")
        if is_full:
            return Completion(text=text, num_tokens=len(tokens), finish="length")
        return None

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    # ---------------------------------------------------------------- likelihood

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Loglikelihood]:
        self._check_clean()
        check_loglikelihood(requests, self._max_model_len)
        found: dict[int, Loglikelihood] = {}
        for answers in self._continuations(requests, self._room()):
            for index, logits, targets in answers:
                found[index] = _likelihood(logits.float(), targets)
        return [found[index] for index in range(len(requests))]

    def _continuations(
        self, requests: Sequence[LoglikelihoodRequest], room: int
    ) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
        """For each batch, (index, logits (T, V), targets (T)) of every continuation in it."""
        sequences = [request.context_ids + request.continuation_ids for request in requests]
        lengths = [len(sequence) for sequence in sequences]
        order = sorted(range(len(requests)), key=lambda index: lengths[index])
        for batch in _batches(order, lambda index: lengths[index], room):
            ids, mask = self._pad_right([sequences[index] for index in batch])
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            answers = []
            for place, index in enumerate(batch):
                last, count = lengths[index] - 1, len(requests[index].continuation_ids)
                own = logits[place, last - count : last]
                answers.append((index, own, ids[place, last - count + 1 : last + 1]))
            yield answers

    def loss_slopes(
        self, requests: Sequence[LoglikelihoodRequest], shares: Sequence[float]
    ) -> tuple[list[float], dict[str, Tensor]]:
        """-log p of each continuation, and the gradient of their sum weighted by `shares`.

        The gradient is by every live weight, under the checkpoint's names; of tied weights it
        stands under the first name alone, and has the part of both.
        """
        self._check_clean()
        check_loglikelihood(requests, self._max_model_len)
        losses = [0.0] * len(requests)
        room = self._room() // 8  # activations stay for the way back
        try:
            for answers in self._continuations(requests, room):
                total = torch.zeros((), device=self._device)
                for index, logits, targets in answers:
                    loss = cross_entropy(logits.float(), targets, reduction="sum")
                    losses[index], total = loss.item(), total + shares[index] * loss
                total.backward()
            first = {weight.data_ptr(): name for name, weight in reversed(self._weights.items())}
            slopes: dict[str, Tensor] = {}
            for name in first.values():
                gradient = self._weights[name].grad
                if gradient is not None:
                    slopes[name] = gradient
            return losses, slopes
        finally:
            self._model.zero_grad(set_to_none=True)

    # ---------------------------------------------------------------- plumbing

    def close(self) -> None:
        self._weights, self._model = {}, None

    def _room(self) -> int:
        """Number of tokens of a batch whose logits are all kept."""
        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        return min(BATCH_TOKENS, BATCH_LOGITS // vocabulary)

    def _check_open(self) -> None:
        if self._model is None:
            raise RuntimeError("the engine is closed")

    def _check_clean(self) -> None:
        self._check_open()
        if self._dirty:
            raise RuntimeError(f"the engine's weights are not those of any recipe: {self._dirty}")

    def _pad_left(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids (B, T) that end together, and their mask."""
        ids, mask = self._pad_right([tuple(reversed(sequence)) for sequence in sequences])
        return ids.flip(1), mask.flip(1)

    def _pad_right(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids (B, T) that start together, and their mask."""
        width = max(map(len, sequences))
        pad = self._tokenizer.pad_token_id or 0
        ids, mask = [], []
        for sequence in sequences:
            missing = width - len(sequence)
            ids.append([*sequence, *[pad] * missing])
            mask.append([1] * len(sequence) + [0] * missing)
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)


def _batches(order: Sequence[int], size: Callable[[int], int], room: int) -> Iterator[list[int]]:
    """Consecutive indices whose padded token count stays within `room`; at least one each."""
    batch: list[int] = []
    for index in order:
        if batch:
            padded = (len(batch) + 1) * max(size(batch[-1]), size(index))
            if len(batch) >= MAX_BATCH or padded > room:
                yield batch
                batch = []
        batch.append(index)
    if batch:
        yield batch


def _likelihood(logits: Tensor, targets: Tensor) -> Loglikelihood:
    """The likelihood of the targets (T) under logits (T, V)."""
    chosen = logits.log_softmax(dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    chosen = chosen.nan_to_num(nan=LOGPROB_FLOOR, neginf=LOGPROB_FLOOR).clamp(min=LOGPROB_FLOOR)
    values = tuple(float(value) for value in chosen)
    return Loglikelihood(
        logprob=math.fsum(values),
        token_logprobs=values,
        is_greedy=bool((logits.argmax(dim=-1) == targets).all()),
    )
