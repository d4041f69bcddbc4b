"""Random points: an opening design, and neighbours of good recipes on the simplex.

Nothing here knows a score. Every function draws from the generator it is given, so equal seeds give
equal proposals.
"""

from __future__ import annotations

import numpy as np

from recycler.search.simplex.domain import CLOSE, Floats, WeightDomain

VERTICES_UP_TO = 16  # with more members than that, scoring each alone first would eat the budget
SPARSITY = (0.2, 0.5, 1.0, 2.0)  # Dirichlet concentrations: from nearly one member to nearly all
GLOBAL_SHARE = 0.2


def opening(
    domain: WeightDomain,
    rng: np.random.Generator,
    num_sparse: int | None = None,
    members_first: bool | None = None,
) -> Floats:
    """Opening design (n, D): uniform soup, members, sparse mixtures.

    The uniform soup comes at two scales where the sum is searched. Members come if `members_first`,
    by default for at most VERTICES_UP_TO of them. `num_sparse` mixtures follow: 1, or 4 where the
    members are left out.
    """
    low, high = domain.scale
    unit = _unit(domain)
    members = domain.num_members
    points = _alike(domain, np.full((1, members), unit / members))
    if high > low:
        points = np.concatenate(
            [points, _alike(domain, np.full((1, members), np.sqrt(unit * high) / members))]
        )
    first = members <= VERTICES_UP_TO if members_first is None else members_first
    if first:
        points = np.concatenate([points, vertices(domain, rng)])
    count = num_sparse if num_sparse is not None else (1 if first else 4)
    return unique(np.concatenate([points, random_sparse(domain, rng, count, same_rows=True)]))


def vertices(domain: WeightDomain, rng: np.random.Generator) -> Floats:
    """Vertices of the simplex (K, D): each member by itself, in random order.

    Their sum is the largest allowed one not above 1, else the smallest.
    """
    return _alike(
        domain, np.eye(domain.num_members)[rng.permutation(domain.num_members)] * _unit(domain)
    )


def _unit(domain: WeightDomain) -> float:
    low, high = domain.scale
    return min(max(1.0, low), high)


def _alike(domain: WeightDomain, rows: Floats) -> Floats:
    """Points (n, D) that have `rows` (n, K) in all groups, and knobs in the middle."""
    knobs = np.tile((domain.knob_low + domain.knob_high) / 2, (len(rows), 1))
    return domain.join(np.repeat(rows[:, None], domain.groups, axis=1), knobs)


def random_sparse(
    domain: WeightDomain, rng: np.random.Generator, count: int, same_rows: bool = False
) -> Floats:
    """Sparse random points (count, D).

    Dirichlet proportions of random concentration, log-uniform sums, uniform knobs.
    """
    if not count:
        return np.zeros((0, domain.size))
    rows = np.zeros((count, domain.groups, domain.num_members))
    for point in rows:
        alpha = np.full(domain.num_members, rng.choice(SPARSITY))
        point[:] = (
            rng.dirichlet(alpha)
            if same_rows or rng.random() < 0.5
            else rng.dirichlet(alpha, domain.groups)
        )
        point *= np.exp(rng.uniform(*np.log(domain.scale)))
    knobs = rng.uniform(domain.knob_low, domain.knob_high, (count, len(domain.knob_low)))
    return domain.join(rows, knobs)


def perturb(
    domain: WeightDomain, rng: np.random.Generator, parents: Floats, count: int, reach: float = 1.0
) -> Floats:
    """`count` allowed points (count, D) near `parents` (P, D).

    `_random_move` has the moves; `reach` scales their length. With groups a move changes all rows
    alike, one row, or some; knobs move a little in half of the points.
    """
    rows, knobs = domain.split(parents)
    first, second = rng.integers(len(parents), size=count), rng.integers(len(parents), size=count)
    new_rows, new_knobs = rows[first].copy(), knobs[first].copy()
    width = domain.knob_high - domain.knob_low
    for index in range(count):
        touched = _touched_rows(domain.groups, rng)
        new_rows[index, touched] = _random_move(
            domain, rng, rows[first[index]][touched], rows[second[index]][touched], reach
        )
        if len(width) and rng.random() < 0.5:
            new_knobs[index] += rng.normal(0.0, 0.15 * reach, len(width)) * width
    return domain.join(new_rows, new_knobs)


