"""Drive a job: run, without; and what every driving command shares."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recycler.cli.arguments import (
    Commands,
    add_command,
    add_data_flag,
    add_driver_flags,
)
from recycler.cli.progress import Progress
from recycler.errors import InfrastructureError, Problem, UsageError

if TYPE_CHECKING:
    from recycler.results.front import Front

MAX_NAMED = 10  # trials in a message


def add_run(commands: Commands) -> None:
    """Add `recycler run`."""
    parser = add_command(commands, "run", "run or resume a job", run)
    parser.add_argument("job", help="job file (YAML)")
    parser.add_argument(
        "--dir", default="run", help="run folder (default: run); an unfinished run there goes on"
    )
    add_data_flag(parser)
    add_driver_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """recycler run JOB: talk on stderr, the front as a table on stdout."""
    from recycler.cli.front_text import front_table  # loads numpy and sqlalchemy

    front = drive(
        Path(arguments.job),
        Path(arguments.dir),
        [Path(folder) for folder in arguments.data],
        arguments,
    )
    print(front_table(front, "holdout"), end="")
    refuse_lost(front, arguments.dir)


def add_without(commands: Commands) -> None:
    """Add `recycler without`."""
    parser = add_command(
        commands,
        "without",
        "run a run's job again without one member, to know what leaving it out costs",
        without,
    )
    parser.add_argument("run", help="run folder, which must know its job file still")
    parser.add_argument("member", help="name of a member, as recycler front shows it")
    parser.add_argument(
        "--dir",
        help="run folder of the new job (default: RUN-without-MEMBER beside RUN); its job file "
        "goes beside it",
    )
    add_driver_flags(parser)


def without(arguments: argparse.Namespace) -> None:
    """recycler without RUN MEMBER: the run's job again without a member, and what that costs."""
    from recycler.cli.front_text import front_table  # loads numpy and sqlalchemy
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
    """Estimated loss of the front's volume without the member, with its 90 % interval."""
    # loads scipy and sqlalchemy
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
    # loads torch and ray
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
    """Raise InfrastructureError where a run has ended without some of its trials.

    They were lost to the system; its front stands without them.
    """
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
                remedy="Mend that and run the same command again, or recycler resume for a job on "
                "a cluster: both try them once more",
            )
        )


def ledger_url(given: str | None) -> str | None:
    """The database that --ledger or RECYCLER_LEDGER names.

    Raises UsageError for a password on the command line.
    """
    # loads sqlalchemy
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
