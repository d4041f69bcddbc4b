"""Malformed checkpoints: every one is refused with the file and the reason; none crashes, none
makes memory grow.
"""

import io
import json
import os
import pickle
import random
import tracemalloc
import zipfile

import numpy as np
import pytest

from handmade import CONFIG, file_bytes, shard_bytes, tokenizer, write_checkpoint, write_sharded
from recycler.errors import (
    InfrastructureError,
    Problem,
    RecyclerError,
    UnsafeInputError,
    UsageError,
)
from recycler.merge.files.mergekit_yaml import read_mergekit
from recycler.pool.catalog import open_checkpoint, open_pool
from recycler.pool.checks.preflight import check_pool
from recycler.pool.storage.headers import DTYPE_BYTES, MAX_HEADER_BYTES, read_header
from recycler.scoring.tasks import load_tokenizer

GOOD = shard_bytes(
    {
        "a.weight": np.ones((2, 4), np.float32),
        "b.weight": np.ones(4, np.float32),
        "c": np.zeros((0, 4), np.float32),
    }
)
HEADER_BYTES = int.from_bytes(GOOD[:8], "little")


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets,
        **more,
    }


def one(value, data=bytes(8), name="w"):
    return file_bytes({name: value}, data)


def raw(text, data=bytes(8)):
    return file_bytes(text if isinstance(text, bytes) else text.encode(), data)


def zip_bytes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": 1}))
    return buffer.getvalue()


