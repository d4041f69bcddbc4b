"""A bucket that breaks, or changes while it is read: the right bytes or a clear error, never a
mixture.
"""

import random
import time

import pytest

from bucket_place import SHARD, only, put_model, same_bytes
from handmade import write_sharded
from recycler.errors import InfrastructureError, RecyclerError, UnsafeInputError, UsageError
from recycler.pool.catalog import open_checkpoint
from recycler.pool.checks.scan import checkpoint_digest
from recycler.pool.storage import bucket, remote
from recycler.pool.storage.cache import cache_folder
from recycler.pool.storage.files import local_file

HEALED = {
    "503 twice": ("503", 2),
    "429 twice": ("429", 2),
    "reset once": ("reset", 1),
    "body cut once": ("cut", 1),
    "hang once": ("hang", 1),
}


@pytest.mark.parametrize("fault, times", HEALED.values(), ids=HEALED)
def test_faults_that_pass_give_the_right_bytes(place, tmp_path, chaos, monkeypatch, fault, times):
    folder = put_model(tmp_path, f"{place}/m")
    chaos.log.clear()
    if fault == "hang":
        monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", "2")
    chaos.plan = only("GET|HEAD", fault, times)
    assert same_bytes(open_checkpoint(f"{place}/m"), folder)


LASTING = {
    "503": "503",
    "429": "429",
    "reset": "reset",
    "cut": "cut",
    "hang": "hang",
    "no permission": "403",
    "range ignored": "whole",
    "wrong range": "shifted",
}


@pytest.mark.parametrize("fault", LASTING.values(), ids=LASTING)
def test_faults_that_stay_are_clear_errors_in_bounded_time(
    place, tmp_path, chaos, monkeypatch, fault
):
    put_model(tmp_path, f"{place}/m", rows=300)
    checkpoint = open_checkpoint(f"{place}/m")
    monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", "0.3" if fault == "hang" else "5")
    chaos.plan = only(f"GET.*{SHARD}", fault)
    start = time.monotonic()
    with pytest.raises(
        UsageError if fault == "403" else InfrastructureError, match=f"{place}/m/{SHARD}"
    ):
        if fault in ("whole", "shifted"):
            open_checkpoint(f"{place}/m")
        local_file(next(iter(checkpoint.tensors.values())))
    assert time.monotonic() - start < 60
    assert not list(cache_folder().glob("*.bin")) and not list(cache_folder().glob(".*.part"))


def test_an_object_overwritten_between_catalogue_and_reading_is_an_error(place, tmp_path):
    put_model(tmp_path, f"{place}/m")
    checkpoint = open_checkpoint(f"{place}/m")
    put_model(tmp_path, f"{place}/m", 7)
    with pytest.raises(InfrastructureError, match="overwritten"):
        local_file(next(iter(checkpoint.tensors.values())))
    assert same_bytes(open_checkpoint(f"{place}/m"), tmp_path / "local/m-7")


@pytest.mark.parametrize("at", [1, 2, 3, 5])
@pytest.mark.parametrize("fault", [None, "newer", "cut"])
def test_an_object_overwritten_in_mid_read_is_an_error(
    place, tmp_path, chaos, monkeypatch, at, fault
):
    """While parts are fetched, the object becomes another of the same size; even where If-Match is
    ignored, nothing is mixed.
    """
    monkeypatch.setattr(remote, "PART_BYTES", 1 << 16)
    put_model(tmp_path, f"{place}/m", rows=600)
    checkpoint = open_checkpoint(f"{place}/m")
    put_model(tmp_path, f"{place}/other", 7, rows=600)
    other = (tmp_path / "local/other-7" / SHARD).read_bytes()
    chaos.log.clear()
    state = {"done": False}

    def overwrite(method, path, number):
        if method == "GET" and path.endswith(SHARD) and number >= at and not state["done"]:
            state["done"] = True
            bucket.upload(f"{place}/m/{SHARD}", tmp_path / "local/other-7" / SHARD)

    chaos.before = overwrite
    chaos.plan = (
        (lambda method, path, number: "cut" if number == at else None)
        if fault == "cut"
        else only(f"GET.*{SHARD}", fault)
    )
    with pytest.raises(InfrastructureError):
        local_file(next(iter(checkpoint.tensors.values())))
    assert state["done"] and not list(cache_folder().glob("*.bin"))
    assert bucket.read(f"{place}/m/{SHARD}").raw == other


def test_a_stale_listing_is_survived_or_told(place, tmp_path, chaos):
    folder = write_sharded(tmp_path / "m")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    for path in folder.iterdir():
        if path.name != shards[1]:
            bucket.upload(f"{place}/m/{path.name}", path)
    with pytest.raises(UnsafeInputError, match="index.json.*not there"):
        open_checkpoint(f"{place}/m")
    bucket.upload(f"{place}/m/{shards[1]}", folder / shards[1])
    chaos.plan = only("list-type", "stale")  # the new shard is not shown, but its index names it
    assert checkpoint_digest(open_checkpoint(f"{place}/m")) == checkpoint_digest(
        open_checkpoint(folder)
    )
    chaos.reset()
    open_checkpoint(f"{place}/m")
    bucket.remove(f"{place}/m/{shards[0]}")
    chaos.plan = only("list-type", "stale")  # the removed shard is shown
    with pytest.raises(UsageError, match=f"{shards[0]}: is not there"):
        open_checkpoint(f"{place}/m")


@pytest.mark.parametrize(
    "seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 200))]
)
def test_random_faults_give_the_right_bytes_or_an_error(place, tmp_path, chaos, monkeypatch, seed):
    monkeypatch.setattr(remote, "PART_BYTES", 1 << 15)
    chance = random.Random(seed)
    folder = put_model(tmp_path, f"{place}/m", rows=100)
    faults = ["503", "429", "reset", "cut", "whole", "shifted", "stale", "newer"]
    rate, chosen = chance.choice([0.05, 0.2, 0.5]), chance.sample(faults, 3)
    overwrite_at = chance.choice([None, None, 3, 6, 9])
    put_model(tmp_path, f"{place}/other", 7, rows=100)
    chaos.log.clear()
    state = {"requests": 0}

    def before(method, path, number):
        state["requests"] += 1
        if state["requests"] == overwrite_at:
            bucket.upload(f"{place}/m/{SHARD}", tmp_path / "local/other-7" / SHARD)

    chaos.before = before
    chaos.plan = lambda method, path, number: (
        chance.choice(chosen) if method in ("GET", "HEAD") and chance.random() < rate else None
    )
    try:
        checkpoint = open_checkpoint(f"{place}/m")
        assert same_bytes(checkpoint, folder) or same_bytes(checkpoint, tmp_path / "local/other-7")
    except RecyclerError as error:
        assert place in str(error)
