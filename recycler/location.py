"""Places of checkpoints and tensors: on a disk, in a bucket, on the Hugging Face hub, in a pack.

`parse_location` reads a place once; checkpoints and tensors carry what it returns. `str(location)`
is exactly the text that was parsed: ledgers, digests and messages hold that text. Standard library
only, and no file is looked at.

    runs/math, file:///pool/math    DiskLocation
    s3://bucket/pool/math           BucketLocation; gs:// and az:// too
    hf://owner/name@revision        HubLocation
    PACK/recycler-pack.json#math    PackLocation; PACK is a place on a disk or in a bucket
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

PACK_MANIFEST = "recycler-pack.json"
_REMOTE = re.compile(r"(s3|gs|az|hf):/+(.*)", re.DOTALL)
_FILE_SCHEME = re.compile(r"\Afile:/+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A place, and the text that named it."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def is_remote(self) -> bool:
        """True when its bytes have to be fetched from a bucket or from the hub."""
        return False

    @property
    def is_url(self) -> bool:
        """True when it is written as a URL of any scheme, which means the same everywhere."""
        return "://" in self.text

    def beside(self, folder: Path) -> Location:
        """The same place, with a relative path taken from `folder`."""
        is_fixed = self.is_url or Path(self.text).is_absolute()
        return parse_location(self.text if is_fixed else folder / self.text)

    def absolute(self) -> Location:
        """The same place with an absolute path, links kept; a remote one is returned as it is."""
        if self.is_remote:
            return parse_location(self.text)
        return parse_location(os.path.abspath(_without_file_scheme(self.text)))

    def resolved(self) -> Location:
        """The same place with an absolute path, links followed; a URL is returned as it is."""
        return parse_location(self.text if self.is_url else Path(self.text).resolve())


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLocation(_Place):
    """A folder or file of this machine; in the entry of a pool, also a glob."""

    path: str  # without file://


@dataclass(frozen=True, slots=True, kw_only=True)
class _RemotePlace(_Place):
    """A place behind a URL of a scheme that recycler reads."""

    url: str  # with two slashes after the scheme, where a Path had swallowed one

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def is_url(self) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketLocation(_RemotePlace):
    """A prefix of a bucket, or an object in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLocation(_RemotePlace):
    """A repository of the Hugging Face hub."""

    repository: str  # OWNER/NAME
    revision: str  # a branch, tag or commit; "" for the newest

    def at(self, revision: str) -> Location:
        """The same repository at another revision."""
        return parse_location(f"hf://{self.repository}@{revision}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackLocation(_Place):
    """One checkpoint of a packed pool."""

    pack: PoolLocation
    name: str

    @property
    def is_remote(self) -> bool:
        return self.pack.is_remote

    @property
    def is_url(self) -> bool:
        return self.pack.is_url


RemoteLocation: TypeAlias = BucketLocation | HubLocation
PoolLocation: TypeAlias = DiskLocation | RemoteLocation
"""A location outside of packs."""
Location: TypeAlias = PoolLocation | PackLocation


def parse_location(place: str | os.PathLike[str] | Location) -> Location:
    """The location that `place` names; every text is one. A location is returned as it is.

    A Path that swallowed a slash of a URL (s3:/bucket) is understood. A scheme that recycler does
    not read (http://) is a path, which nothing lies at.
    """
    if isinstance(place, Location):
        return place
    text = os.fspath(place)
    pack, found, name = text.rpartition(f"/{PACK_MANIFEST}#")
    if found:
        outer = _parse_outside_packs(_remote_url(pack) or pack)
        return PackLocation(text=text, pack=outer, name=name)
    return _parse_outside_packs(text)


def local_path(place: str | os.PathLike[str]) -> Path:
    """A path of this machine, which may be written with file:// in front."""
    return Path(_without_file_scheme(os.fspath(place)))


def _parse_outside_packs(text: str) -> PoolLocation:
    url = _remote_url(text)
    if url is None:
        return DiskLocation(text=text, path=_without_file_scheme(text))
    if not url.startswith("hf://"):
        return BucketLocation(text=text, url=url)
    repository, _, revision = url.removeprefix("hf://").partition("@")
    return HubLocation(
        text=text, url=url, repository=repository.rstrip("/"), revision=revision.rstrip("/")
    )


def _remote_url(text: str) -> str | None:
    found = _REMOTE.fullmatch(text)
    return f"{found[1]}://{found[2]}" if found else None


def _without_file_scheme(text: str) -> str:
    return _FILE_SCHEME.sub("/", text)
