"""The front as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recycler.ledger.runs import noise_said
from recycler.objectives.costs import benchmarks
from recycler.results.documents import search_to_holdout, weights_by_group
from recycler.results.front import Front, knee
from recycler.types import Role, Score, Trial

MANY_ROWS = 4  # of weights; more are summed up


def front_table(front: Front, role: Role = "search") -> str:
    """Front and baselines, one line for the same weights: scores with standard errors, chance to be
    non-dominated, weights; volumes below.
    """
    if role == "holdout" and not all(trial.holdout for trial in front.front):
        role = "search"
    names = [objective.name for objective in front.objectives]
    picked = "picked by posterior score" if front.smoothed else "picked by search score"
    chosen, probability, called = knee(front), front.probability, front.names
    observed = (
        {trial.number for trial in front.observed} if front.smoothed else None
    )  # before the end the one is the other

    def row(trial: Trial, share: str, weights: str, mark: str = "") -> list[str]:
        both = [] if observed is None else ["yes" if trial.number in observed else ""]
        return [
            str(trial.number),
            called[trial.number] + mark,
            *_figures(trial, names, role),
            share,
            *both,
            weights,
        ]

    rows = [
        [
            "trial",
            "what",
            *names,
            "on front",
            *([] if observed is None else ["observed"]),
            "weights",
        ]
    ]
    rows += [
        row(
            trial,
            f"{probability[trial.number]:.0%}",
            _weights(trial),
            " (knee)" if trial is chosen else "",
        )
        for trial in sorted(front.front, key=lambda trial: trial.number)
    ]
    shown = {
        trial.number for trial in front.front
    }  # a baseline that is on the front, or has the weights of one there, is named there
    lucky = [
        trial
        for trial in sorted(front.observed, key=lambda trial: trial.number)
        if trial.number not in shown | {trial.number for trial in front.baselines}
    ]
    rows += (
        [[], *(row(trial, f"{probability[trial.number]:.0%}", _weights(trial)) for trial in lucky)]
        if lucky
        else []
    )
    rows += [[], *(row(trial, "", "") for trial in front.baselines if trial.number not in shown)]
    volumes = {
        "front": front.front,
        "members": front.members,
        "uniform soup": [front.uniform],
        "greedy soup": [front.greedy],
    }
    said = ", ".join(
        f"{name} {volume:.4g}"
        for name, trials in volumes.items()
        if (volume := front.hypervolume(trials, role)) is not None
    )
    notice = "".join(
        f"{line}\n" for line in (*_together(front), *map(noise_said, front.smoothed.dead))
    )
    notice += (
        ""
        if front.floors_kept
        else "No trial keeps every floor: this is the front without floors\n"
    )
    return (
        f"{notice}Pareto front ({picked}), {role} scores (± standard error)\n{align(rows)}\n"
        f"hypervolume on {role}: {said}\n{_gaps(front)}"
    )


def _together(front: Front) -> list[str]:
    """Which benchmarks do not trade off over the members, once all of these are scored."""
    from recycler.results.preview import tradeoffs

    if len(front.members) < len(front.members[0].recipe.members):
        return []
    return [
        str(pair)
        for pair in tradeoffs(front.members, benchmarks(front.objectives))
        if pair.together
    ]


def _gaps(front: Front) -> str:
    """How the front's merges fare on items that did not choose them, one line."""
    found = search_to_holdout(front)
    told = ", ".join(f"{name} {gap:+.3f} ± {stderr:.3f}" for name, gap, stderr, _ in found)
    return (
        f"search to holdout: {told} over the {found[0][3]} shipped merge{'s' * (found[0][3] > 1)}\n"
        if found
        else ""
    )


def preview_text(preview: Mapping[str, Any]) -> str:
    """Trade-offs among the members, the guessed front with 90 % intervals, and how the guesses
    fared.
    """
    names = list(preview["front"][0]["scores"])
    rows = [["guess", *names, "weights"]]
    for number, guess in enumerate(preview["front"], start=1):
        figures = [
            f"{value:.3f} ({low:.3f} to {high:.3f})"
            for value, low, high in (guess["scores"][name] for name in names)
        ]
        rows.append(
            [
                str(number),
                *figures,
                " ".join(
                    f"{name} {weight:.2f}"
                    for name, weight in sorted(
                        guess["weights"].items(), key=lambda entry: -entry[1]
                    )
                ),
            ]
        )
    lines = [pair["said"] for pair in preview["tradeoffs"]] + [
        "Preview: guessed from the members' own answers, for weights that sum to 1; nothing of "
        "it was measured",
        align(rows),
    ]
    lines += [
        f"{error['objective']}: over {error['num_merges']} real merges the guess was "
        f"{error['bias']:+.3f} off on the mean, ranked them at {error['spearman']:.2f} "
        f"(Spearman), and {error['covered']:.0%} lay in its 90 % interval"
        for error in preview["errors"]
    ]
    return "\n".join(lines) + "\n"


