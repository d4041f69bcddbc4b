"""The command line: parse, call one function, print.

Data on stdout, talk on stderr; nothing heavy is imported for --help.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TypeAlias, get_args

from recycler import __version__
from recycler.errors import InfrastructureError, RecyclerError
from recycler.types import EngineName

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
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
)  # faults of a disk or of its rights
EPILOG = (
    "Exit codes: 0 ok, 1 failed, 2 usage or job file, 3 not found, 4 unsafe or broken input, 5 "
    "infrastructure (try again), 130 interrupted."
)


def build_parser() -> argparse.ArgumentParser:
    """All commands; each names the function that runs it as module:function, imported only when it
    is called.
    """
    parser = argparse.ArgumentParser(
        prog="recycler",
        description="Recycle a pool of checkpoints: search merges on real benchmarks, keep the Pareto "
        "front, export the one you choose.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"recycler {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _driving_commands(commands)
    _job_commands(commands)
    _cluster_commands(commands)
    _model_commands(commands)
    _sharing_commands(commands)
    return parser


def _driving_commands(commands: Commands) -> None:
    """What drives a job's search on this machine, or on a cluster from here."""
    run = _command(commands, "run", "run or resume a job", "recycler.cli.jobs:run")
    run.add_argument("job", help="job file (YAML)")
    run.add_argument(
        "--dir", default="run", help="run folder (default: run); an unfinished run there goes on"
    )
    run.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR",
        help="folder with benchmark data; may be given again",
    )

    without = _command(
        commands,
        "without",
        "run a run's job again without one member, to know what leaving it out costs",
        "recycler.cli.jobs:without",
    )
    without.add_argument("run", help="run folder, which must know its job file still")
    without.add_argument("member", help="name of a member, as recycler front shows it")
    without.add_argument(
        "--dir",
        help="run folder of the new job (default: RUN-without-MEMBER beside RUN); its job file "
        "goes beside it",
    )

    refine = _command(
        commands,
        "refine",
        "improve a merge of a run by slopes of its loss, as one more trial",
        "recycler.cli.refine:refine",
    )
    refine.add_argument("run", help="run folder, which must know its job file still")
    refine.add_argument(
        "--trial",
        default="knee",
        metavar="N|knee|best:OBJECTIVE",
        help="which merge (default: knee)",
    )
    refine.add_argument(
        "--by",
        choices=("gradient", "spsa"),
        default="gradient",
        help="gradient: of linear merges, with transformers; spsa: of any merge, with the job's "
        "engine (default: gradient)",
    )
    refine.add_argument(
        "--layers",
        type=int,
        default=0,
        metavar="N",
        help="a row of weights for each of N blocks of layers (default: the rows that the merge "
        "has)",
    )
    refine.add_argument("--steps", type=int, default=10, metavar="N", help="default: 10")
    refine.add_argument(
        "--batch",
        type=int,
        default=16,
        metavar="N",
        help="items an objective that a step looks at (default: 16)",
    )
    refine.add_argument(
        "--reach",
        type=float,
        default=0.03,
        metavar="X",
        help="how far a step moves a weight (default: 0.03)",
    )
    refine.add_argument(
        "--prefer",
        action="append",
        default=[],
        metavar="OBJECTIVE=SHARE",
        help="how much an objective counts; may be given again (default: all the same)",
    )
    refine.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the items of each step, and of SPSA's directions (default: 0)",
    )
    for command in (run, without, refine):
        command.add_argument(
            "--address", help="a Ray cluster; default: one is started on this machine"
        )
        command.add_argument(
            "--reuse",
            metavar="DIR",
            help="keep answers there, and take those of earlier runs: the same weights, engine "
            "and question are not asked twice",
        )
        command.add_argument(
            "--ledger",
            metavar="URL",
            help="postgresql://USER@HOST/DATABASE that keeps the ledger (default: "
            "RECYCLER_LEDGER, else a file in the run folder)",
        )


