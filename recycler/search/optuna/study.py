"""A run as an Optuna study, for optuna-dashboard and optuna's plots.

A copy to look at: the ledger stays the truth.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.search.floors import floors
from recycler.types import Objective, Recipe, Trial

# user attributes that `posterior_front` reads; see `trials`
WEIGHTS, FLOORS, STDERR = "weights", "floors", "stderr"


def write_study(
    trials: Sequence[Trial], objectives: Sequence[Objective], *, storage: str, name: str
) -> int:
    """Write every closed trial into a new study and return their number.

    Parameters are the weights (MEMBER, or GROUP/MEMBER where there are several groups) and the
    numeric options; values are search scores; user attributes hold number, kind, label, method,
    standard errors (of each objective, and "stderr" of all), items, and holdout scores. Failed
    trials are there as FAIL. The study's own attributes name the weights that the search proposed,
    "weights", and the floors if there are any, so that `recycler.search.posterior_front(study)`
    needs no more. Raises UsageError when the study exists or the URL is none, InfrastructureError
    when the storage cannot be reached.
    """
    closed = [trial for trial in trials if trial.state in ("SCORED", "FAILED")]
    searched = _searched(closed)
    rows: list[dict[str, float]] = []
    weights: list[str] = []
    if searched is not None:
        rows = [_params(trial, searched) for trial in closed]
        weights = list(_weights(searched, searched))
    with _quiet(), _storage_errors(name):
        study = _new_study(objectives, storage, name)
        study.set_user_attr(WEIGHTS, weights)
        if any(objective.floor for objective in objectives):
            study.set_user_attr(FLOORS, _floors(closed, objectives))
        distributions = _distributions(rows, weights)
        for trial, row in zip(closed, rows, strict=True):
            study.add_trial(_frozen_trial(trial, row, distributions, objectives))
    return len(closed)


def _new_study(objectives: Sequence[Objective], storage: str, name: str) -> optuna.Study:
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=[objective.direction for objective in objectives],
    )
    with warnings.catch_warnings():  # names of axes in Optuna's plots are experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([objective.name for objective in objectives])
    return study


def _distributions(
    rows: Sequence[Mapping[str, float]], weights: Sequence[str]
) -> dict[str, BaseDistribution]:
    """Ranges as wide as the values that were tried; those of weights hold 0 to 1."""
    distributions: dict[str, BaseDistribution] = {}
    for key in sorted({key for row in rows for key in row}):
        tried = [row[key] for row in rows if key in row]
        if key in weights:
            tried += [0.0, 1.0]
        distributions[key] = FloatDistribution(min(tried), max(tried))
    return distributions


def _frozen_trial(
    trial: Trial,
    row: dict[str, float],
    distributions: Mapping[str, BaseDistribution],
    objectives: Sequence[Objective],
) -> FrozenTrial:
    scored = trial.state == "SCORED"
    return create_trial(
        state=TrialState.COMPLETE if scored else TrialState.FAIL,
        params=row,
        distributions={key: distributions[key] for key in row},
        values=_values(trial, objectives) if scored else None,
        user_attrs=_attributes(trial, objectives),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from logging each trial."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    """Raise errors of Optuna and of its database as ours."""
    try:
        yield
    except optuna.exceptions.DuplicatedStudyError:
        raise UsageError(
            Problem(
                thing=f"study {name!r}",
                cause="exists already in that storage",
                remedy="Give another --name, or another --storage",
            )
        ) from None
    except (ArgumentError, ImportError, ModuleNotFoundError) as error:
        raise UsageError(
            Problem(
                thing="--storage",
                cause="is no URL of a database that can be used here "
                f"({str(error).splitlines()[0]})",
                remedy="Write sqlite:///FILE",
            )
        ) from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise InfrastructureError(
            Problem(
                thing="--storage",
                cause=f"cannot be written ({str(error).splitlines()[0]})",
                remedy="Check the URL, and that the database is up",
            )
        ) from None


def _searched(closed: Sequence[Trial]) -> Recipe | None:
    """A recipe with the groups that the search proposes weights for.

    Baselines and refined merges may have others.
    """
    proposed = [trial for trial in closed if trial.is_proposed] or closed
    groups = Counter(trial.recipe.groups for trial in proposed).most_common(1)
    return max(
        (trial.recipe for trial in proposed if trial.recipe.groups == groups[0][0]),
        key=lambda recipe: len(recipe.members),
        default=None,
    )


def _weights(recipe: Recipe, searched: Recipe) -> dict[str, float]:
    """Weights by parameter.

    One row for all groups is the same merge as equal rows; a member that is not in the recipe has
    weight 0.
    """
    same = len(recipe.groups) == 1 or recipe.groups == searched.groups
    groups, rows = (
        (
            searched.groups,
            recipe.weights * len(searched.groups) if len(recipe.groups) == 1 else recipe.weights,
        )
        if same
        else (recipe.groups, recipe.weights)
    )
    members = dict.fromkeys([*searched.members, *recipe.members]) if same else recipe.members
    return {
        f"{group.name}/{member}" if len(groups) > 1 else member: float(
            dict(zip(recipe.members, row, strict=True)).get(member, 0.0)
        )
        for group, row in zip(groups, rows, strict=True)
        for member in members
    }


def _params(trial: Trial, searched: Recipe) -> dict[str, float]:
    options = {
        f"option {name}": float(value)
        for name, value in trial.recipe.options
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return {
        name: value
        for name, value in {**_weights(trial.recipe, searched), **options}.items()
        if math.isfinite(value)
    }


def _floors(closed: Sequence[Trial], objectives: Sequence[Objective]) -> list[float | None]:
    """In the objectives' own directions, None where there is none."""
    lowest = floors(objectives, closed)
    return [
        None if math.isnan(floor) else float(floor) * objective.sign
        for floor, objective in zip(lowest, objectives, strict=True)
    ]


def _values(trial: Trial, objectives: Sequence[Objective]) -> list[float]:
    scores = {score.objective: score.value for score in trial.search}
    return [scores[objective.name] for objective in objectives]


def _attributes(trial: Trial, objectives: Sequence[Objective]) -> dict[str, object]:
    found: dict[str, object] = {
        "trial": trial.number,
        "kind": trial.kind,
        "label": trial.label,
        "method": trial.recipe.method,
    }
    found |= {f"{score.objective} stderr": score.stderr for score in trial.search} | {
        f"{score.objective} items": score.n for score in trial.search
    }
    stderrs = {score.objective: score.stderr for score in trial.search}
    found |= (
        {STDERR: [stderrs[objective.name] for objective in objectives]}
        if trial.state == "SCORED"
        else {}
    )
    found |= {f"{score.objective} holdout": score.value for score in trial.holdout} | {
        f"{score.objective} holdout stderr": score.stderr for score in trial.holdout
    }
    return found | ({"failure": trial.failure.reason} if trial.failure else {})
