"""Run a job: prepare, search, score the finalists on the holdout items.

Started again, it goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from recycler.bundle import Bundle, bundle_job
from recycler.cluster.workers import Work, Workers
from recycler.earlier import take_earlier, taken_lines, write_stamps
from recycler.engines import default_engine_name
from recycler.errors import Problem, RecyclerError, UsageError
from recycler.insight import write_outlook, write_preview, write_space
from recycler.ledger import Ledger
from recycler.ledger.local_lock import only_driver
from recycler.ledger.place import LEDGER, LEDGER_URL, job_place
from recycler.notices import Notices
from recycler.pool.catalog import open_checkpoint
from recycler.pool.gram import delta_gram
from recycler.prepare import PreparedJob, object_versions, prepare
from recycler.priced import PricedWorkers
from recycler.redact import without_password
from recycler.report import SMOOTHED, Front, read_front, read_smoothed, write_smoothed
from recycler.results.measured_costs import measured_costs, read_costs
from recycler.results.open import front_of
from recycler.runs import open_ledger, read_facts
from recycler.scoring.frozen import read_frozen, refuse_change, write_frozen
from recycler.search.fidelity import Fidelity
from recycler.search.loop import Event, Listener, complete, score_holdout, search
from recycler.search.outlook import EVERY, Looks, Spent, last_look
from recycler.search.plateau import Plateau
from recycler.search.proposer import make_proposer
from recycler.search.refine import with_refined
from recycler.search.schedule import Planner, Stop
from recycler.search.simplex_proposer import Gram, SimplexProposer
from recycler.started import write_started
from recycler.types import Pool, Trial
from recycler.wholefolder import make_folder, write_whole

MakeWorkers = Callable[[Work, int], Workers]
GRAM = "gram"  # the ledger's fact: JSON of a (K, K) matrix, or null


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
    workers = PricedWorkers(
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
        ledger.set_fact("finished", str(prepared.job.budget.trials))
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
    ledger.set_fact(
        SMOOTHED,
        write_smoothed(
            with_refined(
                _smoother(prepared, ledger).smoothed(_comparable(trials, prepared)), trials
            )
        ),
    )
    return read_front(
        trials,
        prepared.objectives,
        prepared.pool,
        prepared.job.engine.dtype,
        smoothed=read_smoothed(ledger),
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
    write_whole(run_folder / LEDGER_URL, without_password(place) + "\n")
    return Ledger(place)


def open_pool_of(run: str | Path) -> Pool:
    """The pool of a run, opened again with its headers.

    Raises UsageError when a member has gone or is another version.
    """
    with closing(open_ledger(run)) as ledger:
        _, named, _ = read_facts(ledger)
        before = json.loads(ledger.fact("digests") or "{}")
    members = tuple(open_checkpoint(member.location, member.name) for member in named.members)
    pool = Pool(
        members=members,
        base=open_checkpoint(named.base.location, named.base.name) if named.base else None,
    )
    _refuse_changes(
        {name: version for name, version in before.items() if name.startswith("object ")},
        object_versions(pool),
    )
    return pool


def _check_same_job(ledger: Ledger, prepared: PreparedJob) -> None:
    """Write the facts of a new run; refuse to go on with a run whose job, pool or suites have
    changed since.
    """
    stored, now = ledger.fact("digests"), prepared.facts
    if stored is None:
        base = prepared.pool.base
        ledger.set_fact(
            "job",
            json.dumps(
                {
                    "name": prepared.job.name,
                    "dtype": prepared.job.engine.dtype,
                    "trials": prepared.job.budget.trials,
                    "objectives": [
                        {
                            "suite": o.suite,
                            "task": o.task,
                            "metric": o.metric,
                            "direction": o.direction,
                            "floor": o.floor,
                            **({"bound_only": True} if o.bound_only else {}),
                        }
                        for o in prepared.objectives
                    ],
                    "members": [
                        [
                            member.name,
                            str(Path(member.location).resolve())
                            if "://" not in member.location
                            else member.location,
                        ]
                        for member in prepared.pool.members
                    ],
                    "base": [
                        base.name,
                        str(Path(base.location).resolve())
                        if "://" not in base.location
                        else base.location,
                    ]
                    if base
                    else None,
                }
            ),
        )
        ledger.set_fact("digests", json.dumps(now))
        return
    _refuse_changes(json.loads(stored), now)


def _refuse_changes(before: dict[str, str], now: dict[str, str]) -> None:
    changed = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
    )
    if changed:
        raise UsageError(
            [
                Problem(
                    thing=name,
                    cause="has changed since this run began",
                    remedy="Put it back, or start a new run with another --dir: scores of different "
                    "items cannot be compared",
                )
                for name in changed
            ]
        )


def _freeze_suites(folder: Path, prepared: PreparedJob) -> None:
    """Keep the items that are asked; refuse to go on with other ones, and say which item differs
    and how.
    """
    for suite in prepared.suites:
        path = folder / f"{suite.name}.jsonl"
        if path.exists():
            refuse_change(read_frozen(path), suite)
        else:
            write_frozen(suite, path)


def work_of(prepared: PreparedJob) -> Work:
    """What the workers of a job are given."""
    engine = prepared.job.engine
    return Work(
        pool=prepared.pool,
        engine=engine.name or default_engine_name(),
        items=prepared.items,
        objectives=prepared.benchmarks,
        settings={
            "dtype": engine.dtype,
            "max_model_len": prepared.max_model_len(),
            **({"tensor_parallel": engine.tensor_parallel} if engine.tensor_parallel > 1 else {}),
            **(
                {"lora_batch": engine.lora_batch, "adapters": str(prepared.adapters)}
                if engine.lora_batch > 1
                else {}
            ),
        },
    )


def _fidelity(prepared: PreparedJob) -> Fidelity:
    return Fidelity(
        items=tuple(item for item in prepared.items if item.role == "search"),
        objectives=prepared.benchmarks,
        items_per_task=prepared.job.fidelity.items_per_task,
        seed=prepared.job.seed,
        unmerged=prepared.job.engine.lora_batch > 1,
    )


def _planner(prepared: PreparedJob, ledger: Ledger, looks: Looks) -> Planner:
    job = prepared.job
    gram = _gram(prepared, ledger) if job.sampler == "simplex_gp" else None
    return Planner(
        pool=prepared.pool,
        method=job.method,
        dtype=job.engine.dtype,
        space=prepared.space,
        objectives=prepared.objectives,
        num_merges=job.budget.trials,
        seed=job.seed,
        stops=_stops(prepared, ledger, looks),
        needs_members=job.fidelity.items_per_task is not None,
        proposer=make_proposer(
            job.sampler,
            prepared.space,
            prepared.objectives,
            seed=job.seed,
            gram=gram,
            priced=read_costs(ledger, prepared.objectives),
            num_merges=job.budget.trials,
        ),
    )


def _stops(prepared: PreparedJob, ledger: Ledger, looks: Looks) -> tuple[Stop, ...]:
    """What ends the search before its budget does."""
    budget = prepared.job.budget
    plateau = (
        (
            Plateau(
                patience=budget.plateau,
                smoother=_smoother(prepared, ledger),
                objectives=prepared.objectives,
            ),
        )
        if budget.plateau
        else ()
    )
    return plateau + (
        (Spent(least_gain=budget.least_gain, looks=looks),) if budget.least_gain else ()
    )


def _smoother(prepared: PreparedJob, ledger: Ledger) -> SimplexProposer:
    """The model that picks the front, whatever sampler proposed the trials: all are compared by the
    same.
    """
    return SimplexProposer(
        prepared.space,
        prepared.objectives,
        seed=prepared.job.seed,
        gram=_gram(prepared, ledger),
        priced=read_costs(ledger, prepared.objectives),
    )


def _comparable(trials: Sequence[Trial], prepared: PreparedJob) -> list[Trial]:
    return [trial for trial in trials if trial.recipe.method == prepared.job.method]


def _gram(prepared: PreparedJob, ledger: Ledger) -> Gram | None:
    """Inner products of the members' deltas, measured once a run: the ledger keeps them, so a
    resumed run proposes the same.
    """
    _measure_gram(prepared, ledger)
    return json.loads(ledger.fact(GRAM) or "null")


def _measure_gram(prepared: PreparedJob, ledger: Ledger) -> str:
    """Keep the matrix in the ledger, or that there is none; why there is none, for people.

    A bucket that does not give it costs the search some trials and never the job; a run that has
    begun without goes on without.
    """
    if ledger.fact(GRAM) is not None:
        return ""
    gram, why = None, ""
    if not any(trial.is_proposed for trial in ledger.trials()):
        try:
            gram = delta_gram(prepared.pool, seed=prepared.job.seed)
        except (RecyclerError, OSError) as error:
            why = (
                "distances between merges were not measured, so the search goes by the weights "
                f"alone: {error}"
            )
    ledger.set_fact(GRAM, json.dumps(gram))
    return why


def _finished(ledger: Ledger, prepared: PreparedJob) -> bool:
    return (
        ledger.fact("finished") == str(prepared.job.budget.trials)
        and not ledger.counts()["PENDING"]
    )


class _Clock:
    """Wall time and tokens over all sittings of a job, against its budget."""

    def __init__(self, ledger: Ledger, prepared: PreparedJob):
        self._ledger, self._budget = ledger, prepared.job.budget
        self._before, self._start = float(ledger.fact("elapsed_seconds") or 0.0), time.monotonic()

    def within_budget(self) -> bool:
        elapsed = self._before + time.monotonic() - self._start
        if self._budget.wall_seconds is not None and elapsed >= self._budget.wall_seconds:
            return False
        return self._budget.tokens is None or self._ledger.spent()[0] < self._budget.tokens

    def stamp(self, listen: Listener) -> Listener:
        def stamped(event: Event) -> None:
            if event.what != "opened":
                self._ledger.set_fact(
                    "elapsed_seconds", f"{self._before + time.monotonic() - self._start:.1f}"
                )
            listen(event)

        return stamped
