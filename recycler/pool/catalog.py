"""Open checkpoints and pools from folders: headers and configs only, milliseconds for any size.

What a checkpoint says about itself is compared with what its files hold; nothing is believed that
does not add up.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from recycler.errors import Problem, RecyclerError, UnsafeInputError, UsageError, raise_problems
from recycler.pool.headers import broken, no_constants, read_header, unique_keys
from recycler.types import Checkpoint, Pool, TensorInfo

INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 32_000_000
PACK_MANIFEST = "recycler-pack.json"
_COUNTS = (
    "num_hidden_layers",
    "hidden_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "head_dim",
)
_URL = re.compile(r"(s3|gs|az|hf):/+(.*)", re.DOTALL)


def remote_url(location: str | Path) -> str | None:
    """The URL of a bucket that a location is, or None for a path.

    A Path that swallowed a slash (s3:/bucket) is understood.
    """
    match = _URL.fullmatch(str(location))
    return f"{match[1]}://{match[2]}" if match else None


def packed_place(location: str | Path) -> tuple[str, str] | None:
    """(pack, name) of a place PACK/recycler-pack.json#NAME, or None for any other."""
    pack, found, name = str(location).rpartition(f"/{PACK_MANIFEST}#")
    return (remote_url(pack) or pack, name) if found else None


def local_path(location: str | Path) -> str:
    """A path, of which file:// may stand in front."""
    return re.sub(r"\Afile:/+", "/", str(location))


def open_checkpoint(folder: str | Path, name: str | None = None) -> Checkpoint:
    """A Hugging Face folder, or a prefix of a bucket, as a Checkpoint.

    Raises UsageError for a wrong path and UnsafeInputError for a broken checkpoint.
    """
    if packed_place(folder):
        from recycler.pool.packed import open_packed_checkpoint

        return open_packed_checkpoint(str(folder), name)
    if (url := remote_url(folder)) is not None:
        if url.startswith("hf://"):
            from recycler.pool.hub import hub_folder

            return replace(
                open_checkpoint(
                    hub_folder(url), name or url.split("@")[0].rstrip("/").rsplit("/", 1)[-1]
                ),
                location=url,
            )
        from recycler.pool.remote import open_remote_checkpoint

        return open_remote_checkpoint(url, name)
    folder = Path(local_path(folder))
    name = name or folder.resolve().name
    if not _is_folder(folder):
        raise UsageError(
            Problem(
                thing=f"checkpoint {name!r}",
                cause=f"{folder} is not a folder",
                remedy="Give the folder that holds config.json",
            )
        )
    config = read_config(folder / "config.json")
    files = _weight_files(folder)
    tensors = collect({str(file): read_header(file) for file in files})
    if (folder / INDEX).exists():
        check_index(folder / INDEX, read_json(folder / INDEX), tensors)
    return Checkpoint(name=name, location=str(folder), tensors=tensors, config=config)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # longer than a file name may be, or with a zero byte
        return False


def open_pool(members: Sequence[str | Path], base: str | Path | None = None) -> Pool:
    """Folders, globs, folders of folders, prefixes of buckets, or packed pools, as a Pool; members
    are named after their folders.

    A packed pool brings its base. Raises one error that lists the problems of every checkpoint, of
    the gravest class among them.
    """
    found: list[str] = []
    problems: list[Problem] = []
    kinds: list[type[RecyclerError]] = [UsageError]
    for pattern in map(str, members):
        try:
            if _is_pack(pattern):
                from recycler.pool.packed import packed_pool

                expanded, own_base = packed_pool(pattern)
                base = base or own_base
            else:
                expanded = _expand(pattern)
        except RecyclerError as error:
            problems += error.problems
            kinds.append(type(error))
            continue
        if not expanded:
            problems.append(
                Problem(
                    thing=f"pool entry {pattern!r}",
                    cause="matches no folder with a config.json",
                    remedy="Check the path; globs like runs/*/ are allowed",
                )
            )
        found += expanded
    checkpoints: list[Checkpoint] = []
    for name, place in _named(found) + ([("base", str(base))] if base else []):
        try:
            checkpoints.append(open_checkpoint(place, name))
        except RecyclerError as error:
            problems += error.problems
            kinds.append(type(error))
    raise_problems(problems, max(kinds, key=lambda kind: kind.exit_code))
    return Pool(members=tuple(checkpoints[: len(found)]), base=checkpoints[-1] if base else None)


def _is_pack(place: str) -> bool:
    url = remote_url(place)
    if url is None:
        return (
            _is_folder(Path(local_path(place)))
            and (Path(local_path(place)) / PACK_MANIFEST).is_file()
        )
    if url.startswith("hf://"):
        return False
    from recycler.pool.bucket import size_of, trimmed

    return size_of(f"{trimmed(url)}/{PACK_MANIFEST}") is not None


def _expand(pattern: str) -> list[str]:
    if (url := remote_url(pattern)) is not None:
        if url.startswith("hf://"):
            return [url]
        from recycler.pool.remote import list_checkpoints

        return list_checkpoints(url)
    folders: list[str] = []
    for path in map(Path, sorted(glob.glob(local_path(pattern)))):
        if (path / "config.json").is_file():
            folders.append(str(path))
        elif path.is_dir():
            folders += [
                str(child) for child in sorted(path.iterdir()) if (child / "config.json").is_file()
            ]
    return folders


