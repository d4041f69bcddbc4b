"""The front as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def preview_text(preview: Mapping[str, Any]) -> str:
    """Trade-offs among the members, the guessed front with 90 % intervals, and how the guesses fared."""
    names = list(preview["front"][0]["scores"])
    rows = [["guess", *names, "weights"]]
    for number, guess in enumerate(preview["front"], start=1):
        figures = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in (guess["scores"][name] for name in names)]
        rows.append([str(number), *figures, " ".join(f"{name} {weight:.2f}" for name, weight in sorted(guess["weights"].items(), key=lambda entry: -entry[1]))])
    lines = [pair["said"] for pair in preview["tradeoffs"]] + ["Preview: guessed from the members' own answers, for weights that sum to 1; nothing of it was measured", align(rows)]
    lines += [f"{error['objective']}: over {error['num_merges']} real merges the guess was {error['bias']:+.3f} off on the mean, ranked them at {error['spearman']:.2f} (Spearman), and {error['covered']:.0%} lay in its 90 % interval" for error in preview["errors"]]
    return "\n".join(lines) + "\n"


def why_text(why: Mapping[str, Any]) -> str:
    """What each member adds to a merge, what the front would lose without it, and the sentences that say it."""
    names = list(why["shares"][0]["adds"]) if why["shares"] else []
    rows = [["member", "weight", *(f"adds to {name}" for name in names)]]
    rows += [[share["member"], f"{share['weight']:.2f}", *(f"{value:+.3f} ± {doubt:.3f}" for value, doubt in (share["adds"][name] for name in names))] for share in why["shares"]]
    lost = [["left out", "front loses", "90 % interval", "used by", "the most balanced merge without it"]]
    lost += [[loss["member"], f"{loss['hypervolume']:.1%}", f"{loss['low']:.0%} to {loss['high']:.0%}", str(loss["used_by"]),
              "; ".join(" ".join(f"{name}={weight:.3g}" for name, weight in zip(why["members"], row, strict=True) if weight) for row in loss["remaining"])] for loss in why["losses"]]
    return "\n".join([*why["said"], "", f"Merge {why['trial']}, by the search's model (± standard error):", align(rows), "", align(lost)]) + "\n"


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
