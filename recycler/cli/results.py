"""Read a run: status, front, preview, why."""

from __future__ import annotations

import argparse
import csv
import io
import json
from typing import TYPE_CHECKING

from recycler.cli.arguments import (
    Commands,
    add_command,
    add_json_flag,
    add_run_argument,
)
from recycler.cli.explanations import preview_text, why_text
from recycler.cli.progress import gain_said

if TYPE_CHECKING:  # the CLI's start loads no numpy
    from recycler.types import Role


def add_status(commands: Commands) -> None:
    """Add `recycler status`."""
    parser = add_command(commands, "status", "how far a run is", status)
    add_run_argument(parser)
    add_json_flag(parser)


def status(arguments: argparse.Namespace) -> None:
    """recycler status RUN: how far, what it cost, and why anything failed."""
    # loads sqlalchemy
    from recycler.ledger.runs import open_ledger, read_status

    found = read_status(open_ledger(arguments.run))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    counts = ", ".join(f"{number} {state.lower()}" for state, number in found["trials"].items())
    print(
        f"{found['name']}: {found['state']}\ntrials: {counts}\ntokens: {found['num_tokens']:,}; "
        f"worker time {found['worker_seconds']:.0f} s; elapsed {found['elapsed_seconds']:.0f} s"
    )
    if found["outlook"]:
        print(
            f"outlook after {found['outlook']['after_trials']} trials: "
            f"{gain_said(found['outlook']['expected_gain'], found['outlook']['next_trials'])}"
        )
    for notice in found["notices"]:
        print(f"note: {notice}")
    for failure in found["failures"]:
        print(f"trial {failure['trial']} failed ({failure['blame']}): {failure['reason']}")


def add_front(commands: Commands) -> None:
    """Add `recycler front`."""
    parser = add_command(commands, "front", "the Pareto front and the baselines of a run", front)
    add_run_argument(parser)
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="one JSON document")
    shape.add_argument("--csv", action="store_true", help="one line a trial")
    parser.add_argument(
        "--holdout", action="store_true", help="show holdout scores instead of search scores"
    )


def front(arguments: argparse.Namespace) -> None:
    """recycler front RUN: table, JSON or CSV."""
    from recycler.cli.front_text import front_table  # loads numpy and sqlalchemy
    from recycler.results.documents import front_document
    from recycler.results.open import open_front

    found = open_front(arguments.run)
    role: Role = "holdout" if arguments.holdout else "search"
    if arguments.json:
        print(json.dumps(front_document(found), indent=2, sort_keys=True))
    elif arguments.csv:
        print(_csv(front_document(found), role), end="")
    else:
        print(front_table(found, role), end="")


def add_preview(commands: Commands) -> None:
    """Add `recycler preview`."""
    parser = add_command(
        commands,
        "preview",
        "what the members alone let expect: trade-offs, a guessed front, and how far off it was",
        preview,
    )
    add_run_argument(parser)
    add_json_flag(parser)


def preview(arguments: argparse.Namespace) -> None:
    """recycler preview RUN: what the members alone let expect, and how far off that was."""
    # loads scipy and sqlalchemy
    from recycler.results.insight import open_preview

    found = open_preview(arguments.run)
    print(
        json.dumps(found, indent=2) if arguments.json else preview_text(found),
        end="\n" if arguments.json else "",
    )


def add_why(commands: Commands) -> None:
    """Add `recycler why`."""
    parser = add_command(
        commands,
        "why",
        "what each member adds to a merge, and what the front would lose without it",
        why,
    )
    add_run_argument(parser)
    parser.add_argument(
        "--trial",
        default="knee",
        metavar="N|knee|best:OBJECTIVE",
        help="which merge (default: knee)",
    )
    add_json_flag(parser)


def why(arguments: argparse.Namespace) -> None:
    """recycler why RUN: contributions of members to a merge, and losses without them."""
    # loads scipy and sqlalchemy
    from recycler.results.insight import open_explanation

    found = open_explanation(arguments.run, arguments.trial)
    print(
        json.dumps(found, indent=2) if arguments.json else why_text(found),
        end="\n" if arguments.json else "",
    )


def _csv(document: dict, role: str) -> str:
    names = [objective["name"] for objective in document["objectives"]]
    members = sorted(
        {
            member
            for entry in document["front"] + document["baselines"]
            for row in entry["weights"].values()
            for member in row
        }
    )
    groups = sorted({group for entry in document["front"] for group in entry["weights"]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "trial",
            "kind",
            "label",
            *[f"{name}:{part}" for name in names for part in ("value", "stderr", "n")],
            *[f"{group}/{member}" for group in groups for member in members],
        ]
    )
    for entry in document["front"] + document["baselines"]:
        figures = [
            (entry["scores"][name][role] or {}).get(part, "")
            for name in names
            for part in ("value", "stderr", "n")
        ]
        writer.writerow(
            [
                entry["trial"],
                entry["kind"],
                entry["label"],
                *figures,
                *[
                    entry["weights"].get(group, {}).get(member, 0.0)
                    for group in groups
                    for member in members
                ],
            ]
        )
    return text.getvalue()
