"""Drivers on a cluster, by the Ray Jobs API.

Ray runs a submission once; the ledger knows the job, and each submission resumes it.

The first submission of a job has the job's id, the next ones ID-2, ID-3. Ray shows metadata and
runtime environments to everybody on the cluster, so no secret goes there: nodes have theirs in
their own environment.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from recycler.errors import InfrastructureError, NotFoundError, Problem, UsageError
from recycler.io.redact import redacted

JOB_KEY = "recycler_job"
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
REASONS = {
    2: "the job file or the pool is refused",
    3: "something is not there",
    4: "broken or unsafe input, or a node that cannot run it safely",
    5: "bucket, ledger or cluster went away, trials were lost to the system, or another driver "
    "has the job",
    -9: "the driver was killed",
    130: "stopped",
}
POLL_SECONDS = 1.0
START_SECONDS = 120.0
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One start of a job's driver."""

    job: str
    name: str  # Ray's submission id
    state: str  # PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED
    reason: str
    started_at: float  # seconds since 1970, by the head's clock

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class Cluster:
    """The Jobs API at http://HOST:8265.

    Raises UsageError for a cluster that asks for no token unless `insecure`.
    """

    def __init__(self, address: str, *, insecure: bool = False):
        if not address.startswith(("http://", "https://")):
            raise UsageError(
                Problem(
                    thing=f"address {address!r}",
                    cause="is not the dashboard's",
                    remedy="Write http://HOST:8265",
                )
            )
        self.address = address.rstrip("/")
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if _is_open(self.address) and not insecure:
            raise UsageError(
                Problem(
                    thing=f"cluster {self.address}",
                    cause="takes jobs from anybody, without a token",
                    remedy="Start it with RAY_AUTH_MODE=token, or say --insecure when nobody else "
                    "can reach it",
                )
            )
        self._client = self._asked(lambda: JobSubmissionClient(self.address))

    def submissions(self, job: str | None = None) -> list[Submission]:
        """Starts of one job, or of all jobs, in their order."""
        found = [
            _submission(details)
            for details in self._asked(self._client.list_jobs)
            if JOB_KEY in (details.metadata or {})
        ]
        return sorted(
            (entry for entry in found if job in (None, entry.job)),
            key=lambda entry: (entry.started_at, entry.name),
        )

    def last(self, job: str) -> Submission:
        """The last start of a job. Raises NotFoundError for one that the cluster does not know."""
        found = self.submissions(job)
        if not found:
            raise NotFoundError(
                Problem(
                    thing=f"job {job!r}",
                    cause=f"was not submitted to {self.address}",
                    remedy="recycler list shows the jobs there; after a lost head: recycler resume",
                )
            )
        return found[-1]

    def submit(
        self, job: str, folder: Path, command: str, *, number: int, ship_code: bool = False
    ) -> Submission:
        """Start the job's driver for the `number`-th time.

        It runs `command` in a copy of `folder`. The same number again is that start.
        """
        name = job if number == 1 else f"{job}-{number}"
        environment: dict[str, Any] = {"working_dir": str(folder)}
        if ship_code:
            environment["py_modules"] = [str(Path(__file__).resolve().parent.parent)]
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._asked(
                    lambda: self._client.submit_job(
                        entrypoint=command,
                        submission_id=name,
                        runtime_env=environment,
                        metadata={JOB_KEY: job},
                    )
                )
                break
            except InfrastructureError as error:
                if "already exists" in str(error):
                    break
                has_just_started = "No available agent" in str(error)
                if not has_just_started or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)
        return next(entry for entry in self.submissions(job) if entry.name == name)

    def stop(self, submission: Submission, *, patience: float = 60.0) -> Submission:
        """Ask the driver to end and wait until it has."""
        self._asked(lambda: self._client.stop_job(submission.name))
        deadline = time.monotonic() + patience
        while not (now := self.last(submission.job)).has_ended and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return now

    def logs(self, submission: Submission) -> str:
        """The driver's output so far, secrets redacted."""
        return _clean(self._asked(lambda: self._client.get_job_logs(submission.name)))

    def follow(self, submission: Submission) -> Iterator[str]:
        """The log in pieces as the driver says them, until it ends."""

        async def first(stream: Any) -> str | None:
            return await anext(stream, None)

        loop = asyncio.new_event_loop()
        try:
            stream = self._client.tail_job_logs(submission.name)
            while (
                piece := self._asked(lambda: loop.run_until_complete(first(stream)))
            ) is not None:
                yield _clean(piece)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def wait(self, submission: Submission) -> Submission:
        """The submission when it has ended."""
        while not (
            now := next(
                entry for entry in self.submissions(submission.job) if entry.name == submission.name
            )
        ).has_ended:
            time.sleep(POLL_SECONDS)
        return now

    def _asked(self, ask: Callable[[], Value]) -> Value:
        """Call Ray's client and put its errors into our words."""
        try:
            return ask()
        except AuthenticationError:
            raise UsageError(
                Problem(
                    thing=f"cluster {self.address}",
                    cause="refuses our token",
                    remedy="Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token",
                )
            ) from None
        except (RuntimeError, ConnectionError, OSError) as error:
            text = " ".join(redacted(_clean(str(error))).split())
            if len(text) >= 400:
                text = f"{text[:200]} ... {text[-200:]}"
            raise InfrastructureError(
                Problem(
                    thing=f"cluster {self.address}",
                    cause=f"does not answer well ({text})",
                    remedy="Check that the head is up, and try again",
                )
            ) from None


def _is_open(address: str) -> bool:
    """True when the Jobs API answers somebody without a token.

    Raises InfrastructureError when nobody answers.
    """
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=20) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False
    except OSError as error:
        raise InfrastructureError(
            Problem(
                thing=f"cluster {address}",
                cause=f"cannot be reached ({getattr(error, 'reason', error)})",
                remedy="Check the address (the dashboard's, often port 8265) and that the head is "
                "up",
            )
        ) from None


def _submission(details: Any) -> Submission:
    state = str(details.status.value)
    code: int | None = getattr(details, "driver_exit_code", None)
    said = (details.message or "").strip().splitlines()
    reason = {
        "PENDING": "waiting for the cluster to start the driver",
        "RUNNING": "",
        "SUCCEEDED": "",
        "STOPPED": "stopped",
    }.get(state, "")
    if state == "FAILED":
        reason = redacted(said[0] if said else "failed")
    if state == "FAILED" and code is not None:
        reason = REASONS.get(code) or f"driver ended with exit code {code}"
    return Submission(
        job=details.metadata[JOB_KEY],
        name=details.submission_id,
        state=state,
        reason=reason,
        started_at=(details.start_time or 0) / 1000,
    )


def _clean(text: str) -> str:
    return redacted(_ESCAPES.sub("", text))
