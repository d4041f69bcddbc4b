"""A run as MLflow runs: one for the whole, with the front, and one below it for each closed trial.

Needs recycler[mlflow].
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.export.logged import trial_metrics, trial_params
from recycler.results.documents import front_document
from recycler.results.front import Front
from recycler.types import Trial

RUN, TRIAL, HELD_OUT = "recycler.run.driver", "recycler.trial", "recycler.holdout"
PAGE = 1000


def log_to_mlflow(front: Front, trials: Sequence[Trial], *, uri: str, run: str, name: str) -> int:
    """Write the closed trials that experiment `name` lacks, and holdout scores that have come
    since; give how many were written.

    `run` tells runs of one name apart. Raises UsageError without MLflow or for a URI that it
    refuses, InfrastructureError when its store cannot be reached.
    """
    try:
        from mlflow import MlflowClient
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
        written = sum(
            _write(client, experiment, parent, trial, known.get(trial.number))
            for trial in trials
            if trial.state in ("SCORED", "FAILED")
        )
        client.log_text(parent, json.dumps(front_document(front), indent=2), "front.json")
        client.set_terminated(parent, "FINISHED")
    except MlflowException as error:
        told = Problem(
            thing=f"--mlflow {uri}",
            cause=f"MLflow refuses it: {str(error).splitlines()[0][:300]}",
            remedy="Check the URI, and that its server is up",
        )
        raise (
            InfrastructureError
            if error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
            else UsageError
        )(told) from None
    return written


def _parent(client, experiment: str, run: str, name: str) -> str:
    found = [one for one in _all(client, experiment) if one.data.tags.get(RUN) == run]
    return (
        found[0] if found else client.create_run(experiment, tags={RUN: run}, run_name=name)
    ).info.run_id


def _below(client, experiment: str, parent: str) -> list:
    return [
        one
        for one in _all(client, experiment)
        if one.data.tags.get("mlflow.parentRunId") == parent and TRIAL in one.data.tags
    ]


def _all(client, experiment: str) -> list:
    found, token = [], None
    while True:
        page = client.search_runs([experiment], max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _write(client, experiment: str, parent: str, trial: Trial, known) -> bool:
    """Whether anything was written: a trial that is there is left alone unless its holdout scores
    have come since.
    """
    from mlflow.entities import Metric, Param, RunTag

    if known is not None and not (trial.holdout and HELD_OUT not in known.data.tags):
        return False
    tags = {
        TRIAL: str(trial.number),
        "mlflow.parentRunId": parent,
        **({HELD_OUT: "yes"} if trial.holdout else {}),
        **({"failure": trial.failure.reason[:4000]} if trial.failure else {}),
    }
    own = known or client.create_run(
        experiment,
        tags={TRIAL: str(trial.number), "mlflow.parentRunId": parent},
        run_name=f"trial {trial.number}",
    )
    moment = int(time.time() * 1000)
    metrics = [
        Metric(_key(name), value, moment, 0)
        for name, value in trial_metrics(trial).items()
        if known is None or name.startswith("holdout")
    ]
    params = (
        []
        if known
        else [
            Param(_key(name), str(value)[:6000])
            for name, value in trial_params(trial).items()
            if value != ""
        ]
    )
    for start in range(0, max(len(params), 1), 100):  # the most that a batch may hold
        client.log_batch(
            own.info.run_id,
            metrics=metrics if start == 0 else (),
            params=params[start : start + 100],
        )
    client.log_batch(own.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    client.set_terminated(own.info.run_id, "FAILED" if trial.state == "FAILED" else "FINISHED")
    return True


def _key(name: str) -> str:
    """A name of the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]
