"""Several merges in one batch of the real vLLM: near the dense merges, and gone without a trace."""

import json
import shutil
from contextlib import closing
from importlib.util import find_spec

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from recycler.cli import main
from recycler.cluster.workers import LocalWorkers
from recycler.engines.vllm.lora import MergeAdapters
from recycler.errors import UnsafeInputError, UsageError
from recycler.export.export import export_recipe
from recycler.ledger import Ledger
from recycler.merge.lora.factors import Adapter, LowRank, write_adapter
from recycler.pool.adapters.fold import fold_adapter
from recycler.pool.catalog import open_pool
from recycler.run.driver import run_job
from recycler.run.prepare import prepare
from recycler.scoring.evaluate import score_recipe, score_side_by_side
from recycler.specs.job import EngineSpec
from recycler.testing import Answers, ask, make_pico_pool
from recycler.types import (
    Failure,
    GenerateRequest,
    Group,
    Item,
    LoglikelihoodRequest,
    Objective,
    Recipe,
    Scorecard,
)

RANKS = {"math": 4, "code": 3, "maths": 8}
TOLERANCE = {
    "float32": 1e-4,
    "bfloat16": 0.2,
}  # nats a token of these random models, whose logits spread widely; seen: 2.4e-6 and 0.073


def make_folded_pool(folder, dtype, architecture="llama", tied=True):
    """Three members: a pico base with an adapter folded in; `code` changes attention alone."""
    make_pico_pool(folder / "pico", architecture=architecture, num_members=1, tied=tied)
    base = folder / "pico/base"
    save_file(
        {
            name: tensor.to(getattr(torch, dtype))
            for name, tensor in load_file(base / "model.safetensors").items()
        },
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    shapes = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in load_file(base / "model.safetensors").items()
        if name.endswith("_proj.weight")
    }
    generator = torch.Generator().manual_seed(0)
    for name, rank in RANKS.items():
        modules = {
            module: LowRank(
                up=0.1 * torch.randn(out, rank, generator=generator),
                down=0.2 * torch.randn(rank, size, generator=generator),
                scale=1.0,
            )
            for module, (out, size) in shapes.items()
            if name != "code" or "self_attn" in module
        }
        write_adapter(Adapter(name=name, modules=modules), folder / "adapters" / name)
        fold_adapter(base, folder / "adapters" / name, folder / "members" / name)
    return open_pool([str(folder / "members")], base=base)


def recipe(pool, dtype, *rows):
    groups = (
        (Group(name="all"),)
        if len(rows) == 1
        else (Group(name="first", match=r"layers\.0\."), Group(name="rest"))
    )
    return Recipe(
        method="linear", members=pool.names, weights=rows, groups=groups, base="base", dtype=dtype
    )


def ask_at_once(engine, names):
    """The contract's questions of every merge in one batch, apart by merge."""

    class Tagged:
        def __init__(self, method):
            self.method = method

        def __call__(self, requests):
            tagged = [
                type(request)(
                    **{field: getattr(request, field) for field in request.__slots__}
                    | {"merge": name}
                )
                for name in names
                for request in requests
            ]
            answers = self.method(tagged)
            self.all = [
                tuple(answers[start : start + len(requests)])
                for start in range(0, len(answers), len(requests))
            ]
            return self.all[0]

    class Batch:
        generate, loglikelihood = Tagged(engine.generate), Tagged(engine.loglikelihood)

    ask(Batch)
    return [
        Answers(*pair) for pair in zip(Batch.generate.all, Batch.loglikelihood.all, strict=True)
    ]


