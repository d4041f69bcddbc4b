"""What the front would be worth without a member, as the search's own model sees it, and the merge that would show it.

    trials -> GP per objective (as `simplex_gp` fits it) -> the front's merges with the member taken out -> joint draws
    -> volume of all those merges against volume of those without the member

An estimate: a search without the member would look for merges that nobody has thought of here, so the true cost is at
most about this; the draws say how much of it the model does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recycler import pareto
from recycler.merge.recipe_yaml import recipe_to_yaml
from recycler.search.baselines import maximized
from recycler.search.simplex_gp import Observations, SimplexGP
from recycler.service.documents import finite
from recycler.service.store import Snapshot
from recycler.types import Recipe, Trial

MOST_TRIALS = 160  # that the model learns from: fitting is cubic in them
MOST_FRONT = 16  # trials of the front whose merges are tried without a member
LEAST_TRIALS = 8
NUM_DRAWS = 48
Gram = Sequence[Sequence[float]]


@dataclass(frozen=True, eq=False)
class _Tried:
    """Merges that the model is asked about: their points (n, G K), and the recipe of each that was not scored."""

    points: np.ndarray
    recipes: tuple[Recipe | None, ...]

    def without(self, member: int, num_members: int) -> np.ndarray:
        """(n,) whether each gives the member no weight in any group."""
        return (self.points.reshape(len(self.points), -1, num_members)[:, :, member] == 0.0).all(axis=1)


def leave_out_document(snapshot: Snapshot, gram: Gram | None = None) -> dict[str, Any]:
    """For each member: estimated share of the front's volume that is lost without it, with a 90 % interval, and a merge to try.

    `members` is empty, with a `reason`, while fewer than LEAST_TRIALS trials are scored. Seconds for a few hundred trials.
    """
    names = snapshot.pool.names
    found: dict[str, Any] = {"schema_version": 1, "reason": "", "num_trials": 0, "members": []}
    learned = _learned(snapshot)
    if len(learned) < LEAST_TRIALS:
        return {**found, "reason": f"the model needs {LEAST_TRIALS} scored trials over the whole pool; there are {len(learned)}"}
    groups = max(len(trial.recipe.weights) for trial in learned)
    points = np.stack([_point(trial.recipe, groups) for trial in learned])
    stderrs = np.array([[next(score.stderr for score in trial.search if score.objective == o.name) for o in snapshot.objectives] for trial in learned])
    model = SimplexGP(names, len(snapshot.objectives), seed=0, groups=groups, gram=gram if gram and len(gram) == len(names) else None)
    model.fit(Observations(points, maximized(learned, snapshot.objectives), stderrs))
    tried = _tried(snapshot, learned, points, groups)
    corner = pareto.as_maximized([snapshot.front.reference], [o.direction for o in snapshot.objectives])[0]
    mean, sd = model.predict(tried.points)
    draws = model.draw(tried.points, np.random.default_rng(0), NUM_DRAWS)
    whole = np.array([_volume(draw, corner) for draw in draws])
    members = [{"name": name, **_cost(draws, whole, tried.without(index, len(names)), corner), "try": _best(snapshot, tried, index, mean, sd, corner)} for index, name in enumerate(names)]
    return {**found, "num_trials": len(learned), "members": members}


def _learned(snapshot: Snapshot) -> list[Trial]:
    """Scored trials over the whole pool, at most MOST_TRIALS: baselines and front first, then those nearest to it by volume."""
    scored = [trial for trial in snapshot.trials if trial.state == "SCORED" and trial.recipe.members == snapshot.pool.names]
    groups = max((len(trial.recipe.weights) for trial in scored), default=1)
    scored = [trial for trial in scored if len(trial.recipe.weights) in (1, groups)]
    if len(scored) <= MOST_TRIALS:
        return scored
    front = {trial.number for trial in snapshot.front.front}
    values = maximized(scored, snapshot.objectives)
    spread = np.where(np.ptp(values, axis=0) > 0, np.ptp(values, axis=0), 1.0)
    merit = ((values - values.min(axis=0)) / spread).sum(axis=1)
    order = sorted(range(len(scored)), key=lambda i: (scored[i].kind == "merge", scored[i].number not in front, -merit[i]))
    return [scored[index] for index in sorted(order[:MOST_TRIALS])]


def _point(recipe: Recipe, groups: int) -> np.ndarray:
    return np.array(recipe.weights if len(recipe.weights) == groups else recipe.weights * groups, dtype=float).ravel()


def _tried(snapshot: Snapshot, learned: Sequence[Trial], points: np.ndarray, groups: int) -> _Tried:
    """The learned trials, and each merge of the front with each of its members taken out, the others scaled up to the old sum."""
    front = [trial for trial in snapshot.front.front if trial.recipe.members == snapshot.pool.names][:MOST_FRONT]
    made: dict[bytes, tuple[np.ndarray, Recipe]] = {}
    for trial in front:
        rows = np.array(trial.recipe.weights, dtype=float)
        for index in range(rows.shape[1]):
            if (rest := _without(rows, index)) is not None:
                recipe = replace(trial.recipe, weights=tuple(map(tuple, rest.tolist())))
                if len(rest) in (1, groups):
                    point = _point(recipe, groups)
                    made.setdefault(point.round(9).tobytes(), (point, recipe))
    fresh = [point for point, _ in made.values()]
    return _Tried(np.concatenate([points, np.stack(fresh)]) if fresh else points, (*(None for _ in learned), *(recipe for _, recipe in made.values())))


def _without(rows: np.ndarray, index: int) -> np.ndarray | None:
    """Rows (G, K) with a column emptied and each row's sum kept; None where it was empty, or nothing is left."""
    if (rows[:, index] == 0.0).all():
        return None
    rest = rows.copy()
    rest[:, index] = 0.0
    sums, left = rows.sum(axis=1), rest.sum(axis=1)
    if (np.abs(left) < 1e-6).any():
        return None
    scaled = rest * (sums / left)[:, None]
    return scaled if np.abs(scaled).max() <= 4.0 * np.abs(rows).max() else None


