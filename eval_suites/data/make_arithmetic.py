"""Write arithmetic.jsonl beside this file: 600 sums and differences, none of them asked twice.

    python eval_suites/data/make_arithmetic.py [OUT]

The SmolLM2 pool's arithmetic runs drew their questions from `random.Random(seed)` with seeds 3, 4
and 6; every question they could have seen is left out. Half of the numbers have two digits, half up
to three. Rows 0-199 are for search, the rest for holdout.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

TRAINING_SEEDS = (3, 4, 6)
NUM_ROWS = 600


def drawn_in_training(seed: int) -> set[tuple[int, str, int]]:
    """The 4,000 questions that a training run with this seed could draw, in its own order of random
    calls.
    """
    rng = random.Random(seed)
    drawn = set()
    for _ in range(4000):
        sign = rng.choice("+-*")
        a, b = (
            (rng.randint(10, 999), rng.randint(10, 999))
            if sign != "*"
            else (rng.randint(2, 99), rng.randint(2, 12))
        )
        drawn.add((a, sign, b))
    return drawn


def rows() -> list[dict[str, object]]:
    taken = set().union(*map(drawn_in_training, TRAINING_SEEDS))
    rng = random.Random(2026)
    chosen: list[dict[str, object]] = []
    while len(chosen) < NUM_ROWS:
        largest = 99 if len(chosen) % 2 else 999
        a, sign, b = rng.randint(10, largest), rng.choice("+-"), rng.randint(10, largest)
        if (a, sign, b) in taken:
            continue
        taken.add((a, sign, b))
        chosen.append(
            {
                "id": f"a{len(chosen):03d}",
                "question": f"What is {a} {sign} {b}? Answer with the number only.",
                "answer": str(a + b if sign == "+" else a - b),
            }
        )
    return chosen


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("arithmetic.jsonl")
    out.write_text("".join(json.dumps(row) + "\n" for row in rows()))
