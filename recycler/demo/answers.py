"""Ask a model folder a few questions with plain transformers.

Nothing of recycler's is needed to use an export.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt and its right answer."""

    prompt: str
    answer: str


def sample_questions(folder: Path, per_skill: int = 2) -> list[Question]:
    """The first holdout questions of each skill."""
    questions: list[Question] = []
    for path in sorted((folder / "data").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        questions += [
            Question(prompt=row["prompt"], answer=row["answer"])
            for row in rows
            if row["role"] == "holdout"
        ][:per_skill]
    return questions


def answer(model_folder: Path, prompts: Sequence[str]) -> list[str]:
    """Greedy answers, one for each prompt."""
    # heavy, and the questions alone do not need them
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(str(model_folder), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(str(model_folder), local_files_only=True).eval()
    answers = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(
            **ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        text = str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
        answers.append(text.partition("\n")[0].strip())
    return answers
