"""From disk to disk: what a merge reads and writes, and what a plan says of both beforehand."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from handmade import file_bytes, model_arrays, write_checkpoint
from recycler.cli import main
from recycler.errors import UnsafeInputError
from recycler.location import parse_location
from recycler.merge.plan import plan_checkpoints, plan_merge
from recycler.merge.stream import merged_tensors
from recycler.merge.to_disk import merge_to_folder, merged_infos
from recycler.pool.catalog import open_pool
from recycler.pool.storage.hashing import tensor_digest
from recycler.pool.storage.headers import DTYPE_BYTES, read_header
from recycler.pool.storage.tensors import SAFETENSORS_DTYPES, ResidentPool
from recycler.pool.storage.writer import write_model
from recycler.types import Group, Recipe, TensorInfo
from small_merge import recipe, tensors_of


def specs(tensors):
    return {
        name: (SAFETENSORS_DTYPES[tensor.dtype], tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


# ---------------------------------------------------------------- writing


def test_written_file_has_the_bytes_of_safetensors_own(tmp_path):
    tensors = tensors_of(0) | {
        "z": torch.zeros(3, dtype=torch.float64),
        "é": torch.ones(2),
        "empty": torch.empty(0, 4),
        "flag": torch.tensor(True),
    }
    digests = write_model(tensors.items(), specs(tensors), tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (
        tmp_path / "theirs"
    ).read_bytes()
    assert digests == {name: tensor_digest(tensor) for name, tensor in tensors.items()}


def test_shards_hold_everything_once_in_any_order_of_arrival(tmp_path):
    tensors = tensors_of(0)
    write_model(reversed(list(tensors.items())), specs(tensors), tmp_path, max_shard_bytes=600)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    from transformers.utils.hub import get_checkpoint_shard_files

    found, metadata = get_checkpoint_shard_files(
        tmp_path, tmp_path / "model.safetensors.index.json"
    )
    assert metadata["total_size"] == sum(tensor.nbytes for tensor in tensors.values()) and len(
        found
    ) == len(files)
    loaded = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert loaded.keys() == tensors.keys() and all(
        torch.equal(loaded[name], tensors[name]) for name in tensors
    )


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda pairs: pairs[:-1], "did not come"),
        (lambda pairs: [*pairs, pairs[0]], "comes twice"),
        (lambda pairs: [*pairs, ("stray", torch.zeros(2))], "not announced"),
        (lambda pairs: [(pairs[0][0], pairs[0][1].float()), *pairs[1:]], "announced as BF16"),
    ],
)
def test_a_model_that_is_not_as_announced_is_refused(tmp_path, spoil, message):
    tensors = tensors_of(0)
    with pytest.raises(ValueError, match=message):
        write_model(spoil(list(tensors.items())), specs(tensors), tmp_path, max_shard_bytes=600)
    assert not (tmp_path / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    "method,base,options",
    [
        ("linear", None, ()),
        ("linear", "base", ()),
        ("ties", "base", (("density", 0.5),)),
        ("della", "base", (("density", 0.5),)),
        ("lines", "base", ()),
    ],
)
def test_merging_to_disk_gives_the_stream_bytes(pool, tmp_path, monkeypatch, method, base, options):
    monkeypatch.setattr("recycler.merge.to_disk.STEP_ELEMENTS", 37)
    plan = recipe(method, base, options)
    digests = write_model(
        merged_tensors(plan, ResidentPool(pool)),
        merged_infos(plan, pool),
        tmp_path / "one",
        max_shard_bytes=700,
    )
    assert (
        merge_to_folder(plan, ResidentPool(pool), tmp_path / "two", max_shard_bytes=700) == digests
    )
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "U16", "U32", "U64", "I8", "BOOL"])
def test_tensors_that_cannot_be_averaged_are_copied_when_all_agree_and_refused_by_name_when_not(
    tmp_path, dtype
):
    pools = []
    for kind, second in (("same", 1), ("other", 0)):
        for number, value in enumerate((1, second)):
            raw = bytes([value]) * (4 * DTYPE_BYTES[dtype])
            header = {
                "q": {"dtype": dtype, "shape": [4], "data_offsets": [0, len(raw)]},
                "w": {"dtype": "F32", "shape": [2], "data_offsets": [len(raw), len(raw) + 8]},
            }
            (tmp_path / kind / f"m{number}").mkdir(parents=True)
            (tmp_path / kind / f"m{number}" / "config.json").write_text("{}")
            (tmp_path / kind / f"m{number}" / "model.safetensors").write_bytes(
                file_bytes(header, raw + bytes(8))
            )
        pools.append(open_pool([tmp_path / kind]))
    entry = Recipe(method="linear", members=("m0", "m1"), weights=((0.5, 0.5),))
    merge_to_folder(entry, ResidentPool(pools[0]), tmp_path / "out")
    info = read_header(tmp_path / "out" / "model.safetensors")["q"]
    assert (
        info.dtype == dtype
        and (tmp_path / "out" / "model.safetensors").read_bytes()[
            info.start : info.start + info.num_bytes
        ]
        == b"\1" * info.num_bytes
    )
    with pytest.raises(UnsafeInputError, match=f"tensor 'q': is {dtype}, which cannot be averaged"):
        merge_to_folder(entry, ResidentPool(pools[1]), tmp_path / "refused")


def test_a_member_that_is_cut_short_while_it_is_read_is_an_error_and_no_crash(tmp_path):
    write_checkpoint(tmp_path / "a")
    write_checkpoint(tmp_path / "b")
    pool = open_pool([tmp_path / "a", tmp_path / "b"])
    os.truncate(
        tmp_path / "b" / "model.safetensors",
        (tmp_path / "b" / "model.safetensors").stat().st_size - 4,
    )
    with pytest.raises(UnsafeInputError, match="was changed since its header was read"):
        merge_to_folder(
            Recipe(method="linear", members=("a", "b"), weights=((0.5, 0.5),)),
            ResidentPool(pool),
            tmp_path / "out",
        )


def test_members_of_weight_zero_are_not_read(tmp_path):
    write_checkpoint(tmp_path / "a")
    write_checkpoint(tmp_path / "b")
    pool = open_pool([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b" / "model.safetensors").unlink()
    digests = merge_to_folder(
        Recipe(method="linear", members=("a", "b"), weights=((1.0, 0.0),)),
        ResidentPool(pool),
        tmp_path / "out",
    )
    assert digests == {
        name: tensor_digest(tensor)
        for name, tensor in load_file(tmp_path / "a" / "model.safetensors").items()
    }


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda arrays: arrays.pop("model.norm.weight"), "lacks tensor 'model.norm.weight'"),
        (lambda arrays: arrays.update(extra=arrays["model.norm.weight"]), "has tensor 'extra'"),
        (
            lambda arrays: arrays.update(
                {"model.embed_tokens.weight": arrays["model.embed_tokens.weight"][:9]}
            ),
            r"holds 'model.embed_tokens.weight' as BF16 \[9, 8\]",
        ),
    ],
)
def test_members_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, change, message):
    arrays = model_arrays(1)
    change(arrays)
    write_checkpoint(tmp_path / "a")
    write_checkpoint(tmp_path / "b", arrays)
    with pytest.raises(UnsafeInputError, match=message):
        merge_to_folder(
            Recipe(method="linear", members=("a", "b"), weights=((0.5, 0.5),)),
            ResidentPool(open_pool([tmp_path / "a", tmp_path / "b"])),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- plans


def test_plan_counts_what_is_read_and_written(pool):
    checkpoints = {checkpoint.name: checkpoint for checkpoint in (*pool.members, pool.base)}
    whole = sum(info.num_bytes for info in pool.base.tensors.values())
    plan = plan_checkpoints(recipe(), checkpoints)
    assert (
        plan.bytes_written == whole
        and plan.bytes_read == 3 * whole
        and plan.seconds(1e9) == pytest.approx(4 * whole / 1e9)
    )
    with_base = plan_checkpoints(recipe("ties", "base", weights=((0.5, 0.0, 0.5),)), checkpoints)
    positions = pool.base.tensors["model.positions"].num_bytes
    assert with_base.bytes_read == 3 * (whole - positions) + 3 * positions


def test_a_hundred_thousand_tensors_are_planned_in_seconds():
    tensors = {
        f"model.layers.{index // 400}.mlp.experts.{index % 400}.up_proj.weight": TensorInfo(
            name=str(index),
            dtype="BF16",
            shape=(1024, 1024),
            file=parse_location("x"),
            start=0,
            num_bytes=2 * 1024 * 1024,
        )
        for index in range(100_000)
    }
    members = tuple(f"m{k}" for k in range(16))
    groups = (Group(name="mlp", match=r"self_attn"), Group(name="rest"))
    entry = Recipe(method="linear", members=members, groups=groups, weights=((1 / 16,) * 16,) * 2)
    start = time.process_time()
    plan = plan_merge(entry, tensors)
    assert time.process_time() - start < 5
    assert plan.num_parameters == 100_000 * 1024**2 and plan.bytes_read == 16 * plan.bytes_written


def test_a_recipe_is_planned_from_its_headers(tmp_path, capsys):
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name)
        (tmp_path / name / "model.safetensors").chmod(0o444)
    (tmp_path / "r.yaml").write_text(
        "method: linear\nmembers: {a: a, b: b}\nweights: {a: 0.5, b: 0.5}\n"
    )
    whole = sum(info.num_bytes for info in open_pool([tmp_path / "a"]).template.tensors.values())
    assert main(["plan", str(tmp_path / "r.yaml"), "--bandwidth", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["bytes_read"] == 2 * whole
        and found["bytes_written"] == whole
        and found["seconds"] == pytest.approx(3 * whole / 0.5e9)
    )
    assert (
        main(["plan", str(tmp_path / "r.yaml")]) == 0
        and "linear of 2 members" in capsys.readouterr().out
    )
    assert main(["plan", str(tmp_path / "r.yaml"), "--bandwidth", "0"]) == 2
    (tmp_path / "r.yaml").write_text(
        "method: ties\nmembers: {a: a, b: b}\nweights: {a: 0.5, b: 0.5}\n"
    )
    assert (
        main(["plan", str(tmp_path / "r.yaml")]) == 2
        and "works on deltas" in capsys.readouterr().err
    )
