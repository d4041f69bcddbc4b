"""Answers scored by lm-eval's own filters and process_results."""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recycler.errors import Problem, UsageError
from recycler.scoring.lmeval.definitions import load_definition, metric_name
from recycler.scoring.lmeval.opened import open_task
from recycler.scoring.lmeval.unsafe import ALLOW

PROBE = "A sentence. Another one."  # an answer that every check looks at, when a suite is built
# tasks by name, for their filters and metrics only; lm-eval wants a row to open one
_OPENED: dict[str, Any] = {}


def process_text(
    name: str, doc: Mapping[str, Any], text: str, *, lists: bool = False
) -> dict[str, Any]:
    """Values of one answer by lm-eval's own filters and process_results.

    Lists of yes and no become their mean unless `lists`. Raises UsageError when its checks need
    data of nltk that are not here.
    """
    from lm_eval.api.instance import Instance  # loads torch and transformers

    if name not in _OPENED:
        _OPENED[name] = open_task(load_definition(name, resolve=True), [doc], [doc], 0)
    task = _OPENED[name]
    values: dict[str, Any] = {}
    with _same_every_time():
        for ensemble in task._filters:
            instance = Instance(
                request_type="generate_until",
                doc=dict(doc),
                arguments=("", {}),
                idx=0,
                metadata=(name, 0, 1),
            )
            instance.resps = [text]
            ensemble.apply([instance])
            results = _results(task, name, doc, instance.filtered_resps[ensemble.name])
            for metric, value in results.items():
                if not (isinstance(value, list) and lists):
                    value = _mean(value)
                values[metric_name(metric, ensemble.name)] = value
    return values


def _results(task: Any, name: str, doc: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    os.environ.pop(ALLOW, None)
    try:
        return task.process_results(dict(doc), [answer])
    except LookupError as error:
        if type(error) is not LookupError:  # nltk raises the bare class, and a page of advice
            raise
        missing = re.search(r"nltk\.download\('([\w.-]+)'\)", str(error))
        raise UsageError(
            Problem(
                thing=f"lm-eval task {name!r}",
                cause=f"is checked with nltk's {missing[1] if missing else 'data'}, which is not "
                "on this machine",
                remedy="Set NLTK_DATA to a folder that holds it, see docs/suites.md",
            )
        ) from None


@contextmanager
def _same_every_time() -> Iterator[None]:
    """Seed the random numbers of checks, and put back the state of Python's afterwards.

    IFEval's checks draw some, langdetect's and where a letter to count is none (#); unseeded, an
    answer is right one time and wrong the next.
    """
    if "langdetect" in sys.modules:
        sys.modules["langdetect"].DetectorFactory.seed = 0
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def _mean(value: Any) -> float:
    if isinstance(value, list):
        return sum(map(float, value)) / len(value)
    return float(value)