@pytest.mark.vllm
@pytest.mark.skipif(
    find_spec("vllm") is None, reason="vllm is not installed: pip install 'recycler[vllm]'"
)
@pytest.mark.parametrize(
    ("dtype", "architecture", "tied", "num_ranks"),
    [
        ("float32", "llama", True, 1),
        ("bfloat16", "qwen2", False, 1),
        ("float32", "llama", False, 2),
    ],
)
def test_merges_in_one_batch_answer_as_each_dense_merge(
    tmp_path, dtype, architecture, tied, num_ranks
):
    from recycler.engines.vllm.engine import VLLMEngine

    pool = make_folded_pool(tmp_path, dtype, architecture, tied)
    engine = VLLMEngine(
        pool,
        dtype=dtype,
        max_model_len=320,
        tensor_parallel=num_ranks,
        lora_batch=4,
        adapters=str(tmp_path / "adapters"),
    )
    recipes = [
        recipe(pool, dtype, (0.7, 0.2, 0.1)),
        recipe(pool, dtype, (0.0, 0.0, 0.0)),
        recipe(pool, dtype, (0.1, 0.9, -0.3), (0.5, 0.0, 0.8)),
        recipe(pool, dtype, (0.0, 0.0, 1.0)),
    ]
    nothing = recipe(pool, dtype, (0.0, 0.0, 0.0))
    try:
        digest, before = engine.apply(nothing), ask(engine)
        names = engine.side_by_side(recipes)
        assert names[1] == "" and len(set(names)) == 4, "the base itself needs no adapter"
        together = ask_at_once(engine, names)
        again = engine.side_by_side(recipes[:1])
        assert not set(again) & set(names), "a name is used once"
        item = Item(
            id="a",
            suite="s",
            task="t",
            role="search",
            scorer="bits_per_byte",
            kind="loglikelihood",
            prompt="",
            prompt_ids=(1, 2, 3),
            gold="",
            continuations=((4, 5),),
            cluster="a",
            num_bytes=2,
        )
        objective = Objective(suite="s", task="t", metric="bits_per_byte", direction="minimize")
        overflown, good = recipe(pool, dtype, (1e30, 0.0, 0.0)), recipes[0]
        failed, scored = score_side_by_side(
            engine, [overflown, good], [[item]] * 2, [objective], "search", [True, True]
        )
        assert (
            isinstance(failed, Failure)
            and "not finite" in failed.reason
            and isinstance(scored, Scorecard)
        )
        assert scored.scores[0].value == pytest.approx(
            score_recipe(engine, good, [item], [objective], "search", gated=True).scores[0].value,
            abs=10 * TOLERANCE[dtype],
        )
        again = engine.side_by_side(recipes[:1])
        with pytest.raises(UsageError, match="not loaded"):
            engine.generate([GenerateRequest(prompt_ids=(1, 2), max_new_tokens=1, merge=names[0])])
        for one, found in zip(recipes, together, strict=True):
            engine.apply(one)
            dense = ask(engine)
            for ours, theirs in zip(found.likelihoods, dense.likelihoods, strict=True):
                assert ours.token_logprobs == pytest.approx(
                    theirs.token_logprobs, abs=TOLERANCE[dtype]
                )
            if dtype == "float32":
                assert found.completions == dense.completions
        assert len({answers.completions for answers in together}) == 4, (
            "the merges differ, so nothing was shared among them"
        )
        assert engine._llm.llm_engine.list_loras() == set()
        assert engine.apply(nothing) == digest and ask(engine) == before, (
            "and the base is what it was"
        )
        with pytest.raises(UsageError, match="not loaded"):
            engine.loglikelihood(
                [LoglikelihoodRequest(context_ids=(1,), continuation_ids=(2,), merge=again[0])]
            )
    finally:
        engine.close()


