"""The application: guards outside, API and pages inside, errors as JSON problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Match

from recycler import __version__
from recycler.dashboard.pages import pages_router
from recycler.errors import InfrastructureError, NotFoundError, RecyclerError
from recycler.service.guard import LOOPBACK, AllowedHosts, Guard, Keys, SafeHeaders
from recycler.service.jobs import Jobs
from recycler.service.metrics import CONTENT_TYPE, metrics_text
from recycler.service.orders import BusyError
from recycler.service.proxy import TrustedProxy
from recycler.service.routes import api_router

STATUS = {NotFoundError: 404, BusyError: 409, InfrastructureError: 503}


def create_app(
    root: Path,
    *,
    ledger_url: str | None = None,
    token: str | None,
    viewer_token: str | None = None,
    export_place: str | None = None,
    proxy: TrustedProxy | None = None,
    allowed_hosts: Sequence[str] = LOOPBACK[:2],
) -> FastAPI:
    """The service over the run folders of `root`, and the jobs of the database at `ledger_url`.

    Exports go with their runs, or below `export_place` (a folder or a bucket's URL) where a
    destination is asked for. Users may be named by a trusted `proxy`; everybody else needs a token.
    Without a token everybody who reaches it is an operator, so only loopback hosts may be allowed
    then, and no proxy; ValueError else.
    """
    if token is None and (proxy is not None or not set(allowed_hosts) <= set(LOOPBACK)):
        raise ValueError("hosts other than loopback, and proxies, need a token")
    jobs = Jobs(root, ledger_url, export_place)
    app = FastAPI(
        title="recycler",
        version=__version__,
        summary="Recycling jobs: trials, fronts, comparisons, exports.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.jobs = jobs
    app.add_exception_handler(RecyclerError, _told)
    app.add_exception_handler(RequestValidationError, _refused)
    app.add_exception_handler(HTTPException, _answered)
    app.add_middleware(Guard, keys=Keys(token, viewer_token), proxy=proxy)
    app.add_middleware(AllowedHosts, names=allowed_hosts)
    app.add_middleware(GZipMiddleware, minimum_size=2_000, compresslevel=4)
    app.add_middleware(SafeHeaders)
    app.include_router(api_router())
    app.include_router(pages_router(lambda job: jobs.store.run(job).place is not None))

    @app.get("/healthz", summary="Whether the root can be read")
    def health() -> JSONResponse:
        there = jobs.store.root.is_dir()
        return JSONResponse({"ok": there}, 200 if there else 503)

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        return Response(metrics_text(jobs.documents()), headers={"Content-Type": CONTENT_TYPE})

    return app


def _told(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RecyclerError)
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 422)
    return JSONResponse({"problems": [asdict(problem) for problem in error.problems]}, status)


def _answered(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if (
        error.status_code == 405
    ):  # the router names the methods of the first route only, and a path may have two
        headers["Allow"] = ", ".join(
            sorted(
                {
                    method
                    for route in request.app.routes
                    if route.matches(request.scope)[0] is not Match.NONE
                    for method in route.methods
                }
            )
        )
    return JSONResponse(
        {"problems": [{"thing": "request", "cause": str(error.detail), "remedy": "", "where": ""}]},
        error.status_code,
        headers,
    )


def _refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse(
        {
            "problems": [
                {
                    "thing": ".".join(map(str, entry["loc"])),
                    "cause": entry["msg"],
                    "remedy": "",
                    "where": "",
                }
                for entry in error.errors()
            ]
        },
        422,
    )