def _job_commands(commands: Commands) -> None:
    """What acts on a job and its run folder."""
    plan = _command(
        commands,
        "plan",
        "what a job will ask, cost and be able to tell apart, or what a merge will cost; starts "
        "nothing",
        "recycler.cli.plan:plan",
    )
    plan.add_argument("job", help="job file, or a recipe (ours or mergekit's)")
    plan.add_argument(
        "--bandwidth",
        type=float,
        default=1.0,
        metavar="GB/S",
        help="of the disk or bucket, for the time of a merge (default: 1)",
    )
    _allow_flag(plan)
    plan.add_argument(
        "--dir",
        metavar="RUN",
        help="an earlier run over the same items: its speed and its members' spread are used",
    )
    plan.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR",
        help="folder with benchmark data; may be given again",
    )
    _json_flag(plan)

    status = _command(commands, "status", "how far a run is", "recycler.cli.jobs:status")
    status.add_argument("run", help="run folder, URL?job=ID, or job id")
    _json_flag(status)

    front = _command(
        commands, "front", "the Pareto front and the baselines of a run", "recycler.cli.jobs:front"
    )
    front.add_argument("run", help="run folder, URL?job=ID, or job id")
    shape = front.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="one JSON document")
    shape.add_argument("--csv", action="store_true", help="one line a trial")
    front.add_argument(
        "--holdout", action="store_true", help="show holdout scores instead of search scores"
    )

    preview = _command(
        commands,
        "preview",
        "what the members alone let expect: trade-offs, a guessed front, and how far off it was",
        "recycler.cli.jobs:preview",
    )
    preview.add_argument("run", help="run folder, URL?job=ID, or job id")
    _json_flag(preview)

    why = _command(
        commands,
        "why",
        "what each member adds to a merge, and what the front would lose without it",
        "recycler.cli.jobs:why",
    )
    why.add_argument("run", help="run folder, URL?job=ID, or job id")
    why.add_argument(
        "--trial",
        default="knee",
        metavar="N|knee|best:OBJECTIVE",
        help="which merge (default: knee)",
    )
    _json_flag(why)

    export = _command(
        commands,
        "export",
        "write a merge of a run as a Hugging Face folder",
        "recycler.cli.models:export",
    )
    export.add_argument("run", help="run folder, URL?job=ID, or job id")
    export.add_argument(
        "--trial", required=True, metavar="N|knee|best:OBJECTIVE", help="which merge"
    )
    export.add_argument(
        "--to",
        required=True,
        metavar="DIR|URL",
        help="folder to write, which must not exist, or a prefix of a bucket (s3://...)",
    )
    export.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of the weights (default: as scored)",
    )
    export.add_argument(
        "--max-shard-bytes",
        type=int,
        default=5_000_000_000,
        help="split the weights beyond this size",
    )
    _json_flag(export)

    demo = _command(
        commands,
        "demo",
        "train a small pool, recycle it, export the knee of the front",
        "recycler.cli.demo:demo",
    )
    demo.add_argument("--dir", default="demo-run", help="where everything goes (default: demo-run)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--trials", type=int, default=40, help="merges to try (default: 40)")


def _cluster_commands(commands: Commands) -> None:
    """What acts on jobs of a Ray cluster whose ledgers are in a database."""
    submit = _command(
        commands,
        "submit",
        "start a job's driver on a Ray cluster; the same job again is that job",
        "recycler.cli.cluster:submit",
    )
    submit.add_argument("job", help="job file (YAML)")
    submit.add_argument(
        "--dry-run", action="store_true", help="say what would be sent, and send nothing"
    )
    resume = _command(
        commands,
        "resume",
        "one more driver for a job that none drives",
        "recycler.cli.cluster:resume",
    )
    resume.add_argument("job", help="job file, or the id of a job in the ledger")
    for command in (submit, resume):
        command.add_argument(
            "--data",
            action="append",
            default=[],
            metavar="DIR",
            help="folder with benchmark data; may be given again",
        )
        command.add_argument(
            "--ship-code",
            action="store_true",
            help="send this recycler along, for nodes that have its dependencies only",
        )
        command.add_argument(
            "--wait",
            action="store_true",
            help="show the driver's log and end when it does: 0 when finished, else 1",
        )
    logs = _command(commands, "logs", "what a job's driver says", "recycler.cli.cluster:logs")
    logs.add_argument("-f", "--follow", action="store_true", help="until it ends")
    stop = _command(
        commands, "stop", "end a job's driver; scored trials are kept", "recycler.cli.cluster:stop"
    )
    for command in (logs, stop):
        command.add_argument("id", help="job id, as recycler submit printed it")
    jobs = _command(
        commands,
        "list",
        "the jobs of a ledger database and of a cluster",
        "recycler.cli.cluster:list_jobs",
    )
    _json_flag(jobs)
    for command in (submit, resume, jobs):
        command.add_argument(
            "--ledger",
            metavar="URL",
            help="postgresql://USER@HOST/DATABASE (default: RECYCLER_LEDGER)",
        )
    for command in (submit, resume, logs, stop, jobs):
        command.add_argument(
            "--address",
            metavar="URL",
            help="the cluster's dashboard, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS)",
        )
        command.add_argument(
            "--insecure", action="store_true", help="take a cluster that asks nobody for a token"
        )


