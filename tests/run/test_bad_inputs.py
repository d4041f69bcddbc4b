"""Bad jobs and bad pools are refused before any training or decoding: the thing, the cause, the
remedy, and the exit code.
"""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from recycler.cli import build_parser, main
from small_job import JOB, SUITE, set_job


def set_suite(folder, change):
    suite = json.loads(json.dumps(SUITE))
    change(suite["tasks"]["echo"])
    (folder / "echo.yaml").write_text(yaml.safe_dump(suite))


def set_config(folder, **changes):
    path = folder / "pool/members/m1/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def set_tensors(folder, change):
    path = folder / "pool/members/m1/model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def set_token(folder):
    path = folder / "pool/members/m1/tokenizer.json"
    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(data))


def append(folder, text):
    with (folder / "job.yaml").open("a") as file:
        file.write(text)


def shrink(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()


def poison(tensors):
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")


def explode(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")


def widen(tensors):
    tensors.update({name: tensor.float() for name, tensor in tensors.items()})


def untie(tensors):
    tensors["lm_head.weight"] = torch.zeros_like(tensors["model.embed_tokens.weight"])


Q = "model.layers.0.self_attn.q_proj.weight"
BAD = {  # name: (how to spoil a sound job, exit code, what the message must hold)
    "unknown key": (
        lambda f: append(f, "objectivs: []\n"),
        2,
        ["objectivs", "Did you mean 'objectives'", "job.yaml:"],
    ),
    "wrong type": (
        lambda f: set_job(f, budget={"trials": "many"}),
        2,
        ["budget.trials", "integer", "job.yaml:"],
    ),
    "one objective": (
        lambda f: set_job(f, objectives=JOB["objectives"][:1]),
        2,
        ["objectives", "at least 2"],
    ),
    "duplicate key": (lambda f: append(f, "version: 1\n"), 2, ["'version' twice", "job.yaml:"]),
    "not yaml": (
        lambda f: (f / "job.yaml").write_text("pool: [a\n"),
        2,
        ["is not YAML", "job.yaml:"],
    ),
    "anchor": (lambda f: (f / "job.yaml").write_text("pool: &a [x]\n"), 2, ["anchor"]),
    "tag of a mapping": (
        lambda f: append(f, "engine: !!python/object:os.system {name: vllm}\n"),
        2,
        ["the tag !!python/object:os.system", "job.yaml:"],
    ),
    "tag of a list": (lambda f: append(f, "earlier: !foo [a]\n"), 2, ["the tag !foo", "job.yaml:"]),
    "tag of a value": (lambda f: append(f, "seed: !!int '7'\n"), 2, ["the tag !!int", "job.yaml:"]),
    "tag in a suite": (
        lambda f: (f / "echo.yaml").write_text("version: 1\ntasks: !!omap {}\n"),
        2,
        ["the tag !!omap", "echo.yaml:2"],
    ),
    "tag in a space": (
        lambda f: (
            (f / "s.yaml").write_text("version: 1\nsum: !x 1\n"),
            set_job(f, space="s.yaml"),
        ),
        2,
        ["the tag !x", "s.yaml:2"],
    ),
    **{
        f"text where {key} is a list": (
            lambda f, key=key: set_job(f, **{key: "x"}),
            2,
            [f"key '{key}'", "is no list but 'x'", "job.yaml:"],
        )
        for key in ("suites", "objectives", "earlier")
    },
    "text where pool.members is a list": (
        lambda f: set_job(f, pool={"members": "pool/members"}),
        2,
        ["key 'pool.members'", "is no list but 'pool/members'", "job.yaml:"],
    ),
    "no path": (
        lambda f: set_job(f, pool={"members": ["pool/members", ""]}),
        2,
        ["pool.members.1", "at least 1 character", "job.yaml:"],
    ),
    "missing job file": (lambda f: (f / "job.yaml").unlink(), 2, ["no such file"]),
    "missing pool folder": (
        lambda f: set_job(f, pool=["nowhere/*"]),
        2,
        ["nowhere/*", "matches no folder", "job.yaml:"],
    ),
    "pool entry longer than a name may be": (
        lambda f: set_job(f, pool={"members": ["x" * 5000]}),
        2,
        ["matches no folder", "job.yaml:"],
    ),
    "missing base": (
        lambda f: set_job(f, pool={"members": ["pool/members"], "base": "gone"}),
        2,
        ["gone", "is not a folder"],
    ),
    "missing space": (
        lambda f: set_job(f, space="search_spaces/globl.yaml"),
        2,
        ["globl", "Did you mean 'global'"],
    ),
    "missing suite": (lambda f: set_job(f, suites=["echo.yaml", "ecko"]), 2, ["ecko"]),
    "missing data": (lambda f: (f / "echo.jsonl").unlink(), 2, ["echo.jsonl", "--data"]),
    "unknown metric": (
        lambda f: set_job(
            f, objectives=[JOB["objectives"][1], {**JOB["objectives"][0], "metric": "exact_mtch"}]
        ),
        2,
        ["exact_mtch", "Did you mean 'exact_match'", "job.yaml:"],
    ),
    "unknown member in space": (
        lambda f: (
            (f / "s.yaml").write_text("version: 1\nmembers: {m9: {fixed: 0}}\n"),
            set_job(f, space="s.yaml"),
        ),
        2,
        ["m9", "s.yaml:2"],
    ),
    "impossible sum": (
        lambda f: (
            (f / "s.yaml").write_text("version: 1\nsum: 9\nbounds: [0, 1]\n"),
            set_job(f, space="s.yaml"),
        ),
        2,
        ["can never sum"],
    ),
    "suite without a holdout": (
        lambda f: set_suite(f, lambda task: task.pop("holdout")),
        2,
        ["holdout", "missing", "echo.yaml:"],
    ),
    "splits overlap": (
        lambda f: set_suite(f, lambda task: task.update(holdout={"rows": [3, 10]})),
        2,
        ["search and in holdout"],
    ),
    "empty split": (
        lambda f: set_suite(f, lambda task: task.update(holdout={"rows": [90, 99]})),
        2,
        ["holdout", "empty"],
    ),
    "missing tensor": (lambda f: set_tensors(f, lambda t: t.pop(Q)), 4, ["m1", Q]),
    "extra tensor": (
        lambda f: set_tensors(f, lambda t: t.update(extra=t[Q].clone())),
        4,
        ["m1", "extra"],
    ),
    "shape": (lambda f: set_tensors(f, shrink), 4, ["m1", "model.norm.weight"]),
    "dtype": (lambda f: set_tensors(f, widen), 4, ["m1", "F32"]),
    "tied head": (lambda f: set_tensors(f, untie), 4, ["m1", "lm_head.weight"]),
    "nan": (
        lambda f: set_tensors(f, poison),
        4,
        ["m1", "model.layers.0.mlp.up_proj.weight", "NaN"],
    ),
    "infinity": (lambda f: set_tensors(f, explode), 4, ["m1", "model.layers.1.mlp.up_proj.weight"]),
    "vocabulary": (lambda f: set_config(f, vocab_size=999), 4, ["m1", "vocab_size"]),
    "rope": (
        lambda f: set_config(f, rope_parameters={"rope_theta": 123.0, "rope_type": "default"}),
        4,
        ["m1", "rope"],
    ),
    "tokenizer": (lambda f: set_token(f), 4, ["m1", "tokenizer"]),
    "duplicate member": (
        lambda f: shutil.copytree(f / "pool/members/m1", f / "pool/members/m1-copy"),
        2,
        ["m1-copy", "m1"],
    ),
    "truncated": (
        lambda f: (f / "pool/members/m1/model.safetensors").write_bytes(
            (f / "pool/members/m1/model.safetensors").read_bytes()[:-9]
        ),
        4,
        ["m1", "model.safetensors"],
    ),
    "pickle": (
        lambda f: (f / "pool/members/m1/model.safetensors").rename(
            f / "pool/members/m1/pytorch_model.bin"
        ),
        4,
        ["pickle"],
    ),
    "remote code": (lambda f: set_config(f, auto_map={"AutoModel": "evil.Model"}), 4, ["auto_map"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_starts(name, job, capsys):
    spoil, exit_code, words = BAD[name]
    spoil(job)
    assert main(["run", str(job / "job.yaml"), "--dir", str(job / "run")]) == exit_code
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.out == ""
    for word in words:
        assert word in said.err
    assert not (job / "run").exists()


def test_all_problems_are_told_at_once(job, capsys):
    set_job(job, space="nowhere.yaml", suites=["echo.yaml", "nope"], method="linaer")
    set_config(job, vocab_size=999)
    assert main(["run", str(job / "job.yaml"), "--dir", str(job / "run")]) == 4
    said = capsys.readouterr().err
    assert all(word in said for word in ("linaer", "nope", "vocab_size"))


@pytest.mark.parametrize(
    "arguments, exit_code",
    [
        (["front", "nowhere"], 3),
        (["status", "nowhere"], 3),
        (["export", "nowhere", "--trial", "knee", "--to", "x"], 3),
        (["score", "nowhere", "--suite", "demo"], 2),
    ],
)
def test_missing_runs_and_models_have_their_exit_codes(
    arguments, exit_code, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == exit_code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "ranks, words", [("0", "1 or more"), ("3", "cannot share"), ("2", "one device")]
)
def test_a_model_is_not_shared_by_ranks_that_cannot(ranks, words, job, capsys):
    members = sorted(path for path in (job / "pool").iterdir() if path.is_dir())
    assert (
        main(
            [
                "score",
                str(members[0]),
                "--suite",
                str(job / "echo.yaml"),
                "--engine",
                "transformers",
                "--tensor-parallel",
                ranks,
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_usage_errors_of_the_command_line_exit_with_2(capsys):
    for arguments in ([], ["nonsense"], ["front"], ["front", "run", "--json", "--csv"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2


def text_arguments():
    """Every argument of every command that takes text, as words of a command line in which it alone
    is empty.
    """
    parser = build_parser()
    for name, command in next(
        action for action in parser._actions if action.dest == "command"
    ).choices.items():
        texts = [
            action
            for action in command._actions
            if action.nargs != 0 and action.type is None and not action.choices
        ]
        needed = [
            word
            for action in command._actions
            if action.required
            for word in [*action.option_strings[:1], next(iter(action.choices or ["x"]))]
        ]
        for action in texts:
            if action.option_strings:
                yield [name, *needed, action.option_strings[0], ""]
            else:
                yield [
                    name,
                    *(
                        word
                        for other in command._actions
                        if not other.option_strings and other.nargs != 0
                        for word in ["" if other is action else next(iter(other.choices or ["x"]))]
                    ),
                ]


@pytest.mark.parametrize("words", text_arguments(), ids=" ".join)
def test_an_empty_argument_is_refused_by_its_name_and_not_told_as_the_current_folder(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and "the path (or name) is empty" in capsys.readouterr().err
