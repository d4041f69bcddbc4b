"""The API: parse, call one function, answer.

Ids are words of a strict pattern; no path ever comes from outside.
"""

from __future__ import annotations

from fastapi import APIRouter

from recycler.service import job_routes, trial_routes, write_routes
from recycler.service.request_types import Problems


def api_router() -> APIRouter:
    """Collect all routes under /api/v1; they find their jobs at `app.state.jobs`."""
    router = APIRouter(prefix="/api/v1", responses=Problems)
    for routes in (job_routes, trial_routes, write_routes):
        router.include_router(routes.router)
    return router
