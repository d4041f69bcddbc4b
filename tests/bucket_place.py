"""An empty bucket of a real S3 server behind a proxy that breaks things, and checkpoints to put
into it: fixtures for tests.
"""

import random
import re

import pytest
from chaos import Chaos, s3_server
from handmade import SHAPES, model_arrays, write_checkpoint

from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage import bucket, remote
from recycler.pool.storage.cache import release_all
from recycler.pool.storage.files import local_file

SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def chaos():
    with s3_server() as target:
        yield Chaos(target)


@pytest.fixture
def place(chaos, tmp_path, monkeypatch):
    """An empty bucket, an empty cache; yields the bucket's URL."""
    chaos.reset()
    for name, value in {
        "AWS_ENDPOINT_URL": chaos.url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
        "RECYCLER_CACHE": str(tmp_path / "cache"),
        "RECYCLER_BUCKET_TIMEOUT": "30",
    }.items():
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
    folder = write_checkpoint(
        tmp_path / "local" / f"{url.rsplit('/', 1)[-1]}-{seed}",
        model_arrays(seed, near=near, shapes=shapes, scale=1e-3 if near else 0.1),
        **more,
    )
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
    """A plan:

    `fault` for requests whose 'METHOD path' matches, the first `times` times each path is asked
    for.
    """
    return lambda method, path, number: (
        fault if re.search(words, f"{method} {path}") and number <= times else None
    )
