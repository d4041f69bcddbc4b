"""Bytes of tensors wherever they lie: read from this machine where it has the shard, else by ranges
of the object in its bucket.

What `local_file` would fetch whole, this reads a little of. A range is bound to the version whose
header was read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.location import Location, PackLocation
from recycler.pool.storage.bucket import read
from recycler.pool.storage.cache import is_cached
from recycler.pool.storage.files import local_file
from recycler.pool.storage.headers import broken
from recycler.types import Checkpoint, TensorInfo

PARALLEL = 16  # ranges in flight: small ones wait for the network and not for the processor

Stretch = tuple[TensorInfo, int, int]  # a tensor, a first byte of it, how many from there


class Stretches:
    """Reads stretches of the tensors of some checkpoints. Close it when done.

    Which shards are here is looked up once, so what is read does not hang on what other processes
    fetch meanwhile.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint]):
        shards = {
            info.file: info for checkpoint in checkpoints for info in checkpoint.tensors.values()
        }
        self._places = {file: _here(info) for file, info in shards.items()}
        self._files: dict[Location, int] = {}
        self._threads = ThreadPoolExecutor(PARALLEL)

    def far(self, info: TensorInfo) -> bool:
        """Whether the tensor's bytes have to come from a bucket."""
        return self._places[info.file] is None

    def read(self, wanted: Sequence[Stretch]) -> list[bytes]:
        """The bytes of each stretch, in order; those in buckets at once.

        Raises UnsafeInputError, UsageError, InfrastructureError.
        """
        coming = {
            index: self._threads.submit(_range, *stretch)
            for index, stretch in enumerate(wanted)
            if self.far(stretch[0])
        }
        return [
            coming[index].result() if index in coming else self._own(*stretch)
            for index, stretch in enumerate(wanted)
        ]

    def _own(self, info: TensorInfo, start: int, count: int) -> bytes:
        place = self._places[info.file]
        assert place is not None, "of a shard that is here"
        try:
            if info.file not in self._files:
                self._files[info.file] = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            raw = os.pread(self._files[info.file], count, info.start + start)
        except OSError as error:
            raise broken(info.file, f"cannot be read ({error.strerror})") from None
        if len(raw) != count:
            raise broken(
                info.file,
                f"ends within tensor {info.name!r}: it was changed since its header was read",
            )
        return raw

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> Stretches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _here(info: TensorInfo) -> Path | None:
    """The shard as a file of this machine, or None where it would have to be fetched; a pack on a
    disk is unpacked.
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


def _range(info: TensorInfo, start: int, count: int) -> bytes:
    raw = read(str(info.file), info.start + start, info.start + start + count, etag=info.etag).raw
    if len(raw) != count:
        raise InfrastructureError(
            Problem(
                thing=str(info.file),
                cause=f"ends within tensor {info.name!r}",
                remedy="Start again, when nobody writes to it any more",
            )
        )
    return raw
