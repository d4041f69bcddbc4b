"""Run a job: prepare, search, score the finalists on the holdout items.

Started again, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from recycler.cluster.workers import Work, Workers
from recycler.engines import default_engine_name
from recycler.errors import Problem, UsageError
from recycler.io.atomic import make_folder, write_atomic
from recycler.io.redact import without_password
from recycler.ledger import Ledger
from recycler.ledger.local_lock import only_driver
from recycler.ledger.place import LEDGER, LEDGER_URL, job_place
from recycler.results.front import Front, read_front
from recycler.results.insight import write_outlook, write_preview, write_space
from recycler.results.measured_costs import measured_costs
from recycler.results.notices import Notices
from recycler.results.open import front_of
from recycler.run.bundle import Bundle, bundle_job
from recycler.run.clock import _Clock
from recycler.run.cost_workers import CostWorkers
from recycler.run.guard import _check_same_job, _freeze_suites
from recycler.run.loop import Event, Listener, complete, score_holdout, search
from recycler.run.prepare import PreparedJob, prepare
from recycler.run.schedule import Planner
from recycler.run.started import write_started
from recycler.run.warm_start import take_earlier, taken_lines, write_stamps
from recycler.run.wiring import _comparable, _fidelity, _measure_gram, _planner, _smoother, work_of
from recycler.search.outlook import EVERY, Looks, last_look
from recycler.search.refine import with_refined
from recycler.types import Trial

MakeWorkers = Callable[[Work, int], Workers]


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

    With `reuse`, a folder, answers of the same weights, engine and questions are taken from there
    and kept there. With `ledger_url` the ledger is a schema of that database, named after the job's
    id, and the folder only holds copies. Raises UsageError or UnsafeInputError before anything is
    started, InfrastructureError when workers keep failing, the ledger stays away, or another driver
    has the job.
    """
    prepared = prepare(job_path, data_folders=data_folders)
    make_folder(run_folder)
    bundle = bundle_job(job_path, data_folders=data_folders) if ledger_url else None
    with (
        only_driver(run_folder),
        closing(_open_own_ledger(run_folder, ledger_url, bundle)) as ledger,
    ):
        ledger.hold()
        _freeze_suites(run_folder / "suites", prepared)
        _check_same_job(ledger, prepared)
        if bundle:
            ledger.keep_files(bundle.files)
        ledger.retry_system_failures()
        write_started(run_folder, job_path, data_folders)
        prepared = _with_earlier(prepared, ledger, job_path.parent)
        finished = _finished(ledger, prepared)
        if not finished and (why := _measure_gram(prepared, ledger)):
            prepared = replace(prepared, warnings=(*prepared.warnings, why))
        started(prepared, ledger.trials())
        if not finished:
            _search_and_hold_out(prepared, ledger, make_workers, listen, reuse)
        return front_of(ledger)


def _with_earlier(prepared: PreparedJob, ledger: Ledger, folder: Path) -> PreparedJob:
    """Take the trials of earlier runs that the job names, and let the job's warnings say what came
    of it.
    """
    engine = prepared.job.engine.name or default_engine_name()
    write_stamps(ledger, prepared, engine)
    taken = take_earlier(ledger, prepared, engine, folder)
    return replace(prepared, warnings=(*prepared.warnings, *taken_lines(taken)))


