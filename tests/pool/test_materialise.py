"""Pools in buckets and packed pools as an engine's folder on this machine: the version that was
opened, fetched once a node.
"""

import json
import shutil
import subprocess
import sys
import time

import pytest

from bucket_place import SHARD, only, put_folder, put_model
from handmade import model_arrays, write_checkpoint
from recycler.errors import InfrastructureError, RecyclerError, UnsafeInputError, UsageError
from recycler.pool.catalog import open_checkpoint, open_pool
from recycler.pool.checks.scan import checkpoint_digest
from recycler.pool.materialise import materialise
from recycler.pool.pack_writer import pack_pool
from recycler.pool.storage import bucket
from recycler.pool.storage.cache import cache_folder, release_all
from recycler.run.prepare import prepare
from recycler.run.prepared import object_versions
from small_job import write_job


def put_pool(tmp_path, url):
    base = model_arrays(0)
    put_model(tmp_path, f"{url}/base")
    for index in range(2):
        put_model(tmp_path, f"{url}/members/m{index}", index + 1, near=base)
    return open_pool([f"{url}/members"], f"{url}/base")


def test_a_materialised_pool_is_the_pool_on_disk(place, tmp_path):
    pool = put_pool(tmp_path, place)
    local = materialise(pool)
    assert (local.names, local.base.name) == (pool.names, "base")
    for ours, theirs in zip((*local.members, local.base), (*pool.members, pool.base), strict=True):
        assert (
            str(ours.location).startswith(str(cache_folder()))
            and ours.config == theirs.config
            and ours.tensors.keys() == theirs.tensors.keys()
        )
        assert all(
            not info.etag and str(info.file).startswith(str(ours.location))
            for info in ours.tensors.values()
        )
    assert [checkpoint_digest(member) for member in local.members] == [
        checkpoint_digest(member) for member in pool.members
    ]
    assert materialise(local) == local


def test_members_are_fetched_once_a_node(place, tmp_path, chaos):
    put_pool(tmp_path, place)
    code = (
        "from recycler.pool.catalog import open_pool as o; from recycler.pool.materialise import "
        f"materialise as m; print(m(o([{place + '/members'!r}])).members[0].location)"
    )
    chaos.log.clear()
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert len({process.communicate()[0] for process in processes}) == 1
    for member in ("m0", "m1"):
        assert (
            sum(
                method == "GET" and path.endswith(f"{member}/{SHARD}")
                for method, path, _ in chaos.log
            )
            == 3 + 1
        )  # a header each, the shard once


def test_a_copy_that_was_removed_is_fetched_again_behind_the_same_link(place, tmp_path):
    pool = put_pool(tmp_path, place)
    first = materialise(pool)
    release_all()
    for copy in cache_folder().glob("*.bin"):
        copy.unlink()
    assert materialise(pool) == first and checkpoint_digest(first.members[0]) == checkpoint_digest(
        open_checkpoint(tmp_path / "local/m0-1")
    )


def test_an_object_overwritten_since_the_pool_was_opened_is_refused_by_name(place, tmp_path):
    pool = put_pool(tmp_path, place)
    put_model(tmp_path, f"{place}/members/m1", 9)
    with pytest.raises(InfrastructureError, match=f"{place}/members/m1/{SHARD}: was overwritten"):
        materialise(pool)
    changed = {
        name
        for name, version in object_versions(
            open_pool([f"{place}/members"], f"{place}/base")
        ).items()
        if object_versions(pool)[name] != version
    }
    assert changed == {f"object {place}/members/m1/{SHARD}"}


def test_a_bucket_that_is_away_for_a_while_is_waited_for(place, tmp_path, chaos, monkeypatch):
    pool = put_pool(tmp_path, place)
    monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", "1")
    back = time.monotonic() + 4
    chaos.plan = lambda method, path, number: "reset" if time.monotonic() < back else None
    assert len(materialise(pool).members) == 2 and time.monotonic() > back
    chaos.plan = only("GET", "reset")
    release_all()
    shutil.rmtree(cache_folder())
    with pytest.raises(InfrastructureError):
        materialise(pool, patience=0.0)


def test_a_local_folder_that_another_node_lacks_is_named(tmp_path):
    pool = open_pool(
        [write_checkpoint(tmp_path / "a"), write_checkpoint(tmp_path / "b", model_arrays(1))]
    )
    assert materialise(pool) == pool
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(InfrastructureError, match="checkpoint 'b': .* is not on this machine"):
        materialise(pool)


# ---------------------------------------------------------------- jobs


