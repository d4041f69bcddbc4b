"""Bulkhead: damage of one job becomes an error that names it and spares all others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from recycler.errors import InfrastructureError, Problem, RecyclerError
from recycler.io.redact import redacted

LOG = logging.getLogger("recycler.service")
MAX_CAUSE = 300
_TOLD = (RecyclerError, HTTPException, RequestValidationError)


@contextmanager
def bulkhead(job: str) -> Iterator[None]:
    """Turn every unexpected error into an InfrastructureError that names the job.

    The traceback goes to the service's log, since it may be our bug.
    """
    try:
        yield
    except _TOLD:
        raise
    except Exception as error:
        LOG.warning("job %s cannot be read", job, exc_info=True)
        said = (str(error).strip().splitlines() or [""])[0]
        raise InfrastructureError(
            Problem(
                thing=f"job {job!r}",
                cause=redacted(
                    f"holds something that cannot be read ({type(error).__name__}: "
                    f"{said[:MAX_CAUSE]})"
                ),
                remedy="Its folder or ledger is damaged: put a copy in its place; the service's "
                "log tells more",
            )
        ) from None


class JobRoute(APIRoute):
    """A route whose job, if it names one, fails alone."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def within(request: Request) -> Response:
            job = request.path_params.get("job")
            if job is None:
                return await handler(request)
            with bulkhead(job):
                return await handler(request)

        return within
