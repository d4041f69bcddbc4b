"""Write a pool as its base and deltas, and write a packed pool as folders again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recycler.errors import Problem, UnsafeInputError, UsageError
from recycler.io.atomic import atomic_folder
from recycler.location import PACK_MANIFEST
from recycler.pool.storage.blocks import read_bytes, tensor_digest
from recycler.pool.storage.dtypes import decoded
from recycler.pool.storage.files import local_folder
from recycler.pool.storage.headers import DTYPE_BYTES, FLOAT_DTYPES, broken
from recycler.pool.storage.hf_folder import check_config, read_json
from recycler.pool.storage.lowrank import compress, pack_codes
from recycler.pool.storage.pack import Unpacker, file_of, read_manifest, write_unpacked
from recycler.pool.storage.pack_codec import encode_exact
from recycler.pool.storage.remote import SMALL
from recycler.types import Checkpoint, Pool, TensorInfo

MAX_RATIO = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """|delta - stored delta| / |delta| of a compressed tensor, in the Frobenius norm."""

    member: str
    tensor: str
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """A finished pack: bytes before and after (members without base), and errors, largest first.

    There are no errors when it is exact.
    """

    folder: str
    num_bytes_before: int
    num_bytes_base: int
    num_bytes_members: int
    errors: tuple[TensorError, ...]


def pack_pool(pool: Pool, out: Path, ratio: float | None = None) -> PackReport:
    """Write `pool` to `out` as base and deltas, atomically.

    Without `ratio` every tensor comes back bit for bit. With it, the delta of each matrix gets 1 /
    ratio of the bits that the matrix has, and vectors stay exact; a matrix with NaN or infinite
    values is then refused. Memory is a few times the largest tensor. Raises UsageError,
    UnsafeInputError.
    """
    if pool.base is None:
        raise UsageError(
            Problem(
                thing="pool",
                cause="has no base, and a packed pool keeps deltas",
                remedy="Give --base",
            )
        )
    if ratio is not None and not 1.0 < ratio <= MAX_RATIO:
        raise UsageError(
            Problem(
                thing=f"ratio {ratio:g}",
                cause="is outside (1, 1000]",
                remedy="Try 16, or leave it out to be exact",
            )
        )
    entries: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    with atomic_folder(out) as aside:
        packer = _Packer(aside, pool.base, ratio)
        for checkpoint in (pool.base, *pool.members):
            entries[checkpoint.name] = packer.add(checkpoint)
            sizes[checkpoint.name] = packer.path_of(checkpoint).stat().st_size
        manifest = {
            "schema_version": 1,
            "base": pool.base.name,
            "ratio": ratio,
            "checkpoints": entries,
        }
        (aside / PACK_MANIFEST).write_text(json.dumps(manifest, allow_nan=False) + "\n")
    num_bytes_base = sizes.pop(pool.base.name)
    return PackReport(
        folder=str(out),
        num_bytes_before=sum(member.num_bytes for member in pool.members),
        num_bytes_base=num_bytes_base,
        num_bytes_members=sum(sizes.values()),
        errors=tuple(sorted(packer.errors, key=lambda entry: -entry.error)),
    )


def unpack(packed: Path, out: Path) -> list[Path]:
    """Write every checkpoint of a packed folder as a Hugging Face folder below `out`, atomically.

    Exact tensors are compared with the digest they had. Raises UsageError when `out` is there
    already or cannot be, UnsafeInputError for a pack that is damaged.
    """
    manifest = read_manifest(packed)
    with atomic_folder(out) as aside:
        for name, entry in manifest["checkpoints"].items():
            folder = aside / file_of(name)
            folder.mkdir()
            _copy_small_files(packed, entry["small"], folder)
            check_config(packed / PACK_MANIFEST, read_json(folder / "config.json"))
            write_unpacked(folder / "model.safetensors", Unpacker(packed, manifest), name)
    return [out / file_of(name) for name in manifest["checkpoints"]]


def _copy_small_files(packed: Path, digests: Mapping[str, str], folder: Path) -> None:
    """Copy a checkpoint's small files, known by their digests, out of a pack."""
    for name, digest in digests.items():
        source = packed / f"small-{digest}"
        if not SMALL.fullmatch(name) or not source.is_file():
            raise broken(
                packed / PACK_MANIFEST,
                f"names the file {name[:80]!r}, which is not there or not allowed",
            )
        shutil.copyfile(source, folder / name)


