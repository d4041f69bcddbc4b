"""recycler plan: of a job, or of a merge."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from recycler.cli.arguments import (
    Commands,
    add_allow_flag,
    add_command,
    add_data_flag,
    add_json_flag,
)
from recycler.cli.progress import say_notes

if TYPE_CHECKING:
    from recycler.io.strict_yaml import YamlDocument


def add_plan(commands: Commands) -> None:
    """Add `recycler plan`."""
    parser = add_command(
        commands,
        "plan",
        "what a job will ask, cost and be able to tell apart, or what a merge will cost; starts "
        "nothing",
        plan,
    )
    parser.add_argument("job", help="job file, or a recipe (ours or mergekit's)")
    parser.add_argument(
        "--bandwidth",
        type=float,
        default=1.0,
        metavar="GB/S",
        help="of the disk or bucket, for the time of a merge (default: 1)",
    )
    add_allow_flag(parser)
    parser.add_argument(
        "--dir",
        metavar="RUN",
        help="an earlier run over the same items: its speed and its members' spread are used",
    )
    add_data_flag(parser)
    add_json_flag(parser)


def plan(arguments: argparse.Namespace) -> None:
    """recycler plan JOB|RECIPE: its questions, its costs, its resolution; starts nothing."""
    # loads pydantic and yaml
    from recycler.io.strict_yaml import load_yaml

    document = load_yaml(arguments.job)
    if is_recipe(document):
        plan_recipe(arguments, document)
        return
    # loads torch and sqlalchemy
    from recycler.errors import Problem, UsageError
    from recycler.ledger.runs import open_ledger
    from recycler.run.plan import plan_job, plan_text, read_earlier
    from recycler.run.prepare import prepare

    if arguments.allow:
        raise UsageError(
            Problem(
                thing="--allow",
                cause="is for recipes, and this is a job",
                remedy="Leave it out; a job says pool.duplicates: allow",
            )
        )
    prepared = prepare(
        document, data_folders=[Path(folder) for folder in arguments.data], look_inside=False
    )
    say_notes(prepared.warnings)
    earlier = None
    if arguments.dir:
        with closing(open_ledger(arguments.dir)) as ledger:
            earlier = read_earlier(ledger, prepared)
    found = plan_job(prepared, earlier)
    print(json.dumps(found, indent=2) if arguments.json else plan_text(found))


def is_recipe(document: YamlDocument) -> bool:
    """A recipe names its members, a mergekit file its method; a job has a pool."""
    # loads torch and numpy
    from recycler.errors import Problem, UsageError
    from recycler.export.lora import is_lora_recipe
    from recycler.merge.files.recipe_yaml import is_mergekit

    data = document.data
    if is_lora_recipe(data):
        raise UsageError(
            Problem(
                thing=document.path,
                cause="merges adapters, for which there is no plan: they are read and written in "
                "seconds",
                remedy="Run it with recycler merge",
            )
        )
    return (
        isinstance(data, dict) and "pool" not in data and ("members" in data or is_mergekit(data))
    )


def plan_recipe(arguments: argparse.Namespace, document: YamlDocument) -> None:
    """recycler plan RECIPE: bytes, memory and time of a merge, from headers alone."""
    # loads torch and numpy
    from recycler.errors import Problem, UsageError
    from recycler.merge.files.recipe_yaml import is_mergekit, open_recipe
    from recycler.merge.plan import plan_checkpoints
    from recycler.merge.preflight import check_plan
    from recycler.merge.stream import check_recipe
    from recycler.pool.storage.tensors import ResidentPool

    if not 0 < arguments.bandwidth < float("inf"):
        raise UsageError(
            Problem(
                thing="--bandwidth",
                cause=f"is {arguments.bandwidth}",
                remedy="Give gigabytes a second, such as 0.5",
            )
        )
    recipe, pool = open_recipe(document)
    check_recipe(recipe, ResidentPool(pool))
    for warning in check_plan(
        recipe, pool, allow=arguments.allow, lenient=is_mergekit(document.data)
    ):
        print(f"recycler: {warning}", file=sys.stderr)
    found = plan_checkpoints(
        recipe, {checkpoint.name: checkpoint for checkpoint in pool.checkpoints}
    )
    seconds = found.seconds(arguments.bandwidth * 1e9)
    if arguments.json:
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    **asdict(found),
                    "bandwidth_gb_per_s": arguments.bandwidth,
                    "seconds": seconds,
                },
                indent=2,
            )
        )
        return
    walked = "once"
    if found.passes > 1:
        walked = f"{found.passes} times, after the first in the page cache"
    print(
        f"{recipe.method} of {len(recipe.members)} "
        f"members{f' and base {recipe.base}' if recipe.base else ''}: {found.num_tensors:,} "
        f"tensors, {found.num_parameters / 1e9:,.2f} billion parameters\n"
        f"reads {_size(found.bytes_read)}, writes {_size(found.bytes_written)}; each tensor is "
        f"walked {walked}\n"
        f"anonymous memory: about {_size(found.peak_bytes)}; largest tensor "
        f"{_size(found.largest_tensor_bytes)}\n"
        f"time at {arguments.bandwidth:g} GB/s of reading and writing: {seconds:,.1f} s "
        f"({seconds / 3600:.1f} h)"
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
