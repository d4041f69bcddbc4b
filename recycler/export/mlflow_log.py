"""A run as MLflow runs: one for the whole, and one below it for each closed trial.

Needs recycler[mlflow].
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.export.logged import trial_metrics, trial_params
from recycler.results.documents import front_document
from recycler.results.front import Front
from recycler.types import Trial

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

RUN, TRIAL, HELD_OUT = "recycler.run.driver", "recycler.trial", "recycler.holdout"
PAGE = 1000
MAX_BATCH = 100  # parameters that MLflow takes at once
SERVER_ERRORS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


def log_to_mlflow(front: Front, trials: Sequence[Trial], *, uri: str, run: str, name: str) -> int:
    """Write the closed trials that `name` lacks at MLflow, and new holdout scores.

    Returns the number of trials that were written. `run` tells runs of one name apart. Raises
    UsageError without MLflow or for a URI that it refuses, InfrastructureError when its store
    cannot be reached.
    """
    try:
        from mlflow import MlflowClient  # heavy, and an extra
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise UsageError(
            Problem(
                thing="--mlflow",
                cause=f"needs {error.name}, which is not installed",
                remedy="pip install 'recycler[mlflow]'",
            )
        ) from None
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        parent = _parent(client, experiment, run, name)
        known = {int(child.data.tags[TRIAL]): child for child in _below(client, experiment, parent)}
        written = 0
        for trial in trials:
            if trial.state in ("SCORED", "FAILED"):
                written += _write(client, experiment, parent, trial, known.get(trial.number))
        client.log_text(parent, json.dumps(front_document(front), indent=2), "front.json")
        client.set_terminated(parent, "FINISHED")
    except MlflowException as error:
        problem = Problem(
            thing=f"--mlflow {uri}",
            cause=f"MLflow refuses it: {str(error).splitlines()[0][:300]}",
            remedy="Check the URI, and that its server is up",
        )
        if error.error_code in SERVER_ERRORS:
            raise InfrastructureError(problem) from None
        raise UsageError(problem) from None
    return written


def _parent(client: MlflowClient, experiment: str, run: str, name: str) -> str:
    """Id of the MLflow run for the whole, made when there is none."""
    for found in _all(client, experiment):
        if found.data.tags.get(RUN) == run:
            return str(found.info.run_id)
    return str(client.create_run(experiment, tags={RUN: run}, run_name=name).info.run_id)


def _below(client: MlflowClient, experiment: str, parent: str) -> list[MlflowRun]:
    """The MLflow runs of trials."""
    found = []
    for one in _all(client, experiment):
        tags = one.data.tags
        if tags.get("mlflow.parentRunId") == parent and TRIAL in tags:
            found.append(one)
    return found


def _all(client: MlflowClient, experiment: str) -> list[MlflowRun]:
    """Every MLflow run of an experiment, page by page."""
    found: list[MlflowRun] = []
    token = None
    while True:
        page = client.search_runs([experiment], max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _write(
    client: MlflowClient, experiment: str, parent: str, trial: Trial, known: MlflowRun | None
) -> bool:
    """True when anything was written.

    A trial that is there is left alone unless its holdout scores have come since.
    """
    from mlflow.entities import Metric, Param, RunTag  # heavy, and an extra

    if known is not None and not (trial.holdout and HELD_OUT not in known.data.tags):
        return False
    tags = {TRIAL: str(trial.number), "mlflow.parentRunId": parent}
    own = known or client.create_run(experiment, tags=tags, run_name=f"trial {trial.number}")
    tags = dict(tags)
    if trial.holdout:
        tags[HELD_OUT] = "yes"
    if trial.failure:
        tags["failure"] = trial.failure.reason[:4000]
    moment = int(time.time() * 1000)
    metrics = [
        Metric(_key(name), value, moment, 0)
        for name, value in trial_metrics(trial).items()
        if known is None or name.startswith("holdout")
    ]
    params = []
    for name, value in trial_params(trial).items():
        if known is None and value != "":
            params.append(Param(_key(name), str(value)[:6000]))
    for start in range(0, max(len(params), 1), MAX_BATCH):
        client.log_batch(
            own.info.run_id,
            metrics=metrics if start == 0 else (),
            params=params[start : start + MAX_BATCH],
        )
    client.log_batch(own.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    client.set_terminated(own.info.run_id, "FAILED" if trial.state == "FAILED" else "FINISHED")
    return True


def _key(name: str) -> str:
    """A name of the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]
