"""Routes that start or stop something: jobs, measurements, exports."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse

from recycler.errors import UsageError
from recycler.service import deltas
from recycler.service.damage import JobRoute
from recycler.service.orders import DTYPES
from recycler.service.request_types import (
    ExportId,
    ExportRequest,
    JobId,
    JobText,
    MemberName,
    Nothing,
    Refusals,
    Same,
    Service,
)

router = APIRouter(route_class=JobRoute)


@router.post(
    "/validate",
    responses=Refusals,
    summary="Check a job file: its name, or every problem with file and line",
)
def validate(jobs: Service, request: JobText) -> JSONResponse:
    try:
        return JSONResponse(
            {"schema_version": 1, "name": jobs.validate(request.text).name, "problems": []}
        )
    except UsageError as error:
        return JSONResponse(
            {
                "schema_version": 1,
                "name": None,
                "problems": [asdict(problem) for problem in error.problems],
            }
        )


@router.post(
    "/jobs",
    status_code=201,
    responses=Refusals | Same,
    summary="Submit a job file; the same text again is the same job",
)
def submit(jobs: Service, request: JobText) -> JSONResponse:
    run, created = jobs.submit(request.text, request.id)
    return JSONResponse(
        jobs.document(run), 201 if created else 200, {"Location": f"/api/v1/jobs/{run.id}"}
    )


@router.post(
    "/jobs/{job}/stop",
    status_code=202,
    responses=Refusals,
    summary="Stop the driver; scored trials are kept",
)
def stop(jobs: Service, job: JobId, request: Annotated[Nothing, Body()]) -> JSONResponse:
    run = jobs.store.run(job)
    jobs.stop(run)
    return JSONResponse(jobs.document(run), 202)


@router.post(
    "/jobs/{job}/resume",
    status_code=202,
    responses=Refusals,
    summary="Go on with an unfinished job",
)
def resume(jobs: Service, job: JobId, request: Annotated[Nothing, Body()]) -> JSONResponse:
    run = jobs.store.run(job)
    jobs.resume(run)
    return JSONResponse(jobs.document(run), 202)


@router.post(
    "/jobs/{job}/pool/without",
    status_code=202,
    responses=Refusals | Same,
    summary="Leave a member out for certain: a job of its own without it, which takes over what "
    "this one has found out",
)
def leave_out(jobs: Service, job: JobId, request: MemberName) -> JSONResponse:
    found = jobs.leave_out(jobs.store.run(job), request.member)
    return JSONResponse(
        {"schema_version": 1, **found},
        200 if found["state"] == "finished" else 202,
        {"Location": f"/api/v1/jobs/{found['id']}"},
    )


@router.post(
    "/jobs/{job}/pool/deltas",
    status_code=202,
    responses=Refusals | Same,
    summary="Measure the deltas of the members in the background; kept with the run",
)
def measure_deltas(jobs: Service, job: JobId, request: Annotated[Nothing, Body()]) -> JSONResponse:
    run = jobs.store.run(job)
    found = deltas.start(run, jobs.store.snapshot(run), jobs.processes)
    return JSONResponse(found, 200 if found["state"] == "done" else 202)


@router.post(
    "/jobs/{job}/export",
    status_code=202,
    responses=Refusals | Same,
    summary="Export a trial with the run, or below the service's export root; follow it at "
    "exports/ID",
)
def export(jobs: Service, job: JobId, request: ExportRequest) -> JSONResponse:
    run = jobs.store.run(job)
    found = jobs.exports.start(
        run, *jobs.exports.order(run, request.trial, request.dtype, request.destination)
    )
    return JSONResponse(
        found,
        200 if found["state"] == "done" else 202,
        {"Location": f"/api/v1/jobs/{job}/exports/{found['id']}"},
    )


@router.get(
    "/jobs/{job}/exports", summary="All exports of a job, and where this service may write them"
)
def exports(jobs: Service, job: JobId) -> JSONResponse:
    return JSONResponse(
        {
            "schema_version": 1,
            "root": jobs.exports.place,
            "dtypes": list(DTYPES),
            "exports": jobs.exports.documents(jobs.store.run(job)),
        }
    )


@router.get(
    "/jobs/{job}/exports/{export}", summary="One export: running, done or failed with a reason"
)
def export_status(jobs: Service, job: JobId, export: ExportId) -> JSONResponse:
    return JSONResponse(jobs.exports.document(jobs.store.run(job), export))
