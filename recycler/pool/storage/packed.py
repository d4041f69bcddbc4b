"""Checkpoints inside a packed pool, used without unpacking it by hand:

PACK/recycler-pack.json#NAME is a checkpoint's place.

The manifest alone says what each checkpoint holds, so a pool is opened without touching its
weights. They are unpacked into the local cache, one file a checkpoint, when they are used; the
manifest's SHA-256 stands for their version.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.io.atomic import atomic_folder
from recycler.pool.storage.bucket import list_prefix, read, trimmed
from recycler.pool.storage.cache import cache_folder, cache_key, cached
from recycler.pool.storage.headers import DTYPE_BYTES, PREFIX_BYTES, broken, parse_header
from recycler.pool.storage.hf_folder import check_config, read_json
from recycler.pool.storage.location import local_path, packed_place, remote_url
from recycler.pool.storage.pack import (
    MANIFEST,
    Unpacker,
    read_manifest,
    unpacked_header,
    write_unpacked,
)
from recycler.pool.storage.remote import SMALL, cached_shard, read_remote_header
from recycler.types import Checkpoint, TensorInfo


def packed_pool(pack: str) -> tuple[list[str], str]:
    """(places of the members, place of the base) of a packed pool.

    Raises UsageError, UnsafeInputError.
    """
    manifest, _ = _manifest(pack)
    places = {name: f"{pack.rstrip('/')}/{MANIFEST}#{name}" for name in manifest["checkpoints"]}
    return [place for name, place in places.items() if name != manifest["base"]], places[
        manifest["base"]
    ]


def open_packed_checkpoint(place: str, name: str | None = None) -> Checkpoint:
    """One checkpoint of a packed pool, known by the pack's manifest.

    Raises UsageError, UnsafeInputError.
    """
    pack, own = _split(place)
    manifest, version = _manifest(pack)
    if own not in manifest["checkpoints"]:
        raise UsageError(
            Problem(
                thing=place,
                cause=f"the pack has no checkpoint {own!r}",
                remedy=f"It holds {', '.join(sorted(manifest['checkpoints']))}",
            )
        )
    header = unpacked_header(manifest, own)
    size = len(header) + sum(
        _num_bytes(entry) for entry in manifest["checkpoints"][own]["tensors"].values()
    )
    tensors = parse_header(
        place, header[PREFIX_BYTES:], length=len(header) - PREFIX_BYTES, size=size, etag=version
    )
    config = check_config(place, read_json(packed_small_files(place) / "config.json"))
    return Checkpoint(name=name or own, location=place, tensors=tensors, config=config)


def packed_small_files(place: str) -> Path:
    """A local folder with the config, tokenizer and other small files of one checkpoint of a pack."""
    pack, own = _split(place)
    manifest, version = _manifest(pack)
    folder = cache_folder() / "folders" / cache_key(place, version, 0) / own
    if not folder.is_dir():
        try:
            with atomic_folder(folder) as aside:
                for name, digest in manifest["checkpoints"][own]["small"].items():
                    if not SMALL.fullmatch(name):
                        raise broken(
                            f"{pack}/{MANIFEST}",
                            f"names the file {name[:80]!r}, which is not allowed",
                        )
                    (aside / name).write_bytes(_small(pack, digest))
        except (UsageError, OSError):  # another process was first
            if not folder.is_dir():
                raise
    return folder


def unpacked_file(info: TensorInfo) -> Path:
    """The checkpoint that holds a tensor as a safetensors file in the local cache, unpacked when it
    is not there.

    Raises InfrastructureError when the pack is another one by now, UnsafeInputError when it is
    damaged.
    """
    pack, own = _split(info.file)

    def write(path: Path) -> dict[str, Any]:
        folder = _pack_folder(pack)
        if hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() != info.etag:
            raise InfrastructureError(
                Problem(
                    thing=f"{pack}/{MANIFEST}",
                    cause="was overwritten since the pool was opened",
                    remedy="Put it back, or start a new run",
                )
            )
        write_unpacked(path, Unpacker(folder, read_manifest(folder)), own)
        return {}

    return cached(info.file, info.etag, info.file_bytes, write)


def _split(place: str) -> tuple[str, str]:
    found = packed_place(place)
    assert found is not None, place
    return found


def _num_bytes(entry: dict[str, Any]) -> int:
    count = DTYPE_BYTES[entry["dtype"]]
    for length in entry["shape"]:
        count *= length
    return count


def _manifest(pack: str) -> tuple[dict[str, Any], str]:
    """The manifest and its SHA-256, as it is now."""
    folder = _pack_folder(pack, shards=False)
    return _parsed(
        folder,
        hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        if (folder / MANIFEST).is_file()
        else "",
    )


@lru_cache(maxsize=8)
def _parsed(folder: Path, version: str) -> tuple[dict[str, Any], str]:
    return read_manifest(folder), version


def _small(pack: str, digest: str) -> bytes:
    if (url := remote_url(pack)) is None:
        path = Path(local_path(pack)) / f"small-{digest}"
        if not path.is_file():
            raise broken(f"{pack}/{MANIFEST}", f"names small-{digest[:12]}, which is not there")
        raw = path.read_bytes()
    else:
        raw = read(f"{url}/small-{digest}").raw
    if not re.fullmatch(r"[0-9a-f]{64}", digest) or hashlib.sha256(raw).hexdigest() != digest:
        raise broken(f"{pack}/small-{digest[:12]}", "does not hold what its name says")
    return raw


def _pack_folder(pack: str, *, shards: bool = True) -> Path:
    """The pack as a folder of this machine: itself, or links to its copies in the cache."""
    url = remote_url(pack)
    if url is None:
        return Path(local_path(pack))
    url = trimmed(url)
    raw = read(f"{url}/{MANIFEST}").raw
    folder = cache_folder() / "folders" / cache_key(url, hashlib.sha256(raw).hexdigest(), len(raw))
    folder.mkdir(parents=True, exist_ok=True)
    _place(folder / MANIFEST, lambda aside: aside.write_bytes(raw))
    if shards:
        for name in (name for name in list_prefix(url)[0] if name.endswith(".safetensors")):
            infos = read_remote_header(f"{url}/{name}")
            if infos:  # a checkpoint whose every tensor is stored elsewhere has none
                path = cached_shard(next(iter(infos.values())))
            else:
                path = _empty(folder, name, read(f"{url}/{name}").raw)
            _place(folder / name, lambda aside, path=path: aside.symlink_to(path))
    return folder


def _empty(folder: Path, name: str, raw: bytes) -> Path:
    path = folder / f"empty-{name}"
    _place(path, lambda aside: aside.write_bytes(raw))
    return path


def _place(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file or link aside and rename it, so that other processes see it whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    write(aside)
    aside.replace(path)
