"""Pieces of the parser that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run: TypeAlias = Callable[[argparse.Namespace], int | None]
EPILOG = (
    "Exit codes: 0 ok, 1 failed, 2 usage or job file, 3 not found, 4 unsafe or broken input, 5 "
    "infrastructure (try again), 130 interrupted."
)


def add_command(commands: Commands, name: str, summary: str, run: Run) -> argparse.ArgumentParser:
    """Add a command that `run` runs. Every argument of it that is text must not be empty."""
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=EPILOG
    )
    parser.set_defaults(function=run)
    parser.register("type", None, _not_empty)
    return parser


def _not_empty(text: str) -> str:
    """Refuse an empty text: of a shell variable that is not set, it would mean this folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path (or name) is empty; the current folder is .")
    return text


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add the run that a command reads."""
    parser.add_argument("run", help="run folder, URL?job=ID, or job id")


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """Add --data."""
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR",
        help="folder with benchmark data; may be given again",
    )


def add_driver_flags(parser: argparse.ArgumentParser) -> None:
    """Add what every command that drives a search takes: cluster, reuse, ledger."""
    parser.add_argument("--address", help="a Ray cluster; default: one is started on this machine")
    parser.add_argument(
        "--reuse",
        metavar="DIR",
        help="keep answers there, and take those of earlier runs: the same weights, engine "
        "and question are not asked twice",
    )
    parser.add_argument(
        "--ledger",
        metavar="URL",
        help="postgresql://USER@HOST/DATABASE that keeps the ledger (default: "
        "RECYCLER_LEDGER, else a file in the run folder)",
    )


def add_shard_flag(parser: argparse.ArgumentParser) -> None:
    """Add --max-shard-bytes."""
    parser.add_argument(
        "--max-shard-bytes",
        type=int,
        default=5_000_000_000,
        help="split the weights beyond this size",
    )


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def add_allow_flag(parser: argparse.ArgumentParser) -> None:
    """Add --allow, for commands that merge a recipe."""
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="CHECK",
        help="of a recipe: merge although this check refuses (duplicates, wrong_base, delta_size, "
        "...; a refusal names its check); may be given again",
    )
