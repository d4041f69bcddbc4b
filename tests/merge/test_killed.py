"""SIGKILL at random moments of merge, pack and export: the destination is whole or absent, and the
same command then works.
"""

import json
import multiprocessing
import random
import time

import pytest

from handmade import model_arrays, write_checkpoint
from quietly import run_quietly
from recycler.export.export import MANIFEST as EXPORT_MANIFEST
from recycler.io.atomic import atomic_folder
from recycler.location import PACK_MANIFEST
from recycler.pool.catalog import open_checkpoint
from recycler.pool.checks.scan import checkpoint_digest
from recycler.pool.pack_writer import unpack
from service_runs import NAMES, make_run

pytestmark = pytest.mark.long

SHAPES = {"model.embed_tokens.weight": (1200, 512), "model.norm.weight": (512,)} | {
    f"model.layers.{layer}.{name}.weight": (512, 1024)
    for layer in range(2)
    for name in ("mlp.up_proj", "self_attn.q_proj")
}


@pytest.fixture(scope="module")
def server():
    """Processes are forked from one that has imported everything: what is killed is the work, not
    the imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "recycler.cli.models",
            "recycler.export.export",
            "recycler.run.driver",
            "recycler.results.front",
            "recycler.merge.files.recipe_yaml",
            "recycler.pool.storage.pack",
            "quietly",
        ]
    )
    return context


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run with a pool of five checkpoints of 4 MB, and a recipe over two of them."""
    root = tmp_path_factory.mktemp("killed")
    make_run(root, merges=3, checkpoints=True)
    base = model_arrays(0, shapes=SHAPES)
    for index, name in enumerate((*NAMES, "base")):
        write_checkpoint(
            root / "pool" / name,
            model_arrays(index, near=base, shapes=SHAPES, scale=0.01),
            config={"vocab_size": 1200, "hidden_size": 512},
        )
    (root / "recipe.yaml").write_text(
        "method: ties\nbase: {base: pool/base}\nmembers: {a: pool/math-v3, b: pool/code-v1}\n"
        "weights: {a: 0.5, b: 0.7}\noptions: {density: 0.4}\n"
    )
    return root


def command_of(what, place, out):
    pool = place / "pool"
    return {
        "merge": ["merge", str(place / "recipe.yaml"), str(out), "--max-shard-bytes", "2000000"],
        "export": ["export", str(place / "demo"), "--trial", "7", "--to", str(out)],
        "pack": [
            "pack",
            str(pool / "math-v3"),
            str(pool / "code-v1"),
            "--base",
            str(pool / "base"),
            "--to",
            str(out),
            "--ratio",
            "16",
        ],
    }[what]


def content_of(what, out):
    """What a finished folder holds, in a form that can be compared; reads every byte of it."""
    if what == "pack":
        assert (out / PACK_MANIFEST).is_file()
        unpacked = unpack(out, out.parent / "unpacked")
        found = {folder.name: checkpoint_digest(open_checkpoint(folder)) for folder in unpacked}
        for folder in unpacked:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        return found
    manifest = json.loads((out / EXPORT_MANIFEST).read_text())
    assert all(
        (out / name).stat().st_size == facts["num_bytes"]
        for name, facts in manifest["files"].items()
    )
    assert checkpoint_digest(open_checkpoint(out)) == manifest["weights_digest"]
    return manifest["weights_digest"]


def kill_many(server, what, place, tmp_path, count, seed):
    """`count` kills, spread evenly over the command's duration and shaken; gives how many met it
    unfinished.
    """
    out = tmp_path / "out"
    for name in ("warm", "reference"):
        start = time.monotonic()
        process = server.Process(
            target=run_quietly, args=(command_of(what, place, tmp_path / name),)
        )
        process.start()
        process.join()
        duration = time.monotonic() - start
        assert process.exitcode == 0
    reference, absent = content_of(what, tmp_path / "reference"), 0
    generator = random.Random(seed)
    for number in range(count):
        process = server.Process(target=run_quietly, args=(command_of(what, place, out),))
        process.start()
        process.join((number + generator.random()) / count * duration * 1.1)
        process.kill()
        process.join()
        if not out.exists():
            absent += 1
            continue
        assert content_of(what, out) == reference
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
    process = server.Process(target=run_quietly, args=(command_of(what, place, out),))
    process.start()
    process.join()
    assert process.exitcode == 0 and content_of(what, out) == reference
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "unpacked") == [
        "out",
        "reference",
        "warm",
    ]  # nothing is left of those that were killed
    return absent


@pytest.mark.parametrize("what", ["merge", "pack", "export"])
def test_a_few_kills_leave_the_destination_whole_or_absent(server, place, tmp_path, what):
    assert kill_many(server, what, place, tmp_path, 4, seed=1) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("what,count", [("merge", 34), ("pack", 33), ("export", 33)])
def test_a_hundred_kills_leave_the_destination_whole_or_absent(
    server, place, tmp_path, what, count
):
    absent = kill_many(server, what, place, tmp_path, count, seed=2)
    print(f"{what}: {absent} of {count} kills met it unfinished")
    assert absent >= count // 4


def test_folders_of_processes_at_work_are_left_alone(tmp_path):
    with atomic_folder(tmp_path / "out") as first:
        (first / "a").write_text("1")
        with atomic_folder(tmp_path / "out") as second:
            (second / "a").write_text("2")
            assert first.exists() and second.exists()
        (tmp_path / "out" / "a").unlink()
        (tmp_path / ".out-kept").mkdir()  # not ours
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out-kept", "out"]
