"""Places of checkpoints as text: a path, a URL of a bucket, or a checkpoint inside a pack."""

from __future__ import annotations

import re
from pathlib import Path

INDEX = "model.safetensors.index.json"


PACK_MANIFEST = "recycler-pack.json"


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
