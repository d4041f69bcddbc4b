"""pass@1 of programs that a model wrote, run in the sandbox only.

An item's detail holds what surrounds the answer: `before` (HumanEval's prompt), `after` (the tests,
and a call of them), and `fence`: "strip" when the answer ends at a closing ```, as instruct
wordings have it. lm-eval 0.4.13 runs the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from recycler.scoring.sandbox.parent import shared_sandbox
from recycler.scoring.sandbox.verdict import Program
from recycler.types import Completion, Item, Outcome

PROGRAMS = ("humaneval", "mbpp")  # scorers of answers that are run


def program_of(item: Item, text: str) -> Program:
    """The program for an answer, before + answer, and its tests, after."""
    detail = dict(item.detail)
    if detail.get("fence") == "strip":
        text = text.partition("```")[0]
    before = detail.get("before", "")
    return Program(before + text, detail.get("after", ""), before)


def may_differ_next_time(item: Item, outcome: Outcome) -> bool:
    """True when an outcome depends on more than the answer.

    A program that did not pass may have run out of time on a loaded machine.
    """
    return item.scorer in PROGRAMS and not all(value for _, value in outcome.values)


def probe_sandbox(items: Iterable[Item]) -> None:
    """Raise UnsafeInputError when programs would have to run and there is no sandbox for them.

    To be asked before an engine is loaded.
    """
    if any(item.scorer in PROGRAMS for item in items):
        shared_sandbox()


def score_code(
    items: Sequence[Item], completions: Sequence[Completion]
) -> Callable[[], list[dict[str, float]]]:
    """Start all programs; the returned function waits for their values.

    Raises UnsafeInputError when there is no sandbox.
    """
    sandbox = shared_sandbox()
    futures = [
        sandbox.submit(program_of(item, completion.text))
        for item, completion in zip(items, completions, strict=True)
    ]
    return lambda: [{"pass@1": float(future.result().passed)} for future in futures]
