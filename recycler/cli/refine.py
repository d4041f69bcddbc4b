"""refine: a merge of a run, improved by slopes of its loss, as one more trial."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from recycler.cli.arguments import Commands, add_command, add_driver_flags
from recycler.cli.jobs import drive, refuse_lost
from recycler.errors import Problem, UsageError


def add_refine(commands: Commands) -> None:
    """Add `recycler refine`."""
    parser = add_command(
        commands,
        "refine",
        "improve a merge of a run by slopes of its loss, as one more trial",
        refine,
    )
    parser.add_argument("run", help="run folder, which must know its job file still")
    parser.add_argument(
        "--trial",
        default="knee",
        metavar="N|knee|best:OBJECTIVE",
        help="which merge (default: knee)",
    )
    parser.add_argument(
        "--by",
        choices=("gradient", "spsa"),
        default="gradient",
        help="gradient: of linear merges, with transformers; spsa: of any merge, with the job's "
        "engine (default: gradient)",
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=0,
        metavar="N",
        help="a row of weights for each of N blocks of layers (default: the rows that the merge "
        "has)",
    )
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument(
        "--batch",
        type=int,
        default=16,
        metavar="N",
        help="items an objective that a step looks at (default: 16)",
    )
    parser.add_argument(
        "--reach",
        type=float,
        default=0.03,
        metavar="X",
        help="how far a step moves a weight (default: 0.03)",
    )
    parser.add_argument(
        "--prefer",
        action="append",
        default=[],
        metavar="OBJECTIVE=SHARE",
        help="how much an objective counts; may be given again (default: all the same)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the items of each step, and of SPSA's directions (default: 0)",
    )
    add_driver_flags(parser)


def refine(arguments: argparse.Namespace) -> None:
    """recycler refine RUN: steps on stderr, then one more trial and the front."""
    from recycler.cli.front_text import front_table  # loads numpy and sqlalchemy
    from recycler.run.prepare import prepare
    from recycler.run.refine import refine as refined
    from recycler.run.refine_losses import Settings
    from recycler.run.started import read_started

    if arguments.steps < 1 or arguments.batch < 1 or not 0 < arguments.reach <= 1:
        raise UsageError(
            Problem(
                thing="--steps, --batch, --reach",
                cause="must be above 0, and --reach at most 1",
                remedy="Leave them out for 10, 16 and 0.03",
            )
        )
    run = Path(arguments.run)
    started = read_started(run)
    if started is None:
        raise UsageError(
            Problem(
                thing=f"run {run}",
                cause="has no job file here any more",
                remedy="Refine a run whose folder, job file and pool are on this machine",
            )
        )
    job = Path(started.document.path)
    settings = Settings(
        by=arguments.by,
        steps=arguments.steps,
        layers=arguments.layers,
        batch=arguments.batch,
        reach=arguments.reach,
        prefer=_preference(arguments.prefer),
        seed=arguments.seed,
    )
    found = refined(
        run,
        prepare(job, data_folders=started.data),
        arguments.trial,
        settings,
        tell=lambda line: print(f"recycler: {line}", file=sys.stderr, flush=True),
    )
    for name, value in found.after.items():
        print(
            f"{name}: {found.before[name]:.4f} -> {value:.4f} nats a token of the right answers "
            "(search items)"
        )
    if found.trial is None:
        print(
            f"trial {found.of} is as good as these steps can make it; nothing was added to the run"
        )
        return
    print(f"trial {found.trial} is trial {found.of}, refined; scoring it")
    front = drive(job, run, started.data, arguments)
    print(front_table(front, "holdout"), end="")
    refuse_lost(front, run)


def _preference(given: list[str]) -> dict[str, float] | None:
    """{objective: share} of the `--prefer NAME=SHARE` that were given; None where none was.

    Raises UsageError.
    """
    shares: dict[str, float] = {}
    for text in given:
        name, _, share = text.rpartition("=")
        try:
            shares[name] = float(share)
            if not 0 <= shares[name] < math.inf:
                raise ValueError(share)
        except ValueError:
            raise UsageError(
                Problem(
                    thing=f"--prefer {text}",
                    cause="is not NAME=SHARE with a share of 0 or more",
                    remedy="Write it like --prefer math/bits_per_byte=0.7",
                )
            ) from None
    return shares or None
