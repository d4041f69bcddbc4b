"""Locations: parsed once, and said again exactly as they were written."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recycler.digest import digest
from recycler.engines.vllm.wire import pool_from_json, pool_to_json
from recycler.location import (
    PACK_MANIFEST,
    BucketLocation,
    DiskLocation,
    HubLocation,
    PackLocation,
    local_path,
    parse_location,
)
from recycler.pool.checks.inspect import inspect_pool
from recycler.run.prepared import object_versions
from recycler.run.warm_start import _stamp
from recycler.testing import make_pico_pool
from recycler.types import Checkpoint, Pool, TensorInfo

LETTERS = st.sampled_from("az09?#%:& @=+~[]*éß水🎈.-_")
NAMES = st.text(LETTERS, min_size=1, max_size=12).map("m{}".format)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
BUCKETS = st.builds("{}://{}".format, st.sampled_from(["s3", "gs", "az"]), PATHS)
HUBS = st.builds("hf://{}/{}{}".format, NAMES, NAMES, st.sampled_from(["", "@main", "@v1/x"]))
DISKS = PATHS | PATHS.map("/{}".format) | PATHS.map("file:///{}".format)
OUTSIDE = BUCKETS | HUBS | DISKS
PACKED = st.builds(f"{{}}/{PACK_MANIFEST}#{{}}".format, OUTSIDE, NAMES)


@given(OUTSIDE | PACKED | st.text())
def test_a_location_is_said_as_it_was_written(text):
    location = parse_location(text)
    assert str(location) == f"{location}" == text
    assert parse_location(location) is location
    assert parse_location(text) == location and hash(parse_location(text)) == hash(location)
    assert pickle.loads(pickle.dumps(location)) == location


@given(BUCKETS)
def test_a_url_of_a_bucket_is_kept_whole(url):
    location = parse_location(url)
    assert isinstance(location, BucketLocation) and location.url == url
    assert location.is_remote and location.is_url
    assert location.resolved() == location.absolute() == location
    assert location.beside(Path("/elsewhere")) == location


@given(st.builds("{}://{}".format, st.sampled_from(["s3", "gs", "az"]), NAMES), NAMES)
def test_a_path_that_swallowed_a_slash_is_understood(bucket, name):
    place = Path(f"{bucket}/{name}")
    location = parse_location(place)
    assert "://" not in str(place) and isinstance(location, BucketLocation)
    assert location.url.replace("://", ":/") == str(location) == str(place)
    packed = parse_location(Path(f"{bucket}/{name}/{PACK_MANIFEST}#math"))
    assert isinstance(packed, PackLocation) and packed.is_remote
    assert packed.name == "math" and str(packed.pack) == location.url


@given(DISKS)
def test_a_path_is_one_of_this_machine(text):
    location = parse_location(text)
    assert isinstance(location, DiskLocation) and not location.is_remote
    assert location.is_url == text.startswith("file://")
    assert Path(location.path) == local_path(text)
    bare = "/" + text.removeprefix("file://").lstrip("/")
    assert location.path == (bare if location.is_url else text)
    assert str(location.absolute()) == os.path.abspath(location.path)
    fixed = location.is_url or os.path.isabs(text)
    assert str(location.beside(Path("/job"))) == (text if fixed else str(Path("/job") / text))


@given(OUTSIDE, NAMES)
def test_a_checkpoint_of_a_pack_knows_its_pack(place, name):
    location = parse_location(f"{place}/{PACK_MANIFEST}#{name}")
    assert isinstance(location, PackLocation) and location.name == name
    assert str(location.pack) == place and location.pack == parse_location(place)
    assert location.is_remote == location.pack.is_remote


@pytest.mark.parametrize(
    ("text", "repository", "revision", "pinned"),
    [
        ("hf://owner/name", "owner/name", "", "hf://owner/name@abc"),
        ("hf://owner/name/", "owner/name", "", "hf://owner/name@abc"),
        ("hf:/owner/name@main", "owner/name", "main", "hf://owner/name@abc"),
        ("hf://owner/name@refs/pr/1", "owner/name", "refs/pr/1", "hf://owner/name@abc"),
    ],
)
def test_a_repository_of_the_hub_has_a_revision(text, repository, revision, pinned):
    location = parse_location(text)
    assert isinstance(location, HubLocation) and location.is_remote
    assert (location.repository, location.revision) == (repository, revision)
    assert str(location.at("abc")) == pinned


def test_a_relative_path_is_resolved_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert str(parse_location("link/../link").resolved()) == str((tmp_path / "real").resolve())
    assert str(parse_location("./link").absolute()) == str(tmp_path / "link")
    packed = parse_location(f"link/{PACK_MANIFEST}#m").resolved()
    assert str(packed) == f"{(tmp_path / 'real').resolve()}/{PACK_MANIFEST}#m"
    assert str(parse_location("http://host/x").resolved()) == "http://host/x"


def test_documents_and_digests_hold_the_text_of_locations(tmp_path):
    """What stands in documents and digests is the text, as it was before there were locations."""
    pico = make_pico_pool(tmp_path / "pool", num_members=2)
    text = str(pico.members[0].location)
    assert text == os.path.abspath(text) and Path(text).is_dir()
    checkpoints = inspect_pool(pico, digests=False)["checkpoints"]
    assert [entry["location"] for entry in checkpoints] == [
        str(checkpoint.location) for checkpoint in (pico.base, *pico.members)
    ]
    wired = json.loads(pool_to_json(pico))
    assert wired["members"][0] == [pico.members[0].name, text]
    assert pool_from_json(pool_to_json(pico)) == pico
    linked = tmp_path / "linked"
    linked.symlink_to(text)
    moved = replace(pico.members[0], location=parse_location(linked))
    assert _stamp(moved) == _stamp(pico.members[0])
    files = {
        (Path(str(info.file)).name, f"{found.st_size} {found.st_mtime_ns}")
        for info in moved.tensors.values()
        for found in [os.stat(str(info.file))]
    }
    assert _stamp(moved) == digest([text, sorted(files)])


def test_the_names_of_objects_in_facts_are_their_urls():
    far = parse_location("s3://bucket/m/model.safetensors")
    info = TensorInfo(
        name="x", dtype="F32", shape=(1,), file=far, start=0, num_bytes=4, file_bytes=4, etag="e"
    )
    member = Checkpoint(
        name="m", location=parse_location("s3://bucket/m"), tensors={"x": info}, config={}
    )
    assert object_versions(Pool(members=(member,))) == {
        "object s3://bucket/m/model.safetensors": "e",
        "object s3://bucket/m/config.json": digest({}),
    }