def would_list(entry: str, place: str) -> bool:
    """Whether a pool's entry finds a checkpoint that is written to `place`, or is itself a
    checkpoint around it. Names alone are looked at.
    """
    entry_url, url = remote_url(entry), remote_url(place)
    if entry_url is not None or url is not None:
        return (
            entry_url is not None
            and url is not None
            and entry_url.rstrip("/") in (url.rstrip("/"), url.rstrip("/").rpartition("/")[0])
        )
    path = Path(local_path(place)).resolve()
    return any(
        _matches(Path(os.path.abspath(local_path(entry))).parts, one.parts)
        for one in (path, path.parent)
    )


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a glob finds a resolved path; links in the part of it that is no pattern are
    followed.
    """
    plain = next(
        (index for index, part in enumerate(pattern) if glob.has_magic(part)), len(pattern)
    )
    whole = (*Path(*pattern[:plain]).resolve().parts, *pattern[plain:])
    return len(whole) == len(parts) and all(
        _matches_part(part, wanted) for part, wanted in zip(parts, whole, strict=True)
    )


def _matches_part(part: str, wanted: str) -> bool:
    """As `glob` does: a pattern finds no name with a leading dot unless it has one."""
    return (
        part == wanted
        if not glob.has_magic(wanted)
        else fnmatchcase(part, wanted) and (wanted[0] == "." or part[0] != ".")
    )


def _named(places: Sequence[str]) -> list[tuple[str, str]]:
    """Short names where they are unique, else with as much of the path before them as tells them
    apart; 'base' is the base's.
    """
    parts = [_parts(place) for place in places]
    names: list[str] = []
    for own in parts:
        length = 1
        while length < len(own) and (
            any(other != own and other[-length:] == own[-length:] for other in parts)
            or own[-length:] == ["base"]
        ):
            length += 1
        names.append("-".join(own[-length:]))
    return [
        (name if names.index(name) == index else f"{name}-{index}", place)
        for index, (name, place) in enumerate(zip(names, places, strict=True))
    ]


def _parts(place: str) -> list[str]:
    if (packed := packed_place(place)) is not None:
        return [*_parts(packed[0]), packed[1]]
    if (url := remote_url(place)) is not None:
        return [part for part in url.split("://", 1)[1].split("/") if part]
    return [part for part in Path(place).resolve().parts if part != "/"]


# ---------------------------------------------------------------- what is read, and how it is checked


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


def parse_json(source: str | Path, raw: bytes) -> Any:
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


def check_config(source: str | Path, config: Any) -> dict[str, Any]:
    """`config` when it is a mapping that asks for no code and whose sizes are natural numbers.

    Raises UnsafeInputError.
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
        wrong = [
            key
            for key in _COUNTS
            if key in part
            and not (part[key] is None or type(part[key]) is int and 0 <= part[key] < 2**40)
        ]
        if wrong:
            raise UnsafeInputError(
                Problem(
                    thing=str(source),
                    cause=f"has {wrong[0]} {str(part[wrong[0]])[:40]!r}, which is not a natural "
                    "number",
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
                        thing=info.file,
                        cause=f"tensor {name!r} is in {tensors[name].file} too",
                        remedy="Remove the stray shard",
                    )
                )
            tensors[name] = info
    if not tensors:
        raise broken(", ".join(shards), "holds no tensors")
    return tensors


def check_index(source: str | Path, index: Any, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise UnsafeInputError unless a shard index names exactly the tensors, files and bytes that
    the shards hold.
    """
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise _bad_index(source, "has no weight_map of tensor names to file names")
    escaping = [
        file
        for file in weight_map.values()
        if "/" in file
        or "\\" in file
        or "\0" in file
        or file in ("", ".", "..")
        or not file.endswith(".safetensors")
    ]
    if escaping:
        raise _bad_index(
            source,
            f"names the file {escaping[0][:80]!r}, which is not a .safetensors file of this folder",
        )
    actual = {
        name: info.file.replace("\\", "/").rsplit("/", 1)[-1] for name, info in tensors.items()
    }
    unknown = sorted(set(weight_map.values()) - set(actual.values()))
    if unknown:
        raise _bad_index(
            source, f"names the file {unknown[0][:80]!r}, which is not there or holds no tensors"
        )
    wrong = sorted(
        name
        for name in weight_map.keys() | actual.keys()
        if weight_map.get(name) != actual.get(name)
    )
    if wrong:
        raise _bad_index(
            source, f"disagrees with the shards about {len(wrong)} tensors, first {wrong[0][:80]!r}"
        )
    _check_total(source, index.get("metadata"), sum(info.num_bytes for info in tensors.values()))


def _check_total(source: str | Path, metadata: Any, num_bytes: int) -> None:
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


def _bad_index(source: str | Path, cause: str) -> UnsafeInputError:
    return UnsafeInputError(
        Problem(
            thing=str(source),
            cause=cause,
            remedy="A shard is missing, stray or from another save; copy the checkpoint again",
        )
    )


def _weight_files(folder: Path) -> list[Path]:
    names = {path.name for path in folder.iterdir()}
    return [folder / name for name in weight_names(str(folder), names)]


def weight_names(source: str, names: set[str]) -> list[str]:
    """The weight files among a folder's file names, sorted.

    Raises UnsafeInputError for pickles, UsageError when there are none.
    """
    files = sorted(
        name
        for name in names
        if name.endswith(".safetensors")
        and name != "adapter_model.safetensors"
        and not name.startswith(".")
    )
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
