"""Pools in a bucket: catalogued by ranges, fetched once into the local cache, the very bytes that
lie there.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from bucket_place import SHARD, put_folder, put_model, same_bytes
from handmade import SHAPES, file_bytes, model_arrays, shard_bytes, write_checkpoint, write_sharded
from recycler.errors import InfrastructureError, UnsafeInputError, UsageError
from recycler.pool.catalog import open_checkpoint, open_pool
from recycler.pool.checks.inspect import inspect_pool
from recycler.pool.checks.preflight import check_pool
from recycler.pool.checks.scan import checkpoint_digest
from recycler.pool.storage import bucket, remote
from recycler.pool.storage.cache import cache_folder, cached_facts, release_all
from recycler.pool.storage.files import local_file, local_folder

# ---------------------------------------------------------------- catalogue


def test_a_prefix_is_a_pool(place, tmp_path, chaos):
    base = model_arrays(0)
    put_model(tmp_path, f"{place}/run/base")
    folders = [
        put_model(tmp_path, f"{place}/run/members/m{index}", index + 1, near=base)
        for index in range(3)
    ]
    chaos.log.clear()
    pool = open_pool([f"{place}/run/members/"], f"{place}/run/base")
    assert (
        pool.names == ("m0", "m1", "m2")
        and str(pool.members[0].location) == f"{place}/run/members/m0"
    )
    assert not any(
        path.endswith(SHARD) and asked == "" and method == "GET"
        for method, path, asked in chaos.log
    )  # ranges only
    assert not list(cache_folder().glob("*.bin"))
    local = open_pool(folders, tmp_path / "local/base-0")
    assert [checkpoint_digest(member) for member in pool.members] == [
        checkpoint_digest(member) for member in local.members
    ]
    assert check_pool(pool).warnings == ()
    assert inspect_pool(pool, deltas=True)["deltas"] is not None


def test_a_resident_pool_reads_the_bucket_through_the_cache(place, tmp_path):
    import torch

    from recycler.pool.storage.tensors import ResidentPool

    folder = put_model(tmp_path, f"{place}/m", 3)
    remote_pool, local_pool = open_pool([f"{place}/m"]), open_pool([folder])
    for name in SHAPES:
        assert torch.equal(
            ResidentPool(remote_pool).tensor("m", name),
            ResidentPool(local_pool).tensor("m-3", name),
        )


def test_shards_indexes_and_small_files_come_too(place, tmp_path):
    folder = write_sharded(tmp_path / "m", shards=3)
    put_folder(folder, f"{place}/m")
    checkpoint = open_checkpoint(f"{place}/m")
    assert checkpoint_digest(checkpoint) == checkpoint_digest(open_checkpoint(folder))
    assert (local_folder(checkpoint) / "tokenizer.json").read_bytes() == (
        folder / "tokenizer.json"
    ).read_bytes()
    info = next(iter(checkpoint.tensors.values()))
    assert remote.shard_facts(info)["tensors"][info.name] and cached_facts("s3://no", "x", 1) == {}


def test_a_path_that_swallowed_a_slash_is_understood(place, tmp_path):
    from pathlib import Path

    put_model(tmp_path, f"{place}/m")
    assert str(open_checkpoint(Path(f"{place}/m")).location) == f"{place}/m"
    folder = write_checkpoint(tmp_path / "plain")
    assert open_pool([f"file://{folder}"]).names == ("plain",)


def test_a_large_header_takes_a_second_read(place, tmp_path):
    shapes = SHAPES | {f"model.layers.0.extra.{index}": (1,) for index in range(5000)}
    folder = write_checkpoint(tmp_path / "m", model_arrays(shapes=shapes))
    put_folder(folder, f"{place}/m")
    assert len(open_checkpoint(f"{place}/m").tensors) == len(shapes)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        file_bytes({"w": 1}),
        shard_bytes(model_arrays())[:-1],
        b"PK\x03\x04" + bytes(60),
        (2**40).to_bytes(8, "little") + bytes(99),
    ],
    ids=range(6),
)
def test_broken_objects_are_refused_by_url(place, tmp_path, content):
    put_model(tmp_path, f"{place}/m", files={SHARD: content})
    with pytest.raises(UnsafeInputError, match=f"{place}/m/{SHARD}"):
        open_pool([f"{place}/m"])


def test_wrong_places_are_usage_errors(place, tmp_path):
    put_model(tmp_path, f"{place}/m")
    for url, said in (
        (f"{place}/nothing", "matches no folder"),
        ("s3://no-such-bucket-here/x", "not there"),
        ("s3://", "names no bucket"),
    ):
        with pytest.raises((UsageError, InfrastructureError), match=said):
            open_pool([url])
    put_model(tmp_path, f"{place}/pickle", files={"pytorch_model.bin": b"x"})
    bucket.remove(f"{place}/pickle/{SHARD}")
    with pytest.raises(UnsafeInputError, match="pickle"):
        open_pool([f"{place}/pickle"])


def test_obstore_is_loaded_for_buckets_only():
    code = (
        "import recycler.pool.catalog, recycler.pool.checks.preflight, "
        "recycler.pool.checks.inspect, sys; "
        "print('obstore' in sys.modules, 'torch' in sys.modules)"
    )
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split() == ["False", "False"]


def test_a_hub_repository_is_a_checkpoint(tmp_path, monkeypatch):
    """Without the hub: huggingface_hub's function is replaced; what it is asked for is checked."""
    import huggingface_hub

    from recycler.pool.storage import hub

    asked = []
    folder = write_checkpoint(tmp_path / "snapshots/abc")
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, **more: asked.append((repo, more["revision"])) or str(folder),
    )
    hub.hub_folder.cache_clear()
    checkpoint = open_pool(["hf://owner/some-model@v1"]).members[0]
    assert (checkpoint.name, str(checkpoint.location), asked) == (
        "some-model@v1",
        "hf://owner/some-model@v1",
        [("owner/some-model", "v1")],
    )
    assert local_folder(checkpoint) == folder and checkpoint_digest(
        checkpoint
    ) == checkpoint_digest(open_checkpoint(folder))
    with pytest.raises(UsageError, match="hf://OWNER/NAME"):
        open_checkpoint("hf://no")
    hub.hub_folder.cache_clear()


