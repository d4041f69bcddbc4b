"""A pool on this machine's disk, as engines load it.

Checkpoints in buckets come through the local cache, once per node. Processes of one node share the
copies: a lock lets one of them fetch while the others wait. Every byte is of the version whose
header was read, and a copy is compared with the digest that an export's manifest promises.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from recycler.errors import InfrastructureError, Problem, UnsafeInputError
from recycler.location import DiskLocation, HubLocation, Location, parse_location
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.cache import cache_folder, cache_key
from recycler.pool.storage.files import local_file, local_folder
from recycler.types import Checkpoint, Pool

PATIENCE_SECONDS = 900.0  # how long a bucket may be away before a worker gives up
Value = TypeVar("Value")


def materialise(pool: Pool, *, patience: float = PATIENCE_SECONDS) -> Pool:
    """The same pool with every location and file on this machine's disk.

    A bucket that is away is waited for, `patience` seconds. Raises InfrastructureError when an
    object has been overwritten since the pool was opened, when a local folder is not on this
    machine, or when the bucket stays away; UnsafeInputError when a copy is not what it should be.
    """

    def local(checkpoint: Checkpoint) -> Checkpoint:
        return patiently(lambda: _local(checkpoint), patience)

    return Pool(
        members=tuple(map(local, pool.members)), base=local(pool.base) if pool.base else None
    )


def patiently(act: Callable[[], Value], patience: float) -> Value:
    """Call `act`, and again after a pause while it raises InfrastructureError.

    It is raised on after `patience` seconds, or when waiting cannot help.
    """
    start, pause = time.monotonic(), 1.0
    while True:
        try:
            return act()
        except InfrastructureError as error:
            if _is_lasting(error) or time.monotonic() - start + pause > patience:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


def _is_lasting(error: InfrastructureError) -> bool:
    """True for an error that waiting does not mend."""
    causes = " ".join(problem.cause for problem in error.problems)
    return any(word in causes for word in ("overwritten", "may hold", "not on this machine"))


def _local(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint on this machine's disk, fetched where it must be."""
    if isinstance(checkpoint.location, HubLocation):
        return replace(
            open_checkpoint(local_folder(checkpoint), checkpoint.name), name=checkpoint.name
        )
    if not any(tensor.etag for tensor in checkpoint.tensors.values()):
        _refuse_elsewhere(checkpoint)
        return checkpoint
    shards = {info.file: local_file(info) for info in checkpoint.tensors.values()}
    folder = _linked_folder(checkpoint, shards)
    places = {file: parse_location(folder / _shard_name(file)) for file in shards}
    tensors = {
        name: replace(info, file=places[info.file], etag="")
        for name, info in checkpoint.tensors.items()
    }
    found = open_checkpoint(folder, checkpoint.name)
    if found.tensors != tensors:
        raise UnsafeInputError(
            Problem(
                thing=str(checkpoint.location),
                cause="its copy in the cache does not hold the tensors of its headers",
                remedy=f"Remove {cache_folder()} and start again",
            )
        )
    return found


def _refuse_elsewhere(checkpoint: Checkpoint) -> None:
    """Raise InfrastructureError when the folder of a checkpoint is not on this machine."""
    if isinstance(checkpoint.location, DiskLocation):
        folder = Path(checkpoint.location.path)
        if not folder.is_dir():
            raise InfrastructureError(
                Problem(
                    thing=f"checkpoint {checkpoint.name!r}",
                    cause=f"{folder} is not on this machine",
                    remedy="Put the pool into a bucket, or on a disk that all nodes share",
                )
            )


def _linked_folder(checkpoint: Checkpoint, shards: Mapping[Location, Path]) -> Path:
    """A folder of links to a checkpoint's small files and shards, named after their versions."""
    small = local_folder(checkpoint)
    key = cache_key(
        str(checkpoint.location),
        repr(sorted((str(file), str(path)) for file, path in shards.items())) + str(small),
        0,
    )
    folder = cache_folder() / "folders" / key / checkpoint.name
    folder.mkdir(parents=True, exist_ok=True)
    for source in small.iterdir():
        _link(source, folder / source.name)
    for file, path in shards.items():
        _link(path, folder / _shard_name(file))
    return folder


def _shard_name(file: Location) -> str:
    name = str(file).rsplit("/", 1)[-1]
    return name if name.endswith(".safetensors") else "model.safetensors"


def _link(source: Path, place: Path) -> None:
    """Make a symbolic link, unless another process was first.

    It holds although the file itself is fetched again.
    """
    if place.is_symlink() and os.readlink(place) == str(source):
        return
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(source)
    aside.replace(place)
