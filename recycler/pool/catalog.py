"""Open checkpoints and pools from folders: headers and configs only, milliseconds for any size.

What a checkpoint says about itself is compared with what its files hold; nothing is believed that
does not add up.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from recycler.errors import Problem, RecyclerError, UsageError, raise_problems
from recycler.pool.storage.bucket import size_of, trimmed
from recycler.pool.storage.headers import read_header
from recycler.pool.storage.hf_folder import (
    check_index,
    collect,
    read_config,
    read_json,
    weight_files,
)
from recycler.pool.storage.hub import hub_folder
from recycler.pool.storage.location import (
    INDEX,
    PACK_MANIFEST,
    local_path,
    packed_place,
    remote_url,
)
from recycler.pool.storage.packed import open_packed_checkpoint, packed_pool
from recycler.pool.storage.remote import list_checkpoints, open_remote_checkpoint
from recycler.types import Checkpoint, Pool


def open_checkpoint(folder: str | Path, name: str | None = None) -> Checkpoint:
    """A Hugging Face folder, or a prefix of a bucket, as a Checkpoint.

    Raises UsageError for a wrong path and UnsafeInputError for a broken checkpoint.
    """
    if packed_place(folder):
        return open_packed_checkpoint(str(folder), name)
    if (url := remote_url(folder)) is not None:
        if url.startswith("hf://"):
            return replace(
                open_checkpoint(
                    hub_folder(url), name or url.split("@")[0].rstrip("/").rsplit("/", 1)[-1]
                ),
                location=url,
            )
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
    files = weight_files(folder)
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
    return size_of(f"{trimmed(url)}/{PACK_MANIFEST}") is not None


def _expand(pattern: str) -> list[str]:
    if (url := remote_url(pattern)) is not None:
        if url.startswith("hf://"):
            return [url]
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
