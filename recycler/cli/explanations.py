"""Previews and explanations of a run as text, from their JSON documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recycler.cli.tables import align, with_error
from recycler.types import Score

Document = Mapping[str, Any]
SCORE_KINDS = ("search", "holdout", "posterior")


# ---------------------------------------------------------------- preview


def preview_text(preview: Document) -> str:
    """Trade-offs among the members, the guessed front with 90 % intervals, and its errors."""
    lines = [pair["said"] for pair in preview["tradeoffs"]]
    lines += [
        "Preview: guessed from the members' own answers, for weights that sum to 1; nothing of "
        "it was measured",
        align(_guess_rows(preview["front"])),
    ]
    lines += [_error_line(error) for error in preview["errors"]]
    return "\n".join(lines) + "\n"


def _guess_rows(guesses: Sequence[Document]) -> list[list[str]]:
    names = list(guesses[0]["scores"])
    rows = [["guess", *names, "weights"]]
    for number, guess in enumerate(guesses, start=1):
        scores = [guess["scores"][name] for name in names]
        figures = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in scores]
        by_size = sorted(guess["weights"].items(), key=lambda entry: -entry[1])
        weights = " ".join(f"{name} {weight:.2f}" for name, weight in by_size)
        rows.append([str(number), *figures, weights])
    return rows


def _error_line(error: Document) -> str:
    return (
        f"{error['objective']}: over {error['num_merges']} real merges the guess was "
        f"{error['bias']:+.3f} off on the mean, ranked them at {error['spearman']:.2f} "
        f"(Spearman), and {error['covered']:.0%} lay in its 90 % interval"
    )


# ---------------------------------------------------------------- why


def why_text(why: Document) -> str:
    """Contributions of members to a merge, losses of the front without them, and sentences."""
    names = list(why["shares"][0]["adds"]) if why["shares"] else []
    lines = [*_choice_lines(why["chosen"]), *why["said"], ""]
    lines += [f"Merge {why['trial']}, by the search's model (± standard error):"]
    lines += [align(_share_rows(why["shares"], names)), ""]
    if why["pairs"]:
        lines += ["Taken out together, what changes beyond the sum of each alone:"]
        lines += [align(_pair_rows(why["pairs"], names)), ""]
    if why["moves"]:
        lines += ["A weight a little larger or smaller, all scaled back to their sum:"]
        lines += [align(_move_rows(why["moves"], names)), ""]
    lines += [align(_loss_rows(why["losses"], why["members"]))]
    return "\n".join(lines) + "\n"


def _share_rows(shares: Sequence[Document], names: Sequence[str]) -> list[list[str]]:
    rows = [["member", "weight", *(f"adds to {name}" for name in names)]]
    for share in shares:
        adds = [with_error(share["adds"][name]) for name in names]
        rows.append([share["member"], f"{share['weight']:.2f}", *adds])
    return rows


def _pair_rows(pairs: Sequence[Document], names: Sequence[str]) -> list[list[str]]:
    rows = [["pair", *(f"together, {name}" for name in names)]]
    for pair in pairs:
        rows.append([" + ".join(pair["members"]), *map(with_error, pair["differs"].values())])
    return rows


def _move_rows(moves: Sequence[Document], names: Sequence[str]) -> list[list[str]]:
    header = ["weight moved"]
    for name in names:
        header += [f"10 % more, {name}", f"10 % less, {name}"]
    rows = [header]
    for move in moves:
        row = [move["member"]]
        for name in names:
            row += [with_error(move["larger"][name]), with_error(move["smaller"][name])]
        rows.append(row)
    return rows


def _loss_rows(losses: Sequence[Document], members: Sequence[str]) -> list[list[str]]:
    rows = [
        [
            "left out",
            "front loses",
            "90 % interval",
            "used by",
            "the most balanced merge without it",
        ]
    ]
    for loss in losses:
        interval = f"{loss['low']:.0%} to {loss['high']:.0%}"
        remaining = "; ".join(_nonzero(members, row) for row in loss["remaining"])
        volume = f"{loss['hypervolume']:.1%}"
        rows.append([loss["member"], volume, interval, str(loss["used_by"]), remaining])
    return rows


def _nonzero(members: Sequence[str], row: Sequence[float]) -> str:
    pairs = zip(members, row, strict=True)
    return " ".join(f"{name}={weight:.3g}" for name, weight in pairs if weight)


# ---------------------------------------------------------------- the choice


def _choice_lines(chosen: Document) -> list[str]:
    """The merge that was asked for, how it was chosen, and its scores of every kind.

    One kind of score may put another merge first; then a line says so.
    """
    lines = []
    if chosen["by"] != "number":
        lines.append(f"{chosen['asked']} is merge {chosen['trial']}, chosen by {chosen['by']}.")
    other = chosen["best_by_search_score"]
    if other and other["trial"] != chosen["trial"]:
        lines.append(_other_line(other))
    return [*lines, align(_score_rows(chosen["scores"])), ""]


def _other_line(other: Document) -> str:
    (found,) = other["scores"].values()
    line = f"The best search score is merge {other['trial']}'s, {_figure(found['search'])}"
    if not found.get("posterior"):
        return f"{line}."
    return f"{line}; all merges together say {_figure(found['posterior'])} of it."


def _figure(score: Document) -> str:
    return f"{score['value']:.3f} ± {score['stderr']:.3f}"


def _score_rows(scores: Mapping[str, Document]) -> list[list[str]]:
    """A row per objective, a column per kind of score that any of them has."""
    kinds = [kind for kind in SCORE_KINDS if any(found.get(kind) for found in scores.values())]
    rows = [["score", *(f"{kind} score" for kind in kinds)]]
    for name, found in scores.items():
        rows.append([name, *(_score_text(name, found[kind]) for kind in kinds)])
    return rows


def _score_text(name: str, score: Document | None) -> str:
    return "-" if score is None else Score(objective=name, **score).text()
