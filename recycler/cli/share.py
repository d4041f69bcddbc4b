"""report, study, log: a run for others to look at."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path

from recycler.cli.arguments import Commands, add_command, add_run_argument
from recycler.errors import Problem, UsageError
from recycler.io.atomic import atomic_file


def add_report(commands: Commands) -> None:
    """Add `recycler report`."""
    parser = add_command(
        commands,
        "report",
        "a run as one HTML file that opens without network",
        report,
    )
    add_run_argument(parser)
    parser.add_argument(
        "--html", required=True, metavar="FILE", help="file to write; an older one is replaced"
    )


def report(arguments: argparse.Namespace) -> None:
    """recycler report RUN --html FILE: one file, whole or not at all."""
    # loads sqlalchemy and numpy
    from recycler.ledger.runs import open_ledger, read_status
    from recycler.results.html import html_report
    from recycler.results.open import open_front

    with closing(open_ledger(arguments.run)) as ledger:
        status = read_status(ledger)
    text = html_report(open_front(arguments.run), status)
    path = Path(arguments.html)
    if path.is_dir():
        raise UsageError(
            Problem(thing=str(path), cause="is a folder", remedy="Give a file, such as report.html")
        )
    try:
        with atomic_file(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            Problem(
                thing=str(path),
                cause=f"cannot be written ({error.strerror})",
                remedy="Give a file in a folder that exists",
            )
        ) from None
    print(f"recycler: wrote {path} ({len(text):,} characters)", file=sys.stderr)


def add_study(commands: Commands) -> None:
    """Add `recycler study`."""
    parser = add_command(
        commands,
        "study",
        "copy a run into an Optuna study, for optuna-dashboard and optuna's plots",
        study,
    )
    add_run_argument(parser)
    parser.add_argument(
        "--storage",
        required=True,
        metavar="URL",
        help="optuna's storage, such as sqlite:///study.db",
    )
    parser.add_argument("--name", help="name of the study (default: the job's)")


def study(arguments: argparse.Namespace) -> None:
    """recycler study RUN --storage URL: an Optuna study with every closed trial."""
    # loads sqlalchemy and numpy
    from recycler.ledger.runs import open_ledger
    from recycler.search.optuna.study import write_study

    with closing(open_ledger(arguments.run)) as ledger:
        job = ledger.facts.require_job()
        name = arguments.name or job.name or "recycler"
        number = write_study(ledger.trials(), job.objectives, storage=arguments.storage, name=name)
    print(f"recycler: wrote {number} trials as study {name!r}", file=sys.stderr)


def add_log(commands: Commands) -> None:
    """Add `recycler log`."""
    parser = add_command(
        commands,
        "log",
        "copy a run to MLflow, Weights & Biases, or files of lm-eval",
        log,
    )
    add_run_argument(parser)
    tracker = parser.add_mutually_exclusive_group(required=True)
    tracker.add_argument(
        "--mlflow",
        metavar="URI",
        help="MLflow's tracking URI; given again, only what is new is written",
    )
    tracker.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="Weights & Biases project; WANDB_MODE=offline writes to ./wandb alone",
    )
    tracker.add_argument(
        "--lm-eval",
        metavar="DIR",
        help="new folder for one trial's results_*.json and samples_*.jsonl, below it search/ and "
        "holdout/",
    )
    parser.add_argument(
        "--trial", metavar="WHICH", help="with --lm-eval: number, knee (default), or best:OBJECTIVE"
    )
    parser.add_argument(
        "--name", help="MLflow experiment, or name of the W&B run (default: the job's)"
    )


def log(arguments: argparse.Namespace) -> None:
    """recycler log RUN --mlflow URI | --wandb PROJECT | --lm-eval DIR [--trial WHICH]."""
    # loads sqlalchemy and numpy
    from recycler.ledger.runs import open_ledger
    from recycler.results.open import open_front

    if arguments.trial is not None and arguments.lm_eval is None:
        raise UsageError(
            Problem(
                thing="--trial",
                cause="is for --lm-eval",
                remedy="Leave it out: trackers get every trial",
            )
        )
    front = open_front(arguments.run)
    if arguments.lm_eval is not None:
        # loads sqlalchemy and numpy
        from recycler.export.lmeval_log import log_to_lm_eval

        number, files = log_to_lm_eval(
            front,
            arguments.run,
            arguments.trial or "knee",
            Path(arguments.lm_eval),
            name=arguments.name,
        )
        print(
            f"recycler: wrote {files} files of trial {number} to {arguments.lm_eval}",
            file=sys.stderr,
        )
        return
    with closing(open_ledger(arguments.run)) as ledger:
        trials, job = ledger.trials(), ledger.facts.require_job()
    name, run = (
        arguments.name or job.name or "recycler",
        os.path.abspath(arguments.run) if os.path.isdir(arguments.run) else arguments.run,
    )
    if arguments.mlflow is not None:
        # loads numpy and pydantic
        from recycler.export.mlflow_log import log_to_mlflow

        number, where = (
            log_to_mlflow(front, trials, uri=arguments.mlflow, run=run, name=name),
            f"MLflow experiment {name!r}",
        )
    else:
        # loads numpy and pydantic
        from recycler.export.wandb_log import log_to_wandb

        number, where = (
            log_to_wandb(front, trials, project=arguments.wandb, run=run, name=name),
            f"a run of W&B project {arguments.wandb!r}",
        )
    print(f"recycler: wrote {number} trials to {where}", file=sys.stderr)