def _search_and_hold_out(
    prepared: PreparedJob,
    ledger: Ledger,
    make_workers: MakeWorkers,
    listen: Listener,
    reuse: Path | None,
) -> None:
    priced = measured_costs(ledger, prepared.objectives, prepared.pool)
    workers = CostWorkers(
        make_workers(
            replace(work_of(prepared), reuse=str(reuse.absolute()) if reuse else ""),
            prepared.job.engine.workers,
        ),
        priced,
    )
    try:
        clock = _Clock(ledger, prepared)
        write_space(ledger, prepared.space, prepared.job.method)
        looks, fidelity = Looks(proposer=_smoother(prepared, ledger)), _fidelity(prepared)
        planner = _planner(prepared, ledger, looks)
        listen = _previewed(listen, ledger, prepared, planner, looks)
        if known := ledger.trials():  # members of earlier runs have no event of their own
            listen(
                Event(
                    what="noted",
                    trial=known[0],
                    notes=_of_members(
                        ledger, prepared, Notices(ledger=ledger, proposer=looks.proposer)
                    ),
                )
            )
        trials = search(
            planner,
            ledger,
            workers,
            within_budget=clock.within_budget,
            listen=clock.stamp(listen),
            fidelity=fidelity,
        )
        if clock.within_budget() and planner.exhausted(trials):
            listen(
                Event(
                    what="noted",
                    trial=trials[-1],
                    notes=(
                        f"{'no point of the grid' if prepared.job.sampler == 'grid' else 'nothing that the space allows'} "
                        "is left to try: the search ends with "
                        f"{sum(trial.is_proposed for trial in trials)} of its "
                        f"{planner.num_merges} merges proposed",
                    ),
                )
            )
        finalists = complete(
            lambda trials: _finalists(prepared, ledger, trials),
            ledger,
            workers,
            fidelity,
            listen=clock.stamp(listen),
        )
        score_holdout(finalists, ledger, workers, listen=clock.stamp(listen))
        write_preview(ledger, prepared.items, prepared.objectives, len(prepared.pool.members))
        ledger.facts.finished = prepared.job.budget.trials
    finally:
        workers.close()


def _previewed(
    listen: Listener, ledger: Ledger, prepared: PreparedJob, planner: Planner, looks: Looks
) -> Listener:
    """`listen`, with a preview written down as soon as the last member is scored, an outlook
    whenever a look is due, and what they give to say.
    """
    notices, judged = Notices(ledger=ledger, proposer=looks.proposer), False
    proposed = sum(
        trial.is_proposed and trial.state == "SCORED"
        for trial in planner.comparable(ledger.trials())
    )

    def told(event: Event) -> None:
        nonlocal proposed, judged
        if event.what == "scored" and event.trial.kind == "member":
            event = replace(event, notes=(*event.notes, *_of_members(ledger, prepared, notices)))
        if event.what == "opened" and event.trial.is_proposed and not judged:
            judged, event = (
                True,
                replace(
                    event,
                    notes=(*event.notes, *notices.of_noise(planner.comparable(ledger.trials()))),
                ),
            )
        if event.trial.is_proposed and (
            event.what == "scored"
            or event.what == "failed"
            and event.trial.failure
            and event.trial.failure.blame == "recipe"
        ):
            proposed += 1
            if proposed % EVERY == 0:
                known = last_look(planner.comparable(ledger.trials()))[1]
                event = replace(
                    event,
                    gain=write_outlook(ledger, looks, known),
                    notes=(*event.notes, *notices.of_noise(known)),
                )
        listen(event)

    return told


def _of_members(ledger: Ledger, prepared: PreparedJob, notices: Notices) -> tuple[str, ...]:
    return notices.of_members(
        write_preview(ledger, prepared.items, prepared.objectives, len(prepared.pool.members))
    )


def _finalists(prepared: PreparedJob, ledger: Ledger, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Whom the front as it stands names, with what its model makes of all trials written down."""
    ledger.facts.smoothed = with_refined(
        _smoother(prepared, ledger).smoothed(_comparable(trials, prepared)), trials
    )
    return read_front(
        trials,
        prepared.objectives,
        prepared.pool,
        prepared.job.engine.dtype,
        smoothed=ledger.facts.smoothed,
    ).finalists


def _open_own_ledger(run_folder: Path, url: str | None, bundle: Bundle | None) -> Ledger:
    """The ledger that this run writes: a file in its folder, or the job's schema in a database."""
    if url is None or bundle is None:
        remembered = run_folder / LEDGER_URL
        return Ledger(
            remembered.read_text().strip() if remembered.is_file() else run_folder / LEDGER
        )
    if (run_folder / LEDGER).exists():
        raise UsageError(
            Problem(
                thing=f"run {run_folder}",
                cause=f"has a ledger of its own ({LEDGER})",
                remedy="Leave out --ledger (and RECYCLER_LEDGER), or give another --dir",
            )
        )
    place = job_place(url, bundle.id)
    write_atomic(run_folder / LEDGER_URL, without_password(place) + "\n")
    return Ledger(place)


def _finished(ledger: Ledger, prepared: PreparedJob) -> bool:
    return ledger.facts.finished == prepared.job.budget.trials and not ledger.counts()["PENDING"]
