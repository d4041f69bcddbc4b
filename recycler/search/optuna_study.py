"""A run as an Optuna study, for optuna-dashboard and optuna's plots. A copy to look at: the ledger stays the truth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.types import Objective, Trial


def write_study(trials: Sequence[Trial], objectives: Sequence[Objective], *, storage: str, name: str) -> int:
    """Write every closed trial into a new study and give their number.

    Parameters are the weights (MEMBER, or GROUP/MEMBER where there are several groups) and the numeric options; values are
    search scores; user attributes hold number, kind, label, method, standard errors, items, and holdout scores. Failed
    trials are there as FAIL. Raises UsageError when the study exists or the URL is none, InfrastructureError when the
    storage cannot be reached.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    closed = [trial for trial in trials if trial.state in ("SCORED", "FAILED")]
    rows = [_params(trial) for trial in closed]
    limits = {key: (min(row[key] for row in rows if key in row), max(row[key] for row in rows if key in row)) for key in sorted({key for row in rows for key in row})}
    distributions = {key: optuna.distributions.FloatDistribution(low, high) for key, (low, high) in limits.items()}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=[objective.direction for objective in objectives])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the names of the axes in its plots
            study.set_metric_names([objective.name for objective in objectives])
        for trial, row in zip(closed, rows, strict=True):
            scored = trial.state == "SCORED"
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.COMPLETE if scored else optuna.trial.TrialState.FAIL, params=row, distributions={key: distributions[key] for key in row},
                                                      values=_values(trial, objectives) if scored else None, user_attrs=_attributes(trial)))
    except optuna.exceptions.DuplicatedStudyError:
        raise UsageError(Problem(thing=f"study {name!r}", cause="exists already in that storage", remedy="Give another --name, or another --storage")) from None
    except (ArgumentError, ImportError, ModuleNotFoundError) as error:
        raise UsageError(Problem(thing="--storage", cause=f"is no URL of a database that can be used here ({str(error).splitlines()[0]})", remedy="Write sqlite:///FILE")) from None
    except SQLAlchemyError as error:
        raise InfrastructureError(Problem(thing="--storage", cause=f"cannot be written ({str(error).splitlines()[0]})", remedy="Check the URL, and that the database is up")) from None
    except optuna.exceptions.StorageInternalError as error:
        raise InfrastructureError(Problem(thing="--storage", cause=f"cannot be written ({str(error).splitlines()[0]})", remedy="Check the URL, and that the database is up")) from None
    finally:
        optuna.logging.set_verbosity(verbosity)
    return len(closed)


def _params(trial: Trial) -> dict[str, float]:
    many = len(trial.recipe.groups) > 1
    weights = {f"{group.name}/{member}" if many else member: float(weight) for group, row in zip(trial.recipe.groups, trial.recipe.weights, strict=True) for member, weight in zip(trial.recipe.members, row, strict=True)}
    options = {f"option {name}": float(value) for name, value in trial.recipe.options if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return {name: value for name, value in {**weights, **options}.items() if math.isfinite(value)}


def _values(trial: Trial, objectives: Sequence[Objective]) -> list[float]:
    scores = {score.objective: score.value for score in trial.search}
    return [scores[objective.name] for objective in objectives]


def _attributes(trial: Trial) -> dict[str, object]:
    found: dict[str, object] = {"trial": trial.number, "kind": trial.kind, "label": trial.label, "method": trial.recipe.method}
    found |= {f"{score.objective} stderr": score.stderr for score in trial.search} | {f"{score.objective} items": score.n for score in trial.search}
    found |= {f"{score.objective} holdout": score.value for score in trial.holdout} | {f"{score.objective} holdout stderr": score.stderr for score in trial.holdout}
    return found | ({"failure": trial.failure.reason} if trial.failure else {})