def test_a_job_over_a_bucket_is_prepared_by_ranged_reads(sound, place, tmp_path, chaos):
    for part in ("base", "members/m0", "members/m1", "members/m2"):
        put_folder(sound / "pool" / part, f"{place}/{part}")
    chaos.log.clear()
    prepared = prepare(
        write_job(sound, tmp_path, {"members": [f"{place}/members"], "base": f"{place}/base"})
    )
    assert not any(
        path.endswith(SHARD) and method == "GET" and not asked for method, path, asked in chaos.log
    )
    assert (
        not list(cache_folder().glob("*.bin")) or prepared.warnings
    )  # the checks of deltas may read samples, never more
    local = prepare(
        write_job(
            sound,
            tmp_path,
            {"members": [str(sound / "pool/members")], "base": str(sound / "pool/base")},
        )
    )
    assert prepared.suites == local.suites and prepared.digests["pool"] == local.digests["pool"]
    assert {name for name in prepared.digests if name.startswith("object ")} == {
        f"object {place}/{part}/{file}"
        for part in ("base", "members/m0", "members/m1", "members/m2")
        for file in (SHARD, "config.json")
    }


@pytest.mark.parametrize("where", ["disk", "bucket"])
@pytest.mark.parametrize("ratio", [None, 4.0], ids=["exact", "compressed"])
def test_a_packed_pool_is_a_pool(sound, place, tmp_path, where, ratio):
    from recycler.pool.pack_writer import unpack

    original = open_pool([sound / "pool/members"], sound / "pool/base")
    pack_pool(original, tmp_path / "packed", ratio)
    unpack(tmp_path / "packed", tmp_path / "unpacked")
    pack = str(tmp_path / "packed")
    if where == "bucket":
        put_folder(tmp_path / "packed", f"{place}/packed")
        pack = f"{place}/packed"
    pool = open_pool([pack])
    assert (pool.names, pool.base.name) == (original.names, "base")
    assert not list(cache_folder().glob("*.bin"))  # known by its manifest alone
    local = materialise(pool)
    for ours, member in zip(local.members, pool.members, strict=True):
        wanted = checkpoint_digest(open_checkpoint(tmp_path / "unpacked" / ours.name))
        assert checkpoint_digest(ours) == checkpoint_digest(member) == wanted
        assert ratio or wanted == checkpoint_digest(original.find(ours.name))
    assert open_checkpoint(pool.members[1].location, "m1") == pool.members[1]
    prepared = prepare(write_job(sound, tmp_path, {"members": [pack]}))
    assert prepared.pool.names == original.names and any(
        "recycler-pack.json#m1" in name for name in prepared.digests
    )
    if where == "bucket":
        manifest = json.loads((tmp_path / "packed/recycler-pack.json").read_text())
        (tmp_path / "changed.json").write_text(json.dumps(manifest, indent=1))
        bucket.upload(f"{place}/packed/recycler-pack.json", tmp_path / "changed.json")
        release_all()
        shutil.rmtree(cache_folder())
        with pytest.raises(RecyclerError, match="overwritten since the pool was opened"):
            materialise(pool)


def test_a_pack_without_that_checkpoint_is_told(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("RECYCLER_CACHE", str(tmp_path / "cache"))
    pack_pool(open_pool([sound / "pool/members"], sound / "pool/base"), tmp_path / "packed")
    with pytest.raises(UsageError, match="no checkpoint 'm9'"):
        open_checkpoint(f"{tmp_path}/packed/recycler-pack.json#m9")
    release_all()


def test_an_export_in_a_bucket_whose_weights_were_changed_is_refused(sound, place, tmp_path):
    """Its manifest holds a digest of every tensor; a single flipped bit in the bucket is found on
    each node.
    """
    from recycler.export.export import export_to
    from recycler.search.baselines import blend

    pool = open_pool([sound / "pool/members"], sound / "pool/base")
    done = export_to(blend(pool, "bfloat16", {"m0": 0.5, "m1": 0.5}), pool, f"{place}/out/merge")
    assert done.folder == f"{place}/out/merge"
    exported = open_pool([f"{place}/out/merge"])
    assert checkpoint_digest(materialise(exported).members[0]) == done.weights_digest
    (tmp_path / "bad.safetensors").write_bytes(
        (raw := bytearray(bucket.read(f"{place}/out/merge/{SHARD}").raw))
        and bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    )
    bucket.upload(f"{place}/out/merge/{SHARD}", tmp_path / "bad.safetensors")
    with pytest.raises(UnsafeInputError, match="its manifest says"):
        materialise(open_pool([f"{place}/out/merge"]))
    with pytest.raises(UsageError, match="is a whole bucket"):
        export_to(blend(pool, "bfloat16", {"m0": 1.0}), pool, place)
