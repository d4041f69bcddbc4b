"""A run as one Weights & Biases run: scores by trial, a table of all, the front in its summary.

Needs recycler[wandb].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.export.logged import trial_metrics, trial_params
from recycler.results.front import Front, knee
from recycler.types import Trial


def log_to_wandb(
    front: Front, trials: Sequence[Trial], *, project: str, run: str, name: str
) -> int:
    """Write every closed trial into a new W&B run, and return their number.

    WANDB_MODE=offline writes to ./wandb alone. Raises UsageError without wandb or a login,
    InfrastructureError when its server cannot be reached.
    """
    try:
        import wandb  # heavy, and an extra
    except ModuleNotFoundError as error:
        raise UsageError(
            Problem(
                thing="--wandb",
                cause=f"needs {error.name}, which is not installed",
                remedy="pip install 'recycler[wandb]'",
            )
        ) from None
    closed = [trial for trial in trials if trial.state in ("SCORED", "FAILED")]
    rows = [
        {"trial": trial.number, "state": trial.state, **trial_params(trial), **trial_metrics(trial)}
        for trial in closed
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    objectives = [{"name": goal.name, "direction": goal.direction} for goal in front.objectives]
    config = {"run": run, "objectives": objectives}
    try:
        with wandb.init(project=project, name=name, job_type="recycler", config=config) as live:
            live.define_metric("trial")
            live.define_metric("*", step_metric="trial")
            for trial in closed:
                live.log({"trial": trial.number, **trial_metrics(trial), **_weights(trial)})
            data = [[row.get(key) for key in columns] for row in rows]
            live.log({"trials": wandb.Table(columns=columns, data=data)})
            live.summary["front"] = [trial.number for trial in front.front]
            live.summary["knee"] = knee(front).number
    except wandb.errors.UsageError as error:
        raise UsageError(
            Problem(
                thing=f"--wandb {project}",
                cause=str(error).splitlines()[0][:300],
                remedy="Run wandb login, or set WANDB_MODE=offline",
            )
        ) from None
    except wandb.errors.Error as error:
        raise InfrastructureError(
            Problem(
                thing=f"--wandb {project}",
                cause=str(error).splitlines()[0][:300],
                remedy="Try again, or set WANDB_MODE=offline and run wandb sync later",
            )
        ) from None
    return len(closed)


def _weights(trial: Trial) -> dict[str, float]:
    """The weights among a trial's parameters that are finite."""
    weights = {}
    for key, value in trial_params(trial).items():
        if key.startswith("weight/") and isinstance(value, float) and math.isfinite(value):
            weights[key] = value
    return weights
