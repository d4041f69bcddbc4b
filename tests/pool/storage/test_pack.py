"""Packed pools: exact ones come back bit for bit, compressed ones with the error they say."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade import SHAPES, model_arrays, write_checkpoint
from recycler.errors import RecyclerError, UnsafeInputError, UsageError
from recycler.location import PACK_MANIFEST
from recycler.pool.catalog import open_checkpoint, open_pool
from recycler.pool.checks.scan import checkpoint_digest
from recycler.pool.pack_writer import pack_pool, unpack
from recycler.pool.storage.blocks import read_bytes
from recycler.pool.storage.dtypes import as_float32
from recycler.pool.storage.lowrank import compress, pack_codes, unpack_codes
from recycler.pool.storage.pack_codec import decode_exact, encode_exact

LARGE = SHAPES | {"model.layers.0.big": (192, 160), "model.layers.1.big": (160, 192)}
BASE = model_arrays(0, shapes=LARGE)


def small_pool(tmp_path, dtype="BF16", scale=1e-3):
    write_checkpoint(tmp_path / "in/base", BASE, dtype=dtype)
    first = model_arrays(1, near=BASE, shapes=LARGE, scale=scale)
    write_checkpoint(
        tmp_path / "in/m0", first | {"model.norm.weight": BASE["model.norm.weight"]}, dtype=dtype
    )
    second = model_arrays(2, near=BASE, shapes=LARGE, scale=scale) | {
        "model.layers.1.big": first["model.layers.1.big"]
    }
    write_checkpoint(
        tmp_path / "in/m1", second, dtype=dtype, files={"chat_template.jinja": "{{ x }}"}
    )
    return open_pool([tmp_path / "in/m0", tmp_path / "in/m1"], tmp_path / "in/base")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_an_exact_pack_comes_back_bit_for_bit(tmp_path, dtype):
    pool = small_pool(tmp_path, dtype)
    report = pack_pool(pool, tmp_path / "packed")
    assert report.errors == ()
    unpack(tmp_path / "packed", tmp_path / "out")
    for name in ("base", "m0", "m1"):
        assert checkpoint_digest(open_checkpoint(tmp_path / "out" / name)) == checkpoint_digest(
            pool.find(name)
        )
        for file in ("config.json", "tokenizer.json"):
            assert (tmp_path / "out" / name / file).read_bytes() == (
                tmp_path / "in" / name / file
            ).read_bytes()
    assert (tmp_path / "out/m1/chat_template.jinja").is_file() and not (
        tmp_path / "out/m0/chat_template.jinja"
    ).exists()


def test_an_exact_pack_is_smaller_and_stores_equal_tensors_once(tmp_path):
    report = pack_pool(small_pool(tmp_path), tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed" / PACK_MANIFEST).read_text())
    assert manifest["checkpoints"]["m0"]["tensors"]["model.norm.weight"]["as"] == [
        "base",
        "model.norm.weight",
    ]
    assert manifest["checkpoints"]["m1"]["tensors"]["model.layers.1.big"]["as"] == [
        "m0",
        "model.layers.1.big",
    ]
    assert (
        len(list((tmp_path / "packed").glob("small-*"))) == 3
    )  # one config, one tokenizer, one template
    assert report.num_bytes_members < 0.5 * report.num_bytes_before


@given(st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1)), max_size=50))
@settings(max_examples=200, deadline=None)
def test_exact_coding_inverts_for_all_bit_patterns(pairs):
    raw, base = (b"".join(struct.pack("<H", pair[side]) for pair in pairs) for side in (0, 1))
    assert decode_exact(encode_exact(raw, base, 2), base, 2) == raw


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_exact_coding_inverts_for_nan_infinities_and_both_zeros(kind):
    size = np.dtype(kind).itemsize
    odd = np.array(
        [0, 1, 1 << (8 * size - 1), (1 << (8 * size)) - 1, (1 << (8 * size - 1)) - 1, 0x7F80],
        dtype=kind,
    )
    raw, base = np.repeat(odd, 6).tobytes(), np.tile(odd, 6).tobytes()
    assert decode_exact(encode_exact(raw, base, size), base, size) == raw


def test_a_compressed_pack_has_the_error_that_it_says_and_the_size(tmp_path):
    pool = small_pool(tmp_path, "F32")
    report = pack_pool(pool, tmp_path / "packed", ratio=8)
    unpack(tmp_path / "packed", tmp_path / "out")
    said = {(entry.member, entry.tensor): entry.error for entry in report.errors}
    for member in pool.members:
        again = open_checkpoint(tmp_path / "out" / member.name)
        for name, info in member.tensors.items():
            base, wanted, found = (
                as_float32(read_bytes(tensor, 0, tensor.num_bytes), tensor.dtype)
                for tensor in (pool.base.tensors[name], info, again.tensors[name])
            )
            if (member.name, name) in said:
                error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted - base)
                assert error == pytest.approx(said[member.name, name], rel=1e-3)
            elif len(info.shape) < 2:
                assert np.array_equal(found, wanted)
    assert {tensor for _, tensor in said} >= {"model.layers.0.big", "model.layers.1.big"}
    header_bytes = 4000
    assert report.num_bytes_members < report.num_bytes_before / 8 + 2 * header_bytes


def low_rank_delta(seed, rows=256, columns=192, power=1.0):
    """Singular values 1, 1/2, 1/3, ..."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.standard_normal((side, 96)))[0] for side in (rows, columns))
    return ((left * np.arange(1, 97) ** -power) @ right.T).astype(np.float32) * 1e-2


