"""The API: parse, call one function, answer.

Ids are words of a strict pattern; no path ever comes from outside.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Path, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from recycler.errors import UsageError
from recycler.export.card import model_card
from recycler.merge.files.recipe_yaml import recipe_to_yaml
from recycler.results.html import html_report
from recycler.scoring.frozen import searched_test_tasks
from recycler.service import deltas, documents, events, processes
from recycler.service.damage import JobRoute, bulkhead
from recycler.service.documents import read_number
from recycler.service.downloads import trials_csv_text, trials_parquet_bytes
from recycler.service.exports import DESTINATION, DTYPES, EXPORT_ID, Order
from recycler.service.jobs import Jobs
from recycler.service.leave_out import leave_out_document
from recycler.service.processes import LOG
from recycler.service.store import Snapshot
from recycler.service.table import table_document, trial_document

JobId = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
ExportId = Annotated[str, Path(pattern=EXPORT_ID)]
Dtype = Literal["bfloat16", "float16", "float32"]
Destination = Annotated[
    str,
    Field(
        pattern=DESTINATION,
        max_length=255,
        description="below the export root that the service was started with",
    ),
]
TrialNumber = Annotated[int, BeforeValidator(read_number), Path(ge=0, lt=10**8)]
RoleQuery = Annotated[Literal["search", "holdout"], Query(description="which items")]
Problems = {
    400: {"description": "no well-formed request"},
    401: {"description": "token needed"},
    403: {"description": "from another site, or a viewer's write"},
    404: {"description": "no such job, trial or export"},
    503: {"description": "the job's folder or ledger cannot be read"},
}
Refusals = {
    409: {"description": "exists already, or runs already"},
    413: {"description": "body too large"},
    415: {"description": "not application/json"},
}
Same = {200: {"description": "it was there already"}}


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JobText(Request):
    """A job file as text."""

    text: str = Field(max_length=500_000)
    id: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")


class ExportRequest(Request):
    """Which trial to export (a number, `knee`, or `best:OBJECTIVE`), in which dtype (default: as
    scored), to where (default: with the run).
    """

    trial: str = Field(max_length=200)
    dtype: Dtype | None = None
    destination: Destination | None = None


class MemberName(Request):
    """A member of the job's pool."""

    member: str = Field(min_length=1, max_length=200)


class Nothing(Request):
    """An empty JSON object."""


def api_router(jobs: Jobs) -> APIRouter:
    """All routes under /api/v1."""
    router = APIRouter(prefix="/api/v1", responses=Problems, route_class=JobRoute)
    _reading(router, jobs)
    _trials(router, jobs)
    _writing(router, jobs)
    return router


def _reading(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/jobs", summary="All jobs with state, progress and cost")
    def list_jobs() -> JSONResponse:
        return JSONResponse({"schema_version": 1, "jobs": jobs.documents()})

    @router.get(
        "/jobs/{job}",
        summary="One job: state with a reason, progress, cost, hypervolume after each improvement",
    )
    def job_status(job: JobId) -> JSONResponse:
        return JSONResponse(jobs.document(jobs.store.run(job)))

    @router.get(
        "/jobs/{job}/source",
        summary="The job file that was submitted, and the end of the driver's log",
    )
    def job_source(job: JobId) -> JSONResponse:
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
    def front(job: JobId) -> JSONResponse:
        return JSONResponse(jobs.store.snapshot(jobs.store.run(job)).front_document())

    @router.get(
        "/jobs/{job}/pool",
        summary="Members: own scores, use by the front, the volume without them, similarity of their "
        "deltas",
    )
    def pool(job: JobId) -> JSONResponse:
        run = jobs.store.run(job)
        return JSONResponse(documents.pool_document(jobs.store.snapshot(run), jobs.store.gram(run)))

    @router.get(
        "/jobs/{job}/pool/without",
        summary="For each member: the volume lost without it as the search's model estimates it, a "
        "merge to try, and the job that has told or will tell for certain",
    )
    def without(job: JobId) -> JSONResponse:
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
    def pool_deltas(job: JobId) -> JSONResponse:
        run = jobs.store.run(job)
        return JSONResponse(deltas.deltas_document(run, jobs.store.snapshot(run), jobs.processes))

    @router.get(
        "/jobs/{job}/events",
        summary="Server-sent events: trial, holdout, status, end; resumes after Last-Event-ID",
        response_class=StreamingResponse,
    )
    def job_events(
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


def _trials(router: APIRouter, jobs: Jobs) -> None:
    @router.get(
        "/jobs/{job}/trials",
        summary="Every trial with recipe and scores, the front's numbers, and the cursor for events",
    )
    def trials(job: JobId) -> JSONResponse:
        snapshot = jobs.store.snapshot(jobs.store.run(job))
        return JSONResponse(documents.trials_document(snapshot, str(events.Cursor.of(snapshot))))

    @router.get(
        "/jobs/{job}/table",
        summary="Every trial as columns: for pages that draw thousands of them",
        response_class=Response,
    )
    def table(job: JobId) -> Response:
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

    @router.get(
        "/jobs/{job}/trials/{number}", summary="One trial, and why it is on the front or not"
    )
    def one_trial(job: JobId, number: TrialNumber) -> JSONResponse:
        snapshot = jobs.store.snapshot(jobs.store.run(job))
        return JSONResponse(trial_document(snapshot, snapshot.trial(number)))

    @router.get("/jobs/{job}/trials.csv", summary="Every trial as CSV", response_class=Response)
    def trials_csv(job: JobId) -> Response:
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
    def trials_parquet(job: JobId) -> Response:
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
    def report(job: JobId) -> Response:
        snapshot = jobs.store.snapshot(jobs.store.run(job))
        return _download(
            snapshot.once("report", lambda: html_report(snapshot.front, snapshot.status)),
            "text/html; charset=utf-8",
            f"{job}-report.html",
        )

    @router.get("/jobs/{job}/trials/{number}/items", summary="Per-item outcomes of one trial")
    def items(job: JobId, number: TrialNumber, role: RoleQuery = "search") -> JSONResponse:
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


def _writing(router: APIRouter, jobs: Jobs) -> None:
    @router.post(
        "/validate",
        responses=Refusals,
        summary="Check a job file: its name, or every problem with file and line",
    )
    def validate(request: JobText) -> JSONResponse:
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
    def submit(request: JobText) -> JSONResponse:
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
    def stop(job: JobId, request: Annotated[Nothing, Body()]) -> JSONResponse:
        run = jobs.store.run(job)
        jobs.stop(run)
        return JSONResponse(jobs.document(run), 202)

    @router.post(
        "/jobs/{job}/resume",
        status_code=202,
        responses=Refusals,
        summary="Go on with an unfinished job",
    )
    def resume(job: JobId, request: Annotated[Nothing, Body()]) -> JSONResponse:
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
    def leave_out(job: JobId, request: MemberName) -> JSONResponse:
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
    def measure_deltas(job: JobId, request: Annotated[Nothing, Body()]) -> JSONResponse:
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
    def export(job: JobId, request: ExportRequest) -> JSONResponse:
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
    def exports(job: JobId) -> JSONResponse:
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
    def export_status(job: JobId, export: ExportId) -> JSONResponse:
        return JSONResponse(jobs.exports.document(jobs.store.run(job), export))


def _download(content: str | bytes, media_type: str, name: str) -> Response:
    """An answer that browsers save instead of showing."""
    return Response(
        content,
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
