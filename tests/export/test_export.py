"""An export is the merge that was scored, whole or absent, and loads with nothing of ours."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recycler.cli import main
from recycler.errors import UnsafeInputError, UsageError
from recycler.export.card import model_card
from recycler.export.export import export_recipe
from recycler.merge.files.recipe_yaml import open_recipe
from recycler.merge.stream import merged_tensors
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.hashing import model_digest
from recycler.pool.storage.tensors import ResidentPool, iterate_tensors
from recycler.scoring.frozen import read_frozen, write_frozen
from recycler.search.baselines import blend
from recycler.testing import make_pico_pool
from recycler.types import Score, Trial
from service_runs import make_run


@pytest.fixture(
    scope="module", params=[("llama", True), ("qwen2", False)], ids=["llama tied", "qwen2 untied"]
)
def pool(request, tmp_path_factory):
    architecture, tied = request.param
    return make_pico_pool(
        tmp_path_factory.mktemp(architecture), architecture=architecture, tied=tied
    )


def weights_of(folder):
    return {
        name: tensor
        for path in sorted(Path(folder).glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_one_hot_weights_export_the_member_bit_for_bit(pool, tmp_path):
    for member in pool.members:
        export_recipe(blend(pool, "bfloat16", {member.name: 1.0}), pool, tmp_path / member.name)
        ours, theirs = weights_of(tmp_path / member.name), weights_of(str(member.location))
        assert ours.keys() == theirs.keys()
        assert all(
            torch.equal(ours[name].view(torch.int16), theirs[name].view(torch.int16))
            for name in ours
        )


def test_zero_weights_export_the_base(pool, tmp_path):
    export_recipe(blend(pool, "bfloat16", {}), pool, tmp_path / "base")
    assert model_digest(weights_of(tmp_path / "base").items()) == model_digest(
        weights_of(str(pool.base.location)).items()
    )


def test_minus_zero_survives(pool, tmp_path):
    recipe = blend(pool, "bfloat16", {pool.names[0]: 1.0})
    folder = tmp_path / "negative"
    export_recipe(recipe, pool, folder)
    tensors = weights_of(folder)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name][0, 0] = -0.0
    (path,) = folder.glob("*.safetensors")
    save_file(tensors, path, metadata={"format": "pt"})
    again = type(pool)(members=(open_checkpoint(folder, "m"), *pool.members[1:]))
    merged = dict(merged_tensors(blend(again, "bfloat16", {"m": 1.0}), ResidentPool(again)))
    assert torch.signbit(merged[name][0, 0])


def test_sharded_export_has_an_index_and_the_same_tensors(pool, tmp_path):
    recipe = blend(pool, "bfloat16", dict.fromkeys(pool.names, 0.4))
    whole = export_recipe(recipe, pool, tmp_path / "whole")
    sharded = export_recipe(recipe, pool, tmp_path / "sharded", max_shard_bytes=60_000)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.num_bytes for tensor in open_checkpoint(tmp_path / "sharded").tensors.values()
    )
    assert (
        sharded.weights_digest
        == whole.weights_digest
        == model_digest(iterate_tensors(open_checkpoint(tmp_path / "sharded")))
    )


def test_exported_recipe_gives_the_same_merge_again(pool, tmp_path):
    first = export_recipe(
        blend(pool, "bfloat16", {name: 0.3 + index for index, name in enumerate(pool.names)}),
        pool,
        tmp_path / "first",
    )
    recipe, again = open_recipe(tmp_path / "first" / "recipe.yaml")
    assert export_recipe(recipe, again, tmp_path / "again").weights_digest == first.weights_digest


def test_exported_mergekit_config_gives_the_same_merge_to_rounding(pool, tmp_path):
    """mergekit says it as task arithmetic: b + sum w (t - b) in another order of float32
    operations, so one bf16 ulp.
    """
    export_recipe(
        blend(pool, "bfloat16", {name: 0.3 + index for index, name in enumerate(pool.names)}),
        pool,
        tmp_path / "first",
    )
    recipe, again = open_recipe(tmp_path / "first" / "mergekit_config.yml")
    export_recipe(recipe, again, tmp_path / "again")
    ours, theirs = weights_of(tmp_path / "first"), weights_of(tmp_path / "again")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name].float(), theirs[name].float(), rtol=2**-7, atol=1e-6)


def test_export_loads_with_plain_transformers(pool, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_recipe(blend(pool, "bfloat16", dict.fromkeys(pool.names, 0.5)), pool, tmp_path / "merge")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merge", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merge")
    ids = tokenizer("12+12", return_tensors="pt", return_token_type_ids=False)
    assert (
        model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1]
        > ids["input_ids"].shape[1]
    )


def test_manifest_lists_every_file_and_card_keeps_splits_apart(pool, tmp_path):
    recipe = blend(pool, "bfloat16", {pool.names[0]: 1.0})
    score = Score(objective="s/m", value=0.5, stderr=0.1, n=9)
    export_recipe(
        recipe,
        pool,
        tmp_path / "merge",
        trial=Trial(number=3, kind="merge", state="SCORED", recipe=recipe, search=(score,)),
    )
    manifest = json.loads((tmp_path / "merge" / "recycler-manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in (tmp_path / "merge").iterdir()} - {
        "recycler-manifest.json"
    }
    card = (tmp_path / "merge" / "README.md").read_text()
    assert (
        "base_model_relation: merge" in card
        and "| s/m | 0.5000 ± 0.1000 (n = 9) | not scored |" in card
    )


@pytest.mark.parametrize(
    ("searched", "told"),
    [
        (None, ()),
        ({"s": (), "t": ()}, ("No search items come from a published test set",)),
        (
            {"s": ("a",), "t": ()},
            (
                "Search items of s/m come from a benchmark's published test set",
                "The other search items come from train",
            ),
        ),
        (
            {"s": ("a",), "t": ("b",)},
            (
                "Search items of s/m, t:b/m come from a benchmark's published test set: compare "
                "these scores with nobody's.\n",
            ),
        ),
        ({"s": (), "t": ("c",)}, ("No search items come from",)),
    ],
)
def test_the_card_says_whether_a_test_set_was_searched(pool, searched, told):
    recipe = blend(pool, "bfloat16", {pool.names[0]: 1.0})
    scores = tuple(Score(objective=name, value=0.5, stderr=0.1, n=9) for name in ("s/m", "t:b/m"))
    card = model_card(
        "x",
        pool,
        recipe,
        Trial(number=3, kind="merge", state="SCORED", recipe=recipe, search=scores),
        "",
        searched=searched,
    )
    assert all(line in card for line in told) and ("test set" in card) == bool(told)


def test_an_exported_trial_says_it_from_its_run(tmp_path):
    run = make_run(tmp_path, "demo", merges=1, suites=True, checkpoints=True)
    path = run / "suites/demo.jsonl"
    write_frozen(replace(read_frozen(path), test_tasks=("math",)), path)
    assert main(["export", str(run), "--trial", "0", "--to", str(tmp_path / "out/merge")]) == 0
    assert (
        "Search items of demo:math/exact_match come from a benchmark's published test set"
        in (tmp_path / "out/merge/README.md").read_text()
    )


def test_weights_that_differ_from_the_scored_ones_are_refused_and_leave_nothing(pool, tmp_path):
    recipe = blend(pool, "bfloat16", {pool.names[0]: 1.0})
    trial = Trial(number=3, kind="merge", state="SCORED", recipe=recipe, weights_digest="0" * 64)
    with pytest.raises(UnsafeInputError, match="not the ones that were scored"):
        export_recipe(recipe, pool, tmp_path / "merge", trial=trial)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(pool, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        export_recipe(blend(pool, "bfloat16", {}), pool, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def check_killed_merges(pool, tmp_path, kills):
    """SIGKILL `recycler merge` at `kills` moments spread over its run: the folder is whole or
    absent.
    """
    export_recipe(blend(pool, "bfloat16", dict.fromkeys(pool.names, 0.3)), pool, tmp_path / "whole")
    command = [
        sys.executable,
        "-m",
        "recycler",
        "merge",
        str(tmp_path / "whole" / "recipe.yaml"),
        str(tmp_path / "out"),
        "--max-shard-bytes",
        "60000",
    ]
    began = time.monotonic()
    subprocess.run(
        [*command[:-3], str(tmp_path / "timed"), *command[-2:]], check=True, capture_output=True
    )
    usual, absent = time.monotonic() - began, 0
    for kill in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(usual * (0.5 + 0.5 * kill / max(kills - 1, 1)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "out").exists():
            assert model_digest(iterate_tensors(open_checkpoint(tmp_path / "out"))) == model_digest(
                iterate_tensors(open_checkpoint(tmp_path / "whole"))
            )
            assert (tmp_path / "out" / "recycler-manifest.json").exists()
            os.rename(tmp_path / "out", tmp_path / f"out-{kill}")
        else:
            absent += 1
    return absent


def test_a_killed_merge_is_whole_or_absent(pool, tmp_path):
    assert check_killed_merges(pool, tmp_path, 3) >= 0


@pytest.mark.slow
def test_a_merge_killed_a_hundred_times_is_whole_or_absent(pool, tmp_path):
    assert 0 < check_killed_merges(pool, tmp_path, 50) < 50  # for each of two pools


def test_an_export_in_another_dtype_is_that_merge_and_says_what_was_scored(pool, tmp_path):
    """Nothing was scored in float32, so there is no digest to compare with; rounding it gives the
    scored weights.
    """

    from recycler.export.export import export_to

    recipe = blend(pool, "bfloat16", dict.fromkeys(pool.names, 0.4))
    scored = export_recipe(recipe, pool, tmp_path / "scored")
    trial = Trial(
        number=3,
        kind="merge",
        state="SCORED",
        recipe=recipe,
        weights_digest=scored.weights_digest,
        search=(Score(objective="a", value=0.5, stderr=0.1, n=10),),
    )
    done = export_to(replace(recipe, dtype="float32"), pool, str(tmp_path / "float32"), trial=trial)
    wide = weights_of(done.folder)
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32} and json.loads(
        (tmp_path / "float32/config.json").read_text()
    )["dtype"] == "float32"
    assert all(
        torch.equal(wide[name].to(torch.bfloat16), tensor)
        for name, tensor in weights_of(tmp_path / "scored").items()
    )
    assert "these weights are in float32" in (tmp_path / "float32/README.md").read_text()
    with pytest.raises(UnsafeInputError, match="not the ones that were scored"):
        export_to(
            recipe, pool, str(tmp_path / "other"), trial=replace(trial, weights_digest="0" * 64)
        )


@pytest.mark.parametrize("place", ["file/below", "file/below/deeper"])
def test_a_place_that_cannot_be_made_is_told(pool, tmp_path, place):
    (tmp_path / "file").write_text("here already")
    with pytest.raises(UsageError, match="cannot be made"):
        export_recipe(blend(pool, "bfloat16", {pool.names[0]: 1.0}), pool, tmp_path / place)
    assert (tmp_path / "file").read_text() == "here already"
