"""The front as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from recycler.report import Front, knee, weights_by_group
from recycler.types import Role, Trial


def front_table(front: Front, role: Role = "search") -> str:
    """Front and baselines, one line a trial: scores with standard errors, chance to be non-dominated, weights; volumes below."""
    if role == "holdout" and not all(trial.holdout for trial in front.front):
        role = "search"
    names = [objective.name for objective in front.objectives]
    picked = "picked by posterior score" if front.smoothed else "picked by search score"
    rows = [["trial", "what", *names, "on front", "weights"]]
    chosen, probability = knee(front), front.probability
    for trial in sorted(front.front, key=lambda trial: trial.number):
        mark = " (knee)" if trial is chosen else ""
        rows.append([str(trial.number), _name(trial) + mark, *_figures(trial, names, role), f"{probability[trial.number]:.0%}", _weights(trial)])
    rows.append([])
    baselines = [*front.members, front.uniform, front.greedy, front.base]
    for trial, label in zip(baselines, [*[None] * len(front.members), "uniform soup", "greedy soup", "base"], strict=True):
        if trial is not None:
            rows.append([str(trial.number), label or f"member {trial.label}", *_figures(trial, names, role), "", ""])
    volumes = {"front": front.front, "members": front.members, "uniform soup": [front.uniform], "greedy soup": [front.greedy]}
    said = ", ".join(f"{name} {volume:.4g}" for name, trials in volumes.items() if (volume := front.hypervolume(trials, role)) is not None)
    notice = "".join(f"{name} moves with no weights beyond its noise: it has no say in the front\n" for name in front.smoothed.dead)
    notice += "" if front.floors_kept else "No trial keeps every floor: this is the front without floors\n"
    return f"{notice}Pareto front ({picked}), {role} scores (± standard error)\n{align(rows)}\nhypervolume on {role}: {said}\n"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns; an empty row becomes a rule."""
    widths = [max(len(row[index]) for row in rows if row) for index in range(len(rows[0]))]
    rule = "-" * min(sum(widths[:-1]) + 2 * len(widths) + 10, 120)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() if row else rule for row in rows)


def _name(trial: Trial) -> str:
    return {"member": f"member {trial.label}", "merge": trial.label or "merge", "greedy_soup": "greedy step"}.get(trial.kind, trial.label)


def _figures(trial: Trial, names: Sequence[str], role: Role) -> list[str]:
    scores = {score.objective: score for score in trial.scores(role)}
    return [f"{scores[name].value:.3f} ± {scores[name].stderr:.3f}" if name in scores else "-" for name in names]


def _weights(trial: Trial) -> str:
    groups = weights_by_group(trial)
    shown = [" ".join(f"{name} {weight:.2f}" for name, weight in sorted(row.items(), key=lambda entry: -abs(entry[1]))) for row in groups.values()]
    return shown[0] if len(groups) == 1 else "; ".join(f"{group}: {row}" for group, row in zip(groups, shown, strict=True))
