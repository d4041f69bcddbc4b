"""Routes that read a job: state, front, pool, events."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse, StreamingResponse

from recycler.service import deltas, documents, events, processes
from recycler.service.damage import JobRoute, bulkhead
from recycler.service.leave_out import leave_out_document
from recycler.service.processes import LOG
from recycler.service.request_types import (
    JobId,
    Service,
)
from recycler.service.store import Snapshot

router = APIRouter(route_class=JobRoute)


@router.get("/jobs", summary="All jobs with state, progress and cost")
def list_jobs(
    jobs: Service,
) -> JSONResponse:
    return JSONResponse({"schema_version": 1, "jobs": jobs.documents()})


@router.get(
    "/jobs/{job}",
    summary="One job: state with a reason, progress, cost, hypervolume after each improvement",
)
def job_status(jobs: Service, job: JobId) -> JSONResponse:
    return JSONResponse(jobs.document(jobs.store.run(job)))


@router.get(
    "/jobs/{job}/source",
    summary="The job file that was submitted, and the end of the driver's log",
)
def job_source(jobs: Service, job: JobId) -> JSONResponse:
    run = jobs.store.run(job)
    path = run.source if run.submitted else run.folder / "job.yaml"
    return JSONResponse(
        {
            "schema_version": 1,
            "text": path.read_text(errors="replace") if path.is_file() else "",
            "log": processes.log_tail(run.folder / LOG),
            "command": processes.as_shell(command)
            if (command := processes.run_command(run))
            else "",
        }
    )


@router.get(
    "/jobs/{job}/front",
    summary="The front and its baselines: the document of `recycler front --json`",
)
def front(jobs: Service, job: JobId) -> JSONResponse:
    return JSONResponse(jobs.store.snapshot(jobs.store.run(job)).front_document())


@router.get(
    "/jobs/{job}/pool",
    summary="Members: own scores, use by the front, the volume without them, similarity of their "
    "deltas",
)
def pool(jobs: Service, job: JobId) -> JSONResponse:
    run = jobs.store.run(job)
    return JSONResponse(documents.pool_document(jobs.store.snapshot(run), jobs.store.gram(run)))


@router.get(
    "/jobs/{job}/pool/without",
    summary="For each member: the volume lost without it as the search's model estimates it, a "
    "merge to try, and the job that has told or will tell for certain",
)
def without(jobs: Service, job: JobId) -> JSONResponse:
    run = jobs.store.run(job)
    snapshot = jobs.store.snapshot(run)
    found = snapshot.once(
        "without", lambda: leave_out_document(snapshot, jobs.store.surrogate(run))
    )
    members = [
        {
            **member,
            "command": processes.as_shell(["without", run.named, member["name"]]),
            "job": jobs.left_out(run, member["name"]),
        }
        for member in found["members"]
    ]
    return JSONResponse(
        {**found, "members": members, "commands": processes.confirm_commands(run, snapshot)}
    )


@router.get(
    "/jobs/{job}/pool/deltas",
    summary="Mean |delta| of each layer of each member: absent, running, done or failed",
)
def pool_deltas(jobs: Service, job: JobId) -> JSONResponse:
    run = jobs.store.run(job)
    return JSONResponse(deltas.deltas_document(run, jobs.store.snapshot(run), jobs.processes))


@router.get(
    "/jobs/{job}/events",
    summary="Server-sent events: trial, holdout, status, end; resumes after Last-Event-ID",
    response_class=StreamingResponse,
)
def job_events(
    jobs: Service,
    job: JobId,
    after: Annotated[str, Query(max_length=events.MAX_CURSOR)] = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    run = jobs.store.run(job)
    jobs.store.snapshot(run)  # a job without a ledger is told as 404 before the stream begins

    def read() -> tuple[Snapshot, dict[str, Any]]:
        with bulkhead(run.id):
            snapshot = jobs.store.snapshot(run)
            return snapshot, jobs.document(run, snapshot)

    return StreamingResponse(
        events.stream(read, last_event_id if last_event_id is not None else after),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )
