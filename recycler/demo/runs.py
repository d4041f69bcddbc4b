"""The demo's training runs: one base on a little of everything, and five runs from it.

The five leave eight members.

The base stops in the middle of its climb, and the runs go on at a learning rate that is too high to
settle: each learns its own skill best and keeps a noise of its own. A merge adds up what they
learnt and averages out the noise, so it goes further than any of them. Runs that are cooled down,
or start from a cooled base, leave a merge little to win.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run.

    `mix` is each skill's share of the data; `snapshots` maps steps to checkpoint names.

    The run stops at `num_steps`, or as soon as its smoothed loss is below `until_loss`: when a
    model begins to grasp addition depends on the seed, so a fixed step would give now a raw base,
    now a finished one. With `wrong_answers` that share of the labels belongs to other problems: how
    a bad member comes about.
    """

    mix: Mapping[str, float]
    learning_rate: float
    num_steps: int
    snapshots: Mapping[int, str]
    warmup: int = 10
    until_loss: float = 0.0
    wrong_answers: float = 0.0


BASE = Run(
    mix={"english": 1, "spanish": 1, "code": 0.6},
    learning_rate=2e-3,
    num_steps=1000,
    snapshots={},
    warmup=50,
    until_loss=0.6,
)
RUNS = (
    Run(
        mix={"english": 4, "spanish": 1, "code": 1},
        learning_rate=1e-3,
        num_steps=110,
        snapshots={45: "english-early", 110: "english-late"},
    ),
    Run(
        mix={"english": 1, "spanish": 4, "code": 1},
        learning_rate=1e-3,
        num_steps=110,
        snapshots={45: "spanish-early", 110: "spanish-late"},
    ),
    Run(
        mix={"english": 1, "spanish": 1, "code": 2},
        learning_rate=1e-3,
        num_steps=110,
        snapshots={45: "code-early", 110: "code-late"},
    ),
    Run(
        mix={"english": 1, "spanish": 1, "code": 1},
        learning_rate=1e-3,
        num_steps=60,
        snapshots={60: "mix"},
    ),
    Run(  # plainly bad
        mix={"english": 1, "code": 2},
        learning_rate=3e-3,
        num_steps=40,
        snapshots={40: "hot"},
        wrong_answers=0.5,
    ),
)
