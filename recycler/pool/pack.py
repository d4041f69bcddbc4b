"""Keep a pool as its base and deltas: exact, bit for bit, or compressed to a stated share with the
error told.

A packed folder is flat: `recycler-pack.json` (written last), `CHECKPOINT.safetensors` with one
entry a stored tensor, and `small-DIGEST` for configs and tokenizers, each stored once. A tensor is
stored as one of
    same     equal to another one that is stored already (the base's, or another member's)
    raw      its bytes
    exact    differences to the base's bits as integers, zigzag, in byte planes, deflated: inverts bit for bit
    lowrank  singular vectors of the delta at mixed precision (recycler.pool.lowrank)
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recycler.errors import Problem, UnsafeInputError, UsageError
from recycler.pool.catalog import PACK_MANIFEST as MANIFEST
from recycler.pool.catalog import check_config, parse_json, read_json
from recycler.pool.deltas import decoded
from recycler.pool.files import local_folder
from recycler.pool.headers import DTYPE_BYTES, FLOAT_DTYPES, broken, read_header
from recycler.pool.lowrank import LowRank, compress, num_ranks, pack_codes, unpack_codes
from recycler.pool.remote import SMALL
from recycler.pool.scan import read_bytes, tensor_digest
from recycler.types import Checkpoint, Pool, TensorInfo
from recycler.wholefolder import whole_folder

# same as another member's, which is a delta to the base's, which is the same as another of the
# base's
MAX_STEPS = 3
_INTEGERS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


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
    with whole_folder(out) as aside:
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
        (aside / MANIFEST).write_text(json.dumps(manifest, allow_nan=False) + "\n")
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
    with whole_folder(out) as aside:
        for name, entry in manifest["checkpoints"].items():
            folder = aside / file_of(name)
            folder.mkdir()
            for small, digest in entry["small"].items():
                if not SMALL.fullmatch(small) or not (packed / f"small-{digest}").is_file():
                    raise broken(
                        packed / MANIFEST,
                        f"names the file {small[:80]!r}, which is not there or not allowed",
                    )
                shutil.copyfile(packed / f"small-{digest}", folder / small)
            check_config(packed / MANIFEST, read_json(folder / "config.json"))
            write_unpacked(folder / "model.safetensors", Unpacker(packed, manifest), name)
    return [out / file_of(name) for name in manifest["checkpoints"]]


def file_of(name: str) -> str:
    """The name of a checkpoint, when it can be that of a file. Raises UsageError."""
    if not _is_file_name(name):
        raise UsageError(
            Problem(
                thing=f"checkpoint {name[:80]!r}",
                cause="has a name that is no file name",
                remedy="Rename its folder: letters, digits, dots and dashes",
            )
        )
    return name


def _is_file_name(name: str) -> bool:
    return (
        bool(name)
        and not name.startswith(".")
        and all(letter.isalnum() or letter in "._-" for letter in name)
        and len(name) <= 200
    )


# ---------------------------------------------------------------- packing


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


def encode_exact(raw: bytes, base: bytes, size: int) -> bytes:
    """Bytes from which, and `base`, `decode_exact` gives `raw` again; small when the two are near."""
    kind = _INTEGERS[size]
    difference = _ordered(np.frombuffer(raw, kind)) - _ordered(
        np.frombuffer(base, kind)
    )  # wraps, and so inverts
    bits = 8 * size
    zigzag = (difference << kind(1)) ^ (kind(0) - (difference >> kind(bits - 1)))
    return zlib.compress(
        np.ascontiguousarray(zigzag.view(np.uint8).reshape(-1, size).T).tobytes(), 1
    )


def decode_exact(content: bytes, base: bytes, size: int) -> bytes:
    """The inverse of `encode_exact`. Raises ValueError when the content is damaged."""
    try:
        planes = zlib.decompressobj().decompress(content, len(base) + 1) if base else b""
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(planes) != len(base):
        raise ValueError(f"{len(planes)} bytes where {len(base)} were expected")
    kind = _INTEGERS[size]
    zigzag = (
        np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(size, -1).T)
        .view(kind)
        .reshape(-1)
    )
    difference = (zigzag >> kind(1)) ^ (kind(0) - (zigzag & kind(1)))
    return _unordered(difference + _ordered(np.frombuffer(base, kind))).tobytes()


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Float bit patterns as integers in the order of the numbers, so that near numbers have near
    integers; a bijection.
    """
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def _unordered(ordered: np.ndarray) -> np.ndarray:
    sign = ordered.dtype.type(1 << (8 * ordered.itemsize - 1))
    return np.where(ordered & sign, ordered ^ sign, ~ordered)


# ---------------------------------------------------------------- unpacking


