"""Checkpoints inside a packed pool, used without unpacking it by hand.

PACK/recycler-pack.json#NAME is a checkpoint's place. The manifest alone says what each checkpoint
holds, so a pool is opened without touching its weights. They are unpacked into the local cache, one
file per checkpoint, when they are used; the manifest's SHA-256 stands for their version.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from recycler.digest import file_digest
from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.location import (
    PACK_MANIFEST,
    DiskLocation,
    Location,
    PackLocation,
    PoolLocation,
    parse_location,
)
from recycler.pool.storage.bucket import list_prefix, read, trimmed
from recycler.pool.storage.cache import cache_folder, cache_key, cached, cached_folder
from recycler.pool.storage.headers import PREFIX_BYTES, broken, parse_header
from recycler.pool.storage.hf_folder import check_config, read_json
from recycler.pool.storage.pack import (
    Unpacker,
    entry_num_bytes,
    read_manifest,
    unpacked_header,
    write_unpacked,
)
from recycler.pool.storage.remote import SMALL, cached_shard, read_remote_header
from recycler.types import Checkpoint, TensorInfo


def packed_pool(pack: PoolLocation) -> tuple[list[Location], Location]:
    """Locations of the members of a packed pool, and of its base.

    Raises UsageError, UnsafeInputError.
    """
    manifest, _ = _manifest(pack)
    folder = pack.text.rstrip("/")
    locations = {
        name: parse_location(f"{folder}/{PACK_MANIFEST}#{name}") for name in manifest["checkpoints"]
    }
    base = locations.pop(manifest["base"])
    return list(locations.values()), base


def open_packed_checkpoint(location: PackLocation, name: str | None = None) -> Checkpoint:
    """One checkpoint of a packed pool, known by the pack's manifest.

    Raises UsageError, UnsafeInputError.
    """
    own = location.name
    manifest, version = _manifest(location.pack)
    if own not in manifest["checkpoints"]:
        raise UsageError(
            Problem(
                thing=str(location),
                cause=f"the pack has no checkpoint {own!r}",
                remedy=f"It holds {', '.join(sorted(manifest['checkpoints']))}",
            )
        )
    header = unpacked_header(manifest, own)
    entries = manifest["checkpoints"][own]["tensors"].values()
    size = len(header) + sum(map(entry_num_bytes, entries))
    tensors = parse_header(
        location,
        header[PREFIX_BYTES:],
        length=len(header) - PREFIX_BYTES,
        size=size,
        etag=version,
    )
    config = check_config(location, read_json(packed_small_files(location) / "config.json"))
    return Checkpoint(name=name or own, location=location, tensors=tensors, config=config)


def packed_small_files(location: PackLocation) -> Path:
    """A local folder with the small files of one checkpoint of a pack: config, tokenizer."""
    pack, own = location.pack, location.name
    manifest, version = _manifest(pack)

    def write(folder: Path) -> None:
        for name, digest in manifest["checkpoints"][own]["small"].items():
            if not SMALL.fullmatch(name):
                raise broken(
                    f"{pack}/{PACK_MANIFEST}", f"names the file {name[:80]!r}, which is not allowed"
                )
            (folder / name).write_bytes(_small(pack, digest))

    return cached_folder(cache_key(str(location), version, 0), own, write)


def unpacked_file(location: PackLocation, info: TensorInfo) -> Path:
    """The unpacked checkpoint in the local cache, as one safetensors file; `info` is of a tensor.

    It is unpacked when it is not there.

    Raises InfrastructureError when the pack is another one by now, UnsafeInputError when it is
    damaged.
    """
    pack = location.pack

    def write(path: Path) -> dict[str, Any]:
        folder = _pack_folder(pack)
        if hashlib.sha256((folder / PACK_MANIFEST).read_bytes()).hexdigest() != info.etag:
            raise InfrastructureError(
                Problem(
                    thing=f"{pack}/{PACK_MANIFEST}",
                    cause="was overwritten since the pool was opened",
                    remedy="Put it back, or start a new run",
                )
            )
        write_unpacked(path, Unpacker(folder, read_manifest(folder)), location.name)
        return {}

    return cached(str(location), info.etag, info.file_bytes, write)


def _manifest(pack: PoolLocation) -> tuple[dict[str, Any], str]:
    """The manifest and its SHA-256 (hex), as it is now. Raises UsageError, UnsafeInputError."""
    folder = _pack_folder(pack, shards=False)
    path = folder / PACK_MANIFEST
    version = file_digest(path) if path.is_file() else ""
    return _parsed(folder, version)


@lru_cache(maxsize=8)
def _parsed(folder: Path, version: str) -> tuple[dict[str, Any], str]:
    return read_manifest(folder), version


def _small(pack: PoolLocation, digest: str) -> bytes:
    """A small file of a pack, compared with its digest. Raises UnsafeInputError."""
    if isinstance(pack, DiskLocation):
        path = Path(pack.path) / f"small-{digest}"
        if not path.is_file():
            raise broken(
                f"{pack}/{PACK_MANIFEST}", f"names small-{digest[:12]}, which is not there"
            )
        raw = path.read_bytes()
    else:
        raw = read(f"{pack.url}/small-{digest}").raw
    if not re.fullmatch(r"[0-9a-f]{64}", digest) or hashlib.sha256(raw).hexdigest() != digest:
        raise broken(f"{pack}/small-{digest[:12]}", "does not hold what its name says")
    return raw


def _pack_folder(pack: PoolLocation, *, shards: bool = True) -> Path:
    """The pack as a folder of this machine: itself, or links to its copies in the cache."""
    if isinstance(pack, DiskLocation):
        return Path(pack.path)
    url = trimmed(pack.url)
    raw = read(f"{url}/{PACK_MANIFEST}").raw
    folder = cache_folder() / "folders" / cache_key(url, hashlib.sha256(raw).hexdigest(), len(raw))
    folder.mkdir(parents=True, exist_ok=True)
    _place(folder / PACK_MANIFEST, lambda aside: aside.write_bytes(raw))
    if shards:
        objects, _ = list_prefix(url)
        for name in objects:
            if name.endswith(".safetensors"):
                _link_shard(f"{url}/{name}", folder / name)
    return folder


def _link_shard(url: str, place: Path) -> None:
    """Put a link to the cached copy of a pack's shard at `place`."""
    infos = read_remote_header(url)
    if infos:
        copy = cached_shard(next(iter(infos.values())))
    else:  # a checkpoint whose every tensor is stored elsewhere: too little to be cached
        copy = place.with_name(f"empty-{place.name}")
        raw = read(url).raw
        _place(copy, lambda aside: aside.write_bytes(raw))
    _place(place, lambda aside: aside.symlink_to(copy))


def _place(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file or link beside `path` and rename it, so that others never see half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    write(aside)
    aside.replace(path)
