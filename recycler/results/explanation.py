"""The attribution of a merge in sentences, and as the one document of `recycler why`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from recycler.objectives.costs import benchmarks
from recycler.objectives.stats import Z90
from recycler.results.attribution import Loss, Pair, SearchModel, Share
from recycler.types import Objective, Trial

NOTICEABLE = 0.01  # share of the front's volume from which on a loss is named


def sentences(
    chosen: Trial, shares: Sequence[Share], losses: Sequence[Loss], objectives: Sequence[Objective]
) -> list[str]:
    """The attribution of one merge in words: its members, each objective's sources, losses."""
    rows = chosen.recipe.weights
    total = sum(sum(row) for row in rows) / len(rows)
    said = [
        f"Merge {chosen.number} uses {len(shares)} member{'s' * (len(shares) != 1)}; the weights "
        f"sum to {total:.2f}."
    ]
    said += [_share_sentence(objective, shares) for objective in benchmarks(objectives)]
    missed = [loss for loss in losses if loss.hypervolume >= NOTICEABLE]
    if missed:
        named = ", ".join(
            f"{loss.member} the front would lose {loss.hypervolume:.0%} ({loss.low:.0%} to "
            f"{loss.high:.0%})"
            for loss in missed[:4]
        )
        said.append(f"Without {named} of its volume, by the model.")
    spare = [loss.member for loss in losses if loss.hypervolume < NOTICEABLE]
    if spare:
        said.append(f"Could be left out at less than 1 %: {', '.join(spare)}.")
    return said


def _share_sentence(objective: Objective, shares: Sequence[Share]) -> str:
    """The members that help and harm one objective beyond doubt."""
    name, sign = objective.name, objective.sign
    clear = [share for share in shares if abs(share.adds[name][0]) > Z90 * share.adds[name][1]]
    good = [share for share in clear if sign * share.adds[name][0] > 0]
    good.sort(key=lambda share: -sign * share.adds[name][0])
    bad = [share for share in clear if sign * share.adds[name][0] < 0]
    sources = ", ".join(
        f"{share.member} ({share.adds[name][0]:+.3f} ± {share.adds[name][1]:.3f})"
        for share in good[:3]
    )
    against = ", ".join(f"{share.member} ({share.adds[name][0]:+.3f})" for share in bad[:3])
    return (
        f"{name} comes from {sources or 'no member beyond doubt'}"
        f"{'; against it: ' * bool(bad)}{against}."
    )


def pair_sentences(pairs: Sequence[Pair], objectives: Sequence[Objective]) -> list[str]:
    """Sentences on the pairs of members that need or replace one another beyond doubt."""
    said = []
    for objective in benchmarks(objectives):
        for pair in pairs:
            value, doubt = pair.differs[objective.name]
            if abs(value) > Z90 * doubt:
                how = (
                    "are worth more together than each alone"
                    if objective.sign * value > 0
                    else "stand in for one another"
                )
                said.append(
                    f"{' and '.join(pair.members)} {how} at {objective.name} (taken out together "
                    f"{value:+.3f} ± {doubt:.3f} beyond the sum of each alone)."
                )
    return said


def why_document(model: SearchModel, chosen: Trial) -> dict[str, Any]:
    """The one JSON document of `recycler why --json`.

    Raises ValueError for a trial that the model did not learn from.
    """
    found = [number for number, trial in enumerate(model.trials) if trial.recipe == chosen.recipe]
    if not found:
        raise ValueError("the model of this search does not cover its kind of merge")
    point = model.observed.weights[found[0]]
    shares, losses, pairs = model.shares(point), model.losses(), model.pairs(point)
    return {
        "schema_version": 1,
        "trial": chosen.number,
        "estimated": True,
        "said": [
            *sentences(chosen, shares, losses, model.objectives),
            *pair_sentences(pairs, model.objectives),
        ],
        "shares": [asdict(share) for share in shares],
        "pairs": [asdict(pair) for pair in pairs],
        "moves": [asdict(move) for move in model.moves(point)],
        "losses": [asdict(loss) for loss in losses],
        "members": model.members,
    }
