"""Checkpoints, recipes and suites: export, score, merge, suite."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

from recycler.cli.arguments import (
    Commands,
    add_allow_flag,
    add_command,
    add_data_flag,
    add_json_flag,
    add_run_argument,
    add_shard_flag,
)
from recycler.cli.pools import _only_here
from recycler.cli.tables import align
from recycler.types import EngineName


def add_export(commands: Commands) -> None:
    """Add `recycler export`."""
    parser = add_command(
        commands,
        "export",
        "write a merge of a run as a Hugging Face folder",
        export,
    )
    add_run_argument(parser)
    parser.add_argument(
        "--trial", required=True, metavar="N|knee|best:OBJECTIVE", help="which merge"
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="DIR|URL",
        help="folder to write, which must not exist, or a prefix of a bucket (s3://...)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of the weights (default: as scored)",
    )
    add_shard_flag(parser)
    add_json_flag(parser)


def export(arguments: argparse.Namespace) -> None:
    """recycler export RUN --trial WHICH --to DIR|URL."""
    # loads torch and sqlalchemy
    from recycler.export.export import export_to
    from recycler.export.place import refuse_in_pool
    from recycler.location import local_path
    from recycler.results.front import choose
    from recycler.results.open import open_front
    from recycler.run.guard import open_pool_of
    from recycler.scoring.frozen import searched_test_tasks

    refuse_in_pool(arguments.run, arguments.to)
    trial = choose(open_front(arguments.run), arguments.trial)
    recipe = replace(trial.recipe, dtype=arguments.dtype or trial.recipe.dtype)
    done = export_to(
        recipe,
        open_pool_of(arguments.run),
        arguments.to,
        trial=trial,
        max_shard_bytes=arguments.max_shard_bytes,
        searched=searched_test_tasks(local_path(arguments.run)),
    )
    _tell_export(arguments, {"trial": trial.number, **asdict(done)}, f"trial {trial.number}")


def add_merge(commands: Commands) -> None:
    """Add `recycler merge`."""
    parser = add_command(
        commands,
        "merge",
        "run one recipe (ours or a mergekit YAML) from disk to disk",
        merge,
    )
    parser.add_argument("recipe", help="recipe file (YAML)")
    parser.add_argument(
        "out", help="folder to write, which must not exist, or a prefix of a bucket (s3://...)"
    )
    add_allow_flag(parser)
    add_shard_flag(parser)
    add_json_flag(parser)


def merge(arguments: argparse.Namespace) -> None:
    """recycler merge RECIPE OUT."""
    # loads torch and numpy
    from recycler.export.export import export_to
    from recycler.export.lora import is_lora_recipe, merge_adapters
    from recycler.io.strict_yaml import load_yaml
    from recycler.location import parse_location
    from recycler.merge.files.recipe_yaml import is_mergekit, open_recipe
    from recycler.merge.preflight import check_merge
    from recycler.merge.stream import check_recipe
    from recycler.pool.storage.tensors import ResidentPool
    from recycler.pool.storage.upload import check_target

    document = load_yaml(arguments.recipe)
    if is_lora_recipe(document.data):
        _only_here("a merge of adapters", arguments.out, "Give a folder, and copy it to the bucket")
        merged = merge_adapters(document, Path(arguments.out))
        print(
            json.dumps({"schema_version": 1, **asdict(merged)}, indent=2)
            if arguments.json
            else merged.folder
        )
        print(
            f"recycler: {merged.form}, {merged.num_modules} modules; largest relative error of a "
            f"module {merged.largest_error:.2e}"
            + "".join(f"; loss {name} {value:.4f}" for name, value in merged.losses.items()),
            file=sys.stderr,
        )
        return
    if parse_location(arguments.out).is_remote:
        check_target(arguments.out)
    recipe, pool = open_recipe(document)
    check_recipe(recipe, ResidentPool(pool))
    for warning in check_merge(
        recipe, pool, allow=arguments.allow, lenient=is_mergekit(document.data)
    ):
        print(f"recycler: {warning}", file=sys.stderr)
    done = export_to(
        recipe,
        pool,
        arguments.out,
        max_shard_bytes=arguments.max_shard_bytes,
        allow_not_finite="values" in arguments.allow,
    )
    _tell_export(arguments, asdict(done), Path(arguments.recipe).name)


def add_score(commands: Commands) -> None:
    """Add `recycler score`."""
    parser = add_command(commands, "score", "score one checkpoint on a suite", score)
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument(
        "--suite", action="append", required=True, help="suite name or file; may be given again"
    )
    parser.add_argument(
        "--role",
        choices=("search", "holdout"),
        default="holdout",
        help="which items (default: holdout)",
    )
    parser.add_argument(
        "--engine",
        choices=get_args(EngineName),
        help="default: vllm where it and a GPU are present, else transformers",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="vllm: share the model among N GPUs (default: 1)",
    )
    add_data_flag(parser)
    add_json_flag(parser)


def score(arguments: argparse.Namespace) -> None:
    """recycler score MODEL --suite S."""
    # loads sqlalchemy and numpy
    from recycler.cli.progress import say_notes
    from recycler.run.score_model import score_model

    _only_here(
        "recycler score",
        arguments.model,
        "Download it first, or give it as a member of a job, which reads buckets",
    )
    scores = score_model(
        Path(arguments.model),
        arguments.suite,
        role=arguments.role,
        engine=arguments.engine,
        dtype=arguments.dtype,
        tensor_parallel=arguments.tensor_parallel,
        data_folders=[Path(folder) for folder in arguments.data],
        notes=say_notes,
    )
    if arguments.json:
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    "model": arguments.model,
                    "role": arguments.role,
                    "scores": {
                        score.objective: {
                            "value": score.value,
                            "stderr": score.stderr,
                            "n": score.n,
                        }
                        for score in scores
                    },
                },
                indent=2,
            )
        )
    else:
        print(
            align(
                [
                    ["objective", "value", "stderr", "n"],
                    *(
                        [entry.objective, f"{entry.value:.4f}", f"{entry.stderr:.4f}", str(entry.n)]
                        for entry in scores
                    ),
                ]
            )
        )


def add_suite(commands: Commands) -> None:
    """Add `recycler suite`."""
    parser = add_command(
        commands,
        "suite",
        "freeze a suite into items, show them, or check that they are still the same",
        suite,
    )
    parser.add_argument("action", choices=("build", "show", "check"))
    parser.add_argument("suite", help="suite name or file; for show, a frozen file")
    parser.add_argument(
        "--model",
        help="checkpoint folder whose tokenizer and chat template are used (build, check)",
    )
    parser.add_argument(
        "--frozen", metavar="FILE", help="frozen items to write (build) or to compare with (check)"
    )
    add_data_flag(parser)


def suite(arguments: argparse.Namespace) -> None:
    """recycler suite build|show|check SUITE."""
    # loads numpy and pydantic
    from recycler.errors import Problem, UsageError
    from recycler.scoring.frozen import read_frozen, suite_build, suite_check, suite_show

    data = [Path(folder) for folder in arguments.data]
    if arguments.action == "show":
        print(
            json.dumps(suite_show(read_frozen(Path(arguments.suite))), indent=2, ensure_ascii=False)
        )
        return
    missing = [name for name in ("model", "frozen") if getattr(arguments, name) is None]
    if missing:
        raise UsageError(
            [
                Problem(
                    thing=f"suite {arguments.action}",
                    cause=f"needs --{name}",
                    remedy=f"Add --{name}",
                )
                for name in missing
            ]
        )
    if arguments.action == "build":
        built = suite_build(
            arguments.suite, Path(arguments.model), Path(arguments.frozen), data_folders=data
        )
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    "suite": built.name,
                    "digest": built.digest,
                    "num_items": len(built.items),
                    "frozen": arguments.frozen,
                },
                indent=2,
            )
        )
    else:
        suite_check(
            Path(arguments.frozen), arguments.suite, Path(arguments.model), data_folders=data
        )
        print("recycler: the items are the same", file=sys.stderr)


def _tell_export(arguments: argparse.Namespace, facts: dict, what: str) -> None:
    if arguments.json:
        print(json.dumps({"schema_version": 1, **facts}, indent=2))
    else:
        print(facts["folder"])
        print(
            f"recycler: {what}: {facts['num_tensors']} tensors, {facts['num_bytes'] / 1e6:.1f} "
            f"MB; weights {facts['weights_digest'][:16]}",
            file=sys.stderr,
        )
