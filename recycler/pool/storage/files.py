"""Files of this machine that hold a checkpoint: its own, or copies in the local cache.

Copies are made of what lies in a bucket or a pack.
"""

from __future__ import annotations

from io import FileIO
from pathlib import Path

from recycler.location import BucketLocation, DiskLocation, HubLocation, PackLocation
from recycler.pool.storage.headers import broken
from recycler.pool.storage.hub import hub_folder
from recycler.pool.storage.packed import packed_small_files, unpacked_file
from recycler.pool.storage.remote import cached_shard, small_files_folder
from recycler.types import Checkpoint, TensorInfo


def local_folder(checkpoint: Checkpoint) -> Path:
    """A folder on this machine with the checkpoint's small files: config, tokenizer, template.

    They are fetched first when they lie in a bucket, on the hub or in a pack.
    """
    match checkpoint.location:
        case DiskLocation(path=path):
            return Path(path)
        case HubLocation(url=url):
            return hub_folder(url)
        case BucketLocation(url=url):
            return small_files_folder(url)
        case PackLocation() as location:
            return packed_small_files(location)


def local_file(info: TensorInfo) -> Path:
    """The file that holds the tensor, fetched from its bucket or unpacked first when it must be.

    Raises InfrastructureError.
    """
    match info.file:
        case DiskLocation(path=path):
            return Path(path)
        case PackLocation() as location:
            return unpacked_file(location, info)
        case BucketLocation() | HubLocation():
            return cached_shard(info)


def open_file(info: TensorInfo) -> FileIO:
    """The same, opened for reading without a buffer. Raises UnsafeInputError when it has gone."""
    try:
        return local_file(info).open("rb", buffering=0)
    except OSError as error:
        raise broken(info.file, f"cannot be read ({error.strerror})") from None