def write_job(folder, **engine):
    """A job of two bits-per-byte objectives over the folded pool of `folder`."""
    rows = [
        {"q": f"{k} and {k + 1} is", "a": str(2 * k + 1), "b": "xyz"[k % 3] * 3} for k in range(16)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "data": "sums.jsonl",
        "prompt": "{q}",
        "scorer": "bits_per_byte",
        "search": {"rows": [0, 8]},
        "holdout": {"rows": [8, 16]},
    }
    (folder / "bits.yaml").write_text(
        json.dumps(
            {
                "version": 1,
                "tasks": {"sum": {**task, "answer": " {a}"}, "word": {**task, "answer": " {b}"}},
            }
        )
    )
    job = {
        "version": 1,
        "name": "small",
        "method": engine.pop("method", "linear"),
        "pool": {"members": ["members/*"], "base": "pico/base"},
        "suites": ["bits.yaml"],
        "engine": {"name": "vllm", "lora_batch": 3, "adapters": "adapters", **engine},
        "budget": {"trials": 7},
        "seed": 0,
        "objectives": [
            {"suite": "bits", "task": name, "metric": "bits_per_byte", "direction": "minimize"}
            for name in ("sum", "word")
        ],
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


@pytest.mark.vllm
@pytest.mark.skipif(
    find_spec("vllm") is None, reason="vllm is not installed: pip install 'recycler[vllm]'"
)
def test_a_run_scores_side_by_side_and_ships_what_was_merged(tmp_path):
    pool = make_folded_pool(tmp_path, "bfloat16")
    front = run_job(
        write_job(tmp_path),
        tmp_path / "run",
        make_workers=lambda work, num_workers: LocalWorkers(work),
    )
    with closing(Ledger(tmp_path / "run/ledger.sqlite")) as ledger:
        trials = {trial.number: trial for trial in ledger.trials()}
        engines = {
            number: ledger.scorecard(number, "search").engine_fingerprint for number in trials
        }
    unmerged = [trial for trial in trials.values() if trial.is_unmerged]
    assert (
        {trial.state for trial in trials.values()} == {"SCORED"}
        and unmerged
        and all(trial.is_proposed for trial in unmerged)
    )
    assert all(
        engines[number].endswith("unmerged adapter") == trial.is_unmerged
        and "LoRA batch 3" in engines[number]
        for number, trial in trials.items()
    )
    assert front.finalists and not {trial.number for trial in front.finalists} & {
        trial.number for trial in unmerged
    }
    for trial in front.finalists:
        assert (
            export_recipe(
                trial.recipe, pool, tmp_path / f"export-{trial.number}", trial=trials[trial.number]
            ).weights_digest
            == trials[trial.number].weights_digest
        )


# ------------------------------------------------ what is refused, before vLLM starts


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ({"method": "ties"}, "linear"),
        ({"name": "transformers"}, "engine: vllm"),
        ({"adapters": None}, "engine.adapters"),
        ({"adapters": "members"}, "adapter_config.json"),
        ({"adapters": "nowhere"}, "has no adapter"),
    ],
)
def test_a_job_that_cannot_be_scored_side_by_side_is_refused_with_its_line(folded, engine, told):
    with pytest.raises(UsageError, match=told) as refused:
        prepare(write_job(folded[1], **engine))
    assert "job.yaml:" in str(refused.value)


@pytest.mark.parametrize("place", ["s3://x/y", "hf://x/y"])
@pytest.mark.parametrize("lora_batch", [1, 3])
def test_adapters_that_are_not_on_a_disk_are_refused_by_name(folded, place, lora_batch):
    with pytest.raises(UsageError, match="job.yaml:.*engine.adapters.*folder on a disk"):
        prepare(write_job(folded[1], adapters=place, lora_batch=lora_batch))


def test_adapters_that_no_batch_uses_are_told(folded):
    assert any(
        "engine.adapters is not used" in warning and "job.yaml:" in warning
        for warning in prepare(write_job(folded[1], lora_batch=1)).warnings
    )
    assert not any(
        "engine.adapters" in warning for warning in prepare(write_job(folded[1])).warnings
    )


