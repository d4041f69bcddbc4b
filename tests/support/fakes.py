"""Objectives, pools and workers that are made up: no engine, no tensor, no process."""

import json
from dataclasses import dataclass, field

import numpy as np

from recycler.cluster.workers import Result
from recycler.digest import derive_seed
from recycler.location import parse_location
from recycler.scoring.outcomes import aggregate
from recycler.types import Checkpoint, Failure, Objective, Outcome, Pool, Score, Scorecard

OBJECTIVES = (
    Objective(suite="fake", task="a", metric="exact_match", direction="maximize"),
    Objective(suite="fake", task="b", metric="bits_per_byte", direction="minimize"),
)


def named_pool(num_members=4, base=True):
    """A pool without tensors, for code that only plans."""
    members = tuple(
        Checkpoint(name=f"m{k}", location=parse_location(f"m{k}"), tensors={}, config={})
        for k in range(num_members)
    )
    return Pool(
        members=members,
        base=Checkpoint(name="base", location=parse_location("base"), tensors={}, config={})
        if base
        else None,
    )


class Killed(Exception):
    """Stands for SIGKILL: nothing of the driver's survives it but the ledger."""


@dataclass
class FakeWorkers:
    """Scores a recipe by a formula of its weights.

    `kill_after` results the driver dies; `break_numbers` always fail.
    """

    num_workers: int = 1
    kill_after: int | None = None
    break_numbers: frozenset = frozenset()
    blame: str = "recipe"
    seen: list = field(default_factory=list)
    _queue: list = field(default_factory=list)

    def submit(self, request):
        self._queue.append(request)

    def wait(self):
        if self.kill_after is not None and len(self.seen) >= self.kill_after:
            raise Killed
        index = (7 * len(self.seen)) % len(self._queue)  # out of order, as real workers are
        request = self._queue.pop(index)
        self.seen.append((request.number, request.role))
        if request.number in self.break_numbers:
            answer = Failure(blame=self.blame, reason="broken on purpose")
        else:
            answer = self.answer(request.recipe, request.role, request.items)
        return [Result(number=request.number, role=request.role, answer=answer)]

    def answer(self, recipe, role, items):
        return fake_scorecard(recipe, role)

    def close(self):
        pass


def fake_scorecard(recipe, role):
    """Two smooth objectives: the first likes m0 and m1, the second m2; both like some of each."""
    row = np.array(recipe.weights[0])
    first = float(np.tanh(row[0] + 0.8 * row[1] + 0.2 * row.sum()) * 0.9)
    second = float(1.0 - 0.7 * np.tanh(row[2] + 0.1 * row.sum()))
    scores = (
        Score(objective=OBJECTIVES[0].name, value=first, stderr=0.01, n=100),
        Score(objective=OBJECTIVES[1].name, value=second, stderr=0.01, n=100),
    )
    return Scorecard(
        role=role,
        scores=scores,
        outcomes=(),
        weights_digest=json.dumps(list(recipe.weights[0])),
        engine_fingerprint="fake",
        num_tokens=10,
    )


@dataclass
class JobWorkers(FakeWorkers):
    """Answers the items of a real job by a formula of the weights; `scored` names what was really
    asked.
    """

    work: object = None
    scored: list = field(default_factory=list)

    def answer(self, recipe, role, items):
        chosen = self.work.items_of(role, items)
        self.scored.append((role, recipe))
        by_name = dict(zip(recipe.members, recipe.weights[0], strict=True))
        level = np.tanh(
            sum(weight * (0.3 + 0.2 * int(name[1:])) for name, weight in by_name.items())
        )
        outcomes = tuple(
            Outcome(
                item=item.id,
                values=(
                    (
                        item.scorer,
                        float(
                            level + 0.1 * np.random.default_rng(derive_seed(0, item.id)).random()
                        ),
                    ),
                ),
            )
            for item in chosen
        )
        return Scorecard(
            role=role,
            scores=aggregate(chosen, outcomes, self.work.objectives),
            outcomes=outcomes,
            weights_digest=str(recipe.weights),
            engine_fingerprint="fake",
        )
