"""Pools in a bucket, against a real S3 server and a proxy that breaks things: the right bytes or a clear error, never a mixture."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from chaos import Chaos, s3_server
from handmade import CONFIG, SHAPES, file_bytes, model_arrays, shard_bytes, write_checkpoint, write_sharded

from recycler.errors import InfrastructureError, RecyclerError, UnsafeInputError, UsageError
from recycler.pool import bucket, remote
from recycler.pool.cache import cache_folder, cached_facts, release_all
from recycler.pool.catalog import open_checkpoint, open_pool
from recycler.pool.files import local_file, local_folder
from recycler.pool.inspect import inspect_pool
from recycler.pool.preflight import check_pool
from recycler.pool.scan import checkpoint_digest
from recycler.pool.upload import upload_folder

SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def chaos():
    with s3_server() as target:
        yield Chaos(target)


@pytest.fixture
def place(chaos, tmp_path, monkeypatch):
    """An empty bucket, an empty cache; yields the bucket's URL."""
    chaos.reset()
    for name, value in {"AWS_ENDPOINT_URL": chaos.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1", "RECYCLER_CACHE": str(tmp_path / "cache"), "RECYCLER_BUCKET_TIMEOUT": "30"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "_folders", {})
    name = f"pool-{random.randrange(10**12)}"
    import http.client

    connection = http.client.HTTPConnection(*chaos.target)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().read() is not None
    yield f"s3://{name}"
    release_all()
    chaos.reset()


def put_folder(folder, url):
    for path in sorted(folder.iterdir()):
        bucket.upload(f"{url}/{path.name}", path)


def put_model(tmp_path, url, seed=0, *, near=None, rows=0, **more):
    """A checkpoint in the bucket and its twin on disk; `rows` of 512 numbers make it large."""
    shapes = SHAPES | ({"model.layers.0.big": (rows, 512)} if rows else {})
    folder = write_checkpoint(tmp_path / "local" / f"{url.rsplit('/', 1)[-1]}-{seed}", model_arrays(seed, near=near, shapes=shapes, scale=1e-3 if near else 0.1), **more)
    put_folder(folder, url)
    return folder


def same_bytes(checkpoint, folder):
    """Every tensor of a checkpoint in a bucket, compared with the folder it was made from."""
    twin = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == twin.tensors.keys() and checkpoint.config == twin.config
    for name, info in checkpoint.tensors.items():
        raw = local_file(info).read_bytes()[info.start : info.start + info.num_bytes]
        other = twin.tensors[name]
        if raw != (folder / SHARD).read_bytes()[other.start : other.start + other.num_bytes]:
            return False
    return True


def only(words, fault, times=10**9):
    """A plan: `fault` for requests whose 'METHOD path' matches, the first `times` times each path is asked for."""
    return lambda method, path, number: fault if re.search(words, f"{method} {path}") and number <= times else None


# ---------------------------------------------------------------- catalogue

def test_a_prefix_is_a_pool(place, tmp_path, chaos):
    base = model_arrays(0)
    put_model(tmp_path, f"{place}/run/base")
    folders = [put_model(tmp_path, f"{place}/run/members/m{index}", index + 1, near=base) for index in range(3)]
    chaos.log.clear()
    pool = open_pool([f"{place}/run/members/"], f"{place}/run/base")
    assert pool.names == ("m0", "m1", "m2") and pool.members[0].location == f"{place}/run/members/m0"
    assert not any(path.endswith(SHARD) and asked == "" and method == "GET" for method, path, asked in chaos.log)  # ranges only
    assert not list(cache_folder().glob("*.bin"))
    local = open_pool(folders, tmp_path / "local/base-0")
    assert [checkpoint_digest(member) for member in pool.members] == [checkpoint_digest(member) for member in local.members]
    assert check_pool(pool).warnings == ()
    assert inspect_pool(pool, deltas=True)["deltas"] is not None


def test_a_resident_pool_reads_the_bucket_through_the_cache(place, tmp_path):
    import torch

    from recycler.pool.tensors import ResidentPool

    folder = put_model(tmp_path, f"{place}/m", 3)
    remote_pool, local_pool = open_pool([f"{place}/m"]), open_pool([folder])
    for name in SHAPES:
        assert torch.equal(ResidentPool(remote_pool).tensor("m", name), ResidentPool(local_pool).tensor("m-3", name))


def test_shards_indexes_and_small_files_come_too(place, tmp_path):
    folder = write_sharded(tmp_path / "m", shards=3)
    put_folder(folder, f"{place}/m")
    checkpoint = open_checkpoint(f"{place}/m")
    assert checkpoint_digest(checkpoint) == checkpoint_digest(open_checkpoint(folder))
    assert (local_folder(checkpoint) / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    info = next(iter(checkpoint.tensors.values()))
    assert remote.shard_facts(info)["tensors"][info.name] and cached_facts("s3://no", "x", 1) == {}


def test_a_path_that_swallowed_a_slash_is_understood(place, tmp_path):
    from pathlib import Path

    put_model(tmp_path, f"{place}/m")
    assert open_checkpoint(Path(f"{place}/m")).location == f"{place}/m"
    folder = write_checkpoint(tmp_path / "plain")
    assert open_pool([f"file://{folder}"]).names == ("plain",)


def test_a_large_header_takes_a_second_read(place, tmp_path):
    shapes = SHAPES | {f"model.layers.0.extra.{index}": (1,) for index in range(5000)}
    folder = write_checkpoint(tmp_path / "m", model_arrays(shapes=shapes))
    put_folder(folder, f"{place}/m")
    assert len(open_checkpoint(f"{place}/m").tensors) == len(shapes)


@pytest.mark.parametrize("content", [b"", b"short", file_bytes({"w": 1}), shard_bytes(model_arrays())[:-1], b"PK\x03\x04" + bytes(60), (2**40).to_bytes(8, "little") + bytes(99)], ids=range(6))
def test_broken_objects_are_refused_by_url(place, tmp_path, content):
    put_model(tmp_path, f"{place}/m", files={SHARD: content})
    with pytest.raises(UnsafeInputError, match=f"{place}/m/{SHARD}"):
        open_pool([f"{place}/m"])


def test_wrong_places_are_usage_errors(place, tmp_path):
    put_model(tmp_path, f"{place}/m")
    for url, said in ((f"{place}/nothing", "matches no folder"), ("s3://no-such-bucket-here/x", "not there"), ("s3://", "names no bucket")):
        with pytest.raises((UsageError, InfrastructureError), match=said):
            open_pool([url])
    put_model(tmp_path, f"{place}/pickle", files={"pytorch_model.bin": b"x"})
    bucket.remove(f"{place}/pickle/{SHARD}")
    with pytest.raises(UnsafeInputError, match="pickle"):
        open_pool([f"{place}/pickle"])


# ---------------------------------------------------------------- faults

HEALED = {"503 twice": ("503", 2), "429 twice": ("429", 2), "reset once": ("reset", 1), "body cut once": ("cut", 1), "hang once": ("hang", 1)}


@pytest.mark.parametrize("fault, times", HEALED.values(), ids=HEALED)
def test_faults_that_pass_give_the_right_bytes(place, tmp_path, chaos, monkeypatch, fault, times):
    folder = put_model(tmp_path, f"{place}/m")
    chaos.log.clear()
    if fault == "hang":
        monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", "2")
    chaos.plan = only("GET|HEAD", fault, times)
    assert same_bytes(open_checkpoint(f"{place}/m"), folder)


LASTING = {"503": "503", "429": "429", "reset": "reset", "cut": "cut", "hang": "hang", "no permission": "403", "range ignored": "whole", "wrong range": "shifted"}


@pytest.mark.parametrize("fault", LASTING.values(), ids=LASTING)
def test_faults_that_stay_are_clear_errors_in_bounded_time(place, tmp_path, chaos, monkeypatch, fault):
    put_model(tmp_path, f"{place}/m", rows=300)
    checkpoint = open_checkpoint(f"{place}/m")
    monkeypatch.setenv("RECYCLER_BUCKET_TIMEOUT", "0.3" if fault == "hang" else "5")
    chaos.plan = only(f"GET.*{SHARD}", fault)
    start = time.monotonic()
    with pytest.raises(UsageError if fault == "403" else InfrastructureError, match=f"{place}/m/{SHARD}"):
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
def test_an_object_overwritten_in_mid_read_is_an_error(place, tmp_path, chaos, monkeypatch, at, fault):
    """While parts are fetched, the object becomes another of the same size; even where If-Match is ignored, nothing is mixed."""
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
    chaos.plan = (lambda method, path, number: "cut" if number == at else None) if fault == "cut" else only(f"GET.*{SHARD}", fault)
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
    assert checkpoint_digest(open_checkpoint(f"{place}/m")) == checkpoint_digest(open_checkpoint(folder))
    chaos.reset()
    open_checkpoint(f"{place}/m")
    bucket.remove(f"{place}/m/{shards[0]}")
    chaos.plan = only("list-type", "stale")  # the removed shard is shown
    with pytest.raises(UsageError, match=f"{shards[0]}: is not there"):
        open_checkpoint(f"{place}/m")


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 200))])
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
    chaos.plan = lambda method, path, number: chance.choice(chosen) if method in ("GET", "HEAD") and chance.random() < rate else None
    try:
        checkpoint = open_checkpoint(f"{place}/m")
        assert same_bytes(checkpoint, folder) or same_bytes(checkpoint, tmp_path / "local/other-7")
    except RecyclerError as error:
        assert place in str(error)


