"""The rules by which a Hugging Face folder is read: config, index, weight files.

A checkpoint's own claims are compared with its files; nothing is taken on trust.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recycler.errors import Problem, UnsafeInputError, UsageError
from recycler.pool.storage.headers import Source, broken, no_constants, unique_keys
from recycler.types import TensorInfo

INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 32_000_000
_COUNTS = (
    "num_hidden_layers",
    "hidden_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "head_dim",
)


def read_json(path: Path) -> Any:
    """A JSON file of a checkpoint.

    Raises UnsafeInputError for anything but well-formed JSON of a sane size.
    """
    try:
        if not path.is_file():
            raise _bad_json(path, "is not a regular file")
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise _bad_json(path, f"holds {size:,} bytes; {MAX_JSON_BYTES:,} is the limit")
        return parse_json(path, path.read_bytes())
    except OSError as error:
        raise _bad_json(path, f"cannot be read ({error.strerror})") from None


def _bad_json(path: Path, cause: str) -> UnsafeInputError:
    return UnsafeInputError(
        Problem(thing=str(path), cause=cause, remedy="Save it again from its source")
    )


def parse_json(source: Source, raw: bytes) -> Any:
    """JSON without repeated keys, NaN or infinities.

    Raises UnsafeInputError that names the source.
    """
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=no_constants
        )
    except (ValueError, RecursionError) as error:
        raise UnsafeInputError(
            Problem(
                thing=str(source),
                cause=f"cannot be read as JSON ({str(error)[:200]})",
                remedy="Save the checkpoint again",
            )
        ) from None


def read_config(path: Path) -> dict[str, Any]:
    """A checkpoint's config.json, checked.

    Raises UsageError when there is none, UnsafeInputError when it is not sound.
    """
    if not path.exists():
        raise UsageError(
            Problem(
                thing=str(path.parent),
                cause="has no config.json",
                remedy="Save the checkpoint with save_pretrained",
            )
        )
    return check_config(path, read_json(path))


def check_config(source: Source, config: Any) -> dict[str, Any]:
    """The config, when it is a mapping that asks for no code and its sizes are natural numbers.

    Raises UnsafeInputError otherwise.
    """
    if not isinstance(config, dict):
        raise UnsafeInputError(
            Problem(
                thing=str(source), cause="is not a JSON object", remedy="Save the checkpoint again"
            )
        )
    if "auto_map" in config:
        raise UnsafeInputError(
            Problem(
                thing=str(source),
                cause="asks to run code from the checkpoint (auto_map)",
                remedy="Remote code is never run; use an architecture that transformers knows",
            )
        )
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in _COUNTS:
            value = part.get(key)
            is_natural = type(value) is int and 0 <= value < 2**40
            if value is not None and not is_natural:
                raise UnsafeInputError(
                    Problem(
                        thing=str(source),
                        cause=f"has {key} {str(value)[:40]!r}, which is not a natural number",
                        remedy="Save the checkpoint again",
                    )
                )
    return config


def collect(shards: Mapping[str, Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """Tensors of all shards by name.

    Raises UnsafeInputError when two shards hold the same name, or none holds any.
    """
    tensors: dict[str, TensorInfo] = {}
    for infos in shards.values():
        for name, info in infos.items():
            if name in tensors:
                raise UnsafeInputError(
                    Problem(
                        thing=str(info.file),
                        cause=f"tensor {name!r} is in {tensors[name].file} too",
                        remedy="Remove the stray shard",
                    )
                )
            tensors[name] = info
    if not tensors:
        raise broken(", ".join(shards), "holds no tensors")
    return tensors


def check_index(source: Source, index: Any, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise UnsafeInputError unless an index names exactly the tensors and files of the shards."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise _bad_index(source, "has no weight_map of tensor names to file names")
    for file in weight_map.values():
        if not file.endswith(".safetensors") or any(letter in file for letter in "/\\\0"):
            raise _bad_index(
                source,
                f"names the file {file[:80]!r}, which is not a .safetensors file of this folder",
            )
    actual = {name: re.split(r"[/\\]", str(info.file))[-1] for name, info in tensors.items()}
    unknown = sorted(set(weight_map.values()) - set(actual.values()))
    if unknown:
        raise _bad_index(
            source, f"names the file {unknown[0][:80]!r}, which is not there or holds no tensors"
        )
    names = weight_map.keys() | actual.keys()
    wrong = sorted(name for name in names if weight_map.get(name) != actual.get(name))
    if wrong:
        raise _bad_index(
            source, f"disagrees with the shards about {len(wrong)} tensors, first {wrong[0][:80]!r}"
        )
    _check_total(source, index.get("metadata"), sum(info.num_bytes for info in tensors.values()))


def _check_total(source: Source, metadata: Any, num_bytes: int) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise _bad_index(source, "has metadata that is not a mapping")
    total = metadata.get("total_size", num_bytes)
    if type(total) not in (int, float) or total != num_bytes:
        raise _bad_index(
            source,
            f"claims a total_size of {str(total)[:40]} bytes where the shards hold {num_bytes:,}",
        )


def _bad_index(source: Source, cause: str) -> UnsafeInputError:
    return UnsafeInputError(
        Problem(
            thing=str(source),
            cause=cause,
            remedy="A shard is missing, stray or from another save; copy the checkpoint again",
        )
    )


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, sorted. Raises UnsafeInputError, UsageError."""
    names = {path.name for path in folder.iterdir()}
    return [folder / name for name in weight_names(str(folder), names)]


def weight_names(source: str, names: set[str]) -> list[str]:
    """The weight files among a folder's file names, sorted.

    Raises UnsafeInputError for pickles, UsageError when there are none.
    """
    shards = [name for name in names if name.endswith(".safetensors") and name[0] != "."]
    files = sorted(name for name in shards if name != "adapter_model.safetensors")
    if files:
        return files
    pickles = sorted(
        name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))
    )
    if pickles:
        raise UnsafeInputError(
            Problem(
                thing=source,
                cause=f"holds pickles ({', '.join(pickles[:3])}), which can run code when opened",
                remedy="Convert it to safetensors in a place you trust",
            )
        )
    if "adapter_config.json" in names:
        raise UsageError(
            Problem(
                thing=source,
                cause="is a LoRA adapter, not a full checkpoint",
                remedy="Fold it into its base first: recycler fold BASE ADAPTER OUT",
            )
        )
    raise UsageError(
        Problem(
            thing=source,
            cause="has no .safetensors file",
            remedy="Save the checkpoint with save_pretrained",
        )
    )