def test_a_job_whose_members_are_not_their_folded_adapters_is_refused_before_any_engine(
    folded, tmp_path, capsys
):
    """Two adapters that have changed names; a plan, which reads no weights, is still made."""
    shutil.copytree(folded[1], tmp_path / "job")
    adapters = tmp_path / "job/adapters"
    for old, new in (("math", "aside"), ("maths", "math"), ("aside", "maths")):
        (adapters / old).rename(adapters / new)
    job = write_job(tmp_path / "job")
    assert (
        main(["run", str(job), "--dir", str(tmp_path / "run")]) == 4
        and not (tmp_path / "run").exists()
    )
    said = capsys.readouterr().err
    assert (
        "job.yaml:" in said and "member 'math': is not the base with its adapter folded in" in said
    )
    assert main(["plan", str(job)]) == 0


def test_a_job_over_rounded_members_is_warned_and_one_over_exact_members_is_not(folded, tmp_path):
    assert any("float32" in warning for warning in prepare(write_job(folded[1])).warnings)
    make_folded_pool(tmp_path, "float32")
    assert not any("float32" in warning for warning in prepare(write_job(tmp_path)).warnings)


def test_a_job_without_it_keeps_its_identity():
    """Ledgers and bundles from before there were these keys know their jobs again."""
    assert not {"lora_batch", "adapters"} & EngineSpec().model_dump().keys()
    assert EngineSpec(name="vllm", lora_batch=2, adapters="a").model_dump()["lora_batch"] == 2


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folded")
    return make_folded_pool(folder, "bfloat16"), folder


def test_only_plain_linear_merges_on_the_base_are_sums_of_adapters(folded):
    pool, folder = folded
    merges = MergeAdapters(pool, folder / "adapters", 2)
    for other in ({"method": "ties"}, {"base": None}, {"options": (("normalize", True),)}):
        fields = {
            "method": "linear",
            "members": pool.names,
            "weights": ((1.0, 0.0, 0.0),),
            "base": "base",
        } | other
        with pytest.raises(UsageError, match="plain linear"):
            merges.merge_of(Recipe(**fields))
    assert merges.settings["max_lora_rank"] == 16 and merges.settings["max_loras"] == 2, (
        "4 + 3 + 8 ranks, in vLLM's next size"
    )


def test_a_merge_takes_the_weights_of_its_modules_groups(folded):
    pool, folder = folded
    merge = MergeAdapters(pool, folder / "adapters", 2).merge_of(
        recipe(pool, "bfloat16", (1.0, 0.0, 0.0), (0.0, 0.5, 2.0))
    )
    rank = dict(zip(pool.names, (RANKS[name] for name in pool.names), strict=True))
    assert {
        factors.rank
        for module, factors in merge.modules.items()
        if "layers.0" in module and "self_attn" in module
    } == {rank[pool.names[0]]}
    assert {
        factors.rank
        for module, factors in merge.modules.items()
        if "layers.1" in module and "self_attn" in module
    } == {rank[pool.names[1]] + rank[pool.names[2]]}


def test_a_member_that_is_not_its_folded_adapter_is_refused(folded):
    pool, folder = folded
    other = Adapter(
        name="math",
        modules={
            "model.layers.0.self_attn.q_proj": LowRank(
                up=torch.ones(64, 1), down=torch.ones(1, 64), scale=1.0
            )
        },
    )
    for name in RANKS:
        write_adapter(other, folder / "others" / name)
    with pytest.raises(UnsafeInputError, match="folded"):
        MergeAdapters(pool, folder / "others", 2)
    with pytest.raises(UsageError, match="has no adapter"):
        MergeAdapters(pool, folder, 2)


def test_adapters_on_the_head_are_refused(folded):
    pool, folder = folded
    head = Adapter(
        name="head",
        modules={"lm_head": LowRank(up=torch.ones(100, 1), down=torch.ones(1, 64), scale=1.0)},
    )
    for name in RANKS:
        write_adapter(head, folder / "heads" / name)
    with pytest.raises(UsageError, match="lm_head"):
        MergeAdapters(pool, folder / "heads", 2)