def why_text(why: Mapping[str, Any]) -> str:
    """What each member adds to a merge, what the front would lose without it, and the sentences
    that say it.
    """
    names = list(why["shares"][0]["adds"]) if why["shares"] else []
    rows = [["member", "weight", *(f"adds to {name}" for name in names)]]
    rows += [
        [
            share["member"],
            f"{share['weight']:.2f}",
            *(_doubted(share["adds"][name]) for name in names),
        ]
        for share in why["shares"]
    ]
    pairs = [["pair", *(f"together, {name}" for name in names)]]
    pairs += [
        [" + ".join(pair["members"]), *map(_doubted, pair["differs"].values())]
        for pair in why["pairs"]
    ]
    moves = [
        ["weight moved", *(f"10 % {way}, {name}" for name in names for way in ("more", "less"))]
    ]
    moves += [
        [
            move["member"],
            *(_doubted(move[way][name]) for name in names for way in ("larger", "smaller")),
        ]
        for move in why["moves"]
    ]
    beside = (
        ["Taken out together, what changes beyond the sum of each alone:", align(pairs), ""]
        if why["pairs"]
        else []
    )
    beside += (
        ["A weight a little larger or smaller, all scaled back to their sum:", align(moves), ""]
        if why["moves"]
        else []
    )
    lost = [
        [
            "left out",
            "front loses",
            "90 % interval",
            "used by",
            "the most balanced merge without it",
        ]
    ]
    lost += [
        [
            loss["member"],
            f"{loss['hypervolume']:.1%}",
            f"{loss['low']:.0%} to {loss['high']:.0%}",
            str(loss["used_by"]),
            "; ".join(
                " ".join(
                    f"{name}={weight:.3g}"
                    for name, weight in zip(why["members"], row, strict=True)
                    if weight
                )
                for row in loss["remaining"]
            ),
        ]
        for loss in why["losses"]
    ]
    return (
        "\n".join(
            [
                *_choice_lines(why["chosen"]),
                *why["said"],
                "",
                f"Merge {why['trial']}, by the search's model (± standard error):",
                align(rows),
                "",
                *beside,
                align(lost),
            ]
        )
        + "\n"
    )


def _doubted(figure: tuple[float, float]) -> str:
    return f"{figure[0]:+.3f} ± {figure[1]:.3f}"


def _choice_lines(chosen: Mapping[str, Any]) -> list[str]:
    """Which merge was meant and by what it was chosen; its scores of both kinds, since the one kind
    may put another first.
    """
    kinds = [
        kind
        for kind in ("search", "holdout", "posterior")
        if any(found.get(kind) for found in chosen["scores"].values())
    ]
    rows = [["score", *(f"{kind} score" for kind in kinds)]]
    rows += [
        [
            name,
            *(
                "-" if (score := found[kind]) is None else Score(objective=name, **score).text()
                for kind in kinds
            ),
        ]
        for name, found in chosen["scores"].items()
    ]
    lines = (
        [f"{chosen['asked']} is merge {chosen['trial']}, chosen by {chosen['by']}."]
        if chosen["by"] != "number"
        else []
    )
    other = chosen["best_by_search_score"]
    if other and other["trial"] != chosen["trial"]:
        (found,) = other["scores"].values()
        lines.append(
            f"The best search score is merge {other['trial']}'s, {found['search']['value']:.3f} "
            f"± {found['search']['stderr']:.3f}"
            + (
                f"; all merges together say {found['posterior']['value']:.3f} ± "
                f"{found['posterior']['stderr']:.3f} of it."
                if found.get("posterior")
                else "."
            )
        )
    return [*lines, align(rows), ""]


def align(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns; an empty row becomes a rule."""
    widths = [max(len(row[index]) for row in rows if row) for index in range(len(rows[0]))]
    rule = "-" * min(sum(widths[:-1]) + 2 * len(widths) + 10, 120)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() if row else rule
        for row in rows
    )


def _figures(trial: Trial, names: Sequence[str], role: Role) -> list[str]:
    scores = {score.objective: score for score in trial.scores(role)}
    return [scores[name].text() if name in scores else "-" for name in names]


def _weights(trial: Trial) -> str:
    """Weights by size, row by row; of many rows their range by member, since a table is no place
    for all of them.
    """
    groups = weights_by_group(trial)
    if len(groups) > MANY_ROWS:
        columns = zip(trial.recipe.members, zip(*trial.recipe.weights, strict=True), strict=True)
        used = sorted(
            ((name, min(column), max(column)) for name, column in columns if any(column)),
            key=lambda entry: -entry[2],
        )
        return f"{len(groups)} rows: " + " ".join(
            f"{name} {low:.2f}..{high:.2f}" for name, low, high in used
        )
    shown = [
        " ".join(
            f"{name} {weight:.2f}"
            for name, weight in sorted(row.items(), key=lambda entry: -abs(entry[1]))
        )
        for row in groups.values()
    ]
    return (
        shown[0]
        if len(groups) == 1
        else "; ".join(f"{group}: {row}" for group, row in zip(groups, shown, strict=True))
    )
