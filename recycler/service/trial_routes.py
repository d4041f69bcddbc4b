"""Routes that read the trials of a job: tables, recipes, outcomes, comparisons."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response

from recycler.export.card import model_card
from recycler.merge.files.recipe_yaml import recipe_to_yaml
from recycler.results.html import html_report
from recycler.scoring.frozen import searched_test_tasks
from recycler.service import documents, events
from recycler.service.damage import JobRoute
from recycler.service.downloads import trials_csv_text, trials_parquet_bytes
from recycler.service.orders import DESTINATION, Order
from recycler.service.request_types import (
    Dtype,
    JobId,
    RoleQuery,
    Service,
    TrialNumber,
)
from recycler.service.table import table_document, trial_document

router = APIRouter(route_class=JobRoute)


@router.get(
    "/jobs/{job}/trials",
    summary="Every trial with recipe and scores, the front's numbers, and the cursor for events",
)
def trials(jobs: Service, job: JobId) -> JSONResponse:
    snapshot = jobs.store.snapshot(jobs.store.run(job))
    return JSONResponse(documents.trials_document(snapshot, str(events.Cursor.of(snapshot))))


@router.get(
    "/jobs/{job}/table",
    summary="Every trial as columns: for pages that draw thousands of them",
    response_class=Response,
)
def table(jobs: Service, job: JobId) -> Response:
    snapshot = jobs.store.snapshot(jobs.store.run(job))
    text = snapshot.once(
        "table",
        lambda: json.dumps(
            table_document(snapshot, str(events.Cursor.of(snapshot))),
            separators=(",", ":"),
            allow_nan=False,
        ),
    )
    return Response(text, media_type="application/json")


@router.get("/jobs/{job}/trials/{number}", summary="One trial, and why it is on the front or not")
def one_trial(jobs: Service, job: JobId, number: TrialNumber) -> JSONResponse:
    snapshot = jobs.store.snapshot(jobs.store.run(job))
    return JSONResponse(trial_document(snapshot, snapshot.trial(number)))


@router.get("/jobs/{job}/trials.csv", summary="Every trial as CSV", response_class=Response)
def trials_csv(jobs: Service, job: JobId) -> Response:
    return _download(
        trials_csv_text(jobs.store.snapshot(jobs.store.run(job))),
        "text/csv; charset=utf-8",
        f"{job}-trials.csv",
    )


@router.get(
    "/jobs/{job}/trials.parquet",
    summary="Every trial as Parquet, a column a figure and a weight",
    response_class=Response,
)
def trials_parquet(jobs: Service, job: JobId) -> Response:
    return _download(
        trials_parquet_bytes(jobs.store.snapshot(jobs.store.run(job))),
        "application/vnd.apache.parquet",
        f"{job}-trials.parquet",
    )


@router.get(
    "/jobs/{job}/report.html",
    summary="The run as one HTML file that opens without network: `recycler report`",
    response_class=Response,
)
def report(jobs: Service, job: JobId) -> Response:
    snapshot = jobs.store.snapshot(jobs.store.run(job))
    return _download(
        snapshot.once("report", lambda: html_report(snapshot.front, snapshot.status)),
        "text/html; charset=utf-8",
        f"{job}-report.html",
    )


@router.get("/jobs/{job}/trials/{number}/items", summary="Per-item outcomes of one trial")
def items(
    jobs: Service, job: JobId, number: TrialNumber, role: RoleQuery = "search"
) -> JSONResponse:
    run = jobs.store.run(job)
    return JSONResponse(
        documents.items_document(
            jobs.store.snapshot(run).trial(number), role, jobs.store.outcomes(run, number, role)
        )
    )


@router.get(
    "/jobs/{job}/trials/{number}/recipe",
    summary="The recipe of one trial as YAML; the model card and the command line of an export "
    "in that dtype to that destination",
)
def recipe(
    jobs: Service,
    job: JobId,
    number: TrialNumber,
    dtype: Dtype | None = None,
    destination: Annotated[str | None, Query(pattern=DESTINATION, max_length=255)] = None,
) -> JSONResponse:
    run = jobs.store.run(job)
    snapshot = jobs.store.snapshot(run)
    trial = snapshot.trial(number)
    order = Order(
        trial=number,
        dtype=None if dtype == trial.recipe.dtype else dtype,
        destination=destination,
    )
    told, chosen = jobs.exports.preview(run, order, trial), order.recipe(trial)
    text = recipe_to_yaml(
        chosen,
        {one.name: str(one.location) for one in snapshot.pool.checkpoints},
    )
    return JSONResponse(
        {
            "schema_version": 1,
            "trial": number,
            "recipe": text,
            "card": model_card(
                told["title"],
                snapshot.pool,
                chosen,
                trial,
                text,
                searched=searched_test_tasks(run.folder),
            ),
            **told,
        }
    )


@router.get(
    "/jobs/{job}/compare",
    summary="2 to 4 trials: paired differences to the first with standard errors, and flipped "
    "items with both outputs",
)
def compare(
    jobs: Service,
    job: JobId,
    trials: Annotated[str, Query(max_length=64, examples=["3,17"])],
    role: RoleQuery = "search",
) -> JSONResponse:
    run, numbers = jobs.store.run(job), documents.read_numbers(trials)
    snapshot = jobs.store.snapshot(run)
    chosen = [snapshot.trial(number) for number in numbers]
    return JSONResponse(
        documents.compare_document(
            snapshot,
            chosen,
            role,
            [jobs.store.outcomes(run, number, role) for number in numbers],
            jobs.items.of(run.folder),
        )
    )


def _download(content: str | bytes, media_type: str, name: str) -> Response:
    """An answer that browsers save instead of showing."""
    return Response(
        content,
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
