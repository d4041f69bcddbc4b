"""Checkpoints in a bucket: opened by reading their headers, fetched into the cache when used.

Each tensor carries the etag of the shard whose header was read, and every later byte of that shard
is asked for by that etag.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recycler.errors import InfrastructureError, Problem, UnsafeInputError, UsageError
from recycler.location import parse_location
from recycler.pool.storage.bucket import list_prefix, read, size_of, trimmed
from recycler.pool.storage.cache import cache_key, cached, cached_facts, cached_folder
from recycler.pool.storage.headers import PREFIX_BYTES, header_length, parse_header
from recycler.pool.storage.hf_folder import (
    INDEX,
    check_config,
    check_index,
    collect,
    parse_json,
    weight_names,
)
from recycler.types import Checkpoint, TensorInfo

HEADER_GUESS_BYTES = 1 << 18  # one request is enough for a header of up to 256 kB
PART_BYTES = 1 << 23
PARALLEL = 8
MAX_SMALL_BYTES = 200_000_000
UNFINISHED = "recycler-upload.json"  # lies there while an upload goes on
SMALL = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}\.(json|jinja|txt|model|md)|LICENSE|README\.md"
)
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")
MAX_UNLISTED = 1000  # shards of an index that are asked for one by one
_folders: dict[str, Path] = {}  # prefix -> its small files, as this process first saw them


def list_checkpoints(url: str) -> list[str]:
    """URLs of the checkpoints at a prefix: itself when it has a config.json, else those below it.

    Raises as `bucket.read` does.
    """
    url = trimmed(url)
    objects, prefixes = list_prefix(url)
    if "config.json" in objects:
        return [url]
    below = [f"{url}/{name}" for name in prefixes]
    with ThreadPoolExecutor(PARALLEL) as threads:
        listings = list(threads.map(list_prefix, below))
    return [
        place
        for place, (objects, _) in zip(below, listings, strict=True)
        if "config.json" in objects
    ]


def open_remote_checkpoint(url: str, name: str | None = None) -> Checkpoint:
    """The checkpoint at a prefix of a bucket.

    It takes one listing, the small files, and one or two ranged reads per shard. Raises UsageError
    when there is none, UnsafeInputError when it is broken, InfrastructureError when the bucket is.
    """
    url = trimmed(url)
    objects = _objects(url)
    folder = _small_files(url, objects)
    source = f"{url}/config.json"
    config = check_config(source, parse_json(source, (folder / "config.json").read_bytes()))
    index = None
    if INDEX in objects:
        index = parse_json(f"{url}/{INDEX}", (folder / INDEX).read_bytes())
    names = weight_names(url, set(objects) | _unlisted(url, index, set(objects)))
    with ThreadPoolExecutor(PARALLEL) as threads:
        headers = list(threads.map(lambda file: read_remote_header(f"{url}/{file}"), names))
    tensors = collect(
        {f"{url}/{file}": header for file, header in zip(names, headers, strict=True)}
    )
    if index is not None:
        check_index(f"{url}/{INDEX}", index, tensors)
    return Checkpoint(
        name=name or url.rsplit("/", 1)[-1],
        location=parse_location(url),
        tensors=tensors,
        config=config,
    )


def small_files_folder(url: str) -> Path:
    """A local folder with the small files of a prefix, fetched once per process and version."""
    url = trimmed(url)
    return _folders.get(url) or _small_files(url, _objects(url))


def cached_shard(info: TensorInfo) -> Path:
    """The whole shard that holds a tensor, as a local file: the very version whose header was read.

    Raises InfrastructureError when the object has been overwritten since, and UnsafeInputError when
    its bytes are not those that the checkpoint's own manifest promises.
    """
    url, etag, size = str(info.file), info.etag, info.file_bytes
    return cached(url, etag, size, lambda path: _download(url, etag, size, path))


def shard_facts(info: TensorInfo) -> dict[str, Any]:
    """URL, etag, size, SHA-256 and tensor digests of a cached shard; empty when there is none."""
    return cached_facts(str(info.file), info.etag, info.file_bytes)


# ---------------------------------------------------------------- headers and small files


def _objects(url: str) -> dict[str, int]:
    """Sizes by name of the objects of a checkpoint. Raises UsageError when it is none."""
    objects, _ = list_prefix(url)
    if UNFINISHED in objects:
        raise UsageError(
            Problem(
                thing=url,
                cause="is still being uploaded, or its upload was interrupted",
                remedy="Wait for it, or upload it again",
            )
        )
    if "config.json" not in objects:
        raise UsageError(
            Problem(
                thing=url,
                cause="has no config.json",
                remedy="Give the prefix that holds config.json",
            )
        )
    return objects


def _unlisted(url: str, index: Any, listed: set[str]) -> set[str]:
    """Shards that the index names and a stale listing does not show, though they are there."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        return set()
    names = {file for file in weight_map.values() if isinstance(file, str)} - listed
    plausible = filter(_SHARD.fullmatch, sorted(names)[:MAX_UNLISTED])
    return {name for name in plausible if size_of(f"{url}/{name}") is not None}


def read_remote_header(url: str) -> dict[str, TensorInfo]:
    """Tensors of one shard by name, each with the etag of the version that was read.

    It takes one or two ranged reads.
    """
    if size_of(url) == 0:
        header_length(url, b"", 0)  # raises: there is no range to ask for
    first = read(url, 0, HEADER_GUESS_BYTES)
    length = header_length(url, first.raw[:PREFIX_BYTES], first.size)
    raw = first.raw[PREFIX_BYTES : PREFIX_BYTES + length]
    if len(raw) < length:
        raw += read(url, len(first.raw), PREFIX_BYTES + length, etag=first.etag).raw
    if not first.etag:
        raise InfrastructureError(
            Problem(
                thing=url,
                cause="the bucket gives its objects no etag",
                remedy="Copy the checkpoint to a disk: without it, an overwritten object would go "
                "unnoticed",
            )
        )
    return parse_header(url, raw, length=length, size=first.size, etag=first.etag)


