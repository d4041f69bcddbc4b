"""The tables of RESULTS.md from the rows of many runs.

    python -m benchmarks.search.tables rows/*.csv --members 16 --others tpe nsga2 mergenetic
    mergekit_evolve python -m benchmarks.search.tables rows/*.csv --members 16 --ours
    simplex_gp+known --others tpe+known

Prints one table per question: our trials against the best other sampler's 200, and everybody at
equal trials. Pools that two samplers have in common are compared in pairs; ± is a standard error
over pools.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

FAMILIES = (
    "networks",
    "bumps",
    "weight_bumps",
    "near_linear",
    "plateaus",
    "ridges",
    "dominated",
    "dead",
    "stages",
    "sequences",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", nargs="+")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--ours", default="simplex_gp")
    parser.add_argument("--others", nargs="+", default=["tpe"])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES[:7]))
    parser.add_argument("--pools", nargs="+", type=int, help="only these")
    args = parser.parse_args()
    rows = pd.concat([pd.read_csv(path) for path in args.csv])
    rows = rows[(rows["members"] == args.members) & rows["family"].isin(args.families)]
    if args.pools:
        rows = rows[rows["pool"].isin(args.pools)]
    found = (
        rows.drop_duplicates(["sampler", "family", "pool", "trials"], keep="last")
        .set_index(["sampler", "trials", "family", "pool"])["shipped"]
        .sort_index()
    )
    print(
        few_against_many(found, args.ours, args.others, args.families),
        equal_trials(found, args.ours, args.others, args.families),
        sep="\n\n",
    )


def few_against_many(
    found: pd.Series,
    ours: str,
    others: Sequence[str],
    families: Sequence[str],
    few: int = 50,
    many: int = 200,
) -> str:
    """A row a family: means of everybody, and `few` of our trials less `many` of the sampler that
    is best in that family, in pairs.
    """
    columns = [(ours, count) for count in (25, 50, 100) if (ours, count) in found.index] + [
        (other, many) for other in others if (other, many) in found.index
    ]
    lines = _head(
        [
            "family",
            *(f"{name} at {count}" for name, count in columns),
            f"{few} against best other at {many} (paired)",
        ]
    )
    gains = []
    for family in families:
        cells = [_pools(found, name, count, family) for name, count in columns]
        rivals = {
            name: cell.mean()
            for (name, _), cell in zip(columns, cells, strict=True)
            if name != ours and len(cell)
        }
        best = max(rivals, key=rivals.__getitem__, default="nobody")
        gain = (_pools(found, ours, few, family) - _pools(found, best, many, family)).dropna()
        gains.append(gain)
        lines.append(
            _line(
                [
                    family,
                    *map(_mean, cells),
                    f"{_mean(gain, '+')} ({best}, {int((gain > 0).sum())} of {len(gain)})",
                ]
            )
        )
    means = [
        np.mean([_pools(found, name, count, family).mean() for family in families])
        for name, count in columns
    ]
    lines.append(
        _line(
            [
                "**mean**",
                *(f"**{mean:.3f}**" for mean in means),
                f"**{_mean_of_means(gains)}** ({_won(gains)})",
            ]
        )
    )
    return "\n".join(lines)


def equal_trials(
    found: pd.Series,
    ours: str,
    others: Sequence[str],
    families: Sequence[str],
    counts: Sequence[int] = (25, 50, 100),
) -> str:
    """A row for each other sampler: its mean over families, what ours has more, and cells of one
    pool that ours wins; then the lost families.
    """
    lines, lost = (
        _head(
            [
                "other",
                "pools",
                *(
                    word
                    for count in counts
                    for word in (f"at {count}: other", "difference", "pools won")
                ),
            ]
        ),
        [],
    )
    for other in others:
        cells, sizes = [], set()
        for count in counts:
            gains = [
                (_pools(found, ours, count, family) - _pools(found, other, count, family)).dropna()
                for family in families
            ]
            if not all(map(len, gains)):
                cells += ["-"] * 3
                continue
            sizes |= {len(gain) for gain in gains}
            theirs = np.mean(
                [
                    _pools(found, other, count, family).loc[gain.index].mean()
                    for family, gain in zip(families, gains, strict=True)
                ]
            )
            cells += [f"{theirs:.3f}", _mean_of_means(gains), _won(gains)]
            lost += [
                f"{family} at {count} against {other} {_mean(gain, '+')}"
                for family, gain in zip(families, gains, strict=True)
                if gain.mean() < 0
            ]
        if sizes:
            lines.append(
                _line([other, "-".join(map(str, sorted({min(sizes), max(sizes)}))), *cells])
            )
    return "\n".join([*lines, "", "Lost families: " + ("; ".join(lost) or "none") + "."])


def _pools(found: pd.Series, sampler: str, trials: int, family: str) -> pd.Series:
    key = (sampler, trials, family)
    return found.loc[key] if key in found.index else pd.Series(dtype=float)


def _mean(cell: pd.Series, sign: str = "") -> str:
    if not len(cell):
        return "-"
    return f"{cell.mean():{sign}.3f}" + (f" ± {cell.sem():.3f}" if len(cell) > 1 else "")


def _mean_of_means(gains: Sequence[pd.Series]) -> str:
    spread = np.sqrt(np.nansum([gain.sem() ** 2 for gain in gains])) / len(gains)
    return f"{np.mean([gain.mean() for gain in gains]):+.3f} ± {spread:.3f}"


def _won(gains: Sequence[pd.Series]) -> str:
    return f"{sum(int((gain > 0).sum()) for gain in gains)}/{sum(map(len, gains))}"


def _head(words: Sequence[str]) -> list[str]:
    return [_line(words), "|---" * len(words) + "|"]


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |"


if __name__ == "__main__":
    main()
