"""`grid`: evenly spaced merges between two members, coarse first.

Ends, middle, quarters, eighths: a search that is cut short has looked everywhere alike, and one
that ends has looked at as many points as its budget says.
"""

from __future__ import annotations

from collections.abc import Sequence

from recycler.search.simplex.domain import Exhausted
from recycler.specs.space import SearchSpace
from recycler.types import Proposal, Trial


class GridProposer:
    """Propose `num_points` points between two members, the coarse ones first.

    The space has one row of weights and a fixed sum. A point that is scored already, such as a
    member alone, is not proposed again. Raises Exhausted when none is left, ValueError for another
    space.
    """

    def __init__(self, space: SearchSpace, num_points: int):
        if (
            len(space.members) != 2
            or len(space.groups) != 1
            or space.total[0] < space.total[1]
            or space.knobs
        ):
            raise ValueError(
                "a grid needs two members, one row of weights, a fixed sum and no searched option"
            )
        self._space, (total, _) = space, space.total
        low, high = (
            max(space.low[0], total - space.high[1]),
            min(space.high[0], total - space.low[1]),
        )
        shares = [place / max(num_points - 1, 1) for place in refining(num_points)]
        rows = [
            space.project((weight := low + share * (high - low), total - weight), total)
            for share in shares
        ]
        self._rows = tuple(dict.fromkeys(rows))

    def ask(self, number: int, trials: Sequence[Trial]) -> Proposal:
        tried = {
            trial.recipe.weights for trial in trials if trial.recipe.members == self._space.members
        }
        row = next((row for row in self._rows if (row,) not in tried), None)
        if row is None:
            raise Exhausted(f"all {len(self._rows)} points of the grid have been proposed")
        return Proposal(
            number=number,
            weights=(row,),
            options=tuple((name, low) for name, (low, _) in self._space.options),
        )


def refining(count: int) -> list[int]:
    """Order 0 to `count` - 1 so that it refines: both ends, then van der Corput (1935), base 2."""
    places = dict.fromkeys([0, count - 1][:count])
    parts = 2
    while len(places) < count:
        places |= dict.fromkeys(
            round(_halved(index) * (count - 1)) for index in range(parts // 2, parts)
        )
        parts *= 2
    return list(places)


def _halved(index: int) -> float:
    """The digits of `index` in base 2, mirrored at the point: 1/2, 1/4, 3/4, 1/8 ..."""
    found, weight = 0.0, 0.5
    while index:
        found, index, weight = found + weight * (index % 2), index // 2, weight / 2
    return found
