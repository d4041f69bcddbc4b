"""What the preflight finds, and that it finds it before anything is loaded."""

import json
import time

import numpy as np
import pytest

from handmade import SHAPES, file_bytes, model_arrays, tokenizer, write_checkpoint, write_sharded
from recycler.errors import UnsafeInputError, UsageError
from recycler.pool.catalog import _folders, open_checkpoint, open_pool, would_list
from recycler.pool.checks.inspect import inspect_pool, inspect_table
from recycler.pool.checks.preflight import CHECKS, check_pool
from recycler.pool.checks.scan import checkpoint_digest
from recycler.pool.geometry.delta_profile import delta_profile
from recycler.pool.geometry.gram import delta_gram
from recycler.pool.storage.blocks import count_not_finite, tensor_digest

BASE = model_arrays(0)


def pool_with(tmp_path, member=None, *, base=True, delta=1e-3, **odd):
    """A base and three members near it; the last one is odd as said by write_checkpoint's
    arguments.
    """
    if base:
        write_checkpoint(tmp_path / "base", BASE)
    for index in range(2):
        write_checkpoint(tmp_path / f"m{index}", model_arrays(index + 1, near=BASE, scale=delta))
    write_checkpoint(
        tmp_path / "odd",
        model_arrays(9, near=BASE, scale=delta) if member is None else member,
        **odd,
    )
    return open_pool(
        [tmp_path / name for name in ("m0", "m1", "odd")], tmp_path / "base" if base else None
    )


def changed(name, array, base=BASE):
    return model_arrays(9, near=base, scale=1e-3) | {name: array}


def refusal(pool, kind=UnsafeInputError, **options):
    with pytest.raises(kind) as caught:
        check_pool(pool, **options)
    assert type(caught.value) is kind
    return str(caught.value)


def test_a_sound_pool_passes_with_nothing_to_say(tmp_path):
    report = check_pool(pool_with(tmp_path))
    assert (report.num_members, report.num_tensors, report.warnings) == (3, len(SHAPES), ())
    assert report.deltas.members[0].p99 == pytest.approx(2.6e-3, rel=0.15)


def test_a_pool_without_a_base_is_compared_with_its_first_member(tmp_path):
    assert check_pool(pool_with(tmp_path, base=False)).deltas is None


WRONG_CONFIG = {  # change of config.json -> what the refusal says
    "architecture": ({"model_type": "qwen2"}, 'model_type "qwen2" where \'base\' has "llama"'),
    "class": ({"architectures": ["QwenForCausalLM"]}, "architectures"),
    "rope theta": (
        {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
        "rope_theta 500000.0 where 'base' has 10000.0",
    ),
    "rope scaling": (
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2}},
        "factor 2.0 where 'base' has nothing",
    ),
    "old rope scaling": (
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "factor 2.0",
    ),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    "norm eps": ({"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06 where 'base' has 1e-05"),
    "heads": ({"num_attention_heads": 4}, "num_attention_heads 4"),
    "kv heads": ({"num_key_value_heads": 2}, "num_key_value_heads 2"),
    "activation": ({"hidden_act": "gelu"}, 'hidden_act "gelu"'),
    "window": ({"sliding_window": 64}, "sliding_window 64 where 'base' has nothing"),
    "layer types": ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    "vocabulary": ({"vocab_size": 13}, "vocab_size 13, the embeddings have 12 rows"),
    "layers": ({"num_hidden_layers": 3}, "num_hidden_layers 3, the tensors have 2 layers"),
    "tied": ({"tie_word_embeddings": False}, "has no lm_head.weight"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "is quantized"),
    "eos": ({"eos_token_id": 3}, "eos_token_id 3 where 'm0' has 2"),
    "bos": ({"bos_token_id": 0}, "bos_token_id 0"),
}


@pytest.mark.parametrize("change, said", WRONG_CONFIG.values(), ids=WRONG_CONFIG)
def test_config_drift_is_refused_and_named(tmp_path, change, said):
    text = refusal(pool_with(tmp_path, config=change))
    assert said in text and "'odd'" in text


