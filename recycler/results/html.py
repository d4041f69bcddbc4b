"""A run as one HTML file: opens from a disk without network or scripts, readable in light and dark,
printable.

Everything that comes from a run (names, labels, reasons) passes through `escape`, and the file's
own content policy allows no script, so nothing in it can act. Charts are SVG, drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import combinations
from typing import Any

from recycler.results.documents import weights_by_group
from recycler.results.front import Front, knee
from recycler.types import Objective, Role, Trial

WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 620, 380, 70, 52, 14
MAX_PAIRS, MAX_POINTS, NUM_TICKS = 6, 4_000, 5
STYLE = """:root{color-scheme:light dark;--ink:#1c2127;--soft:#59626c;--line:#d5d9dd;--accent:#1159a6;--paper:#fff;--member:#9a5b00}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaec;--soft:#a9b2bb;--line:#3a4148;--accent:#7ab8f5;--paper:#14171a;--member:#f0b25a}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1100px;margin:0 auto;padding:16px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}th,td{text-align:left;padding:3px 12px 3px 0;border-bottom:1px solid var(--line);vertical-align:top}
.soft{color:var(--soft)}svg{max-width:100%;height:auto}svg text{fill:var(--ink);font:12px system-ui,sans-serif}.charts{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr))}
.rest{fill:var(--soft);fill-opacity:.45}.front{fill:var(--accent)}.member{fill:var(--member)}.bar{stroke:var(--accent);stroke-width:1}.grid{stroke:var(--line)}.knee{fill:none;stroke:var(--accent);stroke-width:2}"""


def html_report(front: Front, status: dict[str, Any]) -> str:
    """The report of a run:

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
        *(_chart(front, chosen, x, y) for x, y in pairs),
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

    def told(trials: Sequence[Trial | None], role: Role) -> str:
        volume = front.hypervolume(trials, role)
        return "–" if volume is None else f"{volume:.4g}"

    return _table(
        ["what", "search", "holdout"],
        [[name, told(trials, "search"), told(trials, "holdout")] for name, trials in sets.items()],
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
        for role in ("search", "holdout")
    ]


def _figures(trial: Trial, objectives: Sequence[Objective]) -> list[str]:
    scores = {
        (role, score.objective): score
        for role in ("search", "holdout")
        for score in trial.scores(role)
    }
    return [
        scores[key].text(4) if (key := (role, objective.name)) in scores else "–"
        for objective in objectives
        for role in ("search", "holdout")
    ]


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
    return (
        "<div class=scroll "
        f"tabindex=0><table><thead><tr>{''.join(f'<th scope=col>{escape(cell)}</th>' for cell in head)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


# ---------------------------------------------------------------- charts


def _chart(front: Front, chosen: Trial, x: Objective, y: Objective) -> str:
    """One pair of objectives as SVG; beyond MAX_POINTS trials every second, third, ... of the grey
    ones is left out.
    """
    on_front = {trial.number for trial in front.front}
    points = {
        trial.number: (_score(trial, x.name), _score(trial, y.name)) for trial in front.trials
    }
    points = {
        number: pair
        for number, pair in points.items()
        if all(math.isfinite(score.value) for score in pair)
    }
    if not points:
        return ""
    across, right = _scale([pair[0].value for pair in points.values()], LEFT, WIDTH - EDGE)
    up, top = _scale([pair[1].value for pair in points.values()], HEIGHT - BOTTOM, EDGE)
    step = -(-len(points) // MAX_POINTS)
    shapes = [
        "<g "
        f"class=grid>{''.join(_line(across(tick), EDGE, across(tick), HEIGHT - BOTTOM) for tick in right)}{''.join(_line(LEFT, up(tick), WIDTH - EDGE, up(tick)) for tick in top)}</g>"
    ]
    shapes += [
        f'<text x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" '
        f'text-anchor="middle">{tick:.4g}</text>'
        for tick in right
    ] + [
        f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        for tick in top
    ]
    kinds = {trial.number: trial.kind for trial in front.trials}
    grey = [number for number in points if number not in on_front and kinds[number] != "member"][
        ::step
    ]
    for number in [
        *grey,
        *(number for number in points if number not in on_front and kinds[number] == "member"),
        *(number for number in points if number in on_front),
    ]:
        a, b = points[number]
        place, style = (
            (across(a.value), up(b.value)),
            "front" if number in on_front else "member" if kinds[number] == "member" else "rest",
        )
        if style == "front":
            bars = [
                (across(a.value - a.stderr), place[1], across(a.value + a.stderr), place[1]),
                (place[0], up(b.value - b.stderr), place[0], up(b.value + b.stderr)),
            ]
            shapes += [
                "<g "
                f"class=bar>{''.join(_line(*bar) for bar in bars if all(map(math.isfinite, bar)))}</g>"
            ]
        shapes.append(
            f'<circle class="{style}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" '
            f'r="{3 if style == "rest" else 5}"><title>trial {number}: {a.value:.4f}, '
            f"{b.value:.4f}</title></circle>"
        )
    if chosen.number in points:
        a, b = points[chosen.number]
        shapes.append(
            f'<circle class=knee cx="{across(a.value):.1f}" cy="{up(b.value):.1f}" r="10"/>'
        )
    title = f"{x.name} ({x.direction}) against {y.name} ({y.direction})"
    labels = (
        f'<text x="{(LEFT + WIDTH - EDGE) / 2:.0f}" y="{HEIGHT - 12}" '
        f'text-anchor="middle">{escape(x.name)}</text><text transform="translate(14 '
        f'{(HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y.name)}</text>'
    )
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(shapes)}{labels}</svg><figcaption '
        f"class=soft>{escape(title)}</figcaption></figure>"
    )


def _scale(
    values: Sequence[float], start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """(from a value to a place between `start` and `end`, ticks), with a little room at both ends."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5
    low, high = low - room, high + room
    return lambda value: start + (value - low) / (high - low) * (end - start), [
        low + (high - low) * (index + 0.5) / NUM_TICKS for index in range(NUM_TICKS)
    ]


def _line(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _score(trial: Trial, name: str):
    return next(score for score in trial.search if score.objective == name)
