"""Run a job: prepare, search, score the finalists on the holdout items.

Started again, it goes on where it was. The components, in the order in which they come in:

    prepare     a job file is read and checked, with everything that it names
    bundle      the job's own files, kept in a ledger that other machines see
    opening     the ledger that the run writes, in its folder or in a database
    guard       another job, pool or suite than the run began with is refused
    started     the job file is remembered, for whoever starts the run again
    warm_start  trials of earlier runs are copied
    wiring      parts are made from the run: workers, proposer, planner, stops, fidelity
    listeners   notes are added to each event: preview, noise, forecast; clock keeps the time
    loop        trials are opened, submitted, closed; finalists are completed and held out
    schedule    baselines, the greedy soup, proposals: the trial that comes next
    fidelity    the items that a trial is asked
    results     the front is read off the ledger (recycler.results)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from recycler.cluster.workers import Workers
from recycler.io.atomic import make_folder
from recycler.ledger.local_lock import only_driver
from recycler.results.front import Front
from recycler.results.insight import write_preview
from recycler.results.open import front_of
from recycler.run.bundle import bundle_job
from recycler.run.guard import check_same_job, freeze_suites
from recycler.run.loop import Listener, complete, score_holdout, search
from recycler.run.opening import open_own_ledger
from recycler.run.prepare import prepare
from recycler.run.prepared import PreparedJob
from recycler.run.run import Run
from recycler.run.started import write_started
from recycler.run.warm_start import warm_start
from recycler.run.wiring import MakeWorkers, measure_gram, wire, wire_workers
from recycler.types import Trial


def run_job(
    job_path: Path,
    run_folder: Path,
    *,
    make_workers: MakeWorkers,
    data_folders: Sequence[Path] = (),
    ledger_url: str | None = None,
    reuse: Path | None = None,
    listen: Listener = lambda event: None,
    started: Callable[[PreparedJob, Sequence[Trial]], None] = lambda prepared, trials: None,
) -> Front:
    """Run or resume the job in `run_folder` and return its front, holdout scores included.

    `make_workers` makes the workers, `listen` is called with every event, and `started` once, with
    the prepared job and the trials that are there already. With `reuse`, a folder, answers of the
    same weights, engine and questions are taken from there and kept there. With `ledger_url` the
    ledger is a schema of that database, named after the job's id, and the folder only holds copies.
    Raises UsageError or UnsafeInputError before anything is started, InfrastructureError when
    workers keep failing, the ledger stays away, or another driver has the job.
    """
    prepared = prepare(job_path, data_folders=data_folders)
    make_folder(run_folder)
    bundle = bundle_job(job_path, data_folders=data_folders) if ledger_url else None
    with (
        only_driver(run_folder),
        closing(open_own_ledger(run_folder, ledger_url, bundle)) as ledger,
    ):
        ledger.hold()
        run = Run(prepared=prepared, ledger=ledger, folder=run_folder)
        freeze_suites(run)
        check_same_job(run)
        if bundle:
            ledger.keep_files(bundle.files)
        ledger.retry_system_failures()
        write_started(run_folder, job_path, data_folders)
        run = warm_start(run)
        is_finished = run.is_finished
        if not is_finished:
            run = measure_gram(run)
        started(run.prepared, run.trials())
        if not is_finished:
            workers = wire_workers(run, make_workers, reuse)
            search_and_hold_out(run, workers, listen)
        return front_of(ledger)


def search_and_hold_out(run: Run, workers: Workers, listen: Listener) -> None:
    """Search until the budget is spent, then complete the finalists and score their holdout.

    The workers are closed, whatever happens.
    """
    with closing(workers):
        parts = wire(run, listen)
        parts.announce_members()
        trials = search(
            parts.planner,
            run.ledger,
            workers,
            within_budget=parts.clock.within_budget,
            listen=parts.listen,
            fidelity=parts.fidelity,
        )
        parts.announce_exhausted(trials)
        finalists = complete(
            parts.finalists, run.ledger, workers, parts.fidelity, listen=parts.listen
        )
        score_holdout(finalists, run.ledger, workers, listen=parts.listen)
        write_preview(run.ledger, run.items, run.objectives, len(run.pool.members))
        run.facts.finished = run.job.budget.trials