WRONG_TENSORS = {
    "missing": (
        {name: array for name, array in BASE.items() if "layers.1.mlp" not in name},
        "lacks 1 tensor (model.layers.1.mlp.up_proj.weight)",
    ),
    "extra": (
        BASE | {"model.layers.0.self_attn.q_proj.bias": np.zeros(8, np.float32)},
        "has 1 tensor (model.layers.0.self_attn.q_proj.bias) that 'base' has not",
    ),
    "head": (
        BASE | {"lm_head.weight": BASE["model.embed_tokens.weight"]},
        "'odd' has its own lm_head.weight, 'base' ties it",
    ),
    "shape": (
        BASE | {"model.norm.weight": np.ones(16, np.float32)},
        "model.norm.weight) of another shape: [16] where 'base' has [8]",
    ),
    "rows": (
        BASE | {"model.embed_tokens.weight": np.ones((14, 8), np.float32)},
        "a vocabulary of 14 tokens where 'base' has 12",
    ),
    "integer": (
        BASE | {"model.norm.weight": np.ones(8, np.int64)},
        "(model.norm.weight) as I64 where 'base' has BF16",
    ),
    "nan": (
        changed("model.norm.weight", np.array([1, np.nan, 1, 1, np.inf, 1, 1, 1], np.float32)),
        "model.norm.weight: 1 NaN and 1 infinite of 8",
    ),
}


