"""Trials of earlier runs on the same members and items count: they are copied into a new run's
ledger and cost nothing.

Only what can be compared is taken: the very same weight files, frozen items, engine and dtype,
scored on all search items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from recycler.digest import digest
from recycler.errors import Problem, RecyclerError, UsageError
from recycler.ledger import Ledger
from recycler.ledger.facts import Stamps
from recycler.ledger.runs import open_ledger
from recycler.objectives.costs import Costs, is_linear
from recycler.results.measured_costs import measured_costs
from recycler.run.prepare import PreparedJob
from recycler.scoring.outcomes import aggregate
from recycler.search.baselines import fixed_baselines
from recycler.types import Checkpoint, Recipe

LABEL = "earlier: "


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of one earlier run: trials copied, and left behind because they were scored on some
    items only or use a member that is not in this pool.
    """

    run: str
    num_trials: int
    left: int


def write_stamps(ledger: Ledger, prepared: PreparedJob, engine: str) -> None:
    """Keep what a later run must find unchanged to take trials from this one.

    Once: later sittings change nothing of it.
    """
    if ledger.facts.stamps is None:
        ledger.facts.stamps = _stamps(prepared, engine)


def take_earlier(
    ledger: Ledger, prepared: PreparedJob, engine: str, folder: Path
) -> tuple[Taken, ...]:
    """Copy the trials of the runs that the job names under `earlier` into its own ledger; what is
    there already stays.

    Raises UsageError for a run that cannot be compared, before anything is copied from it, and
    NotFoundError for none.
    """
    if not prepared.job.earlier:
        return ()
    done, now = list(ledger.facts.earlier), _stamps(prepared, engine)
    priced, taken = measured_costs(ledger, prepared.objectives, prepared.pool), []
    for index, run in enumerate(prepared.job.earlier):
        if run in done:
            continue
        where = prepared.document.where(("earlier", index))
        with closing(_open(run, folder, where)) as source:
            if source.place == ledger.place:
                raise UsageError(
                    Problem(
                        thing=f"earlier run {run}",
                        cause="is this very run",
                        remedy="Leave it out",
                        where=where,
                    )
                )
            taken.append(_take(source, run, ledger, prepared, priced, now, where))
        done.append(run)
        ledger.facts.earlier = done
    return tuple(taken)


def _open(run: str, folder: Path, where: str) -> Ledger:
    """The ledger of an earlier run, errors told with the line of the job that names it."""
    try:
        source = open_ledger(run if "?" in run or Path(run).is_absolute() else folder / run)
        source.facts.started_job  # noqa: B018 - raises for a ledger that has none
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


def _take(
    source: Ledger,
    run: str,
    ledger: Ledger,
    prepared: PreparedJob,
    priced: Costs,
    now: Stamps,
    where: str,
) -> Taken:
    before = source.facts.stamps
    if before is None:
        raise UsageError(
            Problem(
                thing=f"earlier run {run}",
                cause="was made before recycler kept what its members were",
                remedy="Run its job once more to add that, or leave it out; --reuse takes its "
                "answers in any case",
                where=where,
            )
        )
    compared = {"items": (before.items, now.items), "engine": (before.engine, now.engine)}
    different = [name for name, (theirs, ours) in compared.items() if theirs != ours]
    if different:
        raise UsageError(
            Problem(
                thing=f"earlier run {run}",
                cause=f"has other {' and '.join(different)}: "
                f"{_difference(*compared[different[0]])}",
                remedy="Only scores of the same items by the same engine can be compared; leave it "
                "out",
                where=where,
            )
        )
    names = {
        before_name: own
        for own, stamp in now.checkpoints.items()
        for before_name, other in before.checkpoints.items()
        if stamp == other
    }
    own_items = {item.id for item in prepared.items if item.role == "search"}
    known = ledger.trials()
    there = {(trial.kind, trial.recipe) for trial in known}
    number, copied, left, base = len(known), 0, 0, source.facts.started_job.pool.base
    baselines = {
        (planned.kind, planned.recipe): planned.label
        for planned in fixed_baselines(prepared.pool, prepared.job.engine.dtype)
    }
    for trial in source.trials():
        if trial.state != "SCORED":
            continue
        recipe = _in_terms_of(trial.recipe, names, prepared, base_name=base.name if base else None)
        scorecard = source.scorecard(trial.number, "search") if recipe else None
        if (
            recipe is None
            or not _can_be_priced(recipe, priced)
            or not own_items <= {outcome.item for outcome in scorecard.outcomes}
        ):
            left += 1
            continue
        label = baselines.get(
            (trial.kind, recipe)
        )  # a baseline where it is one of this pool's, else a merge that nobody proposed here
        kind = "merge" if label is None else trial.kind
        if (kind, recipe) in there:
            continue
        outcomes = tuple(outcome for outcome in scorecard.outcomes if outcome.item in own_items)
        ledger.open_trial(
            number,
            kind,
            recipe,
            label=f"{LABEL}{Path(run.partition('?')[0]).name or run} {trial.number}"
            if label is None
            else label,
        )
        ledger.close_trial(
            number,
            priced.added(
                replace(
                    scorecard,
                    outcomes=outcomes,
                    scores=aggregate(prepared.items, outcomes, prepared.benchmarks),
                ),
                recipe,
            ),
        )
        there.add((kind, recipe))
        number, copied = number + 1, copied + 1
    return Taken(run=run, num_trials=copied, left=left)


