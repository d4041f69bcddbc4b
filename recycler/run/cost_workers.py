"""What the merges of a run cost: measured once, kept in its ledger, and added to every scorecard
that its workers give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from recycler.cluster.workers import Result, Workers
from recycler.objectives.costs import Costs
from recycler.types import Recipe, Role, Scorecard


class PricedWorkers:
    """Workers whose scorecards tell what each merge costs besides what it scored.

    They are asked for nothing more.
    """

    def __init__(self, workers: Workers, priced: Costs):
        self._workers, self._priced, self._recipes = (
            workers,
            priced,
            dict[tuple[int, Role], Recipe](),
        )

    @property
    def num_workers(self) -> int:
        return self._workers.num_workers

    def submit(self, number: int, recipe: Recipe, role: Role, *how: Any, **settings: Any) -> None:
        self._recipes[number, role] = recipe
        self._workers.submit(number, recipe, role, *how, **settings)

    def wait(self) -> Sequence[Result]:
        return [
            self._with_costs(result, self._recipes.pop((result.number, result.role)))
            for result in self._workers.wait()
        ]

    def close(self) -> None:
        self._workers.close()

    def _with_costs(self, result: Result, recipe: Recipe) -> Result:
        return (
            replace(result, answer=self._priced.added(result.answer, recipe))
            if isinstance(result.answer, Scorecard)
            else result
        )
