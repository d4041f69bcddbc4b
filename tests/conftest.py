"""Fixtures of many rooms: a sound job, and a bucket that can be broken."""

import http.client
import json
import random
import shutil

import pytest
import yaml

import postgres
from chaos import Chaos, s3_server
from fakes import OBJECTIVES
from recycler.pool.storage import remote
from recycler.pool.storage.cache import release_all
from recycler.testing import make_pico_pool
from small_job import JOB, SUITE

LONGEST = ("fresh", "ray", "vllm", "browser")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark tests by what they ask for; under xdist order them so that no worker idles."""
    missing = "PostgreSQL is not installed (apt-get install postgresql)"
    no_postgres = pytest.mark.skipif(not postgres.is_installed(), reason=missing)
    for item in items:
        if item.get_closest_marker("postgres"):
            item.add_marker(no_postgres)
        if "chaos" in item.fixturenames:
            item.add_marker(pytest.mark.bucket)
    if hasattr(config, "workerinput"):
        _sort_longest_files_first(items)


def _sort_longest_files_first(items):
    """Files go to xdist's workers one by one: what starts engines and clusters is not left over."""
    places = {}
    for item in items:
        marks = [place for place, mark in enumerate(LONGEST) if item.get_closest_marker(mark)]
        place = min(marks, default=len(LONGEST))
        places[item.path] = min(place, places.get(item.path, place))
    items.sort(key=lambda item: places[item.path])


@pytest.fixture(scope="session")
def ray_environment():
    """A Ray node that lives as long as this process runs tests."""
    from shared_ray import ray_node  # needs psutil, which a quick install lacks

    with ray_node() as environment:
        yield environment


@pytest.fixture
def shared_ray(ray_environment, monkeypatch):
    """Jobs of this test run on the shared node, and do not start a Ray of their own.

    For jobs that are processes: a Ray that this process has imported goes by the environment of
    that moment.
    """
    for name, value in ray_environment.items():
        monkeypatch.setenv(name, value)


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
    pytest.importorskip("moto", reason="needs moto[server], see the test extra")
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