class _Packer:
    """Adds checkpoints to a packed folder, and remembers the tensors that are stored already."""

    def __init__(self, folder: Path, base: Checkpoint, ratio: float | None):
        self.folder, self.base, self.ratio = folder, base, ratio
        self.stored: dict[str, list[str]] = {}  # digest -> [checkpoint, tensor]
        self.errors: list[TensorError] = []

    def path_of(self, checkpoint: Checkpoint) -> Path:
        """The file that holds the checkpoint's tensors."""
        return self.folder / f"{file_of(checkpoint.name)}.safetensors"

    def add(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Store one checkpoint; its part of the manifest."""
        tensors: dict[str, Any] = {}
        header: dict[str, Any] = {}
        position = 0
        data = self.folder / ".data"
        with data.open("wb") as file:
            for name, info in checkpoint.tensors.items():
                entry, raw = self._tensor(checkpoint, name, info)
                tensors[name] = {"dtype": info.dtype, "shape": list(info.shape), **entry}
                if raw is not None:
                    header[name] = {
                        "dtype": "U8",
                        "shape": [len(raw)],
                        "data_offsets": [position, position + len(raw)],
                    }
                    position += file.write(raw)
        _prepend(data, header, self.path_of(checkpoint))
        return {"small": self._store_small_files(checkpoint), "tensors": tensors}

    def _tensor(
        self, checkpoint: Checkpoint, name: str, info: TensorInfo
    ) -> tuple[dict[str, Any], bytes | None]:
        """(entry of the manifest, bytes to store) of a tensor; no bytes for one stored already."""
        digest = tensor_digest(info)
        if digest in self.stored:
            return {"kind": "same", "as": self.stored[digest], "digest": digest}, None
        raw, origin = read_bytes(info, 0, info.num_bytes), self._origin(checkpoint, name, info)
        if origin is None:
            self.stored[digest] = [checkpoint.name, name]
            return {"kind": "raw", "digest": digest}, raw
        base_raw = read_bytes(origin, 0, origin.num_bytes)
        if self.ratio is not None and len(info.shape) == 2:
            num_bits = int(8 * info.num_bytes / self.ratio)
            return self._lowrank(checkpoint, info, raw, base_raw, num_bits)
        self.stored[digest] = [checkpoint.name, name]
        difference = encode_exact(raw, base_raw, DTYPE_BYTES[info.dtype])
        return {"kind": "exact", "digest": digest}, difference

    def _origin(self, checkpoint: Checkpoint, name: str, info: TensorInfo) -> TensorInfo | None:
        """The tensor of the base that a delta can be taken to; None where there is none."""
        origin = self.base.tensors.get(name)
        if checkpoint is self.base or origin is None or info.dtype not in FLOAT_DTYPES:
            return None
        is_alike = (origin.dtype, origin.shape) == (info.dtype, info.shape)
        return origin if is_alike else None

    def _lowrank(
        self, checkpoint: Checkpoint, info: TensorInfo, raw: bytes, base_raw: bytes, num_bits: int
    ) -> tuple[dict[str, Any], bytes]:
        """(entry of the manifest, bytes to store) of a matrix whose delta is compressed."""
        name = info.name
        ours = _refuse_not_finite(checkpoint, name, decoded(raw, info.dtype))
        theirs = _refuse_not_finite(self.base, name, decoded(base_raw, info.dtype))
        found = compress((ours - theirs).reshape(info.shape), num_bits)
        self.errors.append(TensorError(member=checkpoint.name, tensor=name, error=found.error))
        content = (
            found.coefficients.astype("<f4").tobytes()
            + pack_codes(found.left, found.split)
            + pack_codes(found.right, found.split)
        )
        split = [list(part) for part in found.split]
        return {"kind": "lowrank", "split": split, "error": found.error}, content

    def _store_small_files(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Store the small files of a checkpoint; their digests by name."""
        digests = {}
        for path in sorted(local_folder(checkpoint).iterdir()):
            is_index = path.name.endswith(".index.json")
            if SMALL.fullmatch(path.name) and not is_index and path.is_file():
                raw = path.read_bytes()
                digests[path.name] = digest = hashlib.sha256(raw).hexdigest()
                (self.folder / f"small-{digest}").write_bytes(raw)
        return digests


def _refuse_not_finite(checkpoint: Checkpoint, name: str, values: np.ndarray) -> np.ndarray:
    """The values of a tensor. Raises UnsafeInputError where one is not finite.

    Singular vectors would spread a NaN over the tensor, or hide it behind ordinary numbers; a merge
    refuses it too.
    """
    count = int((~np.isfinite(values)).sum())
    if count:
        raise UnsafeInputError(
            Problem(
                thing=f"checkpoint {checkpoint.name!r}: tensor {name!r}",
                cause=f"holds {count:,} values of {values.size:,} that are not finite, which "
                "compression cannot keep",
                remedy="That training run broke, or the file did: leave the checkpoint out, or "
                "pack without --ratio, which keeps every bit",
            )
        )
    return values


def _prepend(data: Path, header: dict[str, Any], target: Path) -> None:
    """Write a safetensors file of a header and the bytes in `data`, which is removed."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file, data.open("rb") as rest:
        file.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(rest, file, 1 << 23)
    data.unlink()