def _small_files(url: str, objects: Mapping[str, int]) -> Path:
    """Fetch the small files of a prefix into a folder of the cache, named after their versions."""
    names = sorted(name for name in objects if SMALL.fullmatch(name))
    large = [name for name in names if objects[name] > MAX_SMALL_BYTES]
    if large:
        raise UnsafeInputError(
            Problem(
                thing=f"{url}/{large[0]}",
                cause=f"holds {objects[large[0]]:,} bytes; {MAX_SMALL_BYTES:,} is the limit",
                remedy="Check what was uploaded there",
            )
        )
    with ThreadPoolExecutor(PARALLEL) as threads:
        pieces = list(threads.map(lambda name: read(f"{url}/{name}"), names))
    contents = {name: piece.raw for name, piece in zip(names, pieces, strict=True)}
    versions = [(name, hashlib.sha256(raw).hexdigest()) for name, raw in contents.items()]

    def write(folder: Path) -> None:
        for name, raw in contents.items():
            (folder / name).write_bytes(raw)

    key = cache_key(url, repr(versions), 0)
    _folders[url] = cached_folder(key, url.rsplit("/", 1)[-1], write)
    return _folders[url]


# ---------------------------------------------------------------- shards


def _download(url: str, etag: str, size: int, path: Path) -> dict[str, Any]:
    """Fetch one version of an object in parallel parts, each bound to its etag; its digests.

    Raises InfrastructureError, UnsafeInputError.
    """

    def fetch(start: int) -> None:
        piece = read(url, start, min(start + PART_BYTES, size), etag=etag)
        if piece.size != size:
            raise InfrastructureError(
                Problem(
                    thing=url,
                    cause=f"holds {piece.size:,} bytes where {size:,} were announced",
                    remedy="Start again, when nobody writes to it any more",
                )
            )
        os.pwrite(file, piece.raw, start)

    file = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(file, 0, size)
        with ThreadPoolExecutor(PARALLEL) as threads:
            pending = [threads.submit(fetch, start) for start in range(0, size, PART_BYTES)]
            try:
                for future in pending:
                    future.result()
            except BaseException:
                for future in pending:
                    future.cancel()
                raise
    finally:
        os.close(file)
    return _verify(url, path, size)


def _verify(url: str, path: Path, size: int) -> dict[str, Any]:
    """Digests of the copy and its tensors, compared with the manifest of recycler's own exports.

    Raises UnsafeInputError when they differ.
    """
    sha = hashlib.sha256()
    with path.open("rb") as file:
        length = header_length(url, file.read(PREFIX_BYTES), size)
        tensors = parse_header(url, file.read(length), length=length, size=size)
        file.seek(0)
        while block := file.read(PART_BYTES):
            sha.update(block)
    found, digests = sha.hexdigest(), tensor_digests(path, tensors.values())
    promised, wanted = _promised_digests(url)
    if promised not in (None, found):
        raise _changed(url, f"has SHA-256 {found[:12]}, its manifest says {str(promised)[:12]}")
    for name, digest in digests.items():
        if wanted.get(name, digest) != digest:
            raise _changed(
                url,
                f"tensor {name!r} has digest {digest[:12]}, its manifest says "
                f"{str(wanted[name])[:12]}",
            )
    return {"sha256": found, "tensors": digests}


def _changed(url: str, cause: str) -> UnsafeInputError:
    remedy = "It was changed after its export; upload it again"
    return UnsafeInputError(Problem(thing=url, cause=cause, remedy=remedy))


def tensor_digests(path: Path, infos: Iterable[TensorInfo]) -> dict[str, str]:
    """SHA-256 (hex) of dtype, shape and bytes of each tensor of a local file, by name."""
    digests = {}
    with path.open("rb") as file:
        for info in infos:
            sha = hashlib.sha256(f"{info.dtype} {list(info.shape)}".encode())
            file.seek(info.start)
            left = info.num_bytes
            while left and (block := file.read(min(left, PART_BYTES))):
                sha.update(block)
                left -= len(block)
            digests[info.name] = sha.hexdigest()
    return digests


def _promised_digests(url: str) -> tuple[str | None, dict[str, Any]]:
    """(SHA-256 of a shard, digests of tensors by name) in the manifest of an export beside it.

    (None, {}) where nothing is promised.
    """
    prefix, name = url.rsplit("/", 1)
    manifest = _read_manifest(prefix)
    files, tensors = _mapping(manifest, "files"), _mapping(manifest, "tensors")
    return _mapping(files, name).get("sha256"), tensors


def _read_manifest(prefix: str) -> Any:
    """The manifest of an export, as this process first saw it; None where there is none."""
    source = f"{prefix}/recycler-manifest.json"
    if prefix in _folders:
        path = _folders[prefix] / "recycler-manifest.json"
        return parse_json(source, path.read_bytes()) if path.is_file() else None
    if size_of(source) is None:
        return None
    return parse_json(source, read(source).raw)


def _mapping(data: Any, key: str) -> dict[str, Any]:
    """The mapping at a key of JSON data; empty where there is none."""
    found = data.get(key) if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}
