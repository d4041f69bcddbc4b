"""Warm start: copies of comparable trials of earlier runs, which cost a new run nothing.

Only comparable trials are copied: of the very same weight files, frozen items, engine and dtype,
scored on all search items.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from recycler.digest import digest
from recycler.errors import Problem, RecyclerError, UsageError
from recycler.ledger import Ledger
from recycler.ledger.facts import Stamps
from recycler.ledger.runs import open_ledger
from recycler.location import Location
from recycler.objectives.costs import Costs, is_linear
from recycler.results.measured_costs import measured_costs
from recycler.run.run import Run
from recycler.scoring.outcomes import aggregate
from recycler.search.baselines import fixed_baselines
from recycler.types import Checkpoint, Recipe, Scorecard, Trial, TrialKind, scored_trials

LABEL = "earlier: "


@dataclass(frozen=True, slots=True)
class Taken:
    """Outcome of one earlier run: trials copied, and trials left behind.

    Left behind are those that were scored on some items only, or use a member that is not in this
    pool.
    """

    run: str
    num_trials: int
    left: int

    def __str__(self) -> str:
        left = f"; {self.left} of it cannot be used here" if self.left else ""
        return f"{self.num_trials} trials of {self.run} are known already{left}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An earlier run that the job names, and the line of the job that names it."""

    name: str
    where: str
    ledger: Ledger

    def refused(self, cause: str, remedy: str) -> UsageError:
        """The error that says why nothing can be taken from it."""
        return UsageError(
            Problem(thing=f"earlier run {self.name}", cause=cause, remedy=remedy, where=self.where)
        )


def warm_start(run: Run) -> Run:
    """Copy the trials of the runs that the job names under `earlier`, each run once.

    The warnings of the returned run say what came of it. Raises UsageError for a run that cannot be
    compared, before anything is copied from it, and NotFoundError for none.
    """
    if run.facts.stamps is None:  # kept once: later sessions change nothing of it
        run.facts.stamps = make_stamps(run)
    taken = take_trials(run) if run.job.earlier else ()
    return run.warned(*map(str, taken))


def take_trials(run: Run) -> tuple[Taken, ...]:
    """Copy the trials of each earlier run that was not copied yet."""
    done, taken, now = list(run.facts.earlier), [], make_stamps(run)
    costs = measured_costs(run.ledger, run.objectives, run.pool)
    for index, name in enumerate(run.job.earlier):
        if name in done:
            continue
        where = run.document.where(("earlier", index))
        folder = Path(run.document.path).parent
        with closing(_open(name, folder, where)) as ledger:
            source = Source(name=name, where=where, ledger=ledger)
            if ledger.place == run.ledger.place:
                raise source.refused("is this very run", "Leave it out")
            taken.append(_Copier(run, source, costs, now).copy_all())
        done.append(name)
        run.facts.earlier = done
    return tuple(taken)


def make_stamps(run: Run) -> Stamps:
    """Digests of everything that a later run must find unchanged to take trials from this one."""
    settings = run.job.engine
    engine = {"name": run.prepared.engine_name, "dtype": settings.dtype}
    if settings.tensor_parallel > 1:
        engine["tensor_parallel"] = str(settings.tensor_parallel)
    return Stamps(
        checkpoints={checkpoint.name: _stamp(checkpoint) for checkpoint in run.pool.checkpoints},
        items={suite.name: suite.digest for suite in run.prepared.suites},
        engine=engine,
    )


def _open(run: str, folder: Path, where: str) -> Ledger:
    """The ledger of an earlier run; errors name the line of the job."""
    try:
        source = open_ledger(run if "?" in run or Path(run).is_absolute() else folder / run)
        source.facts.require_job()
        return source
    except RecyclerError as error:
        raise type(error)(
            [
                Problem(
                    thing=f"earlier run {run}: {problem.thing}",
                    cause=problem.cause,
                    remedy=problem.remedy,
                    where=where,
                )
                for problem in error.problems
            ]
        ) from None


