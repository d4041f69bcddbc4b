"""pass@1 of programs that a model wrote, run in the sandbox only.

An item's detail holds what surrounds the answer: `before` (HumanEval's prompt), `after` (the tests, and a call of them),
and `fence`: "strip" when the answer ends at a closing ```, as instruct wordings have it. lm-eval 0.4.13 runs the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recycler.scoring.sandbox import shared_sandbox
from recycler.types import Completion, Item


def program_of(item: Item, text: str) -> str:
    """The whole program for an answer: before + answer + newline + after."""
    detail = dict(item.detail)
    if detail.get("fence") == "strip":
        text = text.partition("```")[0]
    return f"{detail.get('before', '')}{text}\n{detail.get('after', '')}"


def score_code(items: Sequence[Item], completions: Sequence[Completion]) -> Callable[[], list[dict[str, float]]]:
    """Start all programs; the function given back waits for them. Raises UnsafeInputError where there is no sandbox."""
    sandbox = shared_sandbox()
    futures = [sandbox.submit(program_of(item, completion.text)) for item, completion in zip(items, completions, strict=True)]
    return lambda: [{"pass@1": float(future.result().passed)} for future in futures]
