"""Fixtures of many rooms: a sound job, and a bucket that can be broken."""

import http.client
import json
import random
import shutil

import pytest
import yaml

from chaos import Chaos, s3_server
from fakes import OBJECTIVES
from recycler.pool.storage import remote
from recycler.pool.storage.cache import release_all
from recycler.testing import make_pico_pool
from small_job import JOB, SUITE


@pytest.fixture
def objectives():
    return OBJECTIVES


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    make_pico_pool(folder / "pool", num_members=3)
    (folder / "echo.jsonl").write_text(
        "".join(json.dumps({"q": f"{k}+{k}", "a": str(2 * k)}) + "\n" for k in range(10))
    )
    (folder / "echo.yaml").write_text(yaml.safe_dump(SUITE))
    return folder


@pytest.fixture
def job(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "job", dirs_exist_ok=True)
    (tmp_path / "job" / "job.yaml").write_text(yaml.safe_dump(JOB))
    return tmp_path / "job"


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
    connection = http.client.HTTPConnection(*chaos.target)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().read() is not None
    yield f"s3://{name}"
    release_all()
    chaos.reset()