class _Copier:
    """Copies the trials of one earlier run into the ledger of a run.

    Raises UsageError when their scores cannot be compared.
    """

    def __init__(self, run: Run, source: Source, costs: Costs, now: Stamps):
        self._run, self._source, self._costs = run, source, costs
        before = _comparable_stamps(source, now)
        self._names = {  # of each checkpoint here, by its name there
            name: own
            for own, stamp in now.checkpoints.items()
            for name, other in before.checkpoints.items()
            if stamp == other
        }
        base = source.ledger.facts.require_job().base
        self._base = base[0] if base else ""
        self._own_items = {item.id for item in run.items if item.role == "search"}
        planned = fixed_baselines(run.pool, run.job.engine.dtype)
        self._labels = {(plan.kind, plan.recipe): plan.label for plan in planned}
        known = run.trials()
        self._known = {(trial.kind, trial.recipe) for trial in known}
        self._next = len(known)

    def copy_all(self) -> Taken:
        """Copy what can be used here and is not known already."""
        first, left = self._next, 0
        for trial in scored_trials(self._source.ledger.trials()):
            if not self._copy(trial):
                left += 1
        return Taken(run=self._source.name, num_trials=self._next - first, left=left)

    def _copy(self, trial: Trial) -> bool:
        """Copy a trial that is not known; False when it cannot be used here."""
        recipe = self._in_own_terms(trial.recipe)
        if recipe is None:
            return False
        scorecard = self._source.ledger.scorecard(trial.number, "search")
        asked = {outcome.item for outcome in scorecard.outcomes}
        if not self._has_costs(recipe) or not self._own_items <= asked:
            return False
        # a baseline where it is one of this pool's, else a merge that nobody proposed here
        label = self._labels.get((trial.kind, recipe))
        kind: TrialKind = "merge" if label is None else trial.kind
        if (kind, recipe) in self._known:
            return True
        if label is None:
            name = self._source.name
            label = f"{LABEL}{Path(name.partition('?')[0]).name or name} {trial.number}"
        self._run.ledger.open_trial(self._next, kind, recipe, label=label)
        self._run.ledger.close_trial(self._next, self._own_scores(scorecard, recipe))
        self._known.add((kind, recipe))
        self._next += 1
        return True

    def _own_scores(self, scorecard: Scorecard, recipe: Recipe) -> Scorecard:
        """The scorecard with this job's items, objectives and costs."""
        outcomes = tuple(
            outcome for outcome in scorecard.outcomes if outcome.item in self._own_items
        )
        scores = aggregate(self._run.items, outcomes, self._run.benchmarks)
        own = replace(scorecard, outcomes=outcomes, scores=scores)
        return self._costs.added(own, recipe)

    def _has_costs(self, recipe: Recipe) -> bool:
        """True when this job's costs are known of the merge: distances are of linear ones alone."""
        return self._costs.products is None or is_linear(recipe)

    def _in_own_terms(self, recipe: Recipe) -> Recipe | None:
        """The recipe over this pool's members; None when it lacks one, or acts on another base."""
        pool, names = self._run.pool, self._names
        base = pool.base.name if pool.base else None
        acts_on_other = recipe.base is not None and names.get(self._base) != base
        if acts_on_other or (recipe.base is None) != (base is None):
            return None
        rows = []
        for row in recipe.weights:
            own = dict.fromkeys(pool.names, 0.0)
            for name, weight in zip(recipe.members, row, strict=True):
                if weight == 0.0:
                    continue
                if names.get(name) not in own:
                    return None
                own[names[name]] = weight
            rows.append(tuple(own.values()))
        if recipe.method != "linear" and set(recipe.members) - set(names):
            return None  # other methods may look at members of weight 0 too
        return replace(recipe, members=pool.names, weights=tuple(rows), base=base)


def _comparable_stamps(source: Source, now: Stamps) -> Stamps:
    """Stamps of an earlier run. Raises UsageError unless its scores can be compared."""
    before = source.ledger.facts.stamps
    if before is None:
        raise source.refused(
            "was made before recycler kept what its members were",
            "Run its job once more to add that, or leave it out; --reuse takes its answers in any "
            "case",
        )
    compared = {"items": (before.items, now.items), "engine": (before.engine, now.engine)}
    different = [name for name, (theirs, ours) in compared.items() if theirs != ours]
    if different:
        raise source.refused(
            f"has other {' and '.join(different)}: {_difference(*compared[different[0]])}",
            "Only scores of the same items by the same engine can be compared; leave it out",
        )
    return before


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    keys = before.keys() | now.keys()
    return ", ".join(
        f"{key} {before.get(key, 'none')[:12]} there and {now.get(key, 'none')[:12]} here"
        for key in sorted(keys)
        if before.get(key) != now.get(key)
    )


def _stamp(checkpoint: Checkpoint) -> str:
    """A digest of a checkpoint without reading its tensors.

    It covers its place, and size and time of its weight files, or their etags in a bucket.
    """
    files: dict[Location, str] = {}
    for tensor in checkpoint.tensors.values():
        if tensor.file not in files:
            files[tensor.file] = tensor.etag or _size_and_time(Path(str(tensor.file)))
    place = str(checkpoint.location.resolved())
    stamps = sorted((Path(str(file)).name, stamp) for file, stamp in files.items())
    return digest([place, stamps])


def _size_and_time(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"
