"""What is trained: one base on everything a little, and five gentle runs from it that leave eight members.

The base stops while its scores still climb and the runs are short, so their deltas point the same way and add up: a
merge of them goes further than any member did. Longer or hotter runs win their own skill and lose the others for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run. `mix` gives each skill's share of the data; `snapshots` maps steps to checkpoint names.

    With `wrong_answers` that share of the labels belongs to other problems: how a bad member comes about.
    """

    mix: Mapping[str, float]
    learning_rate: float
    snapshots: Mapping[int, str]
    warmup: int = 10
    wrong_answers: float = 0.0

    @property
    def num_steps(self) -> int:
        return max(self.snapshots)


BASE = Run(mix={"english": 1, "spanish": 1, "code": 1}, learning_rate=1.5e-3, snapshots={500: "base"}, warmup=50)
RUNS = (
    Run(mix={"english": 8, "spanish": 1, "code": 1}, learning_rate=4e-4, snapshots={40: "english-early", 100: "english-late"}),
    Run(mix={"english": 1, "spanish": 8, "code": 1}, learning_rate=4e-4, snapshots={40: "spanish-early", 100: "spanish-late"}),
    Run(mix={"english": 1, "spanish": 1, "code": 8}, learning_rate=4e-4, snapshots={40: "code-early", 100: "code-late"}),
    Run(mix={"english": 1, "spanish": 1, "code": 1}, learning_rate=3e-4, snapshots={60: "mix"}),
    Run(mix={"english": 1, "code": 2}, learning_rate=2e-3, snapshots={40: "hot"}, wrong_answers=0.5),  # plainly bad
)
