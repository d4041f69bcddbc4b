"""Pools of checkpoints: inspect, fold, pack, unpack."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from recycler.cli.arguments import (
    Commands,
    add_command,
    add_json_flag,
)
from recycler.errors import Problem, UsageError
from recycler.location import parse_location

MUCH_NOISE = 0.1  # of an adapter's step; above it the user is told


def add_inspect(commands: Commands) -> None:
    """Add `recycler inspect`."""
    parser = add_command(
        commands,
        "inspect",
        "what is in a pool, and whether it can be merged (exit code 4 when not); reads every "
        "byte once, to tell which are the same",
        inspect,
    )
    parser.add_argument("pool", nargs="+", help="checkpoint folders, globs, or a folder of them")
    parser.add_argument("--base", help="the checkpoint that the members were trained from")
    parser.add_argument(
        "--deltas",
        action="store_true",
        help="also a profile of |delta| to the base (or first member) by layer, from a sample of "
        "each tensor",
    )
    add_json_flag(parser)


def inspect(arguments: argparse.Namespace) -> int:
    """recycler inspect POOL. Gives 4 when something was found that recycler run would refuse."""
    # loads numpy
    from recycler.errors import UnsafeInputError
    from recycler.pool.catalog import open_pool
    from recycler.pool.checks.inspect import inspect_pool, inspect_table

    found = inspect_pool(open_pool(arguments.pool, arguments.base), deltas=arguments.deltas)
    print(json.dumps(found, indent=2) if arguments.json else inspect_table(found))
    return (
        UnsafeInputError.exit_code
        if any(finding["level"] == "refuse" for finding in found["findings"])
        else 0
    )


def add_fold(commands: Commands) -> None:
    """Add `recycler fold`."""
    parser = add_command(commands, "fold", "fold LoRA adapters into full checkpoints", fold)
    parser.add_argument("base", help="checkpoint that the adapters were trained on")
    parser.add_argument("adapters", nargs="+", help="PEFT adapter folders")
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="folder for the checkpoints, one a subfolder"
    )


def fold(arguments: argparse.Namespace) -> None:
    """recycler fold BASE ADAPTER... --to DIR."""
    # loads torch and numpy
    from recycler.pool.adapters.fold import fold_adapter
    from recycler.pool.catalog import open_pool
    from recycler.pool.checks.scan import duplicate_findings

    for place in (arguments.base, *arguments.adapters, arguments.to):
        _only_here("recycler fold", place, "Give folders, and copy what lies in a bucket")
    folded = [
        Path(arguments.to) / adapter.resolve().name for adapter in map(Path, arguments.adapters)
    ]
    for adapter, out in zip(map(Path, arguments.adapters), folded, strict=True):
        rounding = fold_adapter(Path(arguments.base), adapter, out)
        print(out)
        if rounding.noise > MUCH_NOISE:
            print(
                f"recycler: {adapter.name}: rounded to the base's dtype, the weights move "
                f"{rounding.kept:.2f} of the adapter's step, with noise of {rounding.noise:.2f} "
                "of its size; "
                "fold into a float32 base to keep all of it (docs/methods.md)",
                file=sys.stderr,
            )
    for finding in duplicate_findings(open_pool(folded, arguments.base), level="warn")[0]:
        print(f"recycler: {finding.problem}", file=sys.stderr)


def add_pack(commands: Commands) -> None:
    """Add `recycler pack`."""
    parser = add_command(
        commands,
        "pack",
        "keep a pool as base and deltas: exact, or compressed",
        pack,
    )
    parser.add_argument("pool", nargs="+", help="checkpoint folders, globs, or a folder of them")
    parser.add_argument(
        "--base", required=True, help="the checkpoint that the members were trained from"
    )
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="folder to write; it must not exist"
    )
    parser.add_argument(
        "--ratio",
        type=float,
        help="compress each matrix's delta to 1/RATIO of its bits; default: exact",
    )


def pack(arguments: argparse.Namespace) -> None:
    """recycler pack POOL --base BASE --to DIR."""
    # loads numpy
    from recycler.digest import plain
    from recycler.pool.catalog import open_pool
    from recycler.pool.pack_writer import pack_pool

    _only_here(
        "recycler pack --to",
        arguments.to,
        "Give a folder, and copy it to the bucket: recycler reads packs there too",
    )
    print(
        json.dumps(
            {
                "schema_version": 1,
                **plain(
                    pack_pool(
                        open_pool(arguments.pool, arguments.base),
                        Path(arguments.to),
                        arguments.ratio,
                    )
                ),
            },
            indent=2,
        )
    )


def add_unpack(commands: Commands) -> None:
    """Add `recycler unpack`."""
    parser = add_command(
        commands,
        "unpack",
        "write a packed pool as checkpoint folders again",
        unpack,
    )
    parser.add_argument("packed", help="folder that recycler pack wrote")
    parser.add_argument("out", help="folder to write; it must not exist")


def unpack(arguments: argparse.Namespace) -> None:
    """recycler unpack PACKED OUT."""
    # loads numpy
    from recycler.pool.pack_writer import unpack as unpack_pool

    for place in (arguments.packed, arguments.out):
        _only_here(
            "recycler unpack",
            place,
            "Give folders; a pack in a bucket can be merged and searched as it is",
        )
    for folder in unpack_pool(Path(arguments.packed), Path(arguments.out)):
        print(folder)


def _only_here(what: str, place: str, remedy: str) -> None:
    """Raise UsageError for a URL where only a folder of this machine will do."""
    if parse_location(place).is_url:
        raise UsageError(
            Problem(
                thing=place,
                cause=f"is a URL, and {what} works with folders of this machine",
                remedy=remedy,
            )
        )
