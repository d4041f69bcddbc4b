"""The workers' port: submit trials, wait for whichever ends first.

And the simplest one, in this process.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from recycler.engines import build_engine
from recycler.engines.port import Engine, SideBySide
from recycler.errors import InfrastructureError, RecyclerError
from recycler.pool.materialise import materialise
from recycler.scoring.evaluate import score_recipe, score_side_by_side
from recycler.scoring.result_cache import ResultCache, surroundings
from recycler.scoring.sandbox.code import probe_sandbox
from recycler.scoring.sandbox.parent import SANDBOX
from recycler.types import Failure, Item, Objective, Pool, Recipe, Role, Scorecard

MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Everything that a worker holds for the whole job: pool, engine, frozen items, objectives."""

    pool: Pool
    engine: str
    items: tuple[Item, ...]
    objectives: tuple[Objective, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    reuse: str = ""  # folder with answers of earlier runs; none without

    @property
    def together(self) -> int:
        """How many trials an engine can score side by side, unmerged."""
        return int(self.settings.get("lora_batch", 1))

    def items_of(self, role: Role, only: Sequence[str] | None = None) -> tuple[Item, ...]:
        """The items of a split, or those of them that are named."""
        chosen = None if only is None else set(only)
        return tuple(
            item
            for item in self.items
            if item.role == role and (chosen is None or item.id in chosen)
        )


@dataclass(frozen=True, slots=True)
class Task:
    """One submission, and which attempt at it this is."""

    number: int
    recipe: Recipe
    role: Role
    items: tuple[str, ...] | None = None
    gated: bool = False
    unmerged: bool = False
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came back for one submission."""

    number: int
    role: Role
    answer: Scorecard | Failure


class Workers(Protocol):
    """Holds engines; stateless to the search.

    A system failure is retried inside, so what comes out is final.

    `items` names the items to ask; None asks all of the split. Scores of a scorecard are plain
    means over those. `gated` trials are given up when they babble, with a Failure that blames the
    recipe; `unmerged` ones may be scored side by side, in one batch of an engine that can.
    `num_workers` is how many trials are taken at once.
    """

    num_workers: int

    def submit(
        self,
        number: int,
        recipe: Recipe,
        role: Role,
        items: tuple[str, ...] | None = None,
        gated: bool = False,
        unmerged: bool = False,
    ) -> None: ...
    def wait(self) -> Sequence[Result]: ...
    def close(self) -> None: ...


class ScoringWorker:
    """One live engine that scores recipes: the body of every worker, wherever it runs."""

    def __init__(self, work: Work, engine: Engine | None = None):
        self.work = work
        probe_sandbox(work.items)
        pool = materialise(work.pool) if engine is None or work.reuse else work.pool
        self._cache = ResultCache(Path(work.reuse), surroundings(pool)) if work.reuse else None
        self.engine = engine or build_engine(work.engine, pool, **work.settings)

    def score(
        self, recipe: Recipe, role: Role, items: tuple[str, ...] | None = None, gated: bool = False
    ) -> Scorecard | Failure:
        """The scorecard; or a Failure that blames the recipe when the recipe cannot be run.

        Anything else is raised.
        """
        try:
            return score_recipe(
                self.engine,
                recipe,
                self.work.items_of(role, items),
                self.work.objectives,
                role,
                gated=gated,
                cache=self._cache,
            )
        except RecyclerError as error:
            _raise_system_error(error)
            return Failure(blame="recipe", reason=str(error))

    def score_all(self, tasks: Sequence[Task]) -> list[Scorecard | Failure]:
        """The answers to what `next_batch` took: several are scored side by side, or merged one by
        one where they cannot be.
        """
        if len(tasks) > 1:
            asked = [self.work.items_of(task.role, task.items) for task in tasks]
            try:
                return list(
                    score_side_by_side(
                        cast(SideBySide, self.engine),
                        [task.recipe for task in tasks],
                        asked,
                        self.work.objectives,
                        tasks[0].role,
                        [task.gated for task in tasks],
                    )
                )
            except RecyclerError as error:
                _raise_system_error(error)
        return [self.score(task.recipe, task.role, task.items, task.gated) for task in tasks]

    def close(self) -> None:
        self.engine.close()


def _raise_system_error(error: RecyclerError) -> None:
    """Raise InfrastructureError for an error that says nothing about the recipe."""
    if isinstance(error, InfrastructureError) or any(
        problem.thing == SANDBOX for problem in error.problems
    ):
        raise InfrastructureError(error.problems) from None


def next_batch(waiting: deque[Task], most: int) -> list[Task]:
    """Take the first task, and with one that need not be merged up to `most` of its kind in all."""
    batch = [waiting.popleft()]
    if batch[0].unmerged:
        batch += [task for task in waiting if task.unmerged and task.role == batch[0].role][
            : most - 1
        ]
        for task in batch[1:]:
            waiting.remove(task)
    return batch


class LocalWorkers:
    """One worker in this process, for tests and for scoring a single model."""

    def __init__(self, work: Work, *, build: Callable[[Work], ScoringWorker] = ScoringWorker):
        self._work, self._build, self.num_workers = work, build, work.together
        self._worker: ScoringWorker | None = None
        self._queue: deque[Task] = deque()

    def submit(
        self,
        number: int,
        recipe: Recipe,
        role: Role,
        items: tuple[str, ...] | None = None,
        gated: bool = False,
        unmerged: bool = False,
    ) -> None:
        self._queue.append(Task(number, recipe, role, items, gated, unmerged))

    def wait(self) -> Sequence[Result]:
        tasks = next_batch(self._queue, self._work.together)
        reason = ""
        for _ in range(MAX_ATTEMPTS):
            try:
                self._worker = self._worker or self._build(self._work)
                return [
                    Result(number=task.number, role=task.role, answer=answer)
                    for task, answer in zip(tasks, self._worker.score_all(tasks), strict=True)
                ]
            except InfrastructureError as error:
                if self._worker is None:  # no engine to try again with
                    raise
                reason = str(error)
            except (
                RuntimeError,
                MemoryError,
                OSError,
            ) as error:  # the engine broke, not the recipe: build a new one
                reason = "".join(traceback.format_exception_only(error)).strip()
                self._worker = None
        return [
            Result(
                number=task.number,
                role=task.role,
                answer=Failure(blame="system", reason=reason, attempts=MAX_ATTEMPTS),
            )
            for task in tasks
        ]

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
