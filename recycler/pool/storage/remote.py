"""Checkpoints that lie in a bucket: catalogued by ranged reads of their headers, fetched into the
local cache when used.

A checkpoint's `location` and its tensors' `file` are URLs; each tensor carries the etag of the
shard whose header was read, and every later byte of that shard is asked for by that etag.
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
from recycler.io.atomic import atomic_folder
from recycler.location import parse_location
from recycler.pool.storage.bucket import list_prefix, read, size_of, trimmed
from recycler.pool.storage.cache import cache_folder, cache_key, cached, cached_facts
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
_folders: dict[str, Path] = {}  # prefix -> its small files, as this process first saw them


def list_checkpoints(url: str) -> list[str]:
    """URLs of the checkpoints at a prefix: the prefix itself when it holds a config.json, else
    those directly below it.
    """
    url = trimmed(url)
    objects, prefixes = list_prefix(url)
    if "config.json" in objects:
        return [url]
    below = [f"{url}/{name}" for name in prefixes]
    with ThreadPoolExecutor(PARALLEL) as threads:
        return [
            place
            for place, listing in zip(below, threads.map(list_prefix, below), strict=True)
            if "config.json" in listing[0]
        ]


def open_remote_checkpoint(url: str, name: str | None = None) -> Checkpoint:
    """A prefix of a bucket as a Checkpoint: one listing, the small files, one or two ranged reads a
    shard.

    Raises UsageError when there is none, UnsafeInputError when it is broken, InfrastructureError
    when the bucket is.
    """
    url = trimmed(url)
    objects = _objects(url)
    folder = _small_files(url, objects)
    config = check_config(
        f"{url}/config.json",
        parse_json(f"{url}/config.json", (folder / "config.json").read_bytes()),
    )
    index = (
        parse_json(f"{url}/{INDEX}", (folder / INDEX).read_bytes()) if INDEX in objects else None
    )
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
    """A local folder with the config, tokenizer and other small files of a prefix; fetched once a
    process and version.
    """
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
    """url, etag, size, sha256 and the digest of every tensor of the cached shard; empty when it is
    not cached.
    """
    return cached_facts(str(info.file), info.etag, info.file_bytes)


# ---------------------------------------------------------------- headers and small files


def _objects(url: str) -> dict[str, int]:
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
    names = (
        {file for file in weight_map.values() if isinstance(file, str)} - listed
        if isinstance(weight_map, dict)
        else set()
    )
    plausible = [
        name
        for name in sorted(names)[:1000]
        if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors", name)
    ]
    return {name for name in plausible if size_of(f"{url}/{name}") is not None}


def read_remote_header(url: str) -> dict[str, TensorInfo]:
    """Tensors of one shard by name, each with the etag of the version that was read; one or two
    ranged reads.
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
    """Fetch the small files of a prefix into a folder of the cache that is named after their
    versions.
    """
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
        pieces = dict(
            zip(names, threads.map(lambda name: read(f"{url}/{name}"), names), strict=True)
        )
    folder = (
        cache_folder()
        / "folders"
        / cache_key(
            url,
            repr([(name, hashlib.sha256(piece.raw).hexdigest()) for name, piece in pieces.items()]),
            0,
        )
        / url.rsplit("/", 1)[-1]
    )
    if not folder.is_dir():
        try:
            with atomic_folder(folder) as aside:
                for name, piece in pieces.items():
                    (aside / name).write_bytes(piece.raw)
        except (UsageError, OSError):  # another process was first
            if not folder.is_dir():
                raise
    _folders[url] = folder
    return folder


# ---------------------------------------------------------------- shards


def _download(url: str, etag: str, size: int, path: Path) -> dict[str, Any]:
    """Fetch one version of an object in parallel parts; every part is bound to its etag.

    Returns its digests.
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
    """Digests of the copy and of its tensors, compared with the manifest that recycler's own
    exports carry.
    """
    sha = hashlib.sha256()
    with path.open("rb") as file:
        length = header_length(url, file.read(PREFIX_BYTES), size)
        tensors = parse_header(url, file.read(length), length=length, size=size)
        file.seek(0)
        while block := file.read(PART_BYTES):
            sha.update(block)
    found, digests = sha.hexdigest(), tensor_digests(path, tensors.values())
    file, wanted = _promised(url)
    if file not in (None, found):
        raise UnsafeInputError(
            Problem(
                thing=url,
                cause=f"has SHA-256 {found[:12]}, its manifest says {str(file)[:12]}",
                remedy="It was changed after its export; upload it again",
            )
        )
    for name, digest in digests.items():
        if wanted.get(name, digest) != digest:
            raise UnsafeInputError(
                Problem(
                    thing=url,
                    cause=f"tensor {name!r} has digest {digest[:12]}, its manifest says "
                    f"{str(wanted[name])[:12]}",
                    remedy="It was changed after its export; upload it again",
                )
            )
    return {"sha256": found, "tensors": digests}


def tensor_digests(path: Path, infos: Iterable[TensorInfo]) -> dict[str, str]:
    """SHA-256 (hex) of dtype, shape and bytes of each tensor of a local file; as
    `recycler.pool.storage.hashing` makes them.
    """
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


def _promised(url: str) -> tuple[str | None, dict[str, Any]]:
    """(SHA-256 of a shard if told, digest of each tensor) as the manifest of an export beside it
    says; nothing without one.
    """
    prefix, name = url.rsplit("/", 1)
    source = f"{prefix}/recycler-manifest.json"
    if prefix in _folders:
        path = _folders[prefix] / "recycler-manifest.json"
        raw = path.read_bytes() if path.is_file() else None
    else:
        raw = read(source).raw if size_of(source) is not None else None
    manifest = parse_json(source, raw) if raw is not None else None
    if not isinstance(manifest, dict):
        return None, {}
    files, tensors = manifest.get("files"), manifest.get("tensors")
    entry = files.get(name) if isinstance(files, dict) else None
    return entry.get("sha256") if isinstance(entry, dict) else None, tensors if isinstance(
        tensors, dict
    ) else {}
