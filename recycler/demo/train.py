"""Train one run: a data mix, a learning rate, a seed, and the steps at which a snapshot becomes a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recycler.demo.skills import Problem, problems

BATCH = 128
IGNORED = -100  # the label that the loss skips: the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run. `mix` gives each skill's share of the data; `snapshots` maps steps to checkpoint names.

    With `wrong_answers` that share of the labels belongs to other problems: how a bad member comes about.
    """

    mix: Mapping[str, float]
    learning_rate: float
    seed: int
    snapshots: Mapping[int, str]
    decay: bool = True  # linearly to a tenth
    wrong_answers: float = 0.0
    warmup: int = field(default=10)

    @property
    def steps(self) -> int:
        return max(self.snapshots)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, run: Run, *, save: Callable[[str], None], progress: Callable[[int], None]) -> None:
    """Train `model` in place; calls `save(name)` at each snapshot and `progress(step)` after each step."""
    torch.manual_seed(run.seed)
    stream = _stream(run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(1, run.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * _schedule(run, step)
        ids, labels = _batch(tokenizer, [next(stream) for _ in range(BATCH)])
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in run.snapshots:
            save(run.snapshots[step])
        progress(step)


def _schedule(run: Run, step: int) -> float:
    warm = min(1.0, step / run.warmup)
    return warm * (1.0 - 0.9 * step / run.steps) if run.decay else warm


def _stream(run: Run) -> Iterator[Problem]:
    rng = random.Random(run.seed)
    skills, shares = list(run.mix), list(run.mix.values())
    streams = {skill: problems(skill, "train", run.seed) for skill in skills}
    previous = "0"
    while True:
        problem = next(streams[rng.choices(skills, shares)[0]])
        answer = previous if rng.random() < run.wrong_answers else problem.answer
        previous = problem.answer
        yield Problem(problem.prompt, answer, problem.cluster)


def _batch(tokenizer: PreTrainedTokenizerFast, batch: list[Problem]) -> tuple[torch.Tensor, torch.Tensor]:
    prompts = [tokenizer.encode(problem.prompt) for problem in batch]
    answers = [[*tokenizer.encode(problem.answer, add_special_tokens=False), tokenizer.eos_token_id] for problem in batch]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(batch), width), tokenizer.pad_token_id)
    labels = torch.full((len(batch), width), IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt):end] = torch.tensor(answer)
    return ids, labels
