"""The small job with what merges cost among its objectives."""

from contextlib import closing

from fakes import JobWorkers
from recycler.ledger import Ledger
from recycler.run.driver import run_job
from recycler.types import Objective
from small_job import JOB, set_job

MEMBERS = Objective(suite="", metric="members", direction="minimize")

DISTANCE = Objective(suite="", metric="distance", direction="minimize")

COSTS = [{"cost": "members"}, {"cost": "distance"}]


def figures(trials, name):
    return {
        trial.number: next(score.value for score in trial.search if score.objective == name)
        for trial in trials
    }


def ran(folder, name="run", **changes):
    set_job(
        folder, **{"objectives": [*JOB["objectives"], *COSTS], "budget": {"trials": 6}} | changes
    )
    workers = JobWorkers()

    def make(work, num_workers):
        workers.work = work
        return workers

    run_job(folder / "job.yaml", folder / name, make_workers=make)
    with closing(Ledger(folder / name / "ledger.sqlite")) as ledger:
        return workers, ledger.trials()