HEADERS = {
    # not this format
    "empty": b"",
    **{f"{count} bytes": b"\x08" * count for count in range(1, 8)},
    "zeros": bytes(64),
    "length only": (0).to_bytes(8, "little"),
    "ones": b"\xff" * 64,
    **{
        f"pickle {protocol}": pickle.dumps({"w": list(range(50))}, protocol=protocol)
        for protocol in range(6)
    },
    "zip": zip_bytes(),
    "zip after": GOOD + zip_bytes(),
    "gguf": b"GGUF" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + b"\x07" * 60,
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "text": b"not found, sorry about that",
    "json only": json.dumps({"w": entry()}).encode(),
    "numpy": b"\x93NUMPY\x01\x00" + bytes(60),
    "elf": b"\x7fELF" + b"\x02" * 60,
    # lengths that lie
    **{
        f"header length {length}": GOOD[:8].replace(GOOD[:8], length.to_bytes(8, "little"))
        + GOOD[8:]
        for length in (
            0,
            1,
            2,
            HEADER_BYTES - 8,
            HEADER_BYTES - 1,
            HEADER_BYTES + 1,
            HEADER_BYTES + 8,
            len(GOOD) - 8,
            len(GOOD) - 7,
            len(GOOD),
            2**24,
            2**31,
            2**32,
            2**53,
            2**63 - 1,
            2**63,
            2**64 - 1,
        )
    },
    "length past the limit": (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{",
    "no data": GOOD[: 8 + HEADER_BYTES],
    "one byte short": GOOD[:-1],
    "one byte long": GOOD + b"\0",
    "newline after": GOOD + b"\n",
    "twice": GOOD + GOOD,
    # headers that are not JSON objects of text to tensors
    **{
        f"header {text[:24]!r}": raw(text)
        for text in (
            "[]",
            "[1]",
            "null",
            "3",
            '"w"',
            "true",
            " {}",
            '\n{"w":1}',
            "\t{}",
            "{",
            "}",
            "{}}",
            "{} x",
            '{"w"}',
            '{"w":}',
            "{'w':1}",
            '{"w":1,}',
            '{"w":NaN}',
            '{"w":Infinity}',
            '{"w":-Infinity}',
            "{\0}",
            '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}\0\0',
            '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}{}',
            "[" * 5000,
            '{"a":' * 5000,
            '{"a":' + "[" * 100_000,
            '{"w":' + "1" * 5000 + "}",
        )
    },
    "not utf-8": raw(b'{"w\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "utf-16": raw('{"w":1}'.encode("utf-16-le")),
    "bom": raw(b"\xef\xbb\xbf{}"),
    "surrogate": raw('{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "cut escape": raw('{"\\u12'),
    "same name twice": raw(
        '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    ),
    "minus zero": raw(
        '{"w":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}'
    ),  # found by fuzzing: the library refuses it
    "same key twice": raw('{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "metadata twice": raw(
        '{"__metadata__":{},"__metadata__":{},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    ),
    **{
        f"metadata {value!r}": file_bytes({"__metadata__": value, "w": entry()}, bytes(8))
        for value in ([], 1, "x", None, True, {"a": 1}, {"a": None}, {"a": {}}, {"a": ["b"]})
    },
    # entries that are not tensors
    **{
        f"entry {value!r}": one(value)
        for value in (
            None,
            1,
            "F32",
            [],
            {},
            [1, 2],
            True,
            {"dtype": "F32"},
            {"shape": [2]},
            {"dtype": "F32", "shape": [2]},
            {"shape": [2], "data_offsets": [0, 8]},
            {"dtype": "F32", "data_offsets": [0, 8]},
        )
    },
    **{
        f"extra key {key}": one(entry(**{key: 1}))
        for key in ("offset", "stride", "device", "__reduce__", "requires_grad", "")
    },
    **{
        f"dtype {value!r}": one(entry(dtype=value))
        for value in (
            "",
            "f32",
            "FLOAT",
            "F32 ",
            "BF16\0",
            "F8_E4M3FN",
            "I128",
            "C64",
            "object",
            None,
            4,
            1.5,
            ["F32"],
            {"a": 1},
            True,
            "\u212b",
            "F4",
        )
    },
    **{
        f"shape {value!r}": one(entry(shape=value))
        for value in (
            None,
            2,
            "2",
            {},
            [2.0],
            ["2"],
            [None],
            [[2]],
            [-2],
            [True, 2],
            [-1, -2],
            [2**62],
            [2**64],
            [2**31, 2**31],
            [1e300],
            [0],
            [],
            [3],
            [1, 1],
            [2, 2],
            [1] * 17,
            [2] * 1000,
            [10**400],
        )
    },
    **{
        f"offsets {value!r}": one(entry(offsets=value))
        for value in (
            None,
            8,
            "0,8",
            {},
            [],
            [0],
            [8],
            [0, 8, 16],
            [0.0, 8.0],
            ["0", "8"],
            [None, 8],
            [True, 8],
            [8, 0],
            [-8, 0],
            [-1, 7],
            [0, 7],
            [0, 9],
            [0, 16],
            [1, 9],
            [4, 12],
            [8, 16],
            [0, 2**63],
            [2**61, 2**61 + 8],
            [2**64, 2**64 + 8],
            [[0], [8]],
        )
    },
    # names that could be paths, commands or markup
    **{
        f"name {name[:20]!r}": one(entry(), name=name)
        for name in (
            "",
            " ",
            " w",
            "w ",
            "../w",
            "..",
            "a/../b",
            "/etc/passwd",
            "..\\w",
            "C:\\w",
            "w\0",
            "w\n",
            "\x1b[31mw",
            "<script>",
            "w;rm -rf",
            "$(w)",
            "`w`",
            "w'",
            'w"',
            "%2e%2e",
            "w:w",
            "\u202ew",
            "w\u200b",
            "w" * 513,
            "a..b",
            "~",
            "*",
            "w?",
            "w|w",
            "caf\u00e9",
        )
    },
    # tensors that do not tile the data
    "overlap": file_bytes({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "same bytes": file_bytes({"a": entry(), "b": entry()}, bytes(8)),
    "hole": file_bytes({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "hole at the start": file_bytes({"a": entry(offsets=(4, 12))}, bytes(12)),
    "hole at the end": file_bytes({"a": entry()}, bytes(12)),
    "inside": file_bytes(
        {"a": entry(shape=(4,), offsets=(0, 16)), "b": entry(offsets=(4, 12))}, bytes(16)
    ),
    "past the end": file_bytes({"a": entry(), "b": entry(offsets=(8, 16))}, bytes(12)),
    "empty tensor outside": file_bytes(
        {"a": entry(), "b": entry(shape=(0,), offsets=(40, 40))}, bytes(8)
    ),
    "empty tensor inside": file_bytes(
        {"a": entry(), "b": entry(shape=(0,), offsets=(4, 4))}, bytes(8)
    ),
    "data without tensors": file_bytes({}, bytes(8)),
    **{
        f"cut to {dtype}": one(
            entry(dtype=dtype, shape=(3,), offsets=(0, 3 * size)), bytes(3 * size - 1)
        )
        for dtype, size in DTYPE_BYTES.items()
    },
    **{
        f"size of {dtype} is not {size + 1}": one(
            entry(dtype=dtype, shape=(3,), offsets=(0, 3 * (size + 1))), bytes(3 * (size + 1))
        )
        for dtype, size in DTYPE_BYTES.items()
    },
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_malformed_files_are_refused_with_file_and_reason(tmp_path, content):
    folder = write_checkpoint(tmp_path / "bad", files={"model.safetensors": content})
    with pytest.raises(UnsafeInputError) as caught:
        open_checkpoint(folder)
    assert (
        "model.safetensors" in str(caught.value)
        and caught.value.problems[0].cause
        and len(str(caught.value)) < 2000
    )


def config_with(**changes):
    return json.dumps(CONFIG | changes)


CONFIGS = {
    "not json": "{",
    "empty": "",
    "list": "[]",
    "null": "null",
    "text": '"llama"',
    "binary": b"\xff\xfe\x00",
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 50_000,
    "nan": '{"vocab_size": NaN}',
    "twice": '{"model_type": "a", "model_type": "b"}',
    "long number": '{"vocab_size": ' + "9" * 10_000 + "}",
    "remote code": config_with(auto_map={"AutoModel": "evil.Model"}),
    "remote code, empty": config_with(auto_map={}),
    **{
        f"{key} {value!r}": config_with(**{key: value})
        for key in ("num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads")
        for value in ("2", -1, 2.5, [2], {"a": 1}, True, 2**70)
    },
    "nested": config_with(text_config={"num_hidden_layers": "many"}),
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_malformed_configs_are_refused_with_file_and_reason(tmp_path, content):
    with pytest.raises(UnsafeInputError, match="config.json"):
        open_checkpoint(write_checkpoint(tmp_path / "bad", files={"config.json": content}))


NAME = "model.norm.weight"
INDEXES = {
    **{
        f"file {value!r}": {NAME: value}
        for value in (
            "../other/model.safetensors",
            "/etc/passwd",
            "sub/model.safetensors",
            "..",
            ".",
            "",
            "model-00001-of-00002.bin",
            "..\\model.safetensors",
            "C:\\model.safetensors",
            "model\0.safetensors",
            "missing.safetensors",
            "model-00003-of-00002.safetensors",
            "MODEL-00001-OF-00002.SAFETENSORS",
            "http://x/model.safetensors",
            "model-00001-of-00002.safetensors/",
            None,
            1,
            ["model-00001-of-00002.safetensors"],
            {"a": 1},
            "config.json",
            "~/x.safetensors/y",
        )
    },
    "the other shard": {
        NAME: "model-00001-of-00002.safetensors",
        "model.embed_tokens.weight": "model-00002-of-00002.safetensors",
    },
    "unknown tensor": {"model.layers.9.weight": "model-00001-of-00002.safetensors"},
    "traversal tensor": {"../w": "model-00001-of-00002.safetensors"},
}


@pytest.mark.parametrize("change", INDEXES.values(), ids=INDEXES)
def test_indexes_that_name_other_files_or_tensors_are_refused(tmp_path, change):
    with pytest.raises(UnsafeInputError, match="model.safetensors.index.json"):
        open_checkpoint(write_sharded(tmp_path / "bad", change))


@pytest.mark.parametrize(
    "total", [0, 1, -1, 10**30, "768", None, 1.5, True, [768], {"a": 1}], ids=str
)
def test_indexes_with_a_wrong_total_are_refused(tmp_path, total):
    folder = write_sharded(tmp_path / "bad")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": {"total_size": total}}))
    with pytest.raises(UnsafeInputError, match="total_size"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"weight_map": null}',
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": "x"}',
        '{"metadata": [], "weight_map": {}}',
        "[" * 90_000,
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        "\ufeff{}",
    ],
)
def test_indexes_that_are_no_indexes_are_refused(tmp_path, text):
    folder = write_sharded(tmp_path / "bad")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UnsafeInputError, match="model.safetensors.index.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("shard", [0, 1])
def test_a_missing_a_cut_or_a_stray_shard_is_refused(tmp_path, shard):
    file = f"model-0000{shard + 1}-of-00002.safetensors"
    (write_sharded(tmp_path / "missing") / file).unlink()
    cut = write_sharded(tmp_path / "cut") / file
    cut.write_bytes(cut.read_bytes()[:-2])
    write_sharded(tmp_path / "stray", {}).joinpath("model.safetensors").write_bytes(GOOD)
    write_sharded(tmp_path / "twice").joinpath("copy.safetensors").write_bytes(
        cut.with_name(f"model-0000{2 - shard}-of-00002.safetensors").read_bytes()
    )
    for name in ("missing", "cut", "stray", "twice"):
        with pytest.raises(UnsafeInputError):
            open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt"]
)
def test_pickles_are_refused_and_never_opened(tmp_path, name):
    class Boom:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    folder = write_checkpoint(tmp_path / "bad", files={name: pickle.dumps(Boom())})
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsafeInputError, match="pickle"):
        open_checkpoint(folder)
    (folder / name).rename(folder / "model.safetensors")
    with pytest.raises(UnsafeInputError, match="pickle|header"):
        open_checkpoint(folder)
    assert not (tmp_path / "boom").exists()


def test_things_that_are_not_files_are_refused(tmp_path):
    makers = {
        "folder": lambda path: path.mkdir(),
        "fifo": os.mkfifo,
        "dangling": lambda path: path.symlink_to("nowhere"),
        "loop": lambda path: path.symlink_to(path.name),
        "device": lambda path: path.symlink_to("/dev/zero"),
    }
    for target in ("model.safetensors", "config.json", "model.safetensors.index.json"):
        for name, make in makers.items():
            folder = write_checkpoint(tmp_path / f"{target}-{name}")
            (folder / target).unlink(missing_ok=True)
            make(folder / target)
            if target == "model.safetensors.index.json" and name in ("dangling", "loop"):
                continue  # as good as absent
            with pytest.raises((UnsafeInputError, UsageError)):
                open_checkpoint(folder)


def test_nothing_where_a_checkpoint_should_be_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    write_checkpoint(tmp_path / "adapter", files={"adapter_config.json": "{}"}).joinpath(
        "model.safetensors"
    ).unlink()
    (tmp_path / "empty").mkdir()
    for entry_ in ("nowhere", "file", "empty", "adapter"):
        with pytest.raises(UsageError):
            open_pool([tmp_path / entry_])


def test_every_bad_member_of_a_pool_is_named_at_once(tmp_path):
    write_checkpoint(tmp_path / "good")
    for index, content in enumerate(list(HEADERS.values())[:5]):
        write_checkpoint(tmp_path / f"bad{index}", files={"model.safetensors": content})
    with pytest.raises(UnsafeInputError) as caught:
        open_pool([tmp_path])
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("seed", range(20))
def test_mutated_files_are_refused_or_read_within_their_end(tmp_path, seed):
    """Bytes flipped, cut, repeated or swapped at random: a RecyclerError, or tensors that tile the
    file exactly.
    """
    chance = random.Random(seed)
    path = tmp_path / "model.safetensors"
    for _ in range(100):
        content = bytearray(GOOD)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(min(len(content), HEADER_BYTES + 16)) if content else 0
            action = chance.randrange(4)
            if action == 0 and content:
                content[place] = chance.randrange(256)
            elif action == 1:
                del content[place:]
            elif action == 2:
                content[place:place] = content[place : place + chance.randint(1, 40)]
            else:
                content[place : place + 1] = chance.choice(
                    [b"0", b"9" * 20, b"-1", b"[", b"}", b'"', b"\\", b"1e9"]
                )
        path.write_bytes(content)
        try:
            tensors = read_header(path)
        except RecyclerError as error:
            assert str(path) in str(error)
        else:
            assert max(
                (info.start + info.num_bytes for info in tensors.values()), default=len(content)
            ) == len(content)


BOMBS = {
    "empty lists": b'{"a":[' + b"[]," * 8_000_000 + b"[]]}",
    "empty objects": b'{"a":[' + b"{}," * 8_000_000 + b"{}]}",
    "numbers": b'{"a":[' + b"1," * 12_000_000 + b"1]}",
    "one long name": b'{"' + b"w" * 24_000_000 + b'":1}',
    "wide characters": b'{"' + "\U0001f600".encode() * 6_000_000 + b'":1}',
    "many tensors": b"{"
    + b",".join(
        b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % index for index in range(300_000)
    )
    + b"}",
    "spaces": b"{" + b" " * 24_000_000,
}


@pytest.mark.parametrize("header", BOMBS.values(), ids=BOMBS)
def test_memory_of_a_hostile_header_is_bounded(tmp_path, header):
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(file_bytes(header))
    tracemalloc.start()
    with pytest.raises(UnsafeInputError):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(header) and peak < 250_000_000


def test_a_file_cut_short_after_it_was_opened_is_an_error_and_not_a_crash(tmp_path):
    for name in "ab":
        write_checkpoint(tmp_path / name, tokenizer_json=tokenizer())
    pool = open_pool([tmp_path / "a", tmp_path / "b"])
    os.truncate(tmp_path / "b/model.safetensors", 900)
    with pytest.raises(UnsafeInputError, match="changed"):
        check_pool(pool)


def test_there_are_at_least_300_malformed_inputs():
    assert len(HEADERS) + len(CONFIGS) + len(INDEXES) >= 300


@pytest.mark.parametrize(
    "name", ["x" * 300, "a\0b", "/".join(["y"] * 3000)], ids=["long", "zero byte", "long path"]
)
def test_a_name_that_no_folder_can_have_is_refused(name):
    """Found by fuzzing mergekit's YAML: the system refuses to look at such names."""
    with pytest.raises(UsageError, match="is not a folder"):
        open_checkpoint(name, "m")
    read_mergekit(
        "c.yml",
        json.dumps(
            {"merge_method": "linear", "models": [{"model": name, "parameters": {"weight": 1}}]}
        ),
    )


def test_a_pool_says_the_gravest_kind_of_what_is_wrong_whatever_its_form(tmp_path, monkeypatch):
    """Exit codes tell scripts what to do: a broken pack is unsafe and a dead bucket is worth
    another try, opened as a pool too.
    """
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/recycler-pack.json").write_text("[]")
    for entries in ([tmp_path / "pack"], [tmp_path / "nowhere", tmp_path / "pack"]):
        with pytest.raises(UnsafeInputError, match="not the manifest of a packed pool"):
            open_pool(entries)

    def dead(url):
        raise InfrastructureError(Problem(thing=url, cause="does not answer", remedy="Try again"))

    monkeypatch.setattr("recycler.pool.storage.bucket.size_of", dead)
    with pytest.raises(InfrastructureError) as caught:
        open_pool(["s3://bucket/pool", tmp_path / "pack", tmp_path / "nowhere"])
    assert len(caught.value.problems) == 3


def test_a_shard_without_tensors_is_named_with_its_folder(tmp_path):
    folder = write_checkpoint(tmp_path / "hollow", files={"model.safetensors": file_bytes({}, b"")})
    with pytest.raises(UnsafeInputError, match=r"hollow/model.safetensors: holds no tensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", ["abc", "-1", "0", "nan", "inf", "1e9"])
def test_a_timeout_that_is_no_number_of_seconds_is_told_as_what_it_is(tmp_path, monkeypatch, value):
    monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", value)
    with pytest.raises(
        UsageError, match=f"RECYCLER_BUCKET_TIMEOUT: is '{value}', which is no number of seconds"
    ):
        open_pool(["s3://bucket/pool"])


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        ({"tokenizer.json": "{}"}, UnsafeInputError, "has a tokenizer that cannot be loaded"),
        ({"tokenizer.json": "{"}, UnsafeInputError, "has a tokenizer that cannot be loaded"),
        (
            {"tokenizer.json": '{"version": "1.0", "model": {"type": "BPE"}}'},
            UnsafeInputError,
            "has a tokenizer that cannot be loaded",
        ),
        (None, UsageError, "has no tokenizer"),
    ],
)
def test_a_broken_tokenizer_is_told_and_never_a_raw_exception(tmp_path, files, kind, message):
    folder = write_checkpoint(tmp_path / "model", files=files)
    if files is None:
        (folder / "tokenizer.json").unlink()
    with pytest.raises(kind, match=f"model: {message}"):
        load_tokenizer(folder)
