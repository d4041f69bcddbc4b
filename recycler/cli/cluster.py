"""submit, logs, stop, resume, list: jobs on a Ray cluster, their ledgers in a database."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recycler.cli.arguments import Commands, add_command, add_data_flag, add_json_flag
from recycler.cli.jobs import ledger_url
from recycler.cli.tables import align
from recycler.errors import NotFoundError, Problem, RecyclerError, UsageError
from recycler.io.redact import without_password

if TYPE_CHECKING:
    from recycler.cluster.ray_jobs import Cluster, Submission
    from recycler.run.bundle import Bundle

ADDRESS = "RAY_API_SERVER_ADDRESS"  # Ray's own name for it


def _add_driver_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the start of a driver takes."""
    add_data_flag(parser)
    parser.add_argument(
        "--ship-code",
        action="store_true",
        help="send this recycler along, for nodes that have its dependencies only",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="show the driver's log and end when it does: 0 when finished, else 1",
    )


def _add_ledger_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ledger",
        metavar="URL",
        help="postgresql://USER@HOST/DATABASE (default: RECYCLER_LEDGER)",
    )


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS)",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="take a cluster that asks nobody for a token"
    )


def add_submit(commands: Commands) -> None:
    """Add `recycler submit`."""
    parser = add_command(
        commands,
        "submit",
        "start a job's driver on a Ray cluster; the same job again is that job",
        submit,
    )
    parser.add_argument("job", help="job file (YAML)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be sent, and send nothing"
    )
    _add_driver_flags(parser)
    _add_ledger_flag(parser)
    _add_cluster_flags(parser)


def submit(arguments: argparse.Namespace) -> int:
    """recycler submit JOB: the id on stdout, what to do next on stderr."""
    # loads pydantic and yaml
    from recycler.run.bundle import bundle_job, check_travels

    bundle = bundle_job(
        Path(arguments.job), data_folders=[Path(folder) for folder in arguments.data]
    )
    check_travels(bundle.job)
    url = _needed_ledger(arguments)
    if arguments.dry_run:
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    "id": bundle.id,
                    "command": driver_command(url),
                    "files": {name: len(raw) for name, raw in sorted(bundle.files.items())},
                },
                indent=2,
            )
        )
        return 0
    cluster = _cluster(arguments)
    before = cluster.submissions(bundle.id)
    if not before:
        submission = _start(arguments, cluster, bundle, url, number=1)
        _say(f"submitted as {bundle.id}")
    else:
        submission = before[-1]
        _say(f"{bundle.id} was submitted before and {_told(submission)}")
    return _after(arguments, cluster, submission)


def add_resume(commands: Commands) -> None:
    """Add `recycler resume`."""
    parser = add_command(
        commands,
        "resume",
        "one more driver for a job that none drives",
        resume,
    )
    parser.add_argument("job", help="job file, or the id of a job in the ledger")
    _add_driver_flags(parser)
    _add_ledger_flag(parser)
    _add_cluster_flags(parser)


def resume(arguments: argparse.Namespace) -> int:
    """recycler resume JOB|ID: one more driver for a job that none drives.

    The job comes from its file or from what the ledger keeps.
    """
    # loads pydantic and yaml
    from recycler.run.bundle import bundle_job, check_travels

    url = _needed_ledger(arguments)
    bundle = (
        bundle_job(Path(arguments.job), data_folders=[Path(folder) for folder in arguments.data])
        if Path(arguments.job).is_file()
        else _kept_bundle(url, arguments.job)
    )
    check_travels(bundle.job)
    cluster = _cluster(arguments)
    before = cluster.submissions(bundle.id)
    if before and not before[-1].has_ended:
        submission = before[-1]
        _say(f"{bundle.id} {_told(submission)}: nothing to resume")
    else:
        submission = _start(arguments, cluster, bundle, url, number=len(before) + 1)
        _say(f"{bundle.id} goes on, as submission {submission.name}")
    return _after(arguments, cluster, submission)


def add_logs(commands: Commands) -> None:
    """Add `recycler logs`."""
    parser = add_command(commands, "logs", "what a job's driver says", logs)
    parser.add_argument("-f", "--follow", action="store_true", help="until it ends")
    parser.add_argument("id", help="job id, as recycler submit printed it")
    _add_cluster_flags(parser)


def logs(arguments: argparse.Namespace) -> None:
    """recycler logs ID [-f]: what the last driver said."""
    cluster = _cluster(arguments)
    submission = cluster.last(arguments.id)
    if arguments.follow:
        for piece in cluster.follow(submission):
            print(piece, end="", flush=True)
    else:
        print(cluster.logs(submission), end="")


def add_stop(commands: Commands) -> None:
    """Add `recycler stop`."""
    parser = add_command(commands, "stop", "end a job's driver; scored trials are kept", stop)
    parser.add_argument("id", help="job id, as recycler submit printed it")
    _add_cluster_flags(parser)


def stop(arguments: argparse.Namespace) -> None:
    """recycler stop ID: end the driver; scored trials are kept."""
    cluster = _cluster(arguments)
    submission = cluster.last(arguments.id)
    if not submission.has_ended:
        submission = cluster.stop(submission)
    _say(f"{arguments.id} {_told(submission)}; recycler resume {arguments.id} goes on with it")


def add_list(commands: Commands) -> None:
    """Add `recycler list`."""
    parser = add_command(
        commands,
        "list",
        "the jobs of a ledger database and of a cluster",
        list_jobs,
    )
    add_json_flag(parser)
    _add_ledger_flag(parser)
    _add_cluster_flags(parser)


