"""The loss that learned LoRA weights are trained on.

It is the mean negative log-likelihood of a small mix, in nats per token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from recycler.errors import Problem, UsageError, raise_problems
from recycler.merge.lora.factors import Adapter
from recycler.merge.lora.learned_cat import attached

MAX_ROWS, MAX_BYTES = 10_000, 64_000_000
Row = tuple[list[int], int]  # token ids; how many of them are the prompt, which is not counted


class MixLoss:
    """The loss of the base with weighted adapters, as a function of their weights (M, K).

    It is over all rows; one batch is in memory at a time.
    """

    def __init__(
        self, model: torch.nn.Module, adapters: Sequence[Adapter], rows: Sequence[Row], batch: int
    ):
        self.model, self.adapters = model, adapters
        ordered = sorted(rows, key=lambda row: len(row[0]))
        self.batches = [
            _padded(ordered[start : start + batch]) for start in range(0, len(ordered), batch)
        ]
        self.num_tokens = sum(int(counted.sum()) for _, counted in self.batches)

    def __call__(self, weights: Tensor) -> Tensor:
        parts = []
        for ids, counted in self.batches:
            if weights.requires_grad:  # activations are made again on the way back
                part = checkpoint(self._batch, weights, ids, counted, use_reentrant=False)
            else:
                part = self._batch(weights, ids, counted)
            parts.append(part)
        return torch.stack(parts).sum() / self.num_tokens

    def value(self, weights: Tensor) -> float:
        """The loss as a number, without a gradient."""
        with torch.no_grad():
            return float(self(weights))

    def _batch(self, weights: Tensor, ids: Tensor, counted: Tensor) -> Tensor:
        """Sum of -log p over the counted tokens of one batch, ids (B, T)."""
        with attached(self.model, self.adapters, weights):
            logits = self.model(input_ids=ids).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        return (losses * counted.flatten()).sum()


def mix_loss(
    base: Path, data: Path, adapters: Sequence[Adapter], *, max_length: int, batch: int
) -> MixLoss:
    """The loss over a JSONL file of {"prompt", "completion"} or {"text"} lines.

    Tokens are the base's own. Raises UsageError for a file that cannot be read, or has no answer
    within `max_length` tokens.
    """
    rows = read_mix(data)
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        base, local_files_only=True, trust_remote_code=False, dtype=torch.float32
    )
    model.eval().requires_grad_(False)
    tokens: list[Row] = []
    for prompt, completion in rows:
        before = tokenizer.encode(prompt) if prompt else []
        ids = (before + tokenizer.encode(completion, add_special_tokens=not before))[:max_length]
        if len(ids) > max(len(before), 1):
            tokens.append((ids, len(before)))
    if not tokens:
        raise UsageError(
            Problem(
                thing=str(data),
                cause=f"has no line with an answer within {max_length} tokens",
                remedy="Raise max_length, or give shorter prompts",
            )
        )
    return MixLoss(model, adapters, tokens, batch)


def read_mix(path: Path) -> list[tuple[str, str]]:
    """(prompt, completion) pairs; the prompt of {"text"} lines is empty.

    Raises UsageError with every problem and its line.
    """
    try:
        raw = path.read_bytes()[: MAX_BYTES + 1]
        lines = raw.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            Problem(thing=str(path), cause=f"cannot be read ({error})", remedy="Give a JSONL file")
        ) from None
    if len(raw) > MAX_BYTES or len(lines) > MAX_ROWS:
        raise UsageError(
            Problem(
                thing=str(path),
                cause=f"is larger than {MAX_ROWS:,} lines or {MAX_BYTES:,} bytes",
                remedy="A small mix is enough: some hundred lines",
            )
        )
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _read_row(line)
        if row is not None:
            rows.append(row)
            continue
        problems.append(
            Problem(
                thing="line",
                cause='is not {"prompt": ..., "completion": ...} or {"text": ...}',
                remedy="Write one JSON object a line",
                where=f"{path}:{number}",
            )
        )
    raise_problems(problems[:20])
    return rows


def _read_row(line: str) -> tuple[str, str] | None:
    """(prompt, completion) of one line; None when it holds something else."""
    try:
        entry = json.loads(line)
        if "completion" in entry:
            prompt, completion = entry["prompt"], entry["completion"]
        else:
            prompt, completion = "", entry["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(prompt, str) or not isinstance(completion, str):
        return None
    return prompt, completion


def _padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Token ids (B, T), padded with zeros at the right, and 1.0 for each next token that counts.

    The latter are (B, T - 1).
    """
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    counted = torch.zeros(len(rows), longest - 1)
    for row, (tokens, num_prompt) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        counted[row, max(num_prompt, 1) - 1 : len(tokens) - 1] = 1.0
    return ids, counted
