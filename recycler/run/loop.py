"""The loop: ask, open, submit, wait, close. Everything it calls can be faked.

A driver killed at any moment and started again goes on where it was: trials it had opened are
submitted again, nothing is proposed twice, and what the proposer asks for depends on the ledger
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from recycler.cluster.workers import Workers
from recycler.errors import InfrastructureError, Problem
from recycler.ledger import Ledger
from recycler.run.fidelity import Fidelity
from recycler.run.schedule import Planner
from recycler.types import Failure, Role, Scorecard, Trial

MAX_SYSTEM_FAILURES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a person watching would want to know."""

    what: Literal["resumed", "opened", "scored", "failed", "noted", "completed", "holdout"]
    trial: Trial
    fraction: float = 0.0  # of the completing or holdout scoring that is done
    gain: float | None = (
        # of the front's hypervolume that the next trials are expected to add, where it was asked
        None
    )
    notes: tuple[str, ...] = ()  # lines for that person


Listener = Callable[[Event], None]


def search(
    planner: Planner,
    ledger: Ledger,
    workers: Workers,
    *,
    within_budget: Callable[[], bool],
    listen: Listener,
    fidelity: Fidelity | None = None,
) -> tuple[Trial, ...]:
    """Score baselines and proposals until nothing is left to do or the budget is spent; return all
    trials.

    With `fidelity` proposals are scored on some items; without, everything is on all.
    """

    def submit(trial: Trial) -> None:
        items, gated = (
            (fidelity.drawn(trial), fidelity.is_gated(trial, ledger, trials))
            if fidelity
            else (None, False)
        )
        unmerged = (
            {"unmerged": True} if fidelity and fidelity.unmerged and trial.is_proposed else {}
        )
        workers.submit(trial.number, trial.recipe, "search", items, gated, **unmerged)
        in_flight.add(trial.number)

    trials = {trial.number: trial for trial in ledger.trials()}
    scored = {
        trial.recipe: trial.number for trial in reversed(trials.values()) if trial.state == "SCORED"
    }
    in_flight, system_failures = set(), 0
    for trial in trials.values():
        if trial.state == "PENDING":
            submit(trial)
            listen(Event(what="resumed", trial=trial))
    while True:
        while len(in_flight) < workers.num_workers and (
            planned := planner.next(tuple(trials.values()), may_propose=within_budget())
        ):
            plan, params = planned
            trial = Trial(
                number=len(trials),
                kind=plan.kind,
                label=plan.label,
                state="PENDING",
                recipe=plan.recipe,
                params=params,
            )
            ledger.open_trial(
                trial.number, trial.kind, trial.recipe, label=trial.label, params=params
            )
            trials[trial.number] = trial
            if (twin := trials.get(scored.get(trial.recipe, -1))) is not None:
                ledger.close_trial(trial.number, ledger.scorecard(twin.number, "search"))
                trials[trial.number] = replace(
                    twin,
                    number=trial.number,
                    kind=trial.kind,
                    label=trial.label,
                    params=params,
                    holdout=(),
                )
                listen(Event(what="scored", trial=trials[trial.number]))
                continue
            submit(trial)
            listen(Event(what="opened", trial=trial))
        if not in_flight:
            return tuple(trials.values())
        for result in workers.wait():
            in_flight.discard(result.number)
            answer = result.answer
            if (
                fidelity
                and isinstance(answer, Scorecard)
                and fidelity.drawn(trials[result.number]) is not None
            ):
                answer = fidelity.estimated(answer, ledger, trials)
            trials[result.number] = _close(ledger, trials[result.number], answer, listen)
            if trials[result.number].state == "SCORED":
                scored.setdefault(trials[result.number].recipe, result.number)
            failure = trials[result.number].failure
            system_failures = system_failures + 1 if failure and failure.blame == "system" else 0
            if system_failures >= MAX_SYSTEM_FAILURES:
                raise InfrastructureError(
                    Problem(
                        thing="workers",
                        cause=f"{system_failures} trials in a row failed through no fault of "
                        f"theirs, the last with: {failure.reason}",
                        remedy="Mend that and run the same command again; scored trials are kept",
                    )
                )


