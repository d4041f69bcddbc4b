"""The command line: parse, call one function, print.

Data on stdout, talk on stderr; nothing heavy is imported for --help.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from recycler import __version__
from recycler.cli import (
    cluster,
    demo,
    doctor,
    jobs,
    models,
    plan,
    pools,
    refine,
    results,
    serve,
    share,
)
from recycler.cli.arguments import EPILOG
from recycler.errors import InfrastructureError, RecyclerError
from recycler.io.redact import redacted

# faults of a disk or of its rights
_PLACES = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENAMETOOLONG,
        errno.EIO,
        errno.ESTALE,
    )
)
COMMANDS = (  # in the order of recycler --help
    jobs.add_run,
    jobs.add_without,
    refine.add_refine,
    plan.add_plan,
    results.add_status,
    results.add_front,
    results.add_preview,
    results.add_why,
    models.add_export,
    demo.add_demo,
    cluster.add_submit,
    cluster.add_resume,
    cluster.add_logs,
    cluster.add_stop,
    cluster.add_list,
    models.add_score,
    models.add_merge,
    pools.add_inspect,
    pools.add_fold,
    pools.add_pack,
    pools.add_unpack,
    models.add_suite,
    doctor.add_doctor,
    share.add_report,
    share.add_study,
    share.add_log,
    serve.add_serve,
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="recycler",
        description="Recycle a pool of checkpoints: search merges on real benchmarks, keep the "
        "Pareto front, export the one you choose.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"recycler {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.function(arguments) or 0
    except RecyclerError as error:
        for problem in error.problems:
            print(f"recycler: {redacted(str(problem))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno not in _PLACES:
            raise  # our bug
        print(
            f"recycler: {error.filename or 'a file'}: cannot be read or written "
            f"({error.strerror}). Make room or rights there, or give another place",
            file=sys.stderr,
        )
        return InfrastructureError.exit_code
    except KeyboardInterrupt:
        print("recycler: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
