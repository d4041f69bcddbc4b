"""Plot the front of a run with its error bars, as one HTML file that opens without a network.

    python examples/plot_front.py RUN front.html

Needs plotly, which `pip install 'recycler[service]'` brings. The first two objectives are drawn.
`recycler report RUN --html FILE` and `recycler serve` draw all of them, in more ways.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from recycler.results.front import Front
from recycler.results.open import open_front
from recycler.types import Score, Trial


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot the front of a run.")
    parser.add_argument("run")
    parser.add_argument("html", type=Path)
    arguments = parser.parse_args()
    figure = plot(open_front(arguments.run))
    figure.write_html(arguments.html, include_plotlyjs=True)
    print(f"wrote {arguments.html}")


def plot(front: Front) -> go.Figure:
    """Members and merges over the first two objectives, with one standard error each way."""
    x, y = front.objectives[:2]
    chosen = {trial.number for trial in front.front}
    merges = [trial for trial in front.trials if trial.is_proposed and trial.number not in chosen]
    figure = go.Figure(
        [
            points(merges, x.name, y.name, "merges", "lightgray"),
            points(front.members, x.name, y.name, "members", "darkorange"),
            points(front.front, x.name, y.name, "front", "royalblue"),
        ]
    )
    figure.update_layout(template="plotly_white", xaxis_title=x.name, yaxis_title=y.name)
    return figure


def points(trials: Sequence[Trial], x: str, y: str, name: str, colour: str) -> go.Scatter:
    """Search scores of some trials as points with error bars."""
    across, up = ([score_of(trial, objective) for trial in trials] for objective in (x, y))
    return go.Scatter(
        x=[score.value for score in across],
        y=[score.value for score in up],
        error_x={"array": [score.stderr for score in across]},
        error_y={"array": [score.stderr for score in up]},
        text=[f"trial {trial.number} {trial.label}" for trial in trials],
        mode="markers",
        marker={"size": 10, "color": colour},
        name=name,
    )


def score_of(trial: Trial, objective: str) -> Score:
    return next(score for score in trial.search if score.objective == objective)


if __name__ == "__main__":
    main()
