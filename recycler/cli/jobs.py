"""run, without, status, front, preview, why."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recycler.cli.progress import Progress, gain_said
from recycler.cli.tables import front_table, preview_text, why_text

if TYPE_CHECKING:
    from recycler.results.front import Front

MAX_NAMED = 10  # trials in a message


def run(arguments: argparse.Namespace) -> None:
    """recycler run JOB: talk on stderr, the front as a table on stdout."""
    front = drive(
        Path(arguments.job),
        Path(arguments.dir),
        [Path(folder) for folder in arguments.data],
        arguments,
    )
    print(front_table(front, "holdout"), end="")
    refuse_lost(front, arguments.dir)


def without(arguments: argparse.Namespace) -> None:
    """recycler without RUN MEMBER: the run's job again without a member, and what that costs."""
    from recycler.errors import Problem, UsageError
    from recycler.io.atomic import write_atomic
    from recycler.results.open import open_front
    from recycler.run.leave_out import job_without, outcome, outcome_text

    derived = job_without(arguments.run, arguments.member)
    folder = (
        Path(arguments.dir)
        if arguments.dir
        else Path(arguments.run).resolve().with_name(derived.id)
    )
    source = folder.with_name(
        f"{folder.name}.job.yaml"
    )  # where the service keeps the job files of its runs
    if source.exists() and source.read_text() != derived.text:
        raise UsageError(
            Problem(thing=str(source), cause="is another job's file", remedy="Give another --dir")
        )
    write_atomic(source, derived.text)
    front = drive(source, folder, derived.data, arguments)
    print(front_table(front, "holdout"), end="")
    print(
        outcome_text(
            arguments.member, outcome(open_front(arguments.run), front), _estimate(arguments)
        ),
        end="",
    )
    refuse_lost(front, folder)


def _estimate(arguments: argparse.Namespace) -> tuple[float, float, float] | None:
    """Share of the front's volume that the run's model expected to lose without the member, with
    its 90 % interval.
    """
    from recycler.results.insight import open_surrogate

    try:
        losses = open_surrogate(arguments.run).losses()
    except ValueError:  # too few trials for a model
        return None
    return next(
        (
            (loss.hypervolume, loss.low, loss.high)
            for loss in losses
            if loss.member == arguments.member
        ),
        None,
    )


def drive(job: Path, folder: Path, data: Sequence[Path], arguments: argparse.Namespace) -> Front:
    from recycler.cluster.ray_workers import RayWorkers
    from recycler.run.driver import run_job

    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # how clusters and services ask a driver to end
    with Progress() as progress:
        return run_job(
            job,
            folder,
            data_folders=data,
            ledger_url=ledger_url(arguments.ledger),
            reuse=Path(arguments.reuse) if arguments.reuse else None,
            make_workers=lambda work, num_workers: RayWorkers(
                work, num_workers=num_workers, address=arguments.address
            ),
            listen=progress.listen,
            started=progress.started,
        )


def refuse_lost(front: Front, run: str | Path) -> None:
    """Raise InfrastructureError where trials of a run that has ended are lost: its front stands
    without them.
    """
    from recycler.errors import InfrastructureError, Problem

    if front.lost:
        numbers = [str(trial.number) for trial in front.lost]
        named = ", ".join(numbers[:MAX_NAMED]) + (
            f" and {len(numbers) - MAX_NAMED} more" if len(numbers) > MAX_NAMED else ""
        )
        why = front.lost[-1].failure.reason if front.lost[-1].failure else ""
        raise InfrastructureError(
            Problem(
                thing=f"run {run}",
                cause=f"has ended without trial{'s' * (len(numbers) > 1)} {named}, lost through no "
                f"fault of theirs (trial {numbers[-1]}: {why})",
                remedy="Mend that and run the same command again, or recycler resume for a job on a "
                "cluster: both try them once more",
            )
        )


def ledger_url(given: str | None) -> str | None:
    """The database that --ledger or RECYCLER_LEDGER names.

    Raises UsageError for a password on the command line.
    """
    from recycler.errors import Problem, UsageError
    from recycler.ledger.place import ENVIRONMENT, has_password, split_place

    if given is not None and has_password(given):
        raise UsageError(
            Problem(
                thing="--ledger",
                cause="holds a password, and command lines are seen by everyone on the machine",
                remedy=f"Put it into PGPASSWORD or ~/.pgpass, or the whole URL into {ENVIRONMENT}",
            )
        )
    url = given or os.environ.get(ENVIRONMENT)
    return split_place(url)[0] if url else None


def status(arguments: argparse.Namespace) -> None:
    """recycler status RUN: how far, what it cost, and why anything failed."""
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


def front(arguments: argparse.Namespace) -> None:
    """recycler front RUN: table, JSON or CSV."""
    from recycler.results.documents import front_document
    from recycler.results.open import open_front

    found = open_front(arguments.run)
    role = "holdout" if arguments.holdout else "search"
    if arguments.json:
        print(json.dumps(front_document(found), indent=2, sort_keys=True))
    elif arguments.csv:
        print(_csv(front_document(found), role), end="")
    else:
        print(front_table(found, role), end="")


def preview(arguments: argparse.Namespace) -> None:
    """recycler preview RUN: what the members alone let expect, and how far off that was."""
    from recycler.results.insight import open_preview

    found = open_preview(arguments.run)
    print(
        json.dumps(found, indent=2) if arguments.json else preview_text(found),
        end="\n" if arguments.json else "",
    )


def why(arguments: argparse.Namespace) -> None:
    """recycler why RUN: what each member adds to a merge, and what the front would lose without it."""
    from recycler.results.insight import open_why

    found = open_why(arguments.run, arguments.trial)
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
