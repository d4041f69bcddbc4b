"""A run as one HTML file that opens without network or scripts.

It reads well in light and dark, and on paper.

Everything that comes from a run (names, labels, reasons) passes through `escape`, and the file's
own content policy allows no script, so nothing in it can act. Charts are SVG, drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import combinations
from typing import Any

from recycler.results.chart import chart
from recycler.results.documents import weights_by_group
from recycler.results.front import Front, knee
from recycler.types import Objective, Role, Trial

ROLES: tuple[Role, ...] = ("search", "holdout")
MAX_PAIRS = 6  # of objectives, a chart each
STYLE = """:root { color-scheme: light dark; --ink: #1c2127; --soft: #59626c; --line: #d5d9dd;
  --accent: #1159a6; --paper: #fff; --member: #9a5b00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaec; --soft: #a9b2bb; --line: #3a4148;
  --accent: #7ab8f5; --paper: #14171a; --member: #f0b25a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1100px; margin: 0 auto; padding: 16px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto }
th, td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
.soft { color: var(--soft) }
svg { max-width: 100%; height: auto }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
.charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)) }
.rest { fill: var(--soft); fill-opacity: .45 }
.front { fill: var(--accent) }
.member { fill: var(--member) }
.bar { stroke: var(--accent); stroke-width: 1 }
.grid { stroke: var(--line) }
.knee { fill: none; stroke: var(--accent); stroke-width: 2 }"""


def html_report(front: Front, status: dict[str, Any]) -> str:
    """Write the report of a run as one HTML document that loads nothing.

    `status` is the document of `recycler status --json`. Equal runs give equal text.
    """
    name = str(status["name"]) or "run"
    chosen = knee(front)
    pairs = list(combinations(front.objectives, 2))[:MAX_PAIRS]
    counts = ", ".join(f"{number} {state.lower()}" for state, number in status["trials"].items())
    parts = [
        f"<h1>{escape(name)}</h1>",
        f"<p>{escape(str(status['state']))}. Trials: {escape(counts)}; {status['num_tokens']:,} "
        f"tokens; {status['worker_seconds']:,.0f} s of workers; {status['elapsed_seconds']:,.0f} "
        "s elapsed.</p>",
        "<p class=soft>Search scores choose, holdout scores are reported. ± is one standard "
        "error; “on front” is the chance to be non-dominated, counting the errors of all "
        "trials.</p>",
        "<h2>Front</h2>",
        _front_table(front, chosen),
        "<h2>Baselines</h2>",
        _baseline_table(front),
        "<h2>Hypervolume</h2>",
        _volumes(front),
        "<h2>Charts</h2><p class=soft>Blue: the front, with standard errors; ringed: its knee; "
        "orange: members; grey: all other trials.</p><div class=charts>",
        *(chart(front, chosen, x, y) for x, y in pairs),
        "</div>",
        _failures(status),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta '
        f'http-equiv="Content-Security-Policy" content="{policy}"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · recycler</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _front_table(front: Front, chosen: Trial) -> str:
    probability, names = front.probability, front.names
    rows = [
        [
            f"{trial.number}{' (knee)' if trial is chosen else ''}",
            names[trial.number],
            *_figures(trial, front.objectives),
            f"{probability[trial.number]:.0%}",
            _weights(trial),
        ]
        for trial in sorted(front.front, key=lambda trial: trial.number)
    ]
    return _table(["trial", "what", *_headings(front.objectives), "on front", "weights"], rows)


def _baseline_table(front: Front) -> str:
    names = front.names
    return _table(
        ["trial", "what", *_headings(front.objectives)],
        [
            [str(trial.number), names[trial.number], *_figures(trial, front.objectives)]
            for trial in front.baselines
        ],
    )


def _volumes(front: Front) -> str:
    sets: dict[str, Sequence[Trial | None]] = {
        "front": front.front,
        "members": front.members,
        "uniform soup": [front.uniform],
        "greedy soup": [front.greedy],
    }

    def shown(trials: Sequence[Trial | None], role: Role) -> str:
        volume = front.hypervolume(trials, role)
        return "–" if volume is None else f"{volume:.4g}"

    return _table(
        ["what", "search", "holdout"],
        [
            [name, shown(trials, "search"), shown(trials, "holdout")]
            for name, trials in sets.items()
        ],
    )


def _failures(status: dict[str, Any]) -> str:
    if not status["failures"]:
        return ""
    return "<h2>Failures</h2>" + _table(
        ["trial", "blame", "reason"],
        [
            [str(failure["trial"]), failure["blame"], failure["reason"]]
            for failure in status["failures"]
        ],
    )


def _headings(objectives: Sequence[Objective]) -> list[str]:
    return [
        f"{objective.name} ({objective.direction}), {role}"
        for objective in objectives
        for role in ROLES
    ]


def _figures(trial: Trial, objectives: Sequence[Objective]) -> list[str]:
    """Cells of every objective: its search score, then its holdout score."""
    texts: dict[tuple[Role, str], str] = {}
    for role in ROLES:
        texts |= {(role, score.objective): score.text(4) for score in trial.scores(role)}
    return [texts.get((role, one.name), "–") for one in objectives for role in ROLES]


def _weights(trial: Trial) -> str:
    groups = weights_by_group(trial)
    shown = [
        " ".join(f"{name} {weight:.3f}" for name, weight in row.items()) or "the base"
        for row in groups.values()
    ]
    return (
        shown[0]
        if len(shown) == 1
        else "; ".join(f"{group}: {row}" for group, row in zip(groups, shown, strict=True))
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    headings = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in head)
    return (
        f"<div class=scroll tabindex=0><table><thead><tr>{headings}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
