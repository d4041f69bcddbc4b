"""The front as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recycler.cli.tables import align
from recycler.ledger.runs import noise_said
from recycler.objectives.costs import benchmarks
from recycler.results.documents import search_to_holdout, weights_by_group
from recycler.results.front import Front, knee
from recycler.results.preview import tradeoffs
from recycler.types import Role, Trial

MAX_WEIGHT_ROWS = 4  # that are shown one by one; more are summed up


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trial of the table."""

    number: str
    called: str
    figures: tuple[str, ...]  # one per objective
    share: str = ""  # probability to be on the front
    observed: str = ""  # "yes" on the front of observed scores
    weights: str = ""

    def cells(self, with_observed: bool) -> list[str]:
        """Cells in the table's order; `observed` only where the table has that column."""
        observed = [self.observed] if with_observed else []
        return [self.number, self.called, *self.figures, self.share, *observed, self.weights]


def front_table(front: Front, role: Role = "search") -> str:
    """Notices, front, lucky merges, baselines and hypervolumes, as `recycler front` prints them.

    Search scores are shown where not every merge of the front has holdout scores.
    """
    if role == "holdout" and not all(trial.holdout for trial in front.front):
        role = "search"
    picked = "posterior score" if front.smoothed else "search score"
    return (
        f"{_notices(front)}Pareto front (picked by {picked}), {role} scores (± standard error)\n"
        f"{align(_table(front, role))}\n"
        f"hypervolume on {role}: {_hypervolumes(front, role)}\n{_gaps(front)}"
    )


def _table(front: Front, role: Role) -> list[list[str]]:
    """Header, front, merges that only their observed scores put on it, other baselines.

    Before the search ends the observed front is the front, and has no column of its own.
    """
    observed = {trial.number for trial in front.observed} if front.smoothed else None
    on_front = {trial.number for trial in front.front}
    baselines = [trial for trial in front.baselines if trial.number not in on_front]
    named = on_front | {trial.number for trial in front.baselines}
    lucky = [trial for trial in front.observed if trial.number not in named]
    header = Row(
        number="trial",
        called="what",
        figures=tuple(objective.name for objective in front.objectives),
        share="on front",
        observed="observed",
        weights="weights",
    )
    sections = [_merge_rows(front, front.front, role, observed)]
    if lucky:
        sections.append(_merge_rows(front, lucky, role, observed))
    sections.append([_row(front, trial, role, observed) for trial in baselines])
    table = [header.cells(observed is not None)]
    for index, section in enumerate(sections):
        table += [[]] if index else []  # a rule
        table += [row.cells(observed is not None) for row in section]
    return table


def _merge_rows(
    front: Front, trials: Sequence[Trial], role: Role, observed: set[int] | None
) -> list[Row]:
    """Rows with weights and probability, by number; the knee is marked."""
    chosen, rows = knee(front), []
    for trial in sorted(trials, key=lambda trial: trial.number):
        share = f"{front.probability[trial.number]:.0%}"
        mark = " (knee)" if trial is chosen else ""
        row = _row(
            front, trial, role, observed, mark=mark, share=share, weights=weights_text(trial)
        )
        rows.append(row)
    return rows


def _row(
    front: Front,
    trial: Trial,
    role: Role,
    observed: set[int] | None,
    *,
    mark: str = "",
    share: str = "",
    weights: str = "",
) -> Row:
    scores = {score.objective: score for score in trial.scores(role)}
    names = [objective.name for objective in front.objectives]
    return Row(
        number=str(trial.number),
        called=front.names[trial.number] + mark,
        figures=tuple(scores[name].text() if name in scores else "-" for name in names),
        share=share,
        observed="yes" if observed and trial.number in observed else "",
        weights=weights,
    )


def _notices(front: Front) -> str:
    """Benchmarks that do not trade off, uninformative objectives, floors that none keeps."""
    lines = [*_together(front), *map(noise_said, front.smoothed.uninformative)]
    if not front.floors_kept:
        lines.append("No trial keeps every floor: this is the front without floors")
    return "".join(f"{line}\n" for line in lines)


def _together(front: Front) -> list[str]:
    """Benchmarks that do not trade off over the members, once all of these are scored."""
    if len(front.members) < len(front.members[0].recipe.members):
        return []
    pairs = tradeoffs(front.members, benchmarks(front.objectives))
    return [str(pair) for pair in pairs if pair.together]


def _hypervolumes(front: Front, role: Role) -> str:
    sets: Mapping[str, Sequence[Trial | None]] = {
        "front": front.front,
        "members": front.members,
        "uniform soup": [front.uniform],
        "greedy soup": [front.greedy],
    }
    volumes = {name: front.hypervolume(trials, role) for name, trials in sets.items()}
    known = [f"{name} {volume:.4g}" for name, volume in volumes.items() if volume is not None]
    return ", ".join(known)


def _gaps(front: Front) -> str:
    """One line: scores on items that did not choose the merges, less those that did."""
    found = search_to_holdout(front)
    if not found:
        return ""
    gaps = ", ".join(f"{name} {gap:+.3f} ± {stderr:.3f}" for name, gap, stderr, _ in found)
    count = found[0][3]
    return f"search to holdout: {gaps} over the {count} shipped merge{'s' * (count > 1)}\n"


def weights_text(trial: Trial) -> str:
    """Weights by size, row by row; of many rows their range by member."""
    groups = weights_by_group(trial)
    if len(groups) > MAX_WEIGHT_ROWS:
        return f"{len(groups)} rows: {_weight_ranges(trial)}"
    shown = {group: _weight_row(row) for group, row in groups.items()}
    if len(shown) == 1:
        return next(iter(shown.values()))
    return "; ".join(f"{group}: {row}" for group, row in shown.items())


def _weight_row(row: Mapping[str, float]) -> str:
    by_size = sorted(row.items(), key=lambda entry: -abs(entry[1]))
    return " ".join(f"{name} {weight:.2f}" for name, weight in by_size)


def _weight_ranges(trial: Trial) -> str:
    """Lowest and highest weight of each member that has one, largest first."""
    columns = zip(trial.recipe.members, zip(*trial.recipe.weights, strict=True), strict=True)
    used = [(name, min(column), max(column)) for name, column in columns if any(column)]
    used.sort(key=lambda entry: -entry[2])
    return " ".join(f"{name} {low:.2f}..{high:.2f}" for name, low, high in used)
