"""One trial of a run as the files that lm-eval writes: its results and every answer.

Search and holdout items have a folder each.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from recycler.errors import NotFoundError, Problem
from recycler.export.lm_eval_files import write_lm_eval
from recycler.io.atomic import atomic_folder
from recycler.ledger.runs import open_ledger
from recycler.location import local_path
from recycler.results.front import Front, choose
from recycler.scoring.frozen import frozen_suites, read_frozen


def log_to_lm_eval(
    front: Front, run: str | Path, which: str, folder: Path, *, name: str | None = None
) -> tuple[int, int]:
    """Write search/ and, once scored, holdout/ of a trial into a new folder.

    Returns the trial's number and the number of files; the folder appears whole or not at all. Only
    items that the trial was asked are written: after a subset the figures are plain means of those,
    not the run's estimate. Raises UsageError where the folder exists, NotFoundError for a trial or
    the run's frozen suites.
    """
    paths = frozen_suites(local_path(run))
    if not paths:
        raise NotFoundError(
            Problem(
                thing=f"suites of {run}",
                cause="not found: the frozen items lie in the run's folder",
                remedy="Give the folder that the run was started with",
            )
        )
    trial = choose(front, which)
    items = [item for path in paths for item in read_frozen(path).items]
    with closing(open_ledger(run)) as ledger:
        outcomes_of = {
            role: ledger.outcomes(trial.number, role)
            for role in ("search", "holdout")
            if trial.scores(role)
        }
        job = ledger.facts.require_job()
    model = f"{name or job.name or 'recycler'} trial {trial.number}"
    with atomic_folder(folder) as aside:
        for role, outcomes in outcomes_of.items():
            ids = {outcome.item for outcome in outcomes}
            asked = [item for item in items if item.role == role and item.id in ids]
            write_lm_eval(aside / role, asked, outcomes, model=model)
        number = sum(path.is_file() for path in aside.rglob("*"))
    return trial.number, number
