"""Write a study into a storage of Optuna. The one file of `recycler study` that loads optuna."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.search.optuna.study_trial import StudyTrial
from recycler.types import Objective


def new_study(
    objectives: Sequence[Objective],
    attributes: Mapping[str, Any],
    trials: Sequence[StudyTrial],
    weights: Sequence[str],
    *,
    storage: str,
    name: str,
) -> None:
    """Create a study with its attributes and trials; `weights` names parameters that are weights.

    Raises UsageError when the study exists or the URL is none, InfrastructureError when the storage
    cannot be reached.
    """
    with _quiet(), _storage_errors(name):
        study = _empty_study(objectives, storage, name)
        for key, value in attributes.items():
            study.set_user_attr(key, value)
        distributions = _distributions([trial.params for trial in trials], weights)
        for trial in trials:
            study.add_trial(_frozen_trial(trial, distributions))


def _empty_study(objectives: Sequence[Objective], storage: str, name: str) -> optuna.Study:
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


def _frozen_trial(trial: StudyTrial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    return create_trial(
        state=TrialState.FAIL if trial.values is None else TrialState.COMPLETE,
        params=dict(trial.params),
        distributions={key: distributions[key] for key in trial.params},
        values=trial.values,
        user_attrs=dict(trial.attributes),
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
