"""Where a tensor's bytes are on this machine: the shard itself, or its copy in the local cache when
it lies in a bucket or a pack.
"""

from __future__ import annotations

from io import FileIO
from pathlib import Path

from recycler.pool.storage.headers import broken
from recycler.pool.storage.hub import hub_folder
from recycler.pool.storage.location import local_path, packed_place, remote_url
from recycler.pool.storage.packed import packed_small_files, unpacked_file
from recycler.pool.storage.remote import cached_shard, small_files_folder
from recycler.types import Checkpoint, TensorInfo


def local_folder(checkpoint: Checkpoint) -> Path:
    """A folder on this machine that holds the checkpoint's small files (config, tokenizer,
    template), wherever it lies.
    """
    if packed_place(checkpoint.location):
        return packed_small_files(checkpoint.location)
    if remote_url(checkpoint.location) is None:
        return Path(local_path(checkpoint.location))
    if checkpoint.location.startswith("hf://"):
        return hub_folder(checkpoint.location)
    return small_files_folder(checkpoint.location)


def local_file(info: TensorInfo) -> Path:
    """The file that holds the tensor, fetched from its bucket or unpacked first when it must be.

    Raises InfrastructureError.
    """
    if packed_place(info.file):
        return unpacked_file(info)
    if remote_url(info.file) is None:
        return Path(info.file)
    return cached_shard(info)


def open_file(info: TensorInfo) -> FileIO:
    """The same, opened for reading without a buffer. Raises UnsafeInputError when it has gone."""
    try:
        return local_file(info).open("rb", buffering=0)
    except OSError as error:
        raise broken(info.file, f"cannot be read ({error.strerror})") from None