@pytest.mark.parametrize("arrays, said", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_refused_and_named(tmp_path, arrays, said):
    assert said in refusal(pool_with(tmp_path, arrays))


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_another_float_dtype_is_refused_with_the_remedy(tmp_path, dtype):
    text = refusal(pool_with(tmp_path, dtype=dtype))
    assert f"as {dtype} where 'base' has BF16" in text and "in one dtype" in text


@pytest.mark.parametrize(
    "name, bits",
    [("BF16", 0x7F80), ("F16", 0x7C00), ("F32", 0x7F800000), ("F64", 0x7FF0000000000000)],
)
def test_nan_and_infinities_are_counted_in_every_float_dtype(tmp_path, name, bits):
    kind = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F64": np.uint64}[name]
    values = np.zeros(1000, kind)
    values[[3, 500]], values[7], values[999] = (
        bits + 1,
        bits,
        bits | (1 << (8 * values.itemsize - 1)),
    )  # two NaN, +inf, -inf
    folder = write_checkpoint(tmp_path / "x")
    (folder / "model.safetensors").write_bytes(
        file_bytes(
            {"w": {"dtype": name, "shape": [1000], "data_offsets": [0, values.nbytes]}},
            values.tobytes(),
        )
    )
    assert count_not_finite(open_checkpoint(folder).tensors["w"]) == (2, 2)


WRONG_TOKENIZERS = {
    "one token": (
        tokenizer(vocab=tokenizer()["model"]["vocab"] | {"h": 11, "z": 10}),
        "2 tokens, such as 'h': 11 and 10",
    ),
    "merges": (tokenizer(merges=["c d", "a b"]), "merges"),
    "pre-tokenizer": (tokenizer() | {"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer"),
    "added": (
        tokenizer()
        | {
            "added_tokens": [
                *tokenizer()["added_tokens"],
                {"id": 11, "content": "<tool>", "special": True},
            ]
        },
        "'<tool>': 11 and None",
    ),
    "added flags": (
        tokenizer()
        | {"added_tokens": [token | {"lstrip": True} for token in tokenizer()["added_tokens"]]},
        "properties of added tokens",
    ),
    "out of range": (
        tokenizer(vocab=tokenizer()["model"]["vocab"] | {"h": 12}),
        "1 ids outside the 12 rows",
    ),
}


@pytest.mark.parametrize("document, said", WRONG_TOKENIZERS.values(), ids=WRONG_TOKENIZERS)
def test_another_tokenizer_is_refused_and_what_differs_is_named(tmp_path, document, said):
    assert said in refusal(pool_with(tmp_path, tokenizer_json=document))


@pytest.mark.parametrize(
    "file, content",
    [
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": {"vocab": 3}}'),
        ("tokenizer.json", '{"model": {"vocab": {}}, "added_tokens": [4]}'),
        ("tokenizer_config.json", "{,}"),
    ],
)
def test_broken_tokenizer_files_are_refused(tmp_path, file, content):
    assert file in refusal(pool_with(tmp_path, files={file: content}))


def test_a_sentencepiece_vocabulary_is_compared_by_bytes(tmp_path):
    pool = pool_with(tmp_path, files={"tokenizer.model": b"other"})
    for name in ("base", "m0", "m1", "odd"):
        (tmp_path / name / "tokenizer.json").unlink()
        if name != "odd":
            (tmp_path / name / "tokenizer.model").write_bytes(b"pieces")
    assert "its tokenizer.model differs" in refusal(pool)


HARMLESS = {
    "version": {
        "config": {
            "transformers_version": "4.40.0",
            "torch_dtype": "float32",
            "use_cache": False,
            "_name_or_path": "runs/7",
        }
    },
    "old rope spelling": {
        "config": {"rope_theta": 10000, "rope_scaling": None},
        "without": ("rope_parameters",),
    },
    "defaults written out": {
        "config": {
            "head_dim": 4,
            "mlp_bias": False,
            "sliding_window": None,
            "layer_types": ["full_attention"] * 2,
            "partial_rotary_factor": 1.0,
        }
    },
    "merges as pairs": {"tokenizer_json": tokenizer(merges=[["a", "b"], ["c", "d"]])},
}


@pytest.mark.parametrize("odd", HARMLESS.values(), ids=HARMLESS)
def test_two_spellings_of_the_same_config_agree(tmp_path, odd):
    assert check_pool(pool_with(tmp_path, **odd)).warnings == ()


WARNED = {
    "chat template": (
        {"files": {"chat_template.jinja": "{{ messages }}"}},
        "another chat template",
    ),
    "template in config": (
        {"files": {"tokenizer_config.json": '{"chat_template": "x"}'}},
        "another chat template",
    ),
    "unknown key": ({"config": {"colour": "blue"}}, 'colour "blue" where'),
    "length": ({"config": {"max_position_embeddings": 99}}, "max_position_embeddings 99"),
    "pad": ({"config": {"pad_token_id": 5}}, "pad_token_id 5"),
}


@pytest.mark.parametrize("odd, said", WARNED.values(), ids=WARNED)
def test_what_does_not_change_a_merge_is_a_warning(tmp_path, odd, said):
    assert said in str(check_pool(pool_with(tmp_path, **odd)).warnings[0])


def test_a_base_with_other_special_ids_than_all_members_is_a_warning(tmp_path):
    pool = pool_with(tmp_path)
    write_checkpoint(tmp_path / "base", BASE, config={"eos_token_id": 0})
    pool = open_pool([tmp_path / name for name in ("m0", "m1", "odd")], tmp_path / "base")
    assert "eos_token_id 2 where 'base' has 0" in str(check_pool(pool).warnings[0])


def test_all_problems_come_in_one_error(tmp_path):
    text = refusal(
        pool_with(
            tmp_path,
            BASE | {"model.norm.weight": np.ones(16, np.float32)},
            config={"hidden_act": "gelu", "eos_token_id": 7},
            tokenizer_json=tokenizer(merges=[]),
        )
    )
    assert len(text.splitlines()) == 4


def test_allow_turns_a_refusal_into_a_warning_and_is_strict_about_names(tmp_path):
    pool = pool_with(tmp_path, config={"hidden_act": "gelu"})
    assert "hidden_act" in str(check_pool(pool, options={"allow": ("config",)}).warnings[0])
    assert "Did you mean 'config'?" in refusal(pool, UsageError, options={"allow": ("confg",)})
    assert "Did you mean 'dare_warn'?" in refusal(pool, UsageError, options={"dare_wrn": 1})


# ---------------------------------------------------------------- duplicates, integers, heads


def test_duplicates_are_refused_whatever_their_shards_and_named_by_digest(tmp_path):
    arrays = model_arrays()
    write_checkpoint(tmp_path / "one", arrays)
    write_sharded(tmp_path / "two")
    write_checkpoint(tmp_path / "three", model_arrays(5, near=arrays, scale=1e-3))
    pool = open_pool([tmp_path / "one", tmp_path / "two", tmp_path / "three"])
    assert "'two': has the same weights as 'one'" in refusal(pool, UsageError)
    report = check_pool(pool, duplicates="allow")
    assert dict(report.digests)["one"] == dict(report.digests)["two"] and "three" not in dict(
        report.digests
    )


@pytest.mark.parametrize("digests", [True, False])
def test_inspect_says_which_checkpoints_are_the_same_weights(tmp_path, digests):
    """By name, however they are sharded, whether or not everything is read; and a member that is
    the base is told too.
    """
    arrays = model_arrays()
    write_checkpoint(tmp_path / "one", arrays)
    write_sharded(tmp_path / "two")
    write_checkpoint(tmp_path / "three", model_arrays(5, near=arrays, scale=1e-3))
    members = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    found = inspect_pool(open_pool(members), digests=digests)
    assert found["identical"] == [["one", "two"]] and [
        finding["check"] for finding in found["findings"]
    ] == ["duplicates"]
    assert "'two' has the same weights as 'one'" in inspect_table(found)
    with_base = inspect_pool(open_pool(members[1:], members[0]), digests=digests)
    assert with_base["identical"] == [
        ["base", "two"]
    ] and "'two' has the weights of the base" in inspect_table(with_base)
    assert inspect_pool(open_pool(members[1:]), digests=digests)["identical"] == []


def test_a_member_that_differs_in_one_bit_is_no_duplicate(tmp_path):
    large = {**SHAPES, "model.embed_tokens.weight": (12, 8), "model.layers.0.big": (256, 64)}
    arrays = model_arrays(shapes=large)
    write_checkpoint(tmp_path / "one", arrays)
    write_checkpoint(tmp_path / "two", arrays)
    raw = bytearray((tmp_path / "two/model.safetensors").read_bytes())
    raw[-9000] ^= 1  # where the sample does not look
    (tmp_path / "two/model.safetensors").write_bytes(raw)
    report = check_pool(open_pool([tmp_path / "one", tmp_path / "two"]))
    assert len(set(dict(report.digests).values())) == 2


def test_the_same_folder_twice_is_a_duplicate_and_not_dropped(tmp_path):
    folder = write_checkpoint(tmp_path / "one")
    pool = open_pool([folder, folder])
    assert pool.names == ("one", "one-1")
    refusal(pool, UsageError)


def test_integer_tensors_must_be_equal(tmp_path):
    ids = {"model.rotary.positions": np.arange(4, dtype=np.int64)}
    for name, extra in (
        ("a", ids),
        ("b", ids),
        ("c", {"model.rotary.positions": np.arange(1, 5, dtype=np.int64)}),
    ):
        write_checkpoint(tmp_path / name, model_arrays(ord(name), near=BASE, scale=1e-3) | extra)
    assert "'c': holds other numbers in the I64 tensor 'model.rotary.positions'" in refusal(
        open_pool([tmp_path / name for name in "abc"])
    )
    check_pool(open_pool([tmp_path / name for name in "ab"]))


def test_a_stored_head_that_differs_from_its_tied_embeddings_is_refused(tmp_path):
    for name in "ab":
        write_checkpoint(
            tmp_path / name,
            model_arrays(ord(name), near=BASE, scale=1e-3)
            | {"lm_head.weight": np.ones((12, 8), np.float32)},
        )
    assert "unlike the embeddings" in refusal(open_pool([tmp_path / "a", tmp_path / "b"]))


def test_digests_are_those_of_the_merge_side(tmp_path):
    from recycler.pool.storage.hashing import model_digest
    from recycler.pool.storage.hashing import tensor_digest as of_tensor
    from recycler.pool.storage.tensors import iterate_tensors

    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "one"))
    for name, tensor in iterate_tensors(checkpoint):
        assert tensor_digest(checkpoint.tensors[name]) == of_tensor(tensor)
    assert checkpoint_digest(checkpoint) == model_digest(iterate_tensors(checkpoint))