def _volume(values: np.ndarray, corner: np.ndarray) -> float:
    if not len(values):
        return 0.0
    return float(pareto.hypervolume(values[pareto.non_dominated(values)], corner))


def _cost(draws: np.ndarray, whole: np.ndarray, without: np.ndarray, corner: np.ndarray) -> dict[str, float | None]:
    """Share of the volume lost: mean over draws, 5 % and 95 % points; null where nothing beats the corner at all."""
    if not (whole > 0).all():
        return {"loss": None, "low": None, "high": None}
    lost = 1.0 - np.array([_volume(draw[without], corner) for draw in draws]) / whole
    return {"loss": finite(float(lost.mean())), "low": finite(float(np.quantile(lost, 0.05))), "high": finite(float(np.quantile(lost, 0.95)))}


def _best(snapshot: Snapshot, tried: _Tried, index: int, mean: np.ndarray, sd: np.ndarray, corner: np.ndarray) -> dict[str, Any] | None:
    """The unscored merge without the member that by the model gives most volume, with what it predicts; None where there is none."""
    fits = tried.without(index, len(snapshot.pool.names))
    fresh = [place for place in np.flatnonzero(fits) if tried.recipes[place] is not None]
    if not fresh:
        return None
    scored = mean[[place for place in np.flatnonzero(fits) if tried.recipes[place] is None]]
    place = max(fresh, key=lambda candidate: _volume(np.concatenate([scored, mean[[candidate]]]), corner))
    recipe = tried.recipes[place]
    assert recipe is not None
    signs = [1.0 if o.direction == "maximize" else -1.0 for o in snapshot.objectives]
    checkpoints = (*snapshot.pool.members, *([snapshot.pool.base] if snapshot.pool.base else []))
    return {"weights": {group.name: dict(zip(recipe.members, row, strict=True)) for group, row in zip(recipe.groups, recipe.weights, strict=True)},
            "predicted": {o.name: {"value": finite(float(sign * mean[place, t])), "stderr": finite(float(sd[place, t]))} for t, (o, sign) in enumerate(zip(snapshot.objectives, signs, strict=True))},
            "recipe": recipe_to_yaml(recipe, {checkpoint.name: checkpoint.location for checkpoint in checkpoints})}
