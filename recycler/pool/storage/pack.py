"""Packed pools: the format, and reading tensors back from it.

A pack holds a pool as its base and deltas: exact, bit for bit, or compressed to a stated share with
the error told (`pack_writer`). Its folder is flat: `recycler-pack.json` (written last),
`CHECKPOINT.safetensors` with one entry per stored tensor, and `small-DIGEST` for configs and
tokenizers, each stored once. A tensor is stored as one of

    same     equal to another one that is stored already (the base's, or another member's)
    raw      its bytes
    exact    differences to the base's bits as integers, zigzag, in byte planes, deflated:
             inverts bit for bit
    lowrank  singular vectors of the delta at mixed precision (lowrank.py)
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from recycler.errors import Problem, UnsafeInputError, UsageError
from recycler.location import PACK_MANIFEST
from recycler.pool.storage.headers import DTYPE_BYTES, broken, changed_since, read_header
from recycler.pool.storage.hf_folder import parse_json
from recycler.pool.storage.pack_codec import add_lowrank, decode_exact
from recycler.types import TensorInfo

# same as another member's, which is a delta to the base's, which is the same as another base tensor
MAX_STEPS = 3
MAX_NAME = 200  # characters of a checkpoint's name


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
    is_plain = all(letter.isalnum() or letter in "._-" for letter in name)
    return is_plain and 0 < len(name) <= MAX_NAME and not name.startswith(".")


# ---------------------------------------------------------------- tensors


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
        if depth > MAX_STEPS:
            raise ValueError("its references go in a circle")
        raw = self._stored_as(entry, checkpoint, name, depth)
        num_bytes = entry_num_bytes(entry)
        if len(raw) != num_bytes:
            raise ValueError(f"{len(raw)} bytes where {num_bytes} were expected")
        if "digest" in entry:
            head = f"{entry['dtype']} {entry['shape']}".encode()
            if hashlib.sha256(head + raw).hexdigest() != entry["digest"]:
                raise ValueError("its digest is another")
        return raw

    def _stored_as(self, entry: dict[str, Any], checkpoint: str, name: str, depth: int) -> bytes:
        """A tensor's bytes by the kind of its entry."""
        kind = entry["kind"]
        if kind == "same":
            other, other_name = entry["as"]
            return self.tensor(other, other_name, depth + 1)
        if kind == "raw":
            return self._content(checkpoint, name)
        base = self.tensor(self.manifest["base"], name, depth + 1)
        content = self._content(checkpoint, name)
        if kind == "exact":
            return decode_exact(content, base, DTYPE_BYTES[entry["dtype"]])
        return add_lowrank(base, content, entry)

    def _content(self, checkpoint: str, name: str) -> bytes:
        path = self.folder / f"{file_of(checkpoint)}.safetensors"
        if checkpoint not in self.headers:
            self.headers[checkpoint] = read_header(path)
        info = self.headers[checkpoint][name]
        with path.open("rb") as file:
            file.seek(info.start)
            raw = file.read(info.num_bytes)
        if len(raw) != info.num_bytes:
            raise changed_since(info)
        return raw


def unpacked_header(manifest: dict[str, Any], checkpoint: str) -> bytes:
    """The header of an unpacked checkpoint's safetensors file, its length included.

    The tensors follow in that order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position, tensors = 0, manifest["checkpoints"][checkpoint]["tensors"]
    for name, entry in tensors.items():
        num_bytes = entry_num_bytes(entry)
        header[name] = {
            "dtype": entry["dtype"],
            "shape": entry["shape"],
            "data_offsets": [position, position + num_bytes],
        }
        position += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def entry_num_bytes(entry: dict[str, Any]) -> int:
    """The size of a tensor, by its entry in the manifest."""
    return math.prod(entry["shape"]) * DTYPE_BYTES[entry["dtype"]]


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
    if not _is_sound(manifest):
        raise UnsafeInputError(
            Problem(
                thing=str(path),
                cause="is not the manifest of a packed pool",
                remedy="Pack the pool again",
            )
        )
    for name in manifest["checkpoints"]:
        if not _is_file_name(name):  # names become folders of the cache
            raise UnsafeInputError(
                Problem(
                    thing=str(path),
                    cause=f"names the checkpoint {name[:80]!r}, which is no file name",
                    remedy="Do not use this pack: recycler pack never writes such a name",
                )
            )
    return manifest


def _is_sound(manifest: Any) -> bool:
    """True for a manifest whose every part has the type it should have."""
    try:
        return (
            manifest["schema_version"] == 1
            and manifest["base"] in manifest["checkpoints"]
            and all(map(_is_sound_checkpoint, manifest["checkpoints"].values()))
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _is_sound_checkpoint(entry: dict[str, Any]) -> bool:
    if not isinstance(entry["small"], dict):
        return False
    for digest in entry["small"].values():
        if not isinstance(digest, str) or not digest.isalnum():
            return False
    return all(map(_is_sound_tensor, entry["tensors"].values()))


def _is_sound_tensor(entry: dict[str, Any]) -> bool:
    is_shape = all(type(number) is int and number >= 0 for number in entry["shape"])
    return is_shape and entry["dtype"] in DTYPE_BYTES
