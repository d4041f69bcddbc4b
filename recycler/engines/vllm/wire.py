"""JSON between the engine and vLLM's workers, which may be other processes.

The pool crosses to them; answers and errors come back.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable

from recycler.errors import (
    InfrastructureError,
    NotFoundError,
    Problem,
    RecyclerError,
    UnsafeInputError,
    UsageError,
)
from recycler.pool.catalog import open_checkpoint
from recycler.types import Checkpoint, Pool

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
    """The result that `write_answer` packed.

    Raises the error that it packed, or RuntimeError with the traceback of one that is not ours.
    """
    found = json.loads(answer)
    if "bug" in found:
        raise RuntimeError(f"in vLLM's worker: {found['bug']}")
    if "problems" in found:
        kind = KINDS.get(found["kind"], RecyclerError)
        raise kind(
            [
                Problem(thing=thing, cause=cause, remedy=remedy, where=where)
                for thing, cause, remedy, where in found["problems"]
            ]
        )
    return str(found["result"])


def pool_to_json(pool: Pool) -> str:
    """Names and places of a pool; its headers are read again where they are needed."""
    return json.dumps(
        {
            "members": [_name_and_place(member) for member in pool.members],
            "base": _name_and_place(pool.base) if pool.base else None,
        }
    )


def _name_and_place(checkpoint: Checkpoint) -> list[str]:
    """A checkpoint's name, and its location as every working folder names it."""
    return [checkpoint.name, str(checkpoint.location.absolute())]


def pool_from_json(text: str) -> Pool:
    found = json.loads(text)
    return Pool(
        members=tuple(open_checkpoint(location, name) for name, location in found["members"]),
        base=open_checkpoint(found["base"][1], found["base"][0]) if found["base"] else None,
    )