def list_jobs(arguments: argparse.Namespace) -> None:
    """recycler list: the jobs of a ledger database, of a cluster, or of both, one line each."""
    url, address = ledger_url(arguments.ledger), arguments.address or os.environ.get(ADDRESS)
    if not url and not address:
        raise UsageError(
            Problem(
                thing="recycler list",
                cause="knows no place to look",
                remedy=f"Give --ledger (or RECYCLER_LEDGER), --address (or {ADDRESS}), or both",
            )
        )
    rows: dict[str, dict[str, Any]] = {}
    for job, facts in (_ledger_rows(url) if url else {}).items():
        rows[job] = {"id": job, **facts, "submission": None}
    for submission in _cluster(arguments).submissions() if address else []:
        rows.setdefault(
            submission.job,
            {
                "id": submission.job,
                "state": "not in the ledger yet",
                "trials": None,
                "submission": None,
            },
        )["submission"] = asdict(submission)
    if arguments.json:
        print(
            json.dumps({"schema_version": 1, "jobs": [rows[job] for job in sorted(rows)]}, indent=2)
        )
        return

    print(
        align(
            [
                ["job", "state", "scored", "driver"],
                *(
                    [
                        row["id"],
                        row["state"].partition(":")[0],
                        str((row["trials"] or {}).get("SCORED", "")),
                        row["submission"]["state"] if row["submission"] else "",
                    ]
                    for _, row in sorted(rows.items())
                ),
            ]
        )
    )


def driver_command(url: str) -> str:
    """Command that runs on the cluster: an ordinary `recycler run` in the bundle's folder."""
    return shlex.join(
        [
            "python",
            "-m",
            "recycler",
            "run",
            "job.yaml",
            "--dir",
            "run",
            "--data",
            "data",
            "--ledger",
            without_password(url),
        ]
    )


# ---------------------------------------------------------------- parts


def _cluster(arguments: argparse.Namespace) -> Cluster:
    address = arguments.address or os.environ.get(ADDRESS)
    if not address:
        raise UsageError(
            Problem(
                thing="cluster",
                cause="has no address",
                remedy=f"Give --address http://HOST:8265, or set {ADDRESS}",
            )
        )
    # loads ray
    from recycler.cluster.ray_jobs import Cluster

    return Cluster(address, insecure=arguments.insecure)


def _start(
    arguments: argparse.Namespace, cluster: Cluster, bundle: Bundle, url: str, *, number: int
) -> Submission:
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(Path(folder))
        return cluster.submit(
            bundle.id,
            Path(folder),
            driver_command(url),
            number=number,
            ship_code=arguments.ship_code,
        )


def _needed_ledger(arguments: argparse.Namespace) -> str:
    url = ledger_url(arguments.ledger)
    if url is None:
        raise UsageError(
            Problem(
                thing="ledger",
                cause="has no place: a file on the cluster would go with the driver",
                remedy="Give --ledger postgresql://USER@HOST/DATABASE, or set RECYCLER_LEDGER",
            )
        )
    return url


def _kept_bundle(url: str, job: str) -> Bundle:
    """The files of a job as its first driver put them into the ledger."""
    # loads sqlalchemy and pydantic
    from recycler.ledger import Ledger
    from recycler.ledger.place import job_place
    from recycler.run.bundle import bundle_files

    try:
        ledger = Ledger(job_place(url, job), create=False)
    except NotFoundError:
        raise NotFoundError(
            Problem(
                thing=f"job {job!r}",
                cause="is no job file, and not in the ledger",
                remedy="Give the job file; recycler list shows the ids",
            )
        ) from None
    try:
        files = ledger.files()
    finally:
        ledger.close()
    with tempfile.TemporaryDirectory() as folder:
        return bundle_files(files, Path(folder))


def _after(arguments: argparse.Namespace, cluster: Cluster, submission: Submission) -> int:
    """Print the id; with --wait follow the driver and end as it does, else say what to do next."""
    print(submission.job, flush=True)
    if not arguments.wait:
        _say(f"next: recycler status {submission.job} | logs -f | front | stop | resume")
        return 0
    for piece in cluster.follow(submission):
        print(piece, end="", file=sys.stderr, flush=True)
    ended = cluster.wait(submission)
    _say(f"{submission.job} {_told(ended)}")
    return 0 if ended.state == "SUCCEEDED" else 1


def _told(submission: Submission) -> str:
    word = {
        "PENDING": "is starting",
        "RUNNING": "is running",
        "STOPPED": "is stopped",
        "SUCCEEDED": "is finished",
        "FAILED": "has failed",
    }[submission.state]
    return (
        f"{word} ({submission.reason})"
        if submission.reason and submission.state != "STOPPED"
        else word
    )


def _ledger_rows(url: str) -> dict[str, dict[str, Any]]:
    # loads sqlalchemy
    from recycler.ledger import Ledger
    from recycler.ledger.database import job_ids
    from recycler.ledger.place import job_place
    from recycler.ledger.runs import read_status

    rows: dict[str, dict[str, Any]] = {}
    for job in job_ids(url):
        try:
            ledger = Ledger(job_place(url, job), create=False)
            try:
                found = read_status(ledger)
            finally:
                ledger.close()
            rows[job] = {"state": found["state"], "trials": found["trials"]}
        except RecyclerError as error:
            rows[job] = {"state": f"broken: {error.problems[0].cause}", "trials": None}
    return rows


def _say(text: str) -> None:
    print(f"recycler: {text}", file=sys.stderr, flush=True)