# ---------------------------------------------------------------- deltas and bases


@pytest.mark.parametrize("with_base", [True, False])
def test_distances_between_merges_follow_from_the_gram_matrix(tmp_path, with_base):
    flats = []
    for index in range(4):
        arrays = model_arrays(index)
        write_checkpoint(tmp_path / f"m{index}", arrays, dtype="F32")
        flats.append(
            np.concatenate([arrays[name].ravel() for name in sorted(arrays)]).astype(float)
        )
    origin = flats.pop() if with_base else flats[0]
    pool = open_pool(
        [tmp_path / f"m{index}" for index in range(len(flats))],
        tmp_path / "m3" if with_base else None,
    )
    gram, left, right = (
        np.array(delta_gram(pool)),
        np.zeros(len(flats)),
        np.full(len(flats), 1 / len(flats)),
    )
    left[1] = 1.0
    apart = np.linalg.norm((left - right) @ np.array(flats)) / np.linalg.norm(origin)
    assert (left - right) @ gram @ (left - right) == pytest.approx(apart**2, rel=1e-4)


def test_a_profile_of_everything_agrees_with_numpy_and_a_sample_comes_near(tmp_path):
    shapes = {**SHAPES, "model.layers.0.big": (300, 257)}
    base, member = model_arrays(0, shapes=shapes), model_arrays(3, shapes=shapes, scale=0.01)
    member = {name: base[name] + member[name] for name in shapes}
    write_checkpoint(tmp_path / "base", base, dtype="F32")
    write_checkpoint(tmp_path / "m", member, dtype="F32")
    pool = open_pool([tmp_path / "m"], tmp_path / "base")
    (whole,), (sampled,) = (
        delta_profile(pool, sample=None).members,
        delta_profile(pool, sample=4096).members,
    )
    for tensor in whole.tensors:
        delta = np.abs(member[tensor.name] - base[tensor.name])
        assert (tensor.mean, tensor.max) == pytest.approx((delta.mean(), delta.max()), rel=1e-5)
        assert tensor.p50 == pytest.approx(np.quantile(delta, 0.5, method="inverted_cdf"), rel=0.01)
        assert tensor.p99 == pytest.approx(
            np.quantile(delta, 0.99, method="inverted_cdf"), rel=0.01
        )
    flat = [np.concatenate([part[name].ravel() for name in shapes]) for part in (base, member)]
    assert whole.relative == pytest.approx(
        np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0]), rel=1e-4
    )
    assert (sampled.p50, sampled.p99, sampled.relative) == pytest.approx(
        (whole.p50, whole.p99, whole.relative), rel=0.1
    )
    assert whole.layers[1] == pytest.approx(
        np.mean(
            np.concatenate(
                [np.abs(member[name] - base[name]).ravel() for name in shapes if "layers.1" in name]
            )
        ),
        rel=1e-5,
    )