def _model_commands(commands: Commands) -> None:
    """What acts on checkpoints, adapters, recipes and suites."""
    score = _command(
        commands, "score", "score one checkpoint on a suite", "recycler.cli.models:score"
    )
    score.add_argument("model", help="checkpoint folder")
    score.add_argument(
        "--suite", action="append", required=True, help="suite name or file; may be given again"
    )
    score.add_argument(
        "--role",
        choices=("search", "holdout"),
        default="holdout",
        help="which items (default: holdout)",
    )
    score.add_argument(
        "--engine",
        choices=get_args(EngineName),
        help="default: vllm where it and a GPU are present, else transformers",
    )
    score.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    score.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="vllm: share the model among N GPUs (default: 1)",
    )
    score.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR",
        help="folder with benchmark data; may be given again",
    )
    _json_flag(score)

    merge = _command(
        commands,
        "merge",
        "run one recipe (ours or a mergekit YAML) from disk to disk",
        "recycler.cli.models:merge",
    )
    merge.add_argument("recipe", help="recipe file (YAML)")
    merge.add_argument(
        "out", help="folder to write, which must not exist, or a prefix of a bucket (s3://...)"
    )
    _allow_flag(merge)
    merge.add_argument(
        "--max-shard-bytes",
        type=int,
        default=5_000_000_000,
        help="split the weights beyond this size",
    )
    _json_flag(merge)

    inspect = _command(
        commands,
        "inspect",
        "what is in a pool, and whether it can be merged (exit code 4 when not); reads every "
        "byte once, to tell which are the same",
        "recycler.cli.models:inspect",
    )
    inspect.add_argument("pool", nargs="+", help="checkpoint folders, globs, or a folder of them")
    inspect.add_argument("--base", help="the checkpoint that the members were trained from")
    inspect.add_argument(
        "--deltas",
        action="store_true",
        help="also a profile of |delta| to the base (or first member) by layer, from a sample of "
        "each tensor",
    )
    _json_flag(inspect)

    fold = _command(
        commands, "fold", "fold LoRA adapters into full checkpoints", "recycler.cli.models:fold"
    )
    fold.add_argument("base", help="checkpoint that the adapters were trained on")
    fold.add_argument("adapters", nargs="+", help="PEFT adapter folders")
    fold.add_argument(
        "--to", required=True, metavar="DIR", help="folder for the checkpoints, one a subfolder"
    )

    pack = _command(
        commands,
        "pack",
        "keep a pool as base and deltas: exact, or compressed",
        "recycler.cli.models:pack",
    )
    pack.add_argument("pool", nargs="+", help="checkpoint folders, globs, or a folder of them")
    pack.add_argument(
        "--base", required=True, help="the checkpoint that the members were trained from"
    )
    pack.add_argument(
        "--to", required=True, metavar="DIR", help="folder to write; it must not exist"
    )
    pack.add_argument(
        "--ratio",
        type=float,
        help="compress each matrix's delta to 1/RATIO of its bits; default: exact",
    )

    unpack = _command(
        commands,
        "unpack",
        "write a packed pool as checkpoint folders again",
        "recycler.cli.models:unpack",
    )
    unpack.add_argument("packed", help="folder that recycler pack wrote")
    unpack.add_argument("out", help="folder to write; it must not exist")

    suite = _command(
        commands,
        "suite",
        "freeze a suite into items, show them, or check that they are still the same",
        "recycler.cli.models:suite",
    )
    suite.add_argument("action", choices=("build", "show", "check"))
    suite.add_argument("suite", help="suite name or file; for show, a frozen file")
    suite.add_argument(
        "--model",
        help="checkpoint folder whose tokenizer and chat template are used (build, check)",
    )
    suite.add_argument(
        "--frozen", metavar="FILE", help="frozen items to write (build) or to compare with (check)"
    )
    suite.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR",
        help="folder with benchmark data; may be given again",
    )

    doctor = _command(
        commands,
        "doctor",
        "can this machine run jobs? versions, GPUs, disk, clock, sandbox, cluster, bucket, ledger",
        "recycler.cli.doctor:doctor",
    )
    doctor.add_argument(
        "--dir", default=".", help="folder that runs go to (default: the current one)"
    )
    doctor.add_argument(
        "--bucket",
        metavar="URL",
        help="try reading and conditional writing there: s3://, gs://, az:// or file://",
    )
    doctor.add_argument(
        "--ledger", metavar="URL", help="try this database (default: RECYCLER_LEDGER)"
    )
    doctor.add_argument("--address", metavar="URL", help="try this Ray cluster: http://HEAD:8265")
    _json_flag(doctor)


