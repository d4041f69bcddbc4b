"""What crosses between the engine and vLLM's workers, which may be other processes: the pool,
answers and errors, as JSON.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path

from recycler.errors import (
    InfrastructureError,
    NotFoundError,
    Problem,
    RecyclerError,
    UnsafeInputError,
    UsageError,
)
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.location import local_path, remote_url
from recycler.types import Pool

KINDS = {
    kind.__name__: kind
    for kind in (UsageError, NotFoundError, UnsafeInputError, InfrastructureError)
}


def write_answer(work: Callable[[], str]) -> str:
    """JSON of a result, of the problems of an error of ours, or of a traceback.

    Nothing is raised: vLLM reads its ranks' answers in turn, and one that fails would leave the
    others' unread, to be taken for the answers to the next question.
    """
    try:
        return json.dumps({"result": work()})
    except RecyclerError as error:
        problems = [
            [problem.thing, problem.cause, problem.remedy, problem.where]
            for problem in error.problems
        ]
        return json.dumps({"kind": type(error).__name__, "problems": problems})
    except Exception:
        return json.dumps({"bug": traceback.format_exc()})


def read_answer(answer: str) -> str:
    """The result that `write_answer` packed; raises the error that it packed, RuntimeError with its
    traceback if it is not one of ours.
    """
    found = json.loads(answer)
    if "bug" in found:
        raise RuntimeError(f"in vLLM's worker: {found['bug']}")
    if "problems" in found:
        raise KINDS.get(found["kind"], RecyclerError)(
            [
                Problem(thing=thing, cause=cause, remedy=remedy, where=where)
                for thing, cause, remedy, where in found["problems"]
            ]
        )
    return found["result"]


def pool_to_json(pool: Pool) -> str:
    """Names and places of a pool; its headers are read again where they are needed."""
    return json.dumps(
        {
            "members": [[member.name, _anywhere(member.location)] for member in pool.members],
            "base": [pool.base.name, _anywhere(pool.base.location)] if pool.base else None,
        }
    )


def _anywhere(location: str) -> str:
    """A location that means the same in another working folder; that of a bucket does already."""
    return location if remote_url(location) else str(Path(local_path(location)).absolute())


def pool_from_json(text: str) -> Pool:
    found = json.loads(text)
    return Pool(
        members=tuple(open_checkpoint(location, name) for name, location in found["members"]),
        base=open_checkpoint(found["base"][1], found["base"][0]) if found["base"] else None,
    )