def complete(
    choose: Callable[[Sequence[Trial]], Sequence[Trial]],
    ledger: Ledger,
    workers: Workers,
    fidelity: Fidelity,
    *,
    listen: Listener,
) -> Sequence[Trial]:
    """The finalists that `choose` names, each merged and scored on all search items: those it lacks
    are asked. That may bring others up.
    """

    def write(trial: Trial, scorecard: Scorecard) -> Trial:
        whole = fidelity.joined(before[trial.number], scorecard)
        ledger.extend_trial(trial.number, whole)
        return replace(trial, search=_in_order(whole), weights_digest=whole.weights_digest)

    while True:
        finalists = choose(ledger.trials())
        partial = [trial for trial in finalists if not fidelity.is_whole(trial)]
        if not partial:
            return finalists
        before = {
            trial.number: () if trial.is_unmerged else ledger.outcomes(trial.number, "search")
            for trial in partial
        }  # what an adapter answered is no answer of the merge
        _score_finalists(
            "search",
            "completed",
            partial,
            [fidelity.missing(before[trial.number]) for trial in partial],
            workers,
            write,
            listen,
        )


def score_holdout(
    finalists: Sequence[Trial], ledger: Ledger, workers: Workers, *, listen: Listener
) -> None:
    """Score each finalist on the holdout items, once; search scores chose them, holdout scores are
    reported.
    """

    def write(trial: Trial, scorecard: Scorecard) -> Trial:
        ledger.add_holdout(trial.number, scorecard)
        return replace(trial, holdout=_in_order(scorecard))

    first = {trial.recipe: trial for trial in reversed(finalists)}
    waiting = [trial for trial in finalists if not trial.holdout and first[trial.recipe] is trial]
    _score_finalists("holdout", "holdout", waiting, [None] * len(waiting), workers, write, listen)
    for trial in finalists:
        if not trial.holdout and first[trial.recipe] is not trial:
            write(trial, ledger.scorecard(first[trial.recipe].number, "holdout"))


def _score_finalists(
    role: Role,
    what: Literal["completed", "holdout"],
    trials: Sequence[Trial],
    items: Sequence[tuple[str, ...] | None],
    workers: Workers,
    write: Callable[[Trial, Scorecard], Trial],
    listen: Listener,
) -> None:
    """Score all of them on their items, as many at a time as there are workers, and write each down
    as it comes.
    """
    waiting, by_number = (
        list(zip(trials, items, strict=True)),
        {trial.number: trial for trial in trials},
    )
    in_flight, total = 0, len(waiting)
    while waiting or in_flight:
        while waiting and in_flight < workers.num_workers:
            trial, own = waiting.pop(0)
            workers.submit(trial.number, trial.recipe, role, own)
            in_flight += 1
        for result in workers.wait():
            in_flight -= 1
            if isinstance(result.answer, Failure):
                raise InfrastructureError(
                    Problem(
                        thing=f"trial {result.number}",
                        cause=f"could not be scored on the {role} items ({result.answer.reason})",
                        remedy="Run the same command again; nothing else is repeated",
                    )
                )
            written = write(by_number[result.number], result.answer)
            listen(
                Event(what=what, trial=written, fraction=1.0 - (len(waiting) + in_flight) / total)
            )


def _close(ledger: Ledger, trial: Trial, answer: Scorecard | Failure, listen: Listener) -> Trial:
    """Write the answer down, then tell."""
    if isinstance(answer, Failure):
        ledger.fail_trial(trial.number, answer)
        closed = replace(trial, state="FAILED", failure=answer)
        listen(Event(what="failed", trial=closed))
        return closed
    ledger.close_trial(trial.number, answer)
    closed = replace(
        trial, state="SCORED", search=_in_order(answer), weights_digest=answer.weights_digest
    )
    listen(Event(what="scored", trial=closed))
    return closed


def _in_order(scorecard: Scorecard) -> tuple:
    return tuple(sorted(scorecard.scores, key=lambda score: score.objective))
