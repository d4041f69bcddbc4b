"""Types of what requests bring (ids, numbers, bodies), and the answers of every route."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from recycler.service.documents import read_number
from recycler.service.jobs import Jobs
from recycler.service.orders import DESTINATION, EXPORT_ID

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


class StrictModel(BaseModel):
    """A request body that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid")


class JobText(StrictModel):
    """A job file as text."""

    text: str = Field(max_length=500_000)
    id: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")


class ExportRequest(StrictModel):
    """Export of one trial.

    `trial` is a number, `knee` or `best:OBJECTIVE`; `dtype` is by default the one that was scored,
    and the place by default that of the run.
    """

    trial: str = Field(max_length=200)
    dtype: Dtype | None = None
    destination: Destination | None = None


class MemberName(StrictModel):
    """A member of the job's pool."""

    member: str = Field(min_length=1, max_length=200)


class Nothing(StrictModel):
    """An empty JSON object."""


def _jobs(request: Request) -> Jobs:
    """Return the jobs that the application was made with."""
    jobs: Jobs = request.app.state.jobs
    return jobs


Service = Annotated[Jobs, Depends(_jobs)]
