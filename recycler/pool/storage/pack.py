"""Keep a pool as its base and deltas: exact, bit for bit, or compressed to a stated share with the
error told.

A packed folder is flat: `recycler-pack.json` (written last), `CHECKPOINT.safetensors` with one
entry a stored tensor, and `small-DIGEST` for configs and tokenizers, each stored once. A tensor is
stored as one of
    same     equal to another one that is stored already (the base's, or another member's)
    raw      its bytes
    exact    differences to the base's bits as integers, zigzag, in byte planes, deflated: inverts bit for bit
    lowrank  singular vectors of the delta at mixed precision (recycler.pool.storage.lowrank)
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from recycler.errors import Problem, UnsafeInputError, UsageError
from recycler.location import PACK_MANIFEST
from recycler.pool.storage.headers import DTYPE_BYTES, broken, read_header
from recycler.pool.storage.hf_folder import parse_json
from recycler.pool.storage.pack_codec import add_lowrank, decode_exact
from recycler.types import TensorInfo

# same as another member's, which is a delta to the base's, which is the same as another of the
# base's
MAX_STEPS = 3


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
                self.folder / PACK_MANIFEST,
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
                else add_lowrank(base, content, entry)
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
        path = self.folder / f"{file_of(checkpoint)}.safetensors"
        if checkpoint not in self.headers:
            self.headers[checkpoint] = read_header(path)
        info = self.headers[checkpoint][name]
        with path.open("rb") as file:
            file.seek(info.start)
            raw = file.read(info.num_bytes)
        if len(raw) != info.num_bytes:
            raise broken(
                info.file,
                f"ends within tensor {info.name!r}: it was changed since its header was read",
            )
        return raw


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
    path = packed / PACK_MANIFEST
    if not path.is_file():
        raise UsageError(
            Problem(
                thing=str(packed),
                cause=f"has no {PACK_MANIFEST}",
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
