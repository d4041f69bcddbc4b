"""Open checkpoints and pools: headers and configs only, milliseconds for any size.

The claims of a checkpoint are compared with its files; nothing is trusted that does not add up.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from recycler.errors import Problem, RecyclerError, UsageError, raise_problems
from recycler.location import (
    PACK_MANIFEST,
    BucketLocation,
    DiskLocation,
    HubLocation,
    Location,
    PackLocation,
    RemoteLocation,
    parse_location,
)
from recycler.pool.storage.bucket import size_of, trimmed
from recycler.pool.storage.headers import read_header
from recycler.pool.storage.hf_folder import (
    INDEX,
    check_index,
    collect,
    read_config,
    read_json,
    weight_files,
)
from recycler.pool.storage.hub import hub_folder
from recycler.pool.storage.packed import open_packed_checkpoint, packed_pool
from recycler.pool.storage.remote import list_checkpoints, open_remote_checkpoint
from recycler.types import Checkpoint, Pool


def open_checkpoint(place: str | Path | Location, name: str | None = None) -> Checkpoint:
    """The checkpoint in a Hugging Face folder, a prefix of a bucket, a repository or a pack.

    Raises UsageError for a wrong place and UnsafeInputError for a broken checkpoint.
    """
    match parse_location(place):
        case DiskLocation(path=path):
            return _open_folder(Path(path), name)
        case BucketLocation(url=url):
            return open_remote_checkpoint(url, name)
        case HubLocation(url=url) as location:
            own = location.repository.rpartition("/")[2]
            copy = _open_folder(hub_folder(url), name or own)
            return replace(copy, location=parse_location(url))
        case PackLocation() as location:
            return open_packed_checkpoint(location, name)


def _open_folder(folder: Path, name: str | None) -> Checkpoint:
    """The checkpoint in a folder of this machine. Raises UsageError, UnsafeInputError."""
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
    return Checkpoint(name=name, location=parse_location(folder), tensors=tensors, config=config)


def _is_folder(path: Path) -> bool:
    """True for a folder; False for whatever cannot be one."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # longer than a file name may be, or with a zero byte
        return False


def open_pool(
    members: Sequence[str | Path | Location], base: str | Path | Location | None = None
) -> Pool:
    """The pool of checkpoints at some places; members are named after their folders.

    A place is a folder, a glob, a folder of folders, a prefix of a bucket, a repository of the hub,
    or a packed pool, which brings its base. Raises one error with the problems of every checkpoint,
    of the gravest class among them.
    """
    found: list[Location] = []
    own_base = parse_location(base) if base else None
    problems: list[Problem] = []
    kinds: list[type[RecyclerError]] = [UsageError]
    for entry in map(parse_location, members):
        try:
            expanded, packed_base = _expanded(entry)
        except RecyclerError as error:
            problems += error.problems
            kinds.append(type(error))
            continue
        own_base = own_base or packed_base
        found += expanded
        if not expanded:
            problems.append(
                Problem(
                    thing=f"pool entry {str(entry)!r}",
                    cause="matches no folder with a config.json",
                    remedy="Check the path; globs like runs/*/ are allowed",
                )
            )
    named = _named(found)
    if own_base is not None:
        named.append(("base", own_base))
    checkpoints: list[Checkpoint] = []
    for name, location in named:
        try:
            checkpoints.append(open_checkpoint(location, name))
        except RecyclerError as error:
            problems += error.problems
            kinds.append(type(error))
    raise_problems(problems, max(kinds, key=lambda kind: kind.exit_code))
    return Pool(
        members=tuple(checkpoints[: len(found)]), base=checkpoints[-1] if own_base else None
    )


def _expanded(entry: Location) -> tuple[list[Location], Location | None]:
    """The checkpoints of an entry of a pool, and the base that it brings."""
    match entry:
        case DiskLocation(path=path):
            if _is_folder(Path(path)) and (Path(path) / PACK_MANIFEST).is_file():
                return packed_pool(entry)
            return list(map(parse_location, _folders(path))), None
        case BucketLocation(url=url):
            if size_of(f"{trimmed(url)}/{PACK_MANIFEST}") is not None:
                return packed_pool(entry)
            return list(map(parse_location, list_checkpoints(url))), None
        case HubLocation(url=url):
            return [parse_location(url)], None
        case PackLocation():  # named one by one only as a base, or by a run
            return [], None


def _folders(pattern: str) -> list[Path]:
    """The folders with a config.json that a path or glob finds, and those right below it."""
    folders: list[Path] = []
    for path in map(Path, sorted(glob.glob(pattern))):
        if (path / "config.json").is_file():
            folders.append(path)
        elif path.is_dir():
            folders += [
                child for child in sorted(path.iterdir()) if (child / "config.json").is_file()
            ]
    return folders


def would_list(entry: str | Location, place: str | Location) -> bool:
    """True when an entry of a pool finds a checkpoint that is written to `place`.

    It finds it too when it is itself a checkpoint around it. Only names are looked at.
    """
    wanted, target = parse_location(entry), parse_location(place)
    if isinstance(wanted, RemoteLocation) and isinstance(target, RemoteLocation):
        url = target.url.rstrip("/")
        return wanted.url.rstrip("/") in (url, url.rpartition("/")[0])
    if not isinstance(wanted, DiskLocation) or not isinstance(target, DiskLocation):
        return False
    path = Path(target.path).resolve()
    pattern = Path(os.path.abspath(wanted.path)).parts
    return any(_matches(pattern, folder.parts) for folder in (path, path.parent))


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """True when a glob finds a resolved path; links before its first pattern are followed."""
    plain = list(takewhile(lambda part: not glob.has_magic(part), pattern))
    whole = (*Path(*plain).resolve().parts, *pattern[len(plain) :])
    if len(whole) != len(parts):
        return False
    return all(map(_matches_part, parts, whole))


def _matches_part(part: str, wanted: str) -> bool:
    """True as `glob` has it: a pattern finds no name with a leading dot unless it has one."""
    if not glob.has_magic(wanted):
        return part == wanted
    is_shown = wanted[0] == "." or part[0] != "."
    return is_shown and fnmatchcase(part, wanted)


def _named(locations: Sequence[Location]) -> list[tuple[str, Location]]:
    """Each location with a short name: as much of its path's end as tells it from the others.

    'base' is kept for the base.
    """
    parts = list(map(_parts, locations))
    named: list[tuple[str, Location]] = []
    taken: set[str] = set()
    for index, location in enumerate(locations):
        name = _short_name(parts[index], parts)
        named.append((f"{name}-{index}" if name in taken else name, location))
        taken.add(name)
    return named


def _short_name(own: list[str], parts: Sequence[list[str]]) -> str:
    """The end of a path that no other path has, and that is not 'base'; at worst all of it."""
    others = [other for other in parts if other != own]
    for length in range(1, len(own)):
        end = own[-length:]
        if end != ["base"] and all(other[-length:] != end for other in others):
            return "-".join(end)
    return "-".join(own)


def _parts(location: Location) -> list[str]:
    """The folders on the way to a location, itself last."""
    match location:
        case PackLocation(pack=pack, name=name):
            return [*_parts(pack), name]
        case DiskLocation(path=path):
            return list(Path(path).resolve().parts[1:])
        case BucketLocation(url=url) | HubLocation(url=url):
            return [part for part in url.split("://", 1)[1].split("/") if part]