def sparsify(domain: WeightDomain, rng: np.random.Generator, parents: Floats, count: int) -> Floats:
    """`count` allowed points (count, D): `parents` (P, D) with fewer members.

    Some members are taken out of all rows, and the others scaled to the sum. The number that stays
    is uniform, and members stay by their weights: merges of few members are faces of the simplex,
    which no small step inside it reaches. Parents of one member or none come back as they are.
    """
    rows, knobs = domain.split(parents[rng.integers(len(parents), size=count)])
    sizes = np.abs(rows).sum(axis=1)
    with np.errstate(divide="ignore"):
        strength = np.log(sizes) + rng.gumbel(
            size=sizes.shape
        )  # the largest are a draw without replacement, by weight
    places = np.argsort(np.argsort(-strength, axis=1, kind="stable"), axis=1)
    kept = places < rng.integers(1, np.maximum((sizes > 0).sum(axis=1), 2))[:, None]
    few = np.where(kept[:, None], rows, 0.0)
    total, rest = rows.sum(axis=2, keepdims=True), few.sum(axis=2, keepdims=True)
    return domain.join(
        few
        * np.where(np.abs(rest) > CLOSE, total / np.where(np.abs(rest) > CLOSE, rest, 1.0), 1.0),
        knobs,
    )


def _touched_rows(groups: int, rng: np.random.Generator) -> np.ndarray:
    if groups == 1 or (kind := rng.random()) < 0.35:
        return np.arange(groups)
    if kind < 0.75:
        return rng.integers(groups, size=1)
    return rng.permutation(groups)[: rng.integers(2, groups + 1)]


def _random_move(
    domain: WeightDomain, rng: np.random.Generator, rows: Floats, other: Floats, reach: float
) -> Floats:
    """Neighbours (g, K) of `rows` (g, K) by one random move, the same for each row.

    They are not yet repaired.
    """
    kind, members = rng.random(), domain.num_members
    total = rows.sum(axis=1, keepdims=True)
    if (
        kind < 0.3 and (domain.low >= 0).all()
    ):  # jitter in proportion to the weights: stays near their face
        strength = rng.choice((20.0, 60.0, 200.0)) / reach**2
        shares = (
            rows[0] / total[0] if total[0] > 0 else np.full(members, 1.0 / members)
        )  # the base itself has no proportions
        shape = shares * strength + 0.05
        drawn = rng.dirichlet(shape)
        moved = rows + (drawn * total - rows[0])
    elif kind < 0.3:
        moved = rows + rng.normal(0.0, 0.1 * reach * rng.random(), members) * (
            rng.random(members) < 0.5
        )
    elif kind < 0.55:  # along the line between two good recipes, and a little beyond
        moved = rows + rng.uniform(-0.3, 1.3) * reach * (other - rows)
    elif kind < 0.75:  # one member more, less, or gone
        moved, member = rows.copy(), rng.integers(members)
        step = rng.choice((0.0, 0.05, 0.15)) if domain.low[member] >= 0 else rng.uniform(-0.2, 0.2)
        moved[:, member] = (
            rows[:, member] * (1 + reach * (rng.choice((0.0, 0.5, 1.6, 2.5)) - 1)) + step * reach
        )
    elif kind < 0.9:  # towards a member, or away from it
        moved = rows + rng.uniform(-0.2, 0.5) * reach * (
            np.eye(members)[rng.integers(members)] * total - rows
        )
    else:  # from one member to another
        give, take = rng.integers(members, size=2)
        amount = rng.random() * reach * rows[:, give]
        moved = rows.copy()
        moved[:, give] -= amount
        moved[:, take] += amount
    if domain.scale[1] > domain.scale[0] and rng.random() < 0.5:
        moved = moved * np.exp(rng.normal(0.0, 0.25 * reach))
    return moved


def unique(points: Floats, known: Floats | None = None) -> Floats:
    """Unique rows of `points` (n, D) in order, less those CLOSE to a row of `known` (m, D)."""
    cells = np.round(points / CLOSE)
    _, first = np.unique(cells, axis=0, return_index=True)
    points = points[np.sort(first)]
    if known is None or not len(known):
        return points
    fresh = np.ones(len(points), dtype=bool)
    for row in known:
        fresh &= np.abs(points - row).max(axis=1) > CLOSE
    return points[fresh]
