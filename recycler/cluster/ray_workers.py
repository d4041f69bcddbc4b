"""Workers as Ray actors: one long-lived engine each, on a GPU or a share of the CPU cores. Only this file imports Ray."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence

import ray
from ray.exceptions import RayActorError, RayError

from recycler.cluster.workers import MAX_ATTEMPTS, Result, ScoringWorker, Work
from recycler.errors import InfrastructureError, Problem
from recycler.types import Failure, Recipe, Role, Scorecard


class _Actor:
    """Runs inside Ray. Builds its engine once; dies with it."""

    def __init__(self, work: Work):
        self._worker = ScoringWorker(work)

    def score(self, recipe: Recipe, role: Role) -> Scorecard | Failure:
        return self._worker.score(recipe, role)

    def process_id(self) -> int:
        return os.getpid()


class RayWorkers:
    """`num_workers` actors on a Ray cluster; a trial whose actor dies goes to a new actor, and no other worker waits."""

    def __init__(self, work: Work, *, num_workers: int, address: str | None = None):
        _connect(address)
        self.num_workers = num_workers
        gpus = int(ray.cluster_resources().get("GPU", 0))
        cores = float(ray.cluster_resources().get("CPU", 1))
        share = max(1, int(cores // num_workers))
        self._options = {"num_gpus": 1, "num_cpus": 1} if gpus >= num_workers else {"num_cpus": min(share, cores / num_workers)}
        self._options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(share), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}}
        self._work = ray.put(work)
        self._free: list[ray.actor.ActorHandle] = [self._new_actor() for _ in range(num_workers)]
        self._busy: dict[ray.ObjectRef, tuple[ray.actor.ActorHandle, int, Recipe, Role, int]] = {}
        self._waiting: deque[tuple[int, Recipe, Role, int]] = deque()

    def submit(self, number: int, recipe: Recipe, role: Role) -> None:
        self._waiting.append((number, recipe, role, 1))
        self._dispatch()

    def wait(self) -> Sequence[Result]:
        """Block until at least one submission has ended for good."""
        while True:
            done, _ = ray.wait(list(self._busy), num_returns=1)
            results = [result for result in map(self._collect, done) if result is not None]
            self._dispatch()
            if results:
                return results

    def process_ids(self) -> list[int]:
        """Operating-system ids of the live workers, for tests that kill one."""
        actors = [*self._free, *(entry[0] for entry in self._busy.values())]
        return ray.get([actor.process_id.remote() for actor in actors])

    def close(self) -> None:
        for actor in [*self._free, *(entry[0] for entry in self._busy.values())]:
            ray.kill(actor)
        ray.shutdown()

    def _new_actor(self) -> ray.actor.ActorHandle:
        return ray.remote(_Actor).options(**self._options, max_restarts=0).remote(self._work)

    def _dispatch(self) -> None:
        while self._free and self._waiting:
            number, recipe, role, attempt = self._waiting.popleft()
            actor = self._free.pop()
            self._busy[actor.score.remote(recipe, role)] = (actor, number, recipe, role, attempt)

    def _collect(self, reference: ray.ObjectRef) -> Result | None:
        """The result of one finished call; None when it failed through no fault of the recipe and is tried again."""
        actor, number, recipe, role, attempt = self._busy.pop(reference)
        try:
            answer = ray.get(reference)
        except RayError as error:
            reason = str(error.cause if getattr(error, "cause", None) else error).strip().splitlines()[-1]
            if not isinstance(error, RayActorError):
                ray.kill(actor)  # its engine may be dirty
            self._free.append(self._new_actor())
            if attempt < MAX_ATTEMPTS:
                self._waiting.appendleft((number, recipe, role, attempt + 1))
                return None
            answer = Failure(blame="system", reason=reason, attempts=attempt)
        else:
            self._free.append(actor)
        return Result(number=number, role=role, answer=answer)


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (ConnectionError, RuntimeError, OSError) as error:
        raise InfrastructureError(Problem(thing=f"Ray cluster {address or '(local)'}", cause=f"cannot be reached or started ({error})", remedy="Check the address; `ray status` shows whether it is up")) from None