def test_an_unrelated_base_is_refused(tmp_path):
    pool = pool_with(tmp_path, model_arrays(77))
    assert "is no relative of the base" in refusal(pool, UsageError)


def test_the_true_base_is_named_when_it_is_among_the_candidates(tmp_path):
    true_base = model_arrays(5, near=BASE, scale=0.02)
    write_checkpoint(tmp_path / "true", true_base)
    pool = pool_with(tmp_path, model_arrays(6, near=true_base, scale=1e-3))
    text = refusal(
        pool, UsageError, options={"candidates": (open_checkpoint(tmp_path / "true", "code-base"),)}
    )
    assert "nearer to 'code-base' than to the base" in text and "'m0'" not in text


def test_a_member_of_another_base_is_told_and_refused_for_dare(tmp_path):
    pool = pool_with(tmp_path, model_arrays(6, near=BASE, scale=0.02))
    assert "times farther from the base than the other members" in str(check_pool(pool).warnings[0])
    assert "another base" in refusal(pool, UsageError, method="dare_ties")


def test_members_with_a_nearer_common_ancestor_are_told_so(tmp_path):
    ancestor = model_arrays(5, near=BASE, scale=0.02)
    write_checkpoint(tmp_path / "base", BASE)
    for index in range(3):
        write_checkpoint(
            tmp_path / f"m{index}", model_arrays(10 + index, near=ancestor, scale=1e-3)
        )
    warnings = check_pool(
        open_pool([tmp_path / f"m{index}" for index in range(3)], tmp_path / "base")
    ).warnings
    assert len(warnings) == 3 + 3 and "share a nearer ancestor" in str(warnings[0])


@pytest.mark.parametrize("scale, outcome", [(1e-3, "silent"), (4e-3, "warned"), (0.02, "refused")])
@pytest.mark.parametrize("method", ["dare_linear", "della"])
def test_dare_is_warned_of_and_refused_as_deltas_grow(tmp_path, scale, outcome, method):
    pool = pool_with(tmp_path, delta=scale)
    if outcome == "refused":
        assert "breaks above 0.03" in refusal(pool, UsageError, method=method)
        assert check_pool(pool, method=method, options={"dare_refuse": 1.0}).warnings
        assert check_pool(pool, method="ties").warnings  # told, since a later job may use DARE
    else:
        assert [warning.cause[:16] for warning in check_pool(pool, method=method).warnings] == [
            "has large deltas"
        ] * (3 if outcome == "warned" else 0)


