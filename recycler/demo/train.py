"""Train one run: draw rows of the skills by the run's mix, learn their answers, save snapshots."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recycler.demo.runs import Run
from recycler.demo.skills import Problem

BATCH = 64
WIDTH = 20  # tokens; the longest problem with its answer has 20
SMOOTHING = 20  # steps
IGNORED = -100  # the label that the loss skips: prompts and padding

Rows = tuple[torch.Tensor, torch.Tensor]  # ids and labels, each (N, WIDTH)


def encode(problems: list[Problem], tokenizer: PreTrainedTokenizerFast) -> Rows:
    """Rows of prompt, answer and </s>, padded on the right; labels only where the answer is."""
    ids = torch.full((len(problems), WIDTH), tokenizer.pad_token_id)
    labels = torch.full((len(problems), WIDTH), IGNORED)
    prompts = tokenizer([problem.prompt for problem in problems])["input_ids"]
    answers = tokenizer([problem.answer for problem in problems], add_special_tokens=False)[
        "input_ids"
    ]
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer) + 1
        ids[row, :end] = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        labels[row, len(prompt) : end] = ids[row, len(prompt) : end]
    return ids, labels


def train(
    model: LlamaForCausalLM,
    rows: Mapping[str, Rows],
    run: Run,
    seed: int,
    *,
    save: Callable[[str], None],
    progress: Callable[[int], None],
) -> None:
    """Train `model` in place.

    Calls `save(name)` at each snapshot and `progress(step)` after each step.
    """
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    smoothed_loss = 0.0
    model.train()
    for step in range(1, run.num_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * min(1.0, step / run.warmup)
        ids, labels = _batch(rows, run, draw)
        # No attention mask: padding is on the right, where a causal model cannot see it.
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in run.snapshots:
            save(run.snapshots[step])
        progress(step)
        smoothed_loss += (loss.item() - smoothed_loss) / min(step, SMOOTHING)
        if smoothed_loss < run.until_loss:
            break


def _batch(rows: Mapping[str, Rows], run: Run, draw: torch.Generator) -> Rows:
    """BATCH rows by the run's mix, cut to the longest of them."""
    shares = torch.tensor(list(run.mix.values()), dtype=torch.float32)
    counts = (
        torch.multinomial(shares, BATCH, replacement=True, generator=draw)
        .bincount(minlength=len(shares))
        .tolist()
    )
    parts = []
    for skill, count in zip(run.mix, counts, strict=True):
        ids, labels = rows[skill]
        chosen = torch.randint(len(ids), (count,), generator=draw)
        wrong = torch.rand(count, generator=draw) < run.wrong_answers
        parts.append(_with_wrong_answers(ids[chosen], labels[chosen], wrong))
    ids, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    width = int((labels != IGNORED).nonzero()[:, 1].max()) + 1
    return ids[:, :width], labels[:, :width]


def _with_wrong_answers(ids: torch.Tensor, labels: torch.Tensor, wrong: torch.Tensor) -> Rows:
    """Rows whose answers are those of the next row where they are marked `wrong`.

    A token is replaced where the next row has an answer token in the same place.
    """
    other = labels.roll(1, dims=0)
    swap = wrong[:, None] & (labels != IGNORED) & (other != IGNORED)
    return torch.where(swap, other, ids), torch.where(swap, other, labels)