def _sharing_commands(commands: Commands) -> None:
    """What shows a run to others, in a browser or in other tools."""
    report = _command(
        commands,
        "report",
        "a run as one HTML file that opens without network",
        "recycler.cli.share:report",
    )
    report.add_argument("run", help="run folder, URL?job=ID, or job id")
    report.add_argument(
        "--html", required=True, metavar="FILE", help="file to write; an older one is replaced"
    )

    study = _command(
        commands,
        "study",
        "copy a run into an Optuna study, for optuna-dashboard and optuna's plots",
        "recycler.cli.share:study",
    )
    study.add_argument("run", help="run folder, URL?job=ID, or job id")
    study.add_argument(
        "--storage",
        required=True,
        metavar="URL",
        help="optuna's storage, such as sqlite:///study.db",
    )
    study.add_argument("--name", help="name of the study (default: the job's)")

    log = _command(
        commands,
        "log",
        "copy a run to MLflow, Weights & Biases, or files of lm-eval",
        "recycler.cli.share:log",
    )
    log.add_argument("run", help="run folder, URL?job=ID, or job id")
    tracker = log.add_mutually_exclusive_group(required=True)
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
    log.add_argument(
        "--trial", metavar="WHICH", help="with --lm-eval: number, knee (default), or best:OBJECTIVE"
    )
    log.add_argument(
        "--name", help="MLflow experiment, or name of the W&B run (default: the job's)"
    )

    serve = _command(
        commands,
        "serve",
        "dashboard and HTTP API over a folder of runs",
        "recycler.cli.serve:serve",
    )
    serve.add_argument(
        "--root", default=".", help="folder that holds run folders (default: the current one)"
    )
    serve.add_argument(
        "--ledger",
        metavar="URL",
        help="show the jobs of this database too: postgresql://USER@HOST/DATABASE (default: "
        "RECYCLER_LEDGER)",
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: 127.0.0.1); any other needs the token that is printed",
    )
    serve.add_argument("--port", type=int, default=8765)
    serve.add_argument("--token", action="store_true", help="need a token on this machine too")
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which browsers may ask; may be given again",
    )
    serve.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="CIDR",
        help="believe a proxy at this address about who its users are; may be given again",
    )
    serve.add_argument(
        "--user-header",
        default="X-Forwarded-User",
        metavar="NAME",
        help="header in which that proxy names the user (default: X-Forwarded-User)",
    )
    serve.add_argument(
        "--operators",
        metavar="A,B",
        help="users of that proxy who may write; all others may only read",
    )
    serve.add_argument(
        "--exports",
        metavar="DIR|URL",
        help="where exports may go besides their run folders: a folder, or a prefix of a bucket "
        "(s3://...)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    arguments = build_parser().parse_args(argv)
    module, _, function = arguments.function.partition(":")
    try:
        return getattr(import_module(module), function)(arguments) or 0
    except RecyclerError as error:
        from recycler.io.redact import redacted

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


def _command(commands: Commands, name: str, summary: str, function: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=EPILOG
    )
    parser.set_defaults(function=function)
    parser.register("type", None, _given)
    return parser


def _given(text: str) -> str:
    """Every argument that is text passes here.

    An empty one, of a shell variable that is not set, would mean the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the path (or name) is empty; the current folder is .")
    return text


def _allow_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="CHECK",
        help="of a recipe: merge although this check refuses (duplicates, wrong_base, delta_size, "
        "...; a refusal names its check); may be given again",
    )


def _json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