# ---------------------------------------------------------------- cache


def test_a_version_is_fetched_once_and_a_new_version_anew(place, tmp_path, chaos):
    put_model(tmp_path, f"{place}/m")
    info = next(iter(open_checkpoint(f"{place}/m").tensors.values()))
    path = local_file(info)
    chaos.log.clear()
    assert local_file(info) == path and chaos.log == []
    put_model(tmp_path, f"{place}/m", 7)
    assert local_file(next(iter(open_checkpoint(f"{place}/m").tensors.values()))) != path


def test_the_least_recently_used_copies_are_removed_and_used_ones_never(
    place, tmp_path, monkeypatch
):
    sizes = []
    infos = []
    for index in range(4):
        put_model(tmp_path, f"{place}/m{index}", index, rows=100)
        infos.append(next(iter(open_checkpoint(f"{place}/m{index}").tensors.values())))
        sizes.append(infos[-1].file_bytes)
    monkeypatch.setenv("RECYCLER_CACHE_BYTES", str(2 * sizes[0] + 10))
    paths = [local_file(infos[0]), local_file(infos[1])]
    with pytest.raises(InfrastructureError, match="are in use"):
        local_file(infos[2])
    release_all()
    os.utime(paths[0], (1, 1))
    third = local_file(infos[2])
    assert not paths[0].exists() and paths[1].exists() and third.exists()


def test_a_killed_fetch_leaves_no_copy_and_its_leftovers_are_removed(place, tmp_path, chaos):
    folder = put_model(tmp_path, f"{place}/m", rows=2000)
    code = (
        "from recycler.pool.catalog import open_checkpoint as o; from recycler.pool.storage.files "
        "import "
        "local_file as f; import recycler.pool.storage.remote as r; r.PART_BYTES = 4096; "
        f"f(next(iter(o({place + '/m'!r}).tensors.values())))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(600):
        if list(cache_folder().glob(".*.part")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(cache_folder().glob("*.bin"))
    assert same_bytes(open_checkpoint(f"{place}/m"), folder) and not list(
        cache_folder().glob(".*.part")
    )


def test_two_processes_fetch_a_shard_once(place, tmp_path, chaos):
    put_model(tmp_path, f"{place}/m", rows=500)
    code = (
        "from recycler.pool.catalog import open_checkpoint as o; from recycler.pool.storage.files "
        "import "
        f"local_file as f; print(f(next(iter(o({place + '/m'!r}).tensors.values()))))"
    )
    chaos.log.clear()
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert len({process.communicate()[0] for process in processes}) == 1
    assert (
        sum(method == "GET" and path.endswith(SHARD) for method, path, _ in chaos.log) == 3 + 1
    )  # a header each, the shard once
