"""Write a pool as its base and deltas, and write a packed pool as folders again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """|delta - what is stored of it| / |delta| of a tensor that was compressed, in the Frobenius
    norm.
    """

    member: str
    tensor: str
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """A finished pack: bytes before and after (members without base), and errors, largest first;
    none when exact.
    """

    folder: str
    num_bytes_before: int
    num_bytes_base: int
    num_bytes_members: int
    errors: tuple[TensorError, ...]


def pack_pool(pool: Pool, out: Path, ratio: float | None = None) -> PackReport:
    """Write `pool` to `out` as base and deltas. The folder appears whole or not at all.

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
    if ratio is not None and not 1.0 < ratio <= 1000.0:
        raise UsageError(
            Problem(
                thing=f"ratio {ratio:g}",
                cause="is outside (1, 1000]",
                remedy="Try 16, or leave it out to be exact",
            )
        )
    with atomic_folder(out) as aside:
        packer = _Packer(aside, pool.base, ratio)
        checkpoints = {
            checkpoint.name: packer.add(checkpoint) for checkpoint in (pool.base, *pool.members)
        }
        manifest = {
            "schema_version": 1,
            "base": pool.base.name,
            "ratio": ratio,
            "checkpoints": checkpoints,
        }
        sizes = {
            name: (aside / f"{file_of(name)}.safetensors").stat().st_size for name in checkpoints
        }
        (aside / PACK_MANIFEST).write_text(json.dumps(manifest, allow_nan=False) + "\n")
    return PackReport(
        folder=str(out),
        num_bytes_before=sum(member.num_bytes for member in pool.members),
        num_bytes_base=sizes[pool.base.name],
        num_bytes_members=sum(size for name, size in sizes.items() if name != pool.base.name),
        errors=tuple(sorted(packer.errors, key=lambda entry: -entry.error)),
    )


def unpack(packed: Path, out: Path) -> list[Path]:
    """Write every checkpoint of a packed folder as a Hugging Face folder below `out`, which appears
    whole or not at all.

    Exact tensors are compared with the digest they had. Raises UsageError when `out` is there
    already or cannot be, UnsafeInputError for a pack that is damaged.
    """
    manifest = read_manifest(packed)
    with atomic_folder(out) as aside:
        for name, entry in manifest["checkpoints"].items():
            folder = aside / file_of(name)
            folder.mkdir()
            for small, digest in entry["small"].items():
                if not SMALL.fullmatch(small) or not (packed / f"small-{digest}").is_file():
                    raise broken(
                        packed / PACK_MANIFEST,
                        f"names the file {small[:80]!r}, which is not there or not allowed",
                    )
                shutil.copyfile(packed / f"small-{digest}", folder / small)
            check_config(packed / PACK_MANIFEST, read_json(folder / "config.json"))
            write_unpacked(folder / "model.safetensors", Unpacker(packed, manifest), name)
    return [out / file_of(name) for name in manifest["checkpoints"]]


class _Packer:
    """Adds checkpoints to a packed folder and remembers what is stored already."""

    def __init__(self, folder: Path, base: Checkpoint, ratio: float | None):
        self.folder, self.base, self.ratio = folder, base, ratio
        self.stored: dict[str, list[str]] = {}  # digest -> [checkpoint, tensor]
        self.errors: list[TensorError] = []

    def add(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Store one checkpoint; returns its part of the manifest."""
        tensors, header, position = {}, {}, 0
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
        _prepend(data, header, self.folder / f"{file_of(checkpoint.name)}.safetensors")
        return {"small": dict(self._small(checkpoint)), "tensors": tensors}

    def _tensor(
        self, checkpoint: Checkpoint, name: str, info: TensorInfo
    ) -> tuple[dict[str, Any], bytes | None]:
        digest = tensor_digest(info)
        if digest in self.stored:
            return {"kind": "same", "as": self.stored[digest], "digest": digest}, None
        raw, origin = read_bytes(info, 0, info.num_bytes), self.base.tensors.get(name)
        if (
            checkpoint is self.base
            or origin is None
            or (origin.dtype, origin.shape) != (info.dtype, info.shape)
            or info.dtype not in FLOAT_DTYPES
        ):
            self.stored[digest] = [checkpoint.name, name]
            return {"kind": "raw", "digest": digest}, raw
        base_raw = read_bytes(origin, 0, origin.num_bytes)
        if self.ratio is not None and len(info.shape) == 2:
            return self._lowrank(checkpoint, name, info, raw, base_raw)
        self.stored[digest] = [checkpoint.name, name]
        return {"kind": "exact", "digest": digest}, encode_exact(
            raw, base_raw, DTYPE_BYTES[info.dtype]
        )

    def _lowrank(
        self, checkpoint: Checkpoint, name: str, info: TensorInfo, raw: bytes, base_raw: bytes
    ) -> tuple[dict[str, Any], bytes]:
        delta = (
            self._finite(checkpoint, name, decoded(raw, info.dtype))
            - self._finite(self.base, name, decoded(base_raw, info.dtype))
        ).reshape(info.shape)
        found = compress(delta, int(8 * info.num_bytes / self.ratio))
        self.errors.append(TensorError(member=checkpoint.name, tensor=name, error=found.error))
        content = (
            found.coefficients.astype("<f4").tobytes()
            + pack_codes(found.left, found.split)
            + pack_codes(found.right, found.split)
        )
        return {
            "kind": "lowrank",
            "split": [list(part) for part in found.split],
            "error": found.error,
        }, content

    def _finite(self, checkpoint: Checkpoint, name: str, values: np.ndarray) -> np.ndarray:
        """Singular vectors would spread a NaN over the tensor, or hide it behind ordinary numbers:

        refused, as a merge refuses it.
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

    def _small(self, checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
        for path in sorted(local_folder(checkpoint).iterdir()):
            if (
                path.is_file()
                and SMALL.fullmatch(path.name)
                and not path.name.endswith(".index.json")
            ):
                raw = path.read_bytes()
                digest = hashlib.sha256(raw).hexdigest()
                (self.folder / f"small-{digest}").write_bytes(raw)
                yield path.name, digest


def _prepend(data: Path, header: dict[str, Any], target: Path) -> None:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file, data.open("rb") as rest:
        file.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(rest, file, 1 << 23)
    data.unlink()
