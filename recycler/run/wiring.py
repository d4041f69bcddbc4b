"""Parts of a run, made from the run: workers, proposer, planner, stops, fidelity, listeners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recycler.cluster.workers import Work, Workers
from recycler.errors import RecyclerError
from recycler.pool.geometry.gram import delta_gram
from recycler.results.front import read_front
from recycler.results.insight import write_space
from recycler.results.measured_costs import measured_costs, read_costs
from recycler.results.notices import Notices
from recycler.run.clock import Clock
from recycler.run.cost_workers import CostWorkers
from recycler.run.fidelity import Fidelity
from recycler.run.listeners import GainForecasts, Listeners, MemberPreview, NoiseNotices
from recycler.run.loop import Event, Listener
from recycler.run.plateau import Plateau
from recycler.run.prepared import PreparedJob
from recycler.run.run import Run
from recycler.run.schedule import Planner, Stop
from recycler.search.outlook import GainForecast, SmallGain
from recycler.search.proposer import make_proposer
from recycler.search.refine import with_refined
from recycler.search.simplex.proposer import SimplexProposer
from recycler.types import Trial

MakeWorkers = Callable[[Work, int], Workers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Parts of one session of a run, wired together."""

    run: Run
    clock: Clock
    fidelity: Fidelity
    planner: Planner
    preview: MemberPreview
    listen: Listener

    def announce_members(self) -> None:
        """Tell what a resumed run knows already, since its members have no event of their own."""
        known = self.run.trials()
        if known:
            notes = self.preview.notes()
            self.listen(Event(what="noted", trial=known[0], notes=notes))

    def announce_exhausted(self, trials: Sequence[Trial]) -> None:
        """Tell of a search that has tried all that its space allows before its budget is spent."""
        if not self.clock.within_budget() or not self.planner.exhausted(trials):
            return
        is_grid = self.run.job.sampler == "grid"
        nothing = "no point of the grid" if is_grid else "nothing that the space allows"
        proposed = sum(trial.is_proposed for trial in trials)
        note = (
            f"{nothing} is left to try: the search ends with {proposed} of its "
            f"{self.planner.num_merges} merges proposed"
        )
        self.listen(Event(what="noted", trial=trials[-1], notes=(note,)))

    def finalists(self, trials: Sequence[Trial]) -> tuple[Trial, ...]:
        """Write the posterior scores down; the finalists of the front as it stands."""
        run = self.run
        own = [trial for trial in trials if trial.recipe.method == run.job.method]
        smoothed = with_refined(make_smoother(run).smoothed(own), trials)
        run.facts.smoothed = smoothed
        front = read_front(
            trials, run.objectives, run.pool, run.job.engine.dtype, smoothed=run.facts.smoothed
        )
        return front.finalists


def wire(run: Run, listen: Listener) -> Parts:
    """Make the parts of a session; `listen` hears each event last, with all notes added."""
    clock = Clock(run)
    write_space(run.ledger, run.space, run.job.method)
    forecast = GainForecast(proposer=make_smoother(run))
    planner = make_planner(run, forecast)
    notices = Notices(ledger=run.ledger, proposer=forecast.proposer)
    preview = MemberPreview(run=run, notices=notices)
    noise = NoiseNotices(run=run, planner=planner, notices=notices)
    forecasts = GainForecasts(run, planner, forecast, notices)
    return Parts(
        run=run,
        clock=clock,
        fidelity=make_fidelity(run),
        planner=planner,
        preview=preview,
        listen=Listeners(annotators=(clock.stamp, preview, noise, forecasts), last=listen),
    )


def wire_workers(run: Run, make_workers: MakeWorkers, reuse: Path | None) -> Workers:
    """Workers of a run that add costs to scorecards; costs are measured before any starts."""
    costs = measured_costs(run.ledger, run.objectives, run.pool)
    work = work_of(run.prepared)
    if reuse:
        work = replace(work, reuse=str(reuse.absolute()))
    return CostWorkers(make_workers(work, run.job.engine.workers), costs)


def work_of(prepared: PreparedJob) -> Work:
    """Everything that each worker of a job holds."""
    engine = prepared.job.engine
    settings: dict[str, Any] = {
        "dtype": engine.dtype,
        "max_model_len": prepared.max_model_len(),
    }
    if engine.tensor_parallel > 1:
        settings["tensor_parallel"] = engine.tensor_parallel
    if engine.lora_batch > 1:
        settings |= {"lora_batch": engine.lora_batch, "adapters": str(prepared.adapters)}
    return Work(
        pool=prepared.pool,
        engine=prepared.engine_name,
        items=prepared.items,
        objectives=prepared.benchmarks,
        settings=settings,
    )


def make_fidelity(run: Run) -> Fidelity:
    """The rules by which trials are asked a part of the search items."""
    return Fidelity(
        items=tuple(item for item in run.items if item.role == "search"),
        objectives=run.benchmarks,
        items_per_task=run.job.fidelity.items_per_task,
        seed=run.job.seed,
        unmerged=run.job.engine.lora_batch > 1,
    )


def make_planner(run: Run, forecast: GainForecast) -> Planner:
    """The planner of a run, with the proposer of its sampler and what stops it early."""
    job = run.job
    gram = run.facts.gram if job.sampler == "simplex_gp" else None
    return Planner(
        pool=run.pool,
        method=job.method,
        dtype=job.engine.dtype,
        space=run.space,
        objectives=run.objectives,
        num_merges=job.budget.trials,
        seed=job.seed,
        stops=_make_stops(run, forecast),
        needs_members=job.fidelity.items_per_task is not None,
        proposer=make_proposer(
            job.sampler,
            run.space,
            run.objectives,
            seed=job.seed,
            gram=gram,
            known_costs=read_costs(run.ledger, run.objectives),
            num_merges=job.budget.trials,
        ),
    )


def _make_stops(run: Run, forecast: GainForecast) -> tuple[Stop, ...]:
    """Rules that end the search before its budget does."""
    budget, stops = run.job.budget, list[Stop]()
    if budget.plateau:
        smoother = make_smoother(run)
        stops.append(Plateau(patience=budget.plateau, smoother=smoother, objectives=run.objectives))
    if budget.least_gain:
        stops.append(SmallGain(least_gain=budget.least_gain, forecast=forecast))
    return tuple(stops)


def make_smoother(run: Run) -> SimplexProposer:
    """The model that picks the front: the same for all trials, whatever sampler proposed them."""
    return SimplexProposer(
        run.space,
        run.objectives,
        seed=run.job.seed,
        gram=run.facts.gram,
        known_costs=read_costs(run.ledger, run.objectives),
    )


def measure_gram(run: Run) -> Run:
    """Keep the Gram matrix in the ledger once, or that there is none, with a warning that says why.

    The ledger keeps it, so a resumed run proposes the same. A bucket that does not give it costs
    the search some trials and never the job; a run that has begun without it goes on without.
    """
    if run.facts.has_gram:
        return run
    gram, warning = None, ""
    if not any(trial.is_proposed for trial in run.trials()):
        try:
            gram = delta_gram(run.pool, seed=run.job.seed)
        except (RecyclerError, OSError) as error:
            warning = (
                "distances between merges were not measured, so the search goes by the weights "
                f"alone: {error}"
            )
    run.facts.gram = gram
    return run.warned(warning)
