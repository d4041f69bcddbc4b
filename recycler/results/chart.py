"""A pair of objectives as an SVG chart: front, members and all other trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from recycler.results.front import Front
from recycler.types import Objective, Score, Trial

WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 620, 380, 70, 52, 14
MAX_POINTS, NUM_TICKS = 4_000, 5
POINT_RADIUS, REST_RADIUS, KNEE_RADIUS = 5, 3, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Map from values to places between two ends, and the values of its ticks."""

    place: Callable[[float], float]
    ticks: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One trial of the chart."""

    number: int
    x: Score
    y: Score
    style: str  # front, member or rest


def chart(front: Front, chosen: Trial, x: Objective, y: Objective) -> str:
    """Draw one pair of objectives; empty where no trial has finite scores of both.

    Beyond MAX_POINTS trials every second, third, ... of those that are neither on the front nor
    members is left out.
    """
    points = _points(front, x, y)
    if not points:
        return ""
    across = _axis([point.x.value for point in points], LEFT, WIDTH - EDGE)
    up = _axis([point.y.value for point in points], HEIGHT - BOTTOM, EDGE)
    shapes = [_grid(across, up), *_tick_labels(across, up)]
    for point in _drawn(points):
        if point.style == "front":
            shapes.append(_error_bars(point, across, up))
        shapes.append(_circle(point, across, up))
    shapes += [_ring(point, across, up) for point in points if point.number == chosen.number]
    title = f"{x.name} ({x.direction}) against {y.name} ({y.direction})"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(shapes)}{_axis_labels(x, y)}</svg><figcaption '
        f"class=soft>{escape(title)}</figcaption></figure>"
    )


def _points(front: Front, x: Objective, y: Objective) -> list[Point]:
    """Trials with finite scores of both objectives, in the order of the run."""
    on_front = {trial.number for trial in front.front}
    points = []
    for trial in front.trials:
        style = "member" if trial.kind == "member" else "rest"
        if trial.number in on_front:
            style = "front"
        point = Point(
            number=trial.number, x=_score(trial, x.name), y=_score(trial, y.name), style=style
        )
        if math.isfinite(point.x.value) and math.isfinite(point.y.value):
            points.append(point)
    return points


def _score(trial: Trial, name: str) -> Score:
    return next(score for score in trial.search if score.objective == name)


def _drawn(points: Sequence[Point]) -> list[Point]:
    """Points from the bottom to the top: the rest, thinned out, then members, then the front."""
    step = -(-len(points) // MAX_POINTS)
    by_style: dict[str, list[Point]] = {"rest": [], "member": [], "front": []}
    for point in points:
        by_style[point.style].append(point)
    return [*by_style["rest"][::step], *by_style["member"], *by_style["front"]]


# ---------------------------------------------------------------- axes


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Spread values between two places, with a little room at both ends."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5
    low, high = low - room, high + room
    ticks = [low + (high - low) * (index + 0.5) / NUM_TICKS for index in range(NUM_TICKS)]
    return Axis(
        place=lambda value: start + (value - low) / (high - low) * (end - start),
        ticks=tuple(ticks),
    )


def _grid(across: Axis, up: Axis) -> str:
    lines = [
        _line(across.place(tick), EDGE, across.place(tick), HEIGHT - BOTTOM)
        for tick in across.ticks
    ]
    lines += [_line(LEFT, up.place(tick), WIDTH - EDGE, up.place(tick)) for tick in up.ticks]
    return f"<g class=grid>{''.join(lines)}</g>"


def _tick_labels(across: Axis, up: Axis) -> list[str]:
    labels = [
        f'<text x="{across.place(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" '
        f'text-anchor="middle">{tick:.4g}</text>'
        for tick in across.ticks
    ]
    labels += [
        f'<text x="{LEFT - 6}" y="{up.place(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        for tick in up.ticks
    ]
    return labels


def _axis_labels(x: Objective, y: Objective) -> str:
    return (
        f'<text x="{(LEFT + WIDTH - EDGE) / 2:.0f}" y="{HEIGHT - 12}" '
        f'text-anchor="middle">{escape(x.name)}</text><text transform="translate(14 '
        f'{(HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y.name)}</text>'
    )


# ---------------------------------------------------------------- shapes


def _circle(point: Point, across: Axis, up: Axis) -> str:
    radius = REST_RADIUS if point.style == "rest" else POINT_RADIUS
    return (
        f'<circle class="{point.style}" cx="{across.place(point.x.value):.1f}" '
        f'cy="{up.place(point.y.value):.1f}" r="{radius}"><title>trial {point.number}: '
        f"{point.x.value:.4f}, {point.y.value:.4f}</title></circle>"
    )


def _ring(point: Point, across: Axis, up: Axis) -> str:
    """A ring around the knee."""
    return (
        f'<circle class=knee cx="{across.place(point.x.value):.1f}" '
        f'cy="{up.place(point.y.value):.1f}" r="{KNEE_RADIUS}"/>'
    )


def _error_bars(point: Point, across: Axis, up: Axis) -> str:
    x, y = across.place(point.x.value), up.place(point.y.value)
    left, right = (across.place(point.x.value + sign * point.x.stderr) for sign in (-1, 1))
    low, high = (up.place(point.y.value + sign * point.y.stderr) for sign in (-1, 1))
    bars = [(left, y, right, y), (x, low, x, high)]
    lines = [_line(*bar) for bar in bars if all(map(math.isfinite, bar))]
    return f"<g class=bar>{''.join(lines)}</g>"


def _line(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'
