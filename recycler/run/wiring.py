"""Parts of a run, made from a prepared job and its ledger."""

from __future__ import annotations

from collections.abc import Sequence

from recycler.cluster.workers import Work
from recycler.engines import default_engine_name
from recycler.errors import RecyclerError
from recycler.ledger import Ledger
from recycler.pool.geometry.gram import delta_gram
from recycler.results.measured_costs import read_costs
from recycler.run.fidelity import Fidelity
from recycler.run.plateau import Plateau
from recycler.run.prepare import PreparedJob
from recycler.run.schedule import Planner, Stop
from recycler.search.outlook import Looks, Spent
from recycler.search.proposer import make_proposer
from recycler.search.simplex.proposer import Gram, SimplexProposer
from recycler.types import Trial


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
    return ledger.facts.gram


def _measure_gram(prepared: PreparedJob, ledger: Ledger) -> str:
    """Keep the matrix in the ledger, or that there is none; why there is none, for people.

    A bucket that does not give it costs the search some trials and never the job; a run that has
    begun without goes on without.
    """
    if ledger.facts.has_gram:
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
    ledger.facts.gram = gram
    return why
