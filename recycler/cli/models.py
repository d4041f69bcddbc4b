"""export, score, merge, inspect, fold, pack, unpack, suite."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

MUCH_NOISE = 0.1  # of an adapter's step; above it a person is told


def export(arguments: argparse.Namespace) -> None:
    """recycler export RUN --trial WHICH --to DIR|URL."""
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


def merge(arguments: argparse.Namespace) -> None:
    """recycler merge RECIPE OUT."""
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


def score(arguments: argparse.Namespace) -> None:
    """recycler score MODEL --suite S."""
    from recycler.cli.progress import say_notes
    from recycler.cli.tables import align
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


def inspect(arguments: argparse.Namespace) -> int:
    """recycler inspect POOL. Gives 4 when something was found that recycler run would refuse."""
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


def fold(arguments: argparse.Namespace) -> None:
    """recycler fold BASE ADAPTER... --to DIR."""
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


def pack(arguments: argparse.Namespace) -> None:
    """recycler pack POOL --base BASE --to DIR."""
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


def unpack(arguments: argparse.Namespace) -> None:
    """recycler unpack PACKED OUT."""
    from recycler.pool.pack_writer import unpack as unpack_pool

    for place in (arguments.packed, arguments.out):
        _only_here(
            "recycler unpack",
            place,
            "Give folders; a pack in a bucket can be merged and searched as it is",
        )
    for folder in unpack_pool(Path(arguments.packed), Path(arguments.out)):
        print(folder)


def suite(arguments: argparse.Namespace) -> None:
    """recycler suite build|show|check SUITE."""
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


def _only_here(what: str, place: str, remedy: str) -> None:
    """Raise UsageError for a URL where only a folder of this machine will do."""
    from recycler.errors import Problem, UsageError
    from recycler.location import parse_location

    if parse_location(place).is_url:
        raise UsageError(
            Problem(
                thing=place,
                cause=f"is a URL, and {what} works with folders of this machine",
                remedy=remedy,
            )
        )


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
