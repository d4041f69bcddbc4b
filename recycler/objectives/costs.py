"""Costs of a merge, known from its recipe: number of members, distance from the base.

Costs are minimised and exact: no engine is asked, no item is drawn, and no model guesses the cost
of a merge that has not been made. docs/design/search.md tells what that is worth to a sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recycler.types import Group, Objective, Recipe, Score, Scorecard, Trial

Floats = NDArray[np.float64]

COSTS = ("members", "distance")
# times the farthest member: where two whole deltas added up may lead; merges beyond add nothing to
# a hypervolume
FARTHEST = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class DeltaProducts:
    """Inner products (N, K, K) of the members' deltas in each of N tensors.

    They are divided by the squared norm of the whole base.

    Tensor by tensor, since groups of tensors may have weights of their own, and refined merges have
    other groups than the search.
    """

    tensors: tuple[str, ...]
    table: Floats

    def of_groups(self, groups: Sequence[Group]) -> Floats:
        """(G, K, K) sums over the tensors of each group.

        Raises ValueError for a tensor that no group takes.
        """
        recipe = Recipe(
            method="linear", members=(), weights=((),) * len(groups), groups=tuple(groups)
        )
        found = np.zeros((len(groups), *self.table.shape[1:]))
        for name, products in zip(self.tensors, self.table, strict=True):
            found[recipe.group_of(name)] += products
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """The costs among a job's objectives, and the products that distances need."""

    objectives: tuple[Objective, ...]
    products: DeltaProducts | None = None

    def cost_function(
        self, objective: Objective, groups: Sequence[Group]
    ) -> Callable[[Floats], Floats]:
        """Make a function from weights (n, G, K) of linear merges to their costs (n,).

        members: those with a weight other than 0 in some group. distance: |merge - base| / |base|,
        Frobenius norms over all merged tensors before the merge is rounded to its dtype. Raises
        ValueError for distances without `products`.
        """
        if objective.metric == "members":
            return lambda rows: (np.asarray(rows) != 0.0).any(axis=1).sum(axis=1).astype(float)
        if objective.metric != "distance" or self.products is None:
            raise ValueError(f"{objective.name} cannot be told from the weights alone")
        grams = self.products.of_groups(groups)
        return lambda rows: np.sqrt(np.maximum(np.einsum("ngk,gkl,ngl->n", rows, grams, rows), 0.0))

    def scores(self, recipe: Recipe) -> tuple[Score, ...]:
        """Scores of a merge's costs: no items, no error.

        Raises ValueError for the distance of one that is not linear in its deltas.
        """
        found = []
        for objective in self.objectives:
            if objective.metric == "distance" and not is_linear(recipe):
                raise ValueError(
                    f"the distance of a merge by {recipe.method} is not told by its weights"
                )
            (value,) = self.cost_function(objective, recipe.groups)(np.array([recipe.weights]))
            found.append(Score(objective=objective.name, value=float(value), stderr=0.0, n=0))
        return tuple(found)

    def added(self, scorecard: Scorecard, recipe: Recipe) -> Scorecard:
        """The scorecard of a merge with what it costs."""
        return replace(scorecard, scores=(*scorecard.scores, *self.scores(recipe)))


def is_linear(recipe: Recipe) -> bool:
    """True when the merge is the base plus the weighted sum of the members' deltas."""
    return recipe.method == "linear" and recipe.base is not None and not recipe.option("normalize")


def benchmarks(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """The objectives that items are asked for."""
    return tuple(objective for objective in objectives if not objective.is_cost)


def costs(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """The objectives that the recipe alone tells."""
    return tuple(objective for objective in objectives if objective.is_cost)


def clamp_to_bound(objective: Objective, values: Floats) -> Floats:
    """Clamp figures (n,) of a cost that is only bounded to the part beyond its bound.

    Other costs stay as they are.
    """
    return (
        np.maximum(values, float(objective.floor))
        if objective.bound_only and objective.floor
        else values
    )


def cost_reference(
    objectives: Sequence[Objective], members: Sequence[Trial], worst: Floats
) -> Floats:
    """`worst` (T,), maximised, with the reference point of each cost in its place.

    A merge that costs as much adds nothing to a front.

    A pool's members cost one member each, which is no nadir to measure merges from. So it is one
    member more than the bound, else than the pool has; for distances the bound, else FARTHEST times
    that of the farthest of the scored `members`. Of a cost that is only bounded it is twice the
    bound: all that keep it lie on it, and shall have some volume.
    """
    found = np.array(worst, dtype=float)
    for column, objective in enumerate(objectives):
        if not objective.is_cost:
            continue
        bound = None if objective.floor is None else float(objective.floor)
        if objective.bound_only and bound:
            found[column] = -2.0 * bound
        elif objective.metric == "members":
            found[column] = -(1.0 + (bound or len(members[0].recipe.members)))
        else:
            values = [
                score.value
                for trial in members
                for score in trial.search
                if score.objective == objective.name
            ]
            found[column] = -(bound or FARTHEST * max(values))
    return found