@pytest.mark.parametrize("seed", range(3))
def test_the_error_falls_with_the_budget_and_mixed_precision_helps(seed):
    delta = low_rank_delta(seed)
    bits = 16 * delta.size
    errors = [compress(delta, bits // ratio).error for ratio in (64, 32, 16, 8, 4)]
    assert all(later < earlier for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[2] < 0.2 and errors[-1] < 0.08
    assert len(compress(delta, bits // 8).split) > 1


def test_what_is_stored_fits_into_the_budget_and_unpacks_to_the_same():
    delta = low_rank_delta(5, 100, 333)
    found = compress(delta, 16 * delta.size // 16)
    left, right = pack_codes(found.left, found.split), pack_codes(found.right, found.split)
    assert 8 * (len(left) + len(right) + 4 * len(found.coefficients)) <= delta.size + 16
    assert np.array_equal(unpack_codes(left, 100, found.split), found.left) and np.array_equal(
        unpack_codes(right, 333, found.split), found.right
    )
    assert np.linalg.norm(delta - found.matrix()) / np.linalg.norm(delta) == pytest.approx(
        found.error, rel=1e-4
    )


def test_a_zero_delta_or_a_tiny_budget_stores_nothing():
    assert compress(np.zeros((8, 8), np.float32), 10_000).error == 0.0
    assert compress(np.ones((8, 8), np.float32), 10).error == 1.0


def test_damaged_packs_are_refused(tmp_path):
    pack_pool(small_pool(tmp_path), tmp_path / "packed")
    manifest = (tmp_path / "packed" / PACK_MANIFEST).read_text()
    data = (tmp_path / "packed/m0.safetensors").read_bytes()
    changes = [
        ("manifest", text)
        for text in (
            "{}",
            "[]",
            "{",
            manifest.replace('"exact"', '"raw"', 1),
            manifest.replace('"exact"', '"lowrank"', 1),
            manifest.replace('"same"', '"exact"', 1),
            manifest.replace('"digest": "', '"digest": "0', 1),
            manifest.replace('"shape": [192', '"shape": [191', 1),
            manifest.replace('"BF16"', '"F32"', 1),
            manifest.replace('"config.json"', '"../config.json"', 1),
            manifest.replace('"as": ["base"', '"as": ["m1"', 1),
            manifest.replace('"base": "base"', '"base": "m9"', 1),
        )
    ]
    changes += [
        ("data", content) for content in (b"", data[:-1], data[:-50] + bytes(50), data[:200])
    ]
    for number, (which, content) in enumerate(changes):
        (tmp_path / "packed" / PACK_MANIFEST).write_text(
            content if which == "manifest" else manifest
        )
        (tmp_path / "packed/m0.safetensors").write_bytes(content if which == "data" else data)
        with pytest.raises(RecyclerError):
            unpack(tmp_path / "packed", tmp_path / f"out{number}")
        assert not (tmp_path / f"out{number}").exists()


def test_packing_needs_a_base_a_sane_ratio_and_an_empty_place(tmp_path):
    pool = small_pool(tmp_path)
    with pytest.raises(UsageError, match="has no base"):
        pack_pool(open_pool([tmp_path / "in/m0"]), tmp_path / "packed")
    for ratio in (0.5, 1.0, -3, 1e9):
        with pytest.raises(UsageError, match="ratio"):
            pack_pool(pool, tmp_path / "packed", ratio=ratio)
    pack_pool(pool, tmp_path / "packed")
    with pytest.raises(UsageError, match="exists already"):
        pack_pool(pool, tmp_path / "packed")


def test_a_tensor_may_be_the_same_as_a_delta_to_a_tensor_that_is_the_same(tmp_path):
    """Norms of a base are often all equal: the longest chain of references that packing writes must
    unpack.
    """
    first, second = "model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"
    base = model_arrays()
    base[second] = base[first].copy()
    member = model_arrays(1, near=base, scale=0.01)
    folders = [
        write_checkpoint(tmp_path / "pool" / name, arrays)
        for name, arrays in (("base", base), ("a", member), ("b", member | {first: base[first]}))
    ]
    pool = open_pool(folders[1:], folders[0])
    pack_pool(pool, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    for name, original in (("base", pool.base), ("a", pool.members[0]), ("b", pool.members[1])):
        assert checkpoint_digest(open_checkpoint(tmp_path / "out" / name)) == checkpoint_digest(
            original
        )


def test_references_that_go_in_a_circle_are_refused(tmp_path):
    """Found by fuzzing: a base that is a delta to itself."""
    folders = [
        write_checkpoint(tmp_path / "pool" / name, model_arrays(seed))
        for seed, name in enumerate(("base", "a"))
    ]
    pack_pool(open_pool(folders[1:], folders[0]), tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed" / PACK_MANIFEST).read_text())
    for entry in manifest["checkpoints"]["base"]["tensors"].values():
        entry["kind"] = "exact"
    (tmp_path / "packed" / PACK_MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UnsafeInputError, match="circle"):
        unpack(tmp_path / "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("broken", ["base", "m0"])
def test_compression_refuses_what_is_not_finite_and_exact_packs_keep_it(tmp_path, broken, value):
    small_pool(tmp_path, "F32")
    arrays = {"base": BASE, "m0": model_arrays(1, near=BASE, shapes=LARGE, scale=1e-3)}[broken]
    arrays = arrays | {"model.layers.0.big": arrays["model.layers.0.big"].copy()}
    arrays["model.layers.0.big"][3, 3] = value
    write_checkpoint(tmp_path / "in" / broken, arrays, dtype="F32")
    pool = open_pool([tmp_path / "in/m0", tmp_path / "in/m1"], tmp_path / "in/base")
    with pytest.raises(
        UnsafeInputError,
        match=rf"checkpoint '{broken}': tensor 'model.layers.0.big': holds 1 values of 30,720 that "
        r"are not finite",
    ):
        pack_pool(pool, tmp_path / "small", ratio=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    pack_pool(pool, tmp_path / "exact")
    unpack(tmp_path / "exact", tmp_path / "out")
    assert checkpoint_digest(open_checkpoint(tmp_path / "out" / broken)) == checkpoint_digest(
        pool.find(broken)
    )


def test_unpacking_that_is_killed_leaves_nothing_and_the_same_command_then_works(tmp_path):
    """Killed after one checkpoint of three: in a process of its own, so that nothing can tidy up
    behind it.
    """
    import os

    from recycler.pool import pack_writer as module

    pack_pool(small_pool(tmp_path), tmp_path / "packed")
    child = os.fork()
    if child == 0:
        write = module.write_unpacked
        module.write_unpacked = lambda path, source, name: (
            os._exit(9) if name == "m0" else write(path, source, name)
        )
        unpack(tmp_path / "packed", tmp_path / "out")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "out").exists()
    assert [path.name for path in unpack(tmp_path / "packed", tmp_path / "out")] == [
        "base",
        "m0",
        "m1",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "packed"]
    with pytest.raises(UsageError, match="exists already"):
        unpack(tmp_path / "packed", tmp_path / "out")


def test_unpacking_to_where_nothing_can_be_written_is_told(tmp_path):
    pack_pool(small_pool(tmp_path), tmp_path / "packed")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file/out", "/proc/out"):
        with pytest.raises(UsageError, match="cannot be made"):
            unpack(tmp_path / "packed", Path(place))


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil-pack", "a/b", "..", ".hidden", ""])
def test_a_pack_cannot_write_outside_of_its_folder_or_the_cache(tmp_path, monkeypatch, name):
    """Opening a packed pool puts the small files of each checkpoint into the cache, in a folder of
    its name.
    """
    monkeypatch.setenv("RECYCLER_CACHE", str(tmp_path / "cache/inner"))
    pack_pool(small_pool(tmp_path), tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed" / PACK_MANIFEST).read_text())
    manifest["checkpoints"][name] = manifest["checkpoints"].pop("m0")
    (tmp_path / "packed" / PACK_MANIFEST).write_text(json.dumps(manifest))
    for use in (
        lambda: open_pool([tmp_path / "packed"]),
        lambda: unpack(tmp_path / "packed", tmp_path / "out"),
    ):
        with pytest.raises(UnsafeInputError, match="is no file name"):
            use()
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == ["in", "packed"]
        and not Path("/tmp/evil-pack").exists()
    )
