"""Prometheus text: how many jobs are in which state, how far each is, what it cost."""

from __future__ import annotations

from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("starting", "running", "finished", "stopped", "interrupted", "failed", "broken")


def metrics_text(documents: list[dict[str, Any]]) -> str:
    """One family per figure, jobs as labels; ids need no escaping, they are plain words."""
    lines = ["# HELP recycler_jobs Jobs by state.", "# TYPE recycler_jobs gauge"]
    for state in STATES:
        number = sum(document["state"] == state for document in documents)
        lines.append(f'recycler_jobs{{state="{state}"}} {number}')
    lines += ["# HELP recycler_trials Trials of a job by state.", "# TYPE recycler_trials gauge"]
    lines += [
        f'recycler_trials{{job="{document["id"]}",state="{state.lower()}"}} {number}'
        for document in documents
        for state, number in document["trials"].items()
    ]
    for name, key, kind, text in (
        ("recycler_tokens_total", "num_tokens", "counter", "Tokens generated and teacher-forced."),
        (
            "recycler_worker_seconds_total",
            "worker_seconds",
            "counter",
            "Seconds of merging and scoring, all workers together.",
        ),
    ):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [
            f'{name}{{job="{document["id"]}"}} {document[key]}'
            for document in documents
            if document[key] is not None
        ]
    lines += [
        "# HELP recycler_hypervolume Search hypervolume of the front.",
        "# TYPE recycler_hypervolume gauge",
    ]
    lines += [
        f'recycler_hypervolume{{job="{document["id"]}"}} '
        f"{document['hypervolume'][-1]['hypervolume']}"
        for document in documents
        if document["hypervolume"]
    ]
    return "\n".join(lines) + "\n"
