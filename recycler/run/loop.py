"""The loop: ask, open, submit, wait, close. Everything it calls can be faked.

A driver killed at any moment and started again goes on where it was: trials it had opened are
submitted again, nothing is proposed twice, and what the proposer asks for depends on the ledger
alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from recycler.cluster.workers import Request, Result, Workers
from recycler.errors import InfrastructureError, Problem
from recycler.ledger import Ledger
from recycler.run.fidelity import Fidelity
from recycler.run.schedule import Planner
from recycler.types import Failure, Recipe, Role, Score, Scorecard, Trial

MAX_SYSTEM_FAILURES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A step of a run that the user may want to watch."""

    what: Literal["resumed", "opened", "scored", "failed", "noted", "completed", "holdout"]
    trial: Trial
    fraction: float = 0.0  # of the completing or holdout scoring that is done
    gain: float | None = None  # forecast of the share of hypervolume that the next trials add
    notes: tuple[str, ...] = ()  # lines for the user


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
    """Score baselines and proposals until none is left or the budget is spent; return all trials.

    With `fidelity` proposals are scored on some items; without, everything is on all.
    """
    state = _Search(planner, ledger, workers, listen, fidelity)
    state.resume()
    while True:
        while state.has_room and state.open_next(may_propose=within_budget()):
            pass
        if not state.in_flight:
            return tuple(state.trials.values())
        for result in workers.wait():
            state.collect(result)