def test_headers_of_a_large_pool_take_milliseconds(tmp_path):
    shapes = SHAPES | {
        f"model.layers.{layer}.extra.{index}": (4,) for layer in range(2) for index in range(150)
    }
    for index in range(8):
        write_checkpoint(
            tmp_path / f"m{index}",
            model_arrays(index, near=model_arrays(shapes=shapes), scale=1e-3, shapes=shapes),
        )
    start = time.perf_counter()
    pool = open_pool([tmp_path])
    refused = pool_with(tmp_path / "other", config={"hidden_act": "gelu"})
    opened = time.perf_counter() - start
    start = time.perf_counter()
    refusal(refused)
    assert opened < 1.0 and time.perf_counter() - start < 0.2
    assert len(pool.members) == 8


# ---------------------------------------------------------------- catalogue and inspect


def test_names_are_short_where_they_can_be(tmp_path):
    for name in ("run-a/step-1", "run-b/step-1", "run-b/step-2", "base"):
        write_checkpoint(tmp_path / name)
    assert open_pool([tmp_path / "run-a", tmp_path / "run-b"]).names == (
        "run-a-step-1",
        "run-b-step-1",
        "step-2",
    )
    assert open_pool([tmp_path / "base", tmp_path / "run-b/step-2"]).names == (
        f"{tmp_path.name}-base",
        "step-2",
    )


@pytest.mark.parametrize(
    "entry, place",
    [
        ("pool", "pool/new"),
        ("pool/*", "pool/new"),
        ("pool/n*", "pool/new"),
        ("pool/a*", "pool/new"),
        ("*", "pool/new"),
        ("pool/a", "pool/new"),
        ("pool", "new"),
        ("pool", "pool/deep/new"),
        ("pool/../pool", "pool/new"),
        ("pool", "pool/a/../new"),
        ("link", "pool/new"),
        ("link/*", "pool/new"),
        ("pool", "link/new"),
        ("pool/[mn]ew", "pool/new"),
        ("pool/*", "pool/.new"),
    ],
)
def test_what_an_entry_would_list_is_what_it_lists_then(tmp_path, entry, place):
    write_checkpoint(tmp_path / "pool/a")
    (tmp_path / "link").symlink_to("pool")
    said = would_list(str(tmp_path / entry), str(tmp_path / place))
    before = {str(found.resolve()) for found in _folders(str(tmp_path / entry))}
    write_checkpoint(tmp_path / place)
    after = {str(found.resolve()) for found in _folders(str(tmp_path / entry))}
    assert said == (after != before)


@pytest.mark.parametrize(
    "entry, place, listed",
    [
        ("s3://b/pool", "s3://b/pool/new", True),
        ("s3://b/pool/", "s3://b/pool/new/", True),
        ("s3://b/pool", "s3://b/new", False),
        ("s3://b/pool", "s3://b/pool/deep/new", False),
        ("s3://b/pool", "gs://b/pool/new", False),
        ("/pool", "s3://b/pool/new", False),
        ("s3://b/pool", "/pool/new", False),
        ("hf://org/name", "s3://org/name", False),
    ],
)
def test_an_entry_in_a_bucket_would_list_what_lies_right_below_it(entry, place, listed):
    assert would_list(entry, place) == listed


def test_inspect_is_one_json_document_and_a_table(tmp_path):
    pool = pool_with(tmp_path, config={"hidden_act": "gelu"})
    found = inspect_pool(pool, deltas=True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["schema_version"] == 1 and found["checkpoints"][0]["num_parameters"] == sum(
        int(np.prod(shape)) for shape in SHAPES.values()
    )
    assert [finding["check"] for finding in found["findings"]] == ["config"] and found["findings"][
        0
    ]["check"] in CHECKS
    table = inspect_table(found)
    assert "hidden_act" in table and "layer_swap might take" in table and "base (base)" in table
    assert inspect_table(inspect_pool(pool, digests=False)).count("\n") < 10
