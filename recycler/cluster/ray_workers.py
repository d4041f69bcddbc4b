"""Workers as Ray actors: one long-lived engine each, on GPUs or a share of the CPU cores.

Only this package imports Ray.

Actors hold nothing that the ledger lacks, so they come and go: Ray starts one wherever there is
room for it, now or when a node joins in mid-job; an actor that dies, with its process or its node,
loses the trial it was on to another one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from recycler.cluster.shares import cpu_share
from recycler.cluster.workers import (
    MAX_ATTEMPTS,
    Request,
    Result,
    ScoringWorker,
    Work,
    next_batch,
    results_of,
)
from recycler.errors import InfrastructureError, Problem, RecyclerError
from recycler.io.redact import redacted
from recycler.location import HubLocation
from recycler.scoring.sandbox.code import probe_sandbox
from recycler.types import Failure, Scorecard

NOTICE_SECONDS = 60.0


class _Actor:
    """Runs inside Ray. Builds its engine once; dies with it."""

    def __init__(self, work: Work):
        self._work = work

    def start(self) -> tuple[str, int]:
        """Build the engine; (node, process) that it runs on.

        Raises what that raises, with the node's address in each problem.
        """
        try:
            self._worker = ScoringWorker(self._work)
        except RecyclerError as error:
            node = ray.util.get_node_ip_address()
            raise type(error)(
                [
                    replace(problem, cause=f"{problem.cause} (on node {node})")
                    for problem in error.problems
                ]
            ) from None
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def score(self, requests: Sequence[Request]) -> list[Scorecard | Failure]:
        return self._worker.score_all(requests)


@dataclass(frozen=True, slots=True, eq=False)
class _Live:
    """An actor whose engine is up."""

    actor: ray.actor.ActorHandle
    node: str
    process: int


class RayWorkers:
    """Up to `num_workers` actors on a Ray cluster, as many as have room.

    Each takes the next trial when it is free, or the next few to score side by side.
    """

    def __init__(self, work: Work, *, num_workers: int, address: str | None = None):
        if not (address or os.environ.get("RAY_ADDRESS")):  # the workers run on this machine
            probe_sandbox(work.items)
        _connect(address)
        self._together, self.num_workers = work.together, num_workers * work.together
        with _starting(address):
            self._options = _resources(num_workers, work)
            self._work = ray.put(work)
        self._starting: dict[ray.ObjectRef, ray.actor.ActorHandle] = {}
        self._free: list[_Live] = []
        self._busy: dict[ray.ObjectRef, tuple[_Live, list[Request]]] = {}
        self._waiting: deque[Request] = deque()
        self._failed_starts = 0
        for _ in range(num_workers):
            self._start_actor()

    def submit(self, request: Request) -> None:
        self._waiting.append(request)
        if self._together == 1:  # else more may come to go with it
            self._dispatch()

    def wait(self) -> Sequence[Result]:
        """Block until at least one submission has ended for good."""
        self._dispatch()
        while True:
            done, _ = ray.wait(
                [*self._busy, *self._starting], num_returns=1, timeout=NOTICE_SECONDS
            )
            if not done and not self._busy:
                self._say_what_is_missing()
            found: list[Result] = []
            for reference in done:
                is_busy = reference in self._busy
                found += self._collect(reference) if is_busy else self._welcome(reference)
            self._dispatch()
            if found:
                return found

    def process_ids(self) -> list[int]:
        """Operating-system ids of the workers that are up, for tests that kill one."""
        return [live.process for live in self._up]

    def close(self) -> None:
        for actor in [*self._starting.values(), *(live.actor for live in self._up)]:
            ray.kill(actor)
        ray.shutdown()

    # ---------------------------------------------------------------- actors

    @property
    def _up(self) -> list[_Live]:
        return [*self._free, *(live for live, _ in self._busy.values())]

    def _start_actor(self) -> None:
        make: Any = ray.remote(_Actor)  # Ray's types know no methods of an actor
        actor = make.options(**self._options, max_restarts=0).remote(self._work)
        self._starting[actor.start.remote()] = actor

    def _welcome(self, reference: ray.ObjectRef) -> list[Result]:
        """Take an actor that is up; one that could not start costs the next trial the third time.

        Raises what the actor found missing or unsafe before any trial, as it would be raised on the
        driver's own machine.
        """
        actor = self._starting.pop(reference)
        try:
            node, process = ray.get(reference)
        except RayError as error:
            ray.kill(actor)  # one whose engine did not start is still there
            missing = getattr(error, "cause", None)
            if isinstance(missing, RecyclerError) and not isinstance(missing, InfrastructureError):
                raise missing from None
            self._start_actor()
            has_left = isinstance(error, RayActorError) and "node" in _reason(error).lower()
            if not has_left:  # a node that left says nothing about the start
                self._failed_starts += 1
            if self._failed_starts < MAX_ATTEMPTS or not self._waiting:
                return []
            self._failed_starts = 0
            failure = Failure(blame="system", reason=_reason(error), attempts=MAX_ATTEMPTS)
            return results_of([self._waiting.popleft()], [failure])
        self._failed_starts = 0
        self._free.append(_Live(actor, node, process))
        return []

    def _dispatch(self) -> None:
        while self._free and self._waiting:
            live, batch = self._free.pop(), next_batch(self._waiting, self._together)
            self._busy[live.actor.score.remote(batch)] = (live, batch)

    def _collect(self, reference: ray.ObjectRef) -> list[Result]:
        """The results of one finished call; none when the system failed and it is tried again."""
        live, batch = self._busy.pop(reference)
        try:
            answers = ray.get(reference)
        except RayError as error:
            if not isinstance(error, RayActorError):
                ray.kill(live.actor)  # its engine may be dirty
            self._start_actor()
            # a node that left and took its trials along says nothing about them
            if not _is_alive(live.node):
                self._waiting.extendleft(reversed(batch))
                return []
            return self._retry(batch, _reason(error))
        self._free.append(live)
        return results_of(batch, answers)

    def _retry(self, batch: Sequence[Request], reason: str) -> list[Result]:
        """Queue the requests once more; the results of those that were tried often enough."""
        again = [request for request in batch if request.attempt < MAX_ATTEMPTS]
        spent = [request for request in batch if request.attempt >= MAX_ATTEMPTS]
        self._waiting.extendleft(
            replace(request, attempt=request.attempt + 1) for request in reversed(again)
        )
        failures = [
            Failure(blame="system", reason=reason, attempts=request.attempt) for request in spent
        ]
        return results_of(spent, failures)

    def _say_what_is_missing(self) -> None:
        wanted = {
            name.removeprefix("num_"): amount
            for name, amount in self._options.items()
            if name.startswith("num_")
        }
        print(
            f"recycler: no worker is up yet: waiting for a node with {wanted}, or for members to "
            f"arrive from their bucket; the cluster has {_room()}",
            file=sys.stderr,
            flush=True,
        )


def _resources(num_workers: int, work: Work) -> dict[str, Any]:
    """Ray's options for one worker: a GPU per rank of its engine, or a share of the cores.

    GPUs are asked for where the cluster has any. What an actor asks for is always on one node, and
    its ranks are processes of its own: so no placement group is needed.
    """
    ranks = work.settings.get("tensor_parallel", 1)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    share = cpu_share([node.get("CPU", 0.0) for node in nodes], num_workers)
    has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    locations = [checkpoint.location for checkpoint in work.pool.checkpoints]
    variables = {
        "OMP_NUM_THREADS": str(max(1, int(share) // ranks)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not any(isinstance(location, HubLocation) for location in locations):
        variables["HF_HUB_OFFLINE"] = "1"
    amounts = {"num_gpus": ranks, "num_cpus": ranks} if has_gpus else {"num_cpus": share}
    return {**amounts, "runtime_env": {"env_vars": variables}}


def _is_alive(node: str) -> bool:
    return any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes())


def _room() -> dict[str, float]:
    return {
        name: amount for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")
    }


def _reason(error: RayError) -> str:
    """The last line of an error, which says what happened; Ray's bookkeeping stands before it."""
    cause = getattr(error, "cause", None) or error
    return redacted(str(cause).strip().splitlines()[-1].strip())


def _connect(address: str | None) -> None:
    """Join the cluster at `address` or RAY_ADDRESS, or start one on this machine."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or None
    asked_to_end = signal.getsignal(signal.SIGTERM)
    with _starting(address):
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    if threading.current_thread() is threading.main_thread():
        # Ray puts one of its own in place, which ends without a word to the ledger
        signal.signal(signal.SIGTERM, asked_to_end)


@contextmanager
def _starting(address: str | None) -> Iterator[None]:
    """Raise errors of Ray's start as InfrastructureError.

    A raylet that is late on a busy machine is a bare Exception (ray/_private/node.py).
    """
    try:
        yield
    except Exception as error:
        ray.shutdown()
        said = " ".join(redacted(str(error)).split())[:300] or type(error).__name__
        raise InfrastructureError(
            Problem(
                thing=f"Ray cluster {address or '(local)'}",
                cause=f"cannot be reached or started ({said})",
                remedy="Check the address; `ray status` shows whether it is up"
                if address
                else "Try again when the machine is less busy: Ray waits 30 s for its own "
                "processes",
            )
        ) from None
