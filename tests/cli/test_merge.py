"""recycler merge, plan and inspect as commands: what they look at before they write, where they
write, and what they say when they cannot.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from handmade import model_arrays, tokenizer, write_checkpoint
from recycler.cli import main
from recycler.errors import InfrastructureError, UsageError
from recycler.io.atomic import UNFINISHED, atomic_folder, full_disk
from recycler.merge.files.mergekit_yaml import recipe_to_mergekit
from recycler.merge.files.recipe_yaml import open_recipe
from recycler.merge.methods.method import TensorContext
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.pool.storage.cache import cache_folder
from recycler.types import Group, Recipe

BASE = model_arrays(0)


@pytest.fixture
def place(tmp_path):
    """base, and a and b trained from it."""
    write_checkpoint(tmp_path / "base", BASE)
    for number, name in enumerate("ab", start=1):
        write_checkpoint(tmp_path / name, model_arrays(number, near=BASE, scale=1e-3))
    return tmp_path


def recipe_file(
    place, method="ties", *, name="r.yaml", a="a", b="b", weights=(0.5, 0.5), base=True, **more
):
    data = (
        {
            "method": method,
            "members": {"a": str(a), "b": str(b)},
            "weights": dict(zip("ab", weights, strict=True)),
        }
        | ({"base": {"base": "base"}} if base else {})
        | more
    )
    (place / name).write_text(yaml.safe_dump(data))
    return place / name


def mergekit_file(place, method="ties", a="a", more=""):
    entries = "".join(
        f"- {{model: {place}/{name}, parameters: {{weight: 0.5}}}}\n" for name in (a, "b")
    )
    (place / "mk.yml").write_text(
        f"merge_method: {method}\nbase_model: {place}/base\nmodels:\n{entries}dtype: bfloat16\n"
        f"{more}"
    )
    return place / "mk.yml"


# ---------------------------------------------------------------- preflight


def _random(folder):
    write_checkpoint(folder, model_arrays(9))


def _far(folder):
    for number, name in enumerate((folder.name, "b")):  # both, or it would be an outlier
        write_checkpoint(folder.parent / name, model_arrays(9 + number, near=BASE, scale=0.02))


def _rope(folder):
    write_checkpoint(
        folder,
        model_arrays(9, near=BASE, scale=1e-3),
        config={"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    )


def _quantized(folder):
    write_checkpoint(
        folder, model_arrays(9, near=BASE, scale=1e-3), config={"quantization_config": {"bits": 4}}
    )


def _other_eos(folder):
    write_checkpoint(folder, model_arrays(9, near=BASE, scale=1e-3), config={"eos_token_id": 5})


def _twin(folder):
    write_checkpoint(folder, model_arrays(2, near=BASE, scale=1e-3))


MISFITS = [
    (_random, "wrong_base", 2),
    (_far, "delta_size", 2),
    (_rope, "rope", 4),
    (_quantized, "quantized", 4),
    (_other_eos, "special_ids", 4),
    (_twin, "duplicates", 2),
]


@pytest.mark.parametrize("make,check,code", MISFITS, ids=[check for _, check, _ in MISFITS])
def test_a_recipe_is_refused_what_a_job_is_refused_unless_the_check_is_allowed(
    place, capsys, make, check, code
):
    make(place / "bad")
    recipe, out = (
        recipe_file(place, "dare_linear", a="bad", options={"density": 0.1}),
        place / "out",
    )
    assert main(["merge", str(recipe), str(out)]) == code and not out.exists()
    refusal = capsys.readouterr().err
    assert "checkpoint 'a'" in refusal or check in (
        "duplicates",
        "special_ids",
    )  # which are said of the second
    assert f"--allow {check}" in refusal
    if check != "duplicates":  # a plan reads no checkpoint whole, and says what looks alike
        assert main(["plan", str(recipe)]) == code
    assert main(["plan", str(recipe), "--allow", check]) == 0
    assert "checkpoint '" in capsys.readouterr().err
    assert main(["merge", str(recipe), str(out), "--allow", check]) == 0 and out.exists()
    assert "checkpoint '" in capsys.readouterr().err


@pytest.mark.parametrize("make,check,code", MISFITS, ids=[check for _, check, _ in MISFITS])
def test_a_mergekit_file_is_warned_and_merged(place, capsys, make, check, code):
    make(place / "bad")
    assert main(["merge", str(mergekit_file(place, "dare_linear", "bad")), str(place / "out")]) == 0
    assert "checkpoint '" in capsys.readouterr().err


def test_a_sound_recipe_says_nothing_and_members_of_weight_zero_are_not_looked_at(place, capsys):
    _random(place / "bad")
    assert main(["merge", str(recipe_file(place)), str(place / "out")]) == 0
    assert (
        main(["merge", str(recipe_file(place, a="bad", weights=(0.0, 1.0))), str(place / "out2")])
        == 0
    )
    assert all("r.yaml: 8 tensors" in line for line in capsys.readouterr().err.splitlines())


def test_rows_that_the_policy_has_put_in_order_are_not_refused_again(place, capsys):
    swapped = tokenizer()
    swapped["model"]["vocab"] |= {"a": 4, "b": 3}
    write_checkpoint(place / "a", model_arrays(1, near=BASE, scale=1e-3), tokenizer_json=swapped)
    assert main(["merge", str(recipe_file(place)), str(place / "out")]) == 4
    assert main(["merge", str(recipe_file(place, tokenizer="union")), str(place / "out")]) == 0
    assert "tokens" not in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_check_is_named(place, capsys):
    assert main(["merge", str(recipe_file(place)), str(place / "out"), "--allow", "duplicate"]) == 2
    assert "Did you mean 'duplicates'" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("mergekit", [False, True])
def test_a_merge_that_is_not_finite_is_refused_by_tensor_and_member(place, capsys, value, mergekit):
    arrays = model_arrays(1, near=BASE, scale=1e-3)
    arrays["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    write_checkpoint(place / "a", arrays)
    recipe, out = (
        mergekit_file(place, "task_arithmetic")
        if mergekit
        else recipe_file(place, "linear", base=False),
        place / "out",
    )
    assert main(["merge", str(recipe), str(out)]) == 4 and not out.exists()
    said = capsys.readouterr().err
    assert (
        "tensor 'model.layers.1.mlp.up_proj.weight': holds NaN or infinite values in 'a'" in said
        and said.count("tensor '") == 1
    )
    assert main(["merge", str(recipe), str(out), "--allow", "values"]) == 0 and out.exists()
    assert (
        main(
            [
                "merge",
                str(recipe_file(place, "linear", weights=(0.0, 1.0), base=False)),
                str(place / "unused"),
            ]
        )
        == 0
    )


@pytest.mark.parametrize("weight,dtype", [(1e300, "bfloat16"), (1e10, "float16")])
def test_weights_that_overflow_are_refused(place, capsys, weight, dtype):
    assert (
        main(
            [
                "merge",
                str(recipe_file(place, "linear", weights=(weight, 1.0), base=False, dtype=dtype)),
                str(place / "out"),
            ]
        )
        == 4
    )
    assert f"overflows {dtype}" in capsys.readouterr().err and not (place / "out").exists()


def test_inspect_tells_a_wrong_base_and_duplicates_and_ends_with_4(place, capsys):
    assert main(["inspect", str(place / "a"), str(place / "b"), "--base", str(place / "base")]) == 0
    assert "All checkpoints fit together." in capsys.readouterr().out
    _random(place / "other")
    assert (
        main(["inspect", str(place / "a"), str(place / "b"), "--base", str(place / "other")]) == 4
    )
    assert "is no relative of the base" in capsys.readouterr().out
    _twin(place / "twin")
    assert (
        main(
            [
                "inspect",
                str(place / "twin"),
                str(place / "b"),
                "--base",
                str(place / "base"),
                "--json",
            ]
        )
        == 4
    )
    assert [finding["check"] for finding in json.loads(capsys.readouterr().out)["findings"]] == [
        "duplicates"
    ]


def test_inspect_tells_values_that_are_not_finite_and_tensors_of_another_kind(place, capsys):
    arrays = model_arrays(1, near=BASE, scale=1e-3)
    arrays["model.norm.weight"][3] = float("nan")
    write_checkpoint(place / "a", arrays)
    assert main(["inspect", str(place / "a"), str(place / "b"), "--base", str(place / "base")]) == 4
    assert (
        "checkpoint 'a' holds NaN or infinite values in 1 tensor (model.norm.weight: 1 NaN of 8)"
        in capsys.readouterr().out
    )
    write_checkpoint(place / "a", arrays | {"model.norm.weight": np.zeros(8, dtype=np.int64)})
    assert (
        main(
            [
                "inspect",
                str(place / "a"),
                str(place / "b"),
                "--base",
                str(place / "base"),
                "--deltas",
            ]
        )
        == 4
    )
    assert "as I64 where 'base' has BF16" in capsys.readouterr().out


# ---------------------------------------------------------------- places


def test_urls_in_a_recipe_stand_for_themselves(place):
    recipe, pool = open_recipe(recipe_file(place, a=f"file://{place}/a", b=place / "b"))
    assert [str(member.location) for member in pool.members] == [
        f"{place}/a",
        f"{place}/b",
    ] and recipe.base == "base"


def test_an_exports_recipes_can_be_run_from_anywhere(place, monkeypatch):
    monkeypatch.chdir(place)
    recipe_file(place, "linear", base=False)
    assert main(["merge", "r.yaml", "out"]) == 0
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    for again in ("recipe.yaml", "mergekit_config.yml"):
        assert main(["merge", f"../out/{again}", f"from-{again}"]) == 0
        digests = [
            json.loads((folder / "recycler-manifest.json").read_text())["weights_digest"]
            for folder in (place / "out", Path(f"from-{again}"))
        ]
        assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "words",
    [
        ["pack", "a", "--base", "base", "--to", "s3://b/p"],
        ["fold", "base", "a", "--to", "s3://b/p"],
        ["fold", "s3://b/base", "a", "--to", "out"],
        ["unpack", "s3://b/pack", "out"],
        ["score", "s3://b/m", "--suite", "gsm8k"],
    ],
    ids=lambda words: words[0],
)
def test_commands_that_need_folders_say_so(place, capsys, monkeypatch, words):
    monkeypatch.chdir(place)
    assert main(words) == 2
    assert "is a URL, and recycler" in capsys.readouterr().err and not (place / "s3:").exists()


def test_a_merge_to_a_whole_bucket_is_refused_before_anything_is_merged(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert main(["merge", "r.yaml", "s3://bucket"]) == 2 if recipe_file(place) else None
    assert "is a whole bucket" in capsys.readouterr().err and not (place / "s3:").exists()


@pytest.mark.parametrize(
    "out,cause",
    [
        (".", "is the folder that this runs in"),
        ("..", "is the folder that this runs in"),
        ("x" * 300, "File name too long"),
        ("nowhere", "is a link to nothing"),
        ("base", "exists already"),
    ],
)
def test_places_where_no_folder_can_go_are_told(place, capsys, monkeypatch, out, cause):
    recipe_file(place)
    (place / "nowhere").symlink_to(place / "gone")
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    assert main(["merge", "r.yaml", out]) == 2
    assert cause in capsys.readouterr().err and sorted(place.iterdir()) == before


def test_a_name_as_long_as_a_file_system_takes_and_a_link_to_an_empty_folder_are_places(place):
    (place / "empty").mkdir()
    (place / "link").symlink_to(place / "empty")
    assert main(["merge", str(recipe_file(place)), str(place / ("y" * 250))]) == 0
    assert main(["merge", str(recipe_file(place)), str(place / "link")]) == 0
    assert (place / "link").is_symlink() and (place / "empty" / "config.json").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [["merge", "r.yaml", "full/out"], ["pack", "a", "b", "--base", "base", "--to", "full/out"]],
    ids=lambda words: words[0],
)
def test_a_full_disk_is_told_and_leaves_nothing(place, words):
    """A limit on the size of files stands in for the disk's: the write fails in the middle all the
    same.
    """
    recipe_file(place)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900)); from recycler.cli import main; "
        f"sys.exit(main({words!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (
        done.returncode == 5
        and "cannot be written whole (File too large)" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not (place / "full").exists()


def test_the_second_of_two_that_write_one_folder_is_told(tmp_path):
    with (
        pytest.raises(UsageError, match="exists already"),
        atomic_folder(tmp_path / "out") as aside,
    ):
        (aside / "slow").write_text("")
        with atomic_folder(tmp_path / "out") as faster:
            (faster / "fast").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fast"] and not list(
        tmp_path.glob(f".*{UNFINISHED}")
    )


def test_other_faults_of_the_system_are_not_called_a_full_disk():
    assert full_disk(OSError(5, "Input/output error"), "x") is None


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECYCLER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InfrastructureError, match="RECYCLER_CACHE"):
        cache_folder()


@pytest.mark.parametrize("command", ["merge", "plan"])
def test_a_recipe_that_is_a_pipe_or_a_device_is_refused(tmp_path, capsys, command):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert (
            main([command, str(path), *([str(tmp_path / "out")] if command == "merge" else [])])
            == 2
        )
        assert "is no file" in capsys.readouterr().err


# ----------------------------------------------- the same bits, and words of mergekit


@pytest.mark.fresh
@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
def test_the_number_of_threads_changes_no_bit(method):
    generator, shape = torch.Generator().manual_seed(0), (192, 320)
    base = torch.randn(shape, generator=generator)
    members = [
        base + 0.01 * torch.randn(shape, generator=generator)
        for _ in range(MERGE_METHODS[method].num_members or 3)
    ]
    before, merged = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = torch.empty(shape)
            MERGE_METHODS[method].function(
                members,
                (0.5, 0.3, 0.2)[: len(members)],
                base=base if MERGE_METHODS[method].needs_base else None,
                context=TensorContext(
                    name="model.layers.1.mlp.up_proj.weight",
                    members=tuple("abc"[: len(members)]),
                    num_layers=16,
                ),
                out=out,
            )
            assert torch.get_num_threads() == threads
            merged.append(out)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*merged)


def test_groups_of_thousands_of_tensors_are_said_in_mergekits_words():
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
        for layer in range(4)
        for expert in range(400)
        for part in ("w1", "w2")
    ]
    recipe = Recipe(
        method="linear",
        members=("a", "b"),
        groups=(Group(name="x", match=r"layers\.0\."), Group(name="r")),
        weights=((1.0, 0.0), (0.0, 1.0)),
    )
    entries = yaml.safe_load(recipe_to_mergekit(recipe, {"a": "a", "b": "b"}, tensors=names))[
        "models"
    ]
    assert entries[0]["parameters"]["weight"] == [
        {"filter": "layers.0.", "value": 1.0},
        {"filter": "*", "value": 0.0},
    ]


def test_an_export_says_when_mergekit_has_no_words_for_it(place):
    assert main(["merge", str(recipe_file(place, "widen")), str(place / "out")]) == 0
    assert (
        not (place / "out" / "mergekit_config.yml").exists()
        and "mergekit cannot say this merge" in (place / "out" / "README.md").read_text()
    )
    assert main(["merge", str(recipe_file(place)), str(place / "out2")]) == 0
    assert "`mergekit_config.yml`" in (place / "out2" / "README.md").read_text()


@pytest.mark.parametrize(
    "more,cause",
    [
        ("tokenizer_source: bananas\n", "'bananas': is neither union nor base"),
        ("tokenizer: {source: bananas}\n", "'bananas': is neither union nor base"),
        ("chat_template: chatml\n", "'chat_template': is not done here"),
    ],
)
def test_settings_of_mergekit_that_would_be_dropped_are_refused(place, capsys, more, cause):
    assert main(["merge", str(mergekit_file(place, more=more)), str(place / "out")]) == 2
    assert cause in capsys.readouterr().err
    assert (
        main(
            [
                "merge",
                str(mergekit_file(place, more=f"tokenizer_source: {place}/a\n")),
                str(place / "out"),
            ]
        )
        == 0
    )


def test_a_plan_of_a_job_takes_no_allowance(tmp_path, capsys):
    (tmp_path / "job.yaml").write_text("pool: {members: [x]}\n")
    assert main(["plan", str(tmp_path / "job.yaml"), "--allow", "rope"]) == 2
    assert "is for recipes" in capsys.readouterr().err


def test_a_plan_of_adapters_says_that_there_is_none(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("adapters: {a: x}\nweights: {a: 1}\n")
    assert main(["plan", str(tmp_path / "r.yaml")]) == 2
    assert "recycler merge" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, write",
    [
        ("merge", recipe_file),
        ("merge", mergekit_file),
        ("plan", recipe_file),
        ("plan", mergekit_file),
    ],
)
def test_a_recipe_is_read_once(place, monkeypatch, command, write):
    """What was checked is what is run, whoever writes the file meanwhile."""
    path, opened = write(place), []
    real = Path.open

    def counted(self, *arguments, **options):
        opened.extend([self] if self == path else [])
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", counted)
    assert main([command, str(path), *([str(place / "out")] if command == "merge" else [])]) == 0
    assert len(opened) == 1