def _in_terms_of(
    recipe: Recipe, names: dict[str, str], prepared: PreparedJob, base_name: str | None
) -> Recipe | None:
    """The recipe over this pool's members; None when it needs a checkpoint that this pool lacks, or
    acts on another base.
    """
    base = prepared.pool.base.name if prepared.pool.base else None
    if (
        recipe.base is not None
        and names.get(base_name or "") != base
        or (recipe.base is None) != (base is None)
    ):
        return None
    rows = []
    for row in recipe.weights:
        own = dict.fromkeys(prepared.pool.names, 0.0)
        for name, weight in zip(recipe.members, row, strict=True):
            if weight == 0.0:
                continue
            if names.get(name) not in own:
                return None
            own[names[name]] = weight
        rows.append(tuple(own.values()))
    if recipe.method != "linear" and set(recipe.members) - set(names):
        return None  # other methods may look at members of weight 0 too
    return replace(recipe, members=prepared.pool.names, weights=tuple(rows), base=base)


def _can_be_priced(recipe: Recipe, priced: Costs) -> bool:
    """Whether this job's costs are known of the merge: distances are of linear ones alone."""
    return priced.products is None or is_linear(recipe)


def _stamps(prepared: PreparedJob, engine: str) -> Stamps:
    settings = prepared.job.engine
    own = {"name": engine, "dtype": settings.dtype}
    if settings.tensor_parallel > 1:
        own["tensor_parallel"] = str(settings.tensor_parallel)
    return Stamps(
        checkpoints={
            checkpoint.name: _stamp(checkpoint) for checkpoint in prepared.pool.checkpoints
        },
        items={suite.name: suite.digest for suite in prepared.suites},
        engine=own,
    )


def _stamp(checkpoint: Checkpoint) -> str:
    """A checkpoint without reading it: its place, and size and time of its weight files, or their
    etags in a bucket.
    """
    files = {}
    for tensor in checkpoint.tensors.values():
        if tensor.file not in files:
            files[tensor.file] = tensor.etag or _size_and_time(Path(tensor.file))
    place = (
        checkpoint.location
        if "://" in checkpoint.location
        else str(Path(checkpoint.location).resolve())
    )
    return digest([place, sorted((Path(file).name, str(stamp)) for file, stamp in files.items())])


def _size_and_time(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return ", ".join(
        f"{key} {before.get(key, 'none')[:12]} there and {now.get(key, 'none')[:12]} here"
        for key in changed
    )


def taken_lines(taken: Sequence[Taken]) -> list[str]:
    """One sentence a run for people."""
    return [
        f"{found.num_trials} trials of {found.run} are known "
        f"already{f'; {found.left} of it cannot be used here' if found.left else ''}"
        for found in taken
    ]
