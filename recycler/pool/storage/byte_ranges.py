"""Byte ranges of tensors, read from this machine where it has the shard, else from the bucket.

`local_file` would fetch the whole shard of a bucket; this reads a little of it. A range is bound to
the version of the object whose header was read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.location import Location, PackLocation
from recycler.pool.storage.bucket import read
from recycler.pool.storage.cache import is_cached
from recycler.pool.storage.files import local_file
from recycler.pool.storage.headers import broken, changed_since
from recycler.types import Checkpoint, TensorInfo

PARALLEL = 16  # ranges in flight: small ones wait for the network and not for the processor

ByteRange = tuple[TensorInfo, int, int]  # a tensor, its first byte to read, number of bytes


class RangeReader:
    """Reads byte ranges of the tensors of some checkpoints; a context manager, or closed by hand.

    Which shards are on this machine is looked up once, so that what is read does not depend on what
    other processes fetch meanwhile.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint]):
        shards = {
            info.file: info for checkpoint in checkpoints for info in checkpoint.tensors.values()
        }
        self._copies = {file: _file_here(info) for file, info in shards.items()}
        self._descriptors: dict[Location, int] = {}
        self._threads = ThreadPoolExecutor(PARALLEL)

    def is_far(self, info: TensorInfo) -> bool:
        """True when the tensor's bytes have to come from a bucket."""
        return self._copies[info.file] is None

    def read(self, wanted: Sequence[ByteRange]) -> list[bytes]:
        """The bytes of each range, in order; ranges in buckets are read in parallel.

        Raises UnsafeInputError, UsageError, InfrastructureError.
        """
        pending: dict[int, Future[bytes]] = {}
        for index, byte_range in enumerate(wanted):
            if self.is_far(byte_range[0]):
                pending[index] = self._threads.submit(_read_object, *byte_range)
        found = []
        for index, byte_range in enumerate(wanted):
            if index in pending:
                found.append(pending[index].result())
            else:
                found.append(self._read_file(*byte_range))
        return found

    def _read_file(self, info: TensorInfo, start: int, count: int) -> bytes:
        copy = self._copies[info.file]
        assert copy is not None, "of a shard that is on this machine"
        try:
            if info.file not in self._descriptors:
                self._descriptors[info.file] = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
            raw = os.pread(self._descriptors[info.file], count, info.start + start)
        except OSError as error:
            raise broken(info.file, f"cannot be read ({error.strerror})") from None
        if len(raw) != count:
            raise changed_since(info)
        return raw

    def close(self) -> None:
        """Close the files, and forget the ranges that nobody waits for any more."""
        self._threads.shutdown(cancel_futures=True)
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _file_here(info: TensorInfo) -> Path | None:
    """The shard as a file of this machine; None where it would have to be fetched.

    A pack on a disk is unpacked. Raises UsageError for a pack in a bucket.
    """
    if not info.file.is_remote or is_cached(str(info.file), info.etag, info.file_bytes):
        return local_file(info)
    if isinstance(info.file, PackLocation):
        raise UsageError(
            Problem(
                thing=str(info.file),
                cause="is packed and lies in a bucket",
                remedy="A packed checkpoint cannot be read in part: unpack it first",
            )
        )
    return None


def _read_object(info: TensorInfo, start: int, count: int) -> bytes:
    first = info.start + start
    raw = read(str(info.file), first, first + count, etag=info.etag).raw
    if len(raw) != count:
        raise InfrastructureError(
            Problem(
                thing=str(info.file),
                cause=f"ends within tensor {info.name!r}",
                remedy="Start again, when nobody writes to it any more",
            )
        )
    return raw
