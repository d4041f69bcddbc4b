"""Members with vocabularies of their own: whose rows end up where, and with which tokenizer."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from handmade import model_arrays, tokenizer, write_checkpoint
from recycler.errors import RecyclerError, UnsafeInputError, UsageError
from recycler.export.export import export_recipe
from recycler.merge.files.recipe_yaml import open_recipe
from recycler.merge.stream import merged_tensors
from recycler.pool.catalog import open_pool
from recycler.pool.checks.vocabulary import TokenizerFile
from recycler.pool.storage.tensors import ResidentPool, StreamedPool
from recycler.pool.tokens.aligned import align_vocabularies
from recycler.pool.tokens.union_tokenizer import union_tokenizer
from recycler.types import Recipe

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SPECIAL = ["<pad>", "<bos>", "<eos>"]


def vocabulary(tokens, added=()):
    ids = {token: index for index, token in enumerate([*SPECIAL, *tokens, *added])}
    file = tokenizer(
        vocab={token: index for token, index in ids.items() if token not in added}, merges=[]
    )
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    out = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": file["model"]["vocab"],
            "merges": [],
            "unk_token": "<pad>",
        },
    }
    del out["model"]["merges"]
    return out | {
        "added_tokens": [
            {"id": ids[token], "content": token, **flags} for token in [*SPECIAL, *added]
        ]
    }


def member(folder, tokens, *, seed, added=(), padding=0, head=False):
    """A checkpoint whose embeddings have a row a token, and `padding` more."""
    file = vocabulary(tokens, added)
    rows = len(SPECIAL) + len(tokens) + len(added) + padding
    shapes = {
        EMBEDDINGS: (rows, 8),
        "model.layers.0.mlp.up_proj.weight": (16, 8),
        "model.norm.weight": (8,),
    } | ({HEAD: (rows, 8)} if head else {})
    write_checkpoint(
        folder,
        model_arrays(seed, shapes=shapes),
        config={"vocab_size": rows, "num_hidden_layers": 1, "tie_word_embeddings": not head},
        tokenizer_json=file,
        files={
            "tokenizer_config.json": json.dumps({"added_tokens_decoder": {}}),
            "merges.txt": "stale",
        },
    )
    return file


def rows_of(tensors, file, name=EMBEDDINGS):
    """Token -> its row."""
    ids = file["model"]["vocab"] | {token["content"]: token["id"] for token in file["added_tokens"]}
    return {token: tensors[name][index] for token, index in ids.items()}


def merge(tmp_path, text, out="out"):
    (tmp_path / f"{out}.yaml").write_text(text)
    recipe, pool = open_recipe(tmp_path / f"{out}.yaml")
    export_recipe(recipe, pool, tmp_path / out)
    tensors = load_file(tmp_path / out / "model.safetensors")
    return tensors, rows_of(tensors, json.loads((tmp_path / out / "tokenizer.json").read_text()))


def trio(tmp_path, **settings_of_all):
    files = [
        member(tmp_path / name, tokens, seed=seed, added=added, **settings_of_all)
        for seed, (name, tokens, added) in enumerate(
            (
                ("base", "abcd", ["<tool>"]),
                ("m0", "dcxy", ["<chat>"]),
                ("m1", "xaz", ["<tool>", "<chat>"]),
            )
        )
    ]
    return [
        rows_of(load_file(tmp_path / name / "model.safetensors"), file)
        for name, file in zip(("base", "m0", "m1"), files, strict=True)
    ]


RECIPE = (
    "method: linear\nbase: {base: base}\nmembers: {m0: m0, m1: m1}\nweights: {m0: %s, m1: %s}\n"
    "tokenizer: %s\n"
)


def test_union_has_every_token_once_and_the_rule_of_each_row(tmp_path):
    base, m0, m1 = trio(tmp_path)
    _, rows = merge(tmp_path, RECIPE % (0.5, 0.25, "union"))
    assert list(rows)[: len(base)] == list(base)  # the base's ids stay
    assert rows.keys() == base.keys() | m0.keys() | m1.keys()
    for token, row in rows.items():
        has = [member[token].float() for member in (m0, m1) if token in member]
        origin = base[token].float() if token in base else (sum(has) / len(has)).bfloat16().float()
        expected = (
            sum(
                weight * member.get(token, origin.bfloat16()).float()
                for weight, member in ((0.5, m0), (0.25, m1))
            )
            + 0.25 * origin
        )
        assert torch.allclose(row.float(), expected, rtol=2**-7, atol=1e-6), token
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vocab_size"] == len(rows)
    listed = json.loads((tmp_path / "out/tokenizer_config.json").read_text())[
        "added_tokens_decoder"
    ]
    assert {entry["content"] for entry in listed.values()} == {
        *SPECIAL,
        "<tool>",
        "<chat>",
    } and not (tmp_path / "out/merges.txt").exists()


def byte_pairs(*texts):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], show_progress=False)
    )
    trained.add_special_tokens([f"<{texts[0][:3]}>"])
    return trained


@given(st.text("abcd ", max_size=40))
@settings(max_examples=50, deadline=None)
def test_a_union_cuts_texts_as_the_first_does_and_knows_the_others_added_tokens(text):
    from tokenizers import Tokenizer

    first, second = byte_pairs("abab cdcd abcd"), byte_pairs("bcbc dada bcda")
    made = union_tokenizer(
        [
            TokenizerFile.parse(str(number), one.to_str().encode())
            for number, one in enumerate((first, second))
        ]
    )
    union = Tokenizer.from_str(made.raw.decode())
    assert union.encode(text).ids == first.encode(text).ids
    assert (
        union.encode(f"{text}<bcb>").tokens[-1] == "<bcb>"
        and union.get_vocab().keys() == first.get_vocab().keys() | second.get_vocab().keys()
    )


@pytest.mark.parametrize("policy", ["union", "base"])
@pytest.mark.parametrize("chosen", [0, 1])
def test_one_hot_keeps_the_members_own_rows(tmp_path, policy, chosen):
    _, *members = trio(tmp_path, head=True)
    tensors, rows = merge(tmp_path, RECIPE % (1 - chosen, chosen, policy))
    own = load_file(tmp_path / f"m{chosen}" / "model.safetensors")
    assert all(
        torch.equal(rows[token], row) for token, row in members[chosen].items() if token in rows
    )
    assert all(
        torch.equal(tensors[name], own[name]) for name in tensors if name not in (EMBEDDINGS, HEAD)
    )
    file = json.loads((tmp_path / "out/tokenizer.json").read_text())
    heads, theirs = (
        rows_of(tensors, file, HEAD),
        rows_of(own, json.loads((tmp_path / f"m{chosen}/tokenizer.json").read_text()), HEAD),
    )
    assert all(torch.equal(heads[token], row) for token, row in theirs.items() if token in heads)


def test_base_keeps_the_vocabulary_of_the_base_and_its_padding(tmp_path):
    trio(tmp_path, padding=3)
    tensors, rows = merge(tmp_path, RECIPE % (0.5, 0.5, "base"))
    theirs = load_file(tmp_path / "base/model.safetensors")[EMBEDDINGS]
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (
        tmp_path / "base/tokenizer.json"
    ).read_bytes()
    assert tensors[EMBEDDINGS].shape == theirs.shape and torch.equal(
        tensors[EMBEDDINGS][-3:], theirs[-3:]
    )


@pytest.mark.parametrize("padding", [0, 2])
def test_equal_vocabularies_are_merged_as_without_a_policy(tmp_path, padding):
    for seed in range(2):
        member(tmp_path / f"m{seed}", "abc", seed=seed, padding=padding)
    written = []
    for policy in ("refuse", "union", "base"):
        merge(
            tmp_path,
            f"method: linear\nmembers: {{m0: m0, m1: m1}}\nweights: {{m0: 0.7, m1: 0.3}}\n"
            f"tokenizer: {policy}\n",
            policy,
        )
        written.append(
            {
                path.name: path.read_bytes()
                for path in (tmp_path / policy).iterdir()
                if path.name not in ("README.md", "recycler-manifest.json")
            }
        )  # which tell the file names
    assert written[0] == written[1] == written[2]


def test_the_exported_recipe_makes_the_same_weights_again(tmp_path):
    trio(tmp_path)
    text = (
        f"merge_method: ties\nbase_model: {tmp_path}/base\nmodels:\n- {{model: {tmp_path}/m0, "
        f"parameters: {{weight: 0.5, density: 0.5}}}}\n- {{model: {tmp_path}/m1, parameters: "
        f"{{weight: 0.5, density: 0.8}}}}\ntokenizer: {{source: union}}\n"
    )
    first, _ = merge(tmp_path, text)
    for number, name in enumerate(("recipe.yaml", "mergekit_config.yml")):
        again, _ = merge(tmp_path, (tmp_path / "out" / name).read_text(), f"again{number}")
        assert all(torch.equal(first[tensor], again[tensor]) for tensor in first)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_blocks_are_the_elements_of_the_whole(tmp_path_factory, data):
    """A stretch of elements, cut within rows or not, read by stream or resident, is that of the
    whole tensor.
    """
    place = tmp_path_factory.mktemp("pool")
    names = data.draw(
        st.lists(
            st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True), min_size=2, max_size=3
        )
    )
    for seed, tokens in enumerate(names):
        member(place / f"m{seed}", tokens, seed=seed)
    pool = align_vocabularies(
        open_pool([place / f"m{seed}" for seed in range(len(names))]),
        data.draw(st.sampled_from(["union", "base"])),
    )
    resident, count = ResidentPool(pool), pool.template.tensors[EMBEDDINGS].shape[0] * 8
    with StreamedPool(pool) as streamed:
        for name in pool.names:
            whole = resident.tensor(name, EMBEDDINGS).reshape(-1)
            assert whole.numel() == count and torch.isfinite(whole).all()
            cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=4)) | {0, count})
            for source in (resident, streamed):
                parts = [
                    source.elements(name, EMBEDDINGS, slice(*cut)).clone()
                    for cut in zip(cuts, cuts[1:], strict=False)
                ]
                assert torch.equal(torch.cat(parts), whole)
    recipe = Recipe(
        method="linear", members=pool.names, weights=((1.0,) + (0.0,) * (len(names) - 1),)
    )
    assert (
        dict(merged_tensors(recipe, resident))[EMBEDDINGS].shape
        == pool.template.tensors[EMBEDDINGS].shape
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda place: (place / "m0/tokenizer.json").unlink(), "'m0': has no tokenizer.json"),
        (
            lambda place: (place / "m0/tokenizer.json").write_text(
                json.dumps(vocabulary("abcdefghijkl"))
            ),
            "ids outside the 8 rows",
        ),
        (
            lambda place: (place / "m0/tokenizer.json").write_text(
                json.dumps(vocabulary("abc") | {"added_tokens": [{"id": "7", "content": "q"}]})
            ),
            "gives 'q' the id 7",
        ),
        (
            lambda place: (place / "base/tokenizer.json").write_text(
                json.dumps(vocabulary("abcd", ["<tool>"]) | {"pre_tokenizer": {"type": "Unknown"}})
            ),
            "cannot be extended",
        ),
    ],
)
def test_what_cannot_be_put_in_order_is_refused(tmp_path, change, message):
    trio(tmp_path)
    change(tmp_path)
    with pytest.raises(UnsafeInputError, match=message):
        merge(tmp_path, RECIPE % (0.5, 0.5, "union"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "tail, kind, message",
    [
        ("tokenizer: {source: union, pad_to_multiple_of: 8}\n", UsageError, "pad_to_multiple_of"),
        ("tokenizer: {source: [union]}\n", UsageError, "is not a word"),
        ("tokenizer_source: PLACE/m1\n", UnsafeInputError, "gives"),
        ("tokenizer_source: union\nbase_model: PLACE/m1\n", UsageError, "base_model 'm1'"),
    ],
)
def test_mergekit_settings_that_are_not_done_are_refused(tmp_path, tail, kind, message):
    trio(tmp_path)
    models = "".join(
        f"- {{model: {tmp_path}/{name}, parameters: {{weight: 1}}}}\n" for name in ("m0", "m1")
    )
    with pytest.raises(kind, match=message):
        merge(
            tmp_path,
            f"merge_method: linear\nmodels:\n{models}{tail.replace('PLACE', str(tmp_path))}",
        )


def test_an_unknown_policy_is_refused_with_its_line(tmp_path):
    trio(tmp_path)
    with pytest.raises(RecyclerError, match=r"out.yaml:5.*'unoin'"):
        merge(tmp_path, RECIPE % (0.5, 0.5, "unoin"))