class Unpacker:
    """Random access to the tensors of a packed folder, as bytes."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self.headers: dict[str, dict[str, TensorInfo]] = {}

    def tensor(self, checkpoint: str, name: str, depth: int = 0) -> bytes:
        """The tensor's bytes. Raises UnsafeInputError when the pack does not hold together."""
        try:
            return self._decode(checkpoint, name, depth)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise broken(
                self.folder / MANIFEST,
                f"does not give back tensor {name!r} of {checkpoint!r} ({error!r})",
            ) from None

    def _decode(self, checkpoint: str, name: str, depth: int) -> bytes:
        entry = self.manifest["checkpoints"][checkpoint]["tensors"][name]
        size, num = DTYPE_BYTES[entry["dtype"]], math.prod(entry["shape"])
        if depth > MAX_STEPS:
            raise ValueError("its references go in a circle")
        if entry["kind"] == "same":
            raw = self.tensor(*entry["as"], depth=depth + 1)
        elif entry["kind"] == "raw":
            raw = self._content(checkpoint, name)
        else:
            base = self.tensor(self.manifest["base"], name, depth=depth + 1)
            content = self._content(checkpoint, name)
            raw = (
                decode_exact(content, base, size)
                if entry["kind"] == "exact"
                else _add_lowrank(base, content, entry)
            )
        if len(raw) != size * num:
            raise ValueError(f"{len(raw)} bytes where {size * num} were expected")
        if (
            "digest" in entry
            and hashlib.sha256(f"{entry['dtype']} {entry['shape']}".encode() + raw).hexdigest()
            != entry["digest"]
        ):
            raise ValueError("its digest is another")
        return raw

    def _content(self, checkpoint: str, name: str) -> bytes:
        if checkpoint not in self.headers:
            self.headers[checkpoint] = read_header(
                self.folder / f"{file_of(checkpoint)}.safetensors"
            )
        info = self.headers[checkpoint][name]
        return read_bytes(info, 0, info.num_bytes)


def _add_lowrank(base: bytes, content: bytes, entry: dict[str, Any]) -> bytes:
    rows, columns = entry["shape"]
    split = tuple((int(bits), int(count)) for bits, count in entry["split"])
    rank = num_ranks(split)
    place, length = 4 * rank, -(-sum(rows * bits * count for bits, count in split) // 8)
    found = LowRank(
        split=split,
        coefficients=np.frombuffer(content[:place], "<f4"),
        left=unpack_codes(content[place : place + length], rows, split),
        right=unpack_codes(content[place + length :], columns, split),
        error=0.0,
    )
    return _rounded(decoded(base, entry["dtype"]) + found.matrix().reshape(-1), entry["dtype"])


def _rounded(values: np.ndarray, dtype: str) -> bytes:
    """float32 numbers in another float dtype, to nearest, ties to even."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).tobytes()


def unpacked_header(manifest: dict[str, Any], checkpoint: str) -> bytes:
    """How the safetensors file of an unpacked checkpoint begins, length included; the tensors
    follow in that order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position, tensors = 0, manifest["checkpoints"][checkpoint]["tensors"]
    for name, entry in tensors.items():
        num_bytes = math.prod(entry["shape"]) * DTYPE_BYTES[entry["dtype"]]
        header[name] = {
            "dtype": entry["dtype"],
            "shape": entry["shape"],
            "data_offsets": [position, position + num_bytes],
        }
        position += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_unpacked(path: Path, source: Unpacker, checkpoint: str) -> None:
    """Write one checkpoint of a pack as a safetensors file.

    Raises UnsafeInputError when the pack is damaged.
    """
    with path.open("wb") as file:
        file.write(unpacked_header(source.manifest, checkpoint))
        for name in source.manifest["checkpoints"][checkpoint]["tensors"]:
            file.write(source.tensor(checkpoint, name))


def read_manifest(packed: Path) -> dict[str, Any]:
    """The manifest of a packed folder, checked.

    Raises UsageError when there is none, UnsafeInputError when it is not sound.
    """
    path = packed / MANIFEST
    if not path.is_file():
        raise UsageError(
            Problem(
                thing=str(packed),
                cause=f"has no {MANIFEST}",
                remedy="Give a folder that recycler pack has written",
            )
        )
    manifest = parse_json(path, path.read_bytes())
    try:
        sound = (
            manifest["schema_version"] == 1
            and manifest["base"] in manifest["checkpoints"]
            and all(
                isinstance(entry["small"], dict)
                and all(
                    isinstance(digest, str) and digest.isalnum()
                    for digest in entry["small"].values()
                )
                and all(
                    tensor["dtype"] in DTYPE_BYTES
                    and all(type(number) is int and number >= 0 for number in tensor["shape"])
                    for tensor in entry["tensors"].values()
                )
                for entry in manifest["checkpoints"].values()
            )
        )
    except (KeyError, TypeError, AttributeError):
        sound = False
    if sound and not all(
        map(_is_file_name, manifest["checkpoints"])
    ):  # names become folders of the cache
        escaping = next(name for name in manifest["checkpoints"] if not _is_file_name(name))
        raise UnsafeInputError(
            Problem(
                thing=str(path),
                cause=f"names the checkpoint {escaping[:80]!r}, which is no file name",
                remedy="Do not use this pack: recycler pack never writes such a name",
            )
        )
    if not sound:
        raise UnsafeInputError(
            Problem(
                thing=str(path),
                cause="is not the manifest of a packed pool",
                remedy="Pack the pool again",
            )
        )
    return manifest
