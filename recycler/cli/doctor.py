"""doctor: a line for each check of this machine, with a remedy.

Nothing heavy is imported.

Versions are read from what pip installed, and held against what recycler itself asks for. Buckets,
ledgers and clusters are tried only where their address is given; what is written for a try is
removed again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from recycler.cli.arguments import Commands, add_command, add_json_flag
from recycler.errors import InfrastructureError

if TYPE_CHECKING:
    from recycler.cli.machine_checks import Check


def add_doctor(commands: Commands) -> None:
    """Add `recycler doctor`."""
    parser = add_command(
        commands,
        "doctor",
        "can this machine run jobs? versions, GPUs, disk, clock, sandbox, cluster, bucket, ledger",
        doctor,
    )
    parser.add_argument(
        "--dir", default=".", help="folder that runs go to (default: the current one)"
    )
    parser.add_argument(
        "--bucket",
        metavar="URL",
        help="try reading and conditional writing there: s3://, gs://, az:// or file://",
    )
    parser.add_argument(
        "--ledger", metavar="URL", help="try this database (default: RECYCLER_LEDGER)"
    )
    parser.add_argument("--address", metavar="URL", help="try this Ray cluster: http://HEAD:8265")
    add_json_flag(parser)


def doctor(arguments: argparse.Namespace) -> int:
    """recycler doctor: a line a check; exit code 0, or 5 when one has failed."""
    # loads urllib, importlib.metadata and the sandbox, half of the start of every command
    from recycler.cli.machine_checks import clock, folder, gpus, sandbox, versions
    from recycler.cli.service_checks import bucket, ledger, ray

    probes: list[Callable[[], Iterator[Check]]] = [
        versions,
        gpus,
        lambda: folder(Path(arguments.dir)),
        clock,
        sandbox,
        lambda: ray(arguments.address),
    ]
    if arguments.bucket:
        probes.append(lambda: bucket(arguments.bucket))
    if arguments.ledger or os.environ.get("RECYCLER_LEDGER"):
        probes.append(lambda: ledger(arguments.ledger or os.environ["RECYCLER_LEDGER"]))
    checks = []
    for probe in probes:
        for check in probe():
            checks.append(check if check.level != "ok" else replace(check, remedy=""))
            if not arguments.json:
                print(
                    f"{check.level:4}  {check.name}: {check.found}"
                    + (f"\n      {check.remedy}" if checks[-1].remedy else ""),
                    flush=True,
                )
    failed = sum(check.level == "fail" for check in checks)
    if arguments.json:
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    "ok": not failed,
                    "checks": [asdict(check) for check in checks],
                },
                indent=2,
            )
        )
    return InfrastructureError.exit_code if failed else 0


# ---------------------------------------------------------------- this machine


# ---------------------------------------------------------------- cluster, bucket, ledger