# ---------------------------------------------------------------- cache

def test_a_version_is_fetched_once_and_a_new_version_anew(place, tmp_path, chaos):
    put_model(tmp_path, f"{place}/m")
    info = next(iter(open_checkpoint(f"{place}/m").tensors.values()))
    path = local_file(info)
    chaos.log.clear()
    assert local_file(info) == path and chaos.log == []
    put_model(tmp_path, f"{place}/m", 7)
    assert local_file(next(iter(open_checkpoint(f"{place}/m").tensors.values()))) != path


def test_the_least_recently_used_copies_are_removed_and_used_ones_never(place, tmp_path, monkeypatch):
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
    code = f"from recycler.pool.catalog import open_checkpoint as o; from recycler.pool.files import local_file as f; import recycler.pool.remote as r; r.PART_BYTES = 4096; f(next(iter(o({place + '/m'!r}).tensors.values())))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(600):
        if list(cache_folder().glob(".*.part")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(cache_folder().glob("*.bin"))
    assert same_bytes(open_checkpoint(f"{place}/m"), folder) and not list(cache_folder().glob(".*.part"))


def test_two_processes_fetch_a_shard_once(place, tmp_path, chaos):
    put_model(tmp_path, f"{place}/m", rows=500)
    code = f"from recycler.pool.catalog import open_checkpoint as o; from recycler.pool.files import local_file as f; print(f(next(iter(o({place + '/m'!r}).tensors.values()))))"
    chaos.log.clear()
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({process.communicate()[0] for process in processes}) == 1
    assert sum(method == "GET" and path.endswith(SHARD) for method, path, _ in chaos.log) == 3 + 1  # a header each, the shard once


# ---------------------------------------------------------------- upload

def export_folder(tmp_path, seed=0, name="export"):
    folder = write_checkpoint(tmp_path / name, model_arrays(seed))
    from recycler.digest import file_digest

    manifest = {"files": {path.name: {"sha256": file_digest(path)} for path in folder.iterdir()}}
    (folder / "recycler-manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_upload_reads_back_as_the_same_model_and_twice_is_once(place, tmp_path, chaos):
    folder = export_folder(tmp_path)
    digests = upload_folder(folder, f"{place}/out")
    assert checkpoint_digest(open_checkpoint(f"{place}/out")) == checkpoint_digest(open_checkpoint(folder))
    writes = [path for method, path, _ in chaos.log if method == "PUT"]
    assert writes[0].endswith("recycler-upload.json") and writes[-1].endswith("recycler-manifest.json")
    chaos.log.clear()
    assert upload_folder(folder, f"{place}/out") == digests
    assert not any(method == "PUT" for method, _, _ in chaos.log)
    with pytest.raises(UsageError, match="holds another model"):
        upload_folder(export_folder(tmp_path, 5, "other"), f"{place}/out")


def test_an_interrupted_upload_is_no_model_and_goes_on(place, tmp_path, chaos):
    folder = export_folder(tmp_path)
    for stop in range(1, 9):
        target = f"{place}/out{stop}"
        state = {"writes": 0}

        def plan(method, path, number, state=state, stop=stop):
            state["writes"] += method == "PUT"
            return "403" if method in ("PUT", "DELETE") and state["writes"] >= stop else None

        chaos.plan = plan
        try:
            upload_folder(folder, target)
        except RecyclerError:
            chaos.reset()
            with pytest.raises(UsageError):
                assert open_pool([target])
            if stop > 1:
                with pytest.raises(UsageError, match="another model is being uploaded|holds another"):
                    upload_folder(export_folder(tmp_path, 5, f"other{stop}"), target)
        chaos.reset()
        upload_folder(folder, target)
        assert checkpoint_digest(open_checkpoint(target)) == checkpoint_digest(open_checkpoint(folder))


def test_of_two_writers_one_wins(place, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    folders = [export_folder(tmp_path, seed, f"export{seed}") for seed in range(2)]

    def attempt(folder):
        try:
            return upload_folder(folder, f"{place}/out") and folder
        except UsageError:
            return None

    with ThreadPoolExecutor(2) as threads:
        winners = [folder for folder in threads.map(attempt, folders) if folder]
    assert len(winners) == 1
    assert checkpoint_digest(open_checkpoint(f"{place}/out")) == checkpoint_digest(open_checkpoint(winners[0]))


def test_a_shard_that_its_manifest_does_not_know_is_refused(place, tmp_path):
    upload_folder(export_folder(tmp_path), f"{place}/out")
    bucket.upload(f"{place}/out/{SHARD}", write_checkpoint(tmp_path / "x", model_arrays(9)) / SHARD)
    with pytest.raises(UnsafeInputError, match="its manifest says"):
        local_file(next(iter(open_checkpoint(f"{place}/out").tensors.values())))


def test_a_merge_reads_from_a_bucket_and_writes_into_one(place, tmp_path, capsys):
    """A recipe in another folder than the current one, ours and mergekit's with a gradient; the export's own recipe runs again."""
    from recycler.cli import main

    base = model_arrays(0)
    folders = [put_model(tmp_path, f"{place}/pool/{name}", number, near=base) for number, name in enumerate("ab", start=1)]
    entries = "".join(f"- {{model: {place}/pool/{name}, parameters: {{weight: {weights}}}}}\n" for name, weights in (("a", [0.0, 1.0]), ("b", [1.0, 0.0])))
    recipes = {"r.yaml": f"method: linear\nmembers: {{a: {place}/pool/a, b: {place}/pool/b}}\nweights: {{a: 0.5, b: 0.5}}\n", "mk.yml": f"merge_method: linear\nmodels:\n{entries}dtype: bfloat16\n"}
    for number, (name, text) in enumerate(recipes.items()):
        (tmp_path / name).write_text(text)
        assert main(["plan", str(tmp_path / name)]) == 0
        assert main(["merge", str(tmp_path / name), f"{place}/out{number}"]) == 0
        (tmp_path / f"local-{name}").write_text(text.replace(f"{place}/pool/a", str(folders[0])).replace(f"{place}/pool/b", str(folders[1])))
        assert main(["merge", str(tmp_path / f"local-{name}"), str(tmp_path / f"local{number}")]) == 0
        merged = open_checkpoint(f"{place}/out{number}")
        assert same_bytes(merged, tmp_path / f"local{number}")
        (tmp_path / "own.yaml").write_bytes(bucket.read(f"{place}/out{number}/recipe.yaml").raw)
        assert main(["merge", str(tmp_path / "own.yaml"), str(tmp_path / f"again{number}")]) == 0 and same_bytes(merged, tmp_path / f"again{number}")
    assert not (tmp_path / "s3:").exists()


def test_a_folder_without_a_manifest_is_not_uploaded(place, tmp_path):
    with pytest.raises(UsageError, match="has no recycler-manifest.json"):
        upload_folder(write_checkpoint(tmp_path / "x", config=CONFIG), f"{place}/out")


def test_obstore_is_loaded_for_buckets_only():
    code = "import recycler.pool.catalog, recycler.pool.preflight, recycler.pool.inspect, sys; print('obstore' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]




def test_a_hub_repository_is_a_checkpoint(tmp_path, monkeypatch):
    """Without the hub: huggingface_hub's own function is replaced; what it is asked for is checked."""
    import huggingface_hub

    from recycler.pool import hub

    asked = []
    folder = write_checkpoint(tmp_path / "snapshots/abc")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **more: asked.append((repo, more["revision"])) or str(folder))
    hub.hub_folder.cache_clear()
    checkpoint = open_pool(["hf://owner/some-model@v1"]).members[0]
    assert (checkpoint.name, checkpoint.location, asked) == ("some-model@v1", "hf://owner/some-model@v1", [("owner/some-model", "v1")])
    assert local_folder(checkpoint) == folder and checkpoint_digest(checkpoint) == checkpoint_digest(open_checkpoint(folder))
    with pytest.raises(UsageError, match="hf://OWNER/NAME"):
        open_checkpoint("hf://no")
    hub.hub_folder.cache_clear()