@dataclass
class _Search:
    """State of a search; all of it but `in_flight` and `system_failures` is in the ledger too."""

    planner: Planner
    ledger: Ledger
    workers: Workers
    listen: Listener
    fidelity: Fidelity | None
    trials: dict[int, Trial] = field(default_factory=dict)
    scored: dict[Recipe, int] = field(default_factory=dict)  # the first trial of each recipe
    in_flight: set[int] = field(default_factory=set)
    system_failures: int = 0  # in a row

    @property
    def has_room(self) -> bool:
        """True while a worker has nothing to do."""
        return len(self.in_flight) < self.workers.num_workers

    def resume(self) -> None:
        """Read the ledger, and submit the trials that were open when the last driver ended."""
        for trial in self.ledger.trials():
            self.trials[trial.number] = trial
            if trial.state == "SCORED":
                self.scored.setdefault(trial.recipe, trial.number)
        for trial in self.trials.values():
            if trial.state == "PENDING":
                self._submit(trial)
                self.listen(Event(what="resumed", trial=trial))

    def open_next(self, *, may_propose: bool) -> bool:
        """Open and submit the next planned trial; False when there is none.

        A trial whose recipe was scored before takes the scores of that one.
        """
        planned = self.planner.next(tuple(self.trials.values()), may_propose=may_propose)
        if planned is None:
            return False
        plan, params = planned
        trial = Trial(
            number=len(self.trials),
            kind=plan.kind,
            label=plan.label,
            state="PENDING",
            recipe=plan.recipe,
            params=params,
        )
        self.ledger.open_trial(
            trial.number, trial.kind, trial.recipe, label=trial.label, params=params
        )
        self.trials[trial.number] = trial
        twin = self.scored.get(trial.recipe)
        if twin is not None:
            self._copy(self.trials[twin], trial)
        else:
            self._submit(trial)
            self.listen(Event(what="opened", trial=trial))
        return True

    def collect(self, result: Result) -> None:
        """Write a result down, then tell of it.

        Raises InfrastructureError after too many failures of the system in a row.
        """
        self.in_flight.discard(result.number)
        trial, answer = self.trials[result.number], result.answer
        if isinstance(answer, Failure):
            self.ledger.fail_trial(trial.number, answer)
            self._close(replace(trial, state="FAILED", failure=answer), "failed")
            self._count_system_failures(answer)
            return
        if self.fidelity and self.fidelity.drawn(trial) is not None:
            answer = self.fidelity.estimated(answer, self.ledger, self.trials)
        self.ledger.close_trial(trial.number, answer)
        scores, weights = _in_order(answer), answer.weights_digest
        self._close(replace(trial, state="SCORED", search=scores, weights_digest=weights), "scored")
        self.scored.setdefault(trial.recipe, trial.number)
        self.system_failures = 0

    def _submit(self, trial: Trial) -> None:
        request = Request(number=trial.number, recipe=trial.recipe, role="search")
        if self.fidelity:
            request = replace(
                request,
                items=self.fidelity.drawn(trial),
                gated=self.fidelity.is_gated(trial, self.ledger, self.trials),
                unmerged=self.fidelity.unmerged and trial.is_proposed,
            )
        self.workers.submit(request)
        self.in_flight.add(trial.number)

    def _copy(self, twin: Trial, trial: Trial) -> None:
        """Close a trial with the scores of a twin, which has the same recipe."""
        self.ledger.close_trial(trial.number, self.ledger.scorecard(twin.number, "search"))
        scores, weights = twin.search, twin.weights_digest
        self._close(replace(trial, state="SCORED", search=scores, weights_digest=weights), "scored")

    def _close(self, trial: Trial, what: Literal["scored", "failed"]) -> None:
        self.trials[trial.number] = trial
        self.listen(Event(what=what, trial=trial))

    def _count_system_failures(self, failure: Failure) -> None:
        blames_system = failure.blame == "system"
        self.system_failures = self.system_failures + 1 if blames_system else 0
        if self.system_failures >= MAX_SYSTEM_FAILURES:
            raise InfrastructureError(
                Problem(
                    thing="workers",
                    cause=f"{self.system_failures} trials in a row failed through no fault of "
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
    """Finalists that `choose` names, each merged and scored on all search items.

    They are asked the items that they lack. Their new scores may make others finalists, so this
    goes on until all are complete.
    """
    while True:
        finalists = choose(ledger.trials())
        partial = [trial for trial in finalists if not fidelity.is_whole(trial)]
        if not partial:
            return finalists
        _complete_all(partial, ledger, workers, fidelity, listen)


def _complete_all(
    trials: Sequence[Trial],
    ledger: Ledger,
    workers: Workers,
    fidelity: Fidelity,
    listen: Listener,
) -> None:
    before = {}
    for trial in trials:
        # an answer of adapters side by side is no answer of the merge
        kept = () if trial.is_unmerged else ledger.outcomes(trial.number, "search")
        before[trial.number] = kept

    def write(trial: Trial, scorecard: Scorecard) -> Trial:
        whole = fidelity.joined(before[trial.number], scorecard)
        ledger.extend_trial(trial.number, whole)
        return replace(trial, search=_in_order(whole), weights_digest=whole.weights_digest)

    items = [fidelity.missing(before[trial.number]) for trial in trials]
    _score_finalists("search", "completed", trials, items, workers, write, listen)


def score_holdout(
    finalists: Sequence[Trial], ledger: Ledger, workers: Workers, *, listen: Listener
) -> None:
    """Score each finalist on the holdout items, once.

    Search scores chose the finalists, holdout scores are reported.
    """

    def write(trial: Trial, scorecard: Scorecard) -> Trial:
        ledger.add_holdout(trial.number, scorecard)
        return replace(trial, holdout=_in_order(scorecard))

    first = {trial.recipe: trial for trial in reversed(finalists)}
    lacking = [trial for trial in finalists if not trial.holdout]
    waiting = [trial for trial in lacking if first[trial.recipe] is trial]
    _score_finalists("holdout", "holdout", waiting, [None] * len(waiting), workers, write, listen)
    for trial in lacking:
        if first[trial.recipe] is not trial:
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
    """Score each trial on its items, as many at once as there are workers.

    Each is written down as its result comes. Raises InfrastructureError for one that fails.
    """
    by_number = {trial.number: trial for trial in trials}
    waiting = deque(
        Request(number=trial.number, recipe=trial.recipe, role=role, items=own)
        for trial, own in zip(trials, items, strict=True)
    )
    in_flight = 0
    while waiting or in_flight:
        while waiting and in_flight < workers.num_workers:
            workers.submit(waiting.popleft())
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
            fraction = 1.0 - (len(waiting) + in_flight) / len(trials)
            listen(Event(what=what, trial=written, fraction=fraction))


def _in_order(scorecard: Scorecard) -> tuple[Score, ...]:
    return tuple(sorted(scorecard.scores, key=lambda score: score.objective))
