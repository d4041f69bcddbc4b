"""Upload a finished folder to a bucket, where it is a model only once all of it is there.

A claim is written first (only one writer can), then the weights, then everything else, and the
manifest last and only if there is none yet. No manifest, no model; recycler refuses to read a
prefix that still holds a claim.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from recycler.digest import file_digest
from recycler.errors import InfrastructureError, Problem, UsageError
from recycler.pool.storage.bucket import (
    read,
    remove,
    size_of,
    split_url,
    trimmed,
    upload,
    write_new,
)
from recycler.pool.storage.remote import PART_BYTES, UNFINISHED

MANIFEST = "recycler-manifest.json"
PARALLEL = 4


def upload_folder(folder: Path, url: str, *, verify: bool = True) -> dict[str, str]:
    """Upload an exported folder to a prefix and return the SHA-256 (hex) of each file by name.

    An upload that was interrupted goes on when the same folder is uploaded again: files that are
    there already, byte for byte, are left. `verify` reads back every byte. Raises UsageError when
    the prefix holds another model or another writer's claim, InfrastructureError when the bucket
    does not answer well.
    """
    url = trimmed(url)
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            Problem(
                thing=str(folder),
                cause=f"has no {MANIFEST}",
                remedy="Upload a folder that recycler export or merge has written",
            )
        )
    digests = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    if _is_done(folder, url):
        return digests
    claim = json.dumps({"manifest_sha256": digests[MANIFEST]}).encode()
    if not write_new(f"{url}/{UNFINISHED}", claim) and read(f"{url}/{UNFINISHED}").raw != claim:
        raise UsageError(
            Problem(
                thing=url,
                cause="another model is being uploaded there, or was and was interrupted",
                remedy=f"Give another prefix, or remove {UNFINISHED} from it",
            )
        )
    others = sorted(name for name in digests if name != MANIFEST)
    weights = [name for name in others if name.endswith(".safetensors")]
    rest = [name for name in others if name not in weights]

    def put(name: str) -> None:
        _put(folder / name, f"{url}/{name}", digests[name], verify)

    with ThreadPoolExecutor(PARALLEL) as threads:
        for names in (weights, rest):
            list(threads.map(put, names))
    is_first = write_new(f"{url}/{MANIFEST}", (folder / MANIFEST).read_bytes())
    if not is_first and not _is_done(folder, url):
        raise _taken(url)
    remove(f"{url}/{UNFINISHED}")
    return digests


def check_target(url: str) -> None:
    """Raise UsageError, before anything is merged, for a URL that nothing can be uploaded to."""
    if not split_url(trimmed(url))[1]:
        raise UsageError(
            Problem(
                thing=url,
                cause="is a whole bucket",
                remedy="Give a prefix in it, such as s3://BUCKET/my-merge",
            )
        )


def remote_digest(url: str, size: int) -> str:
    """SHA-256 (hex) of an object's bytes, read back in parts of one version."""
    sha, etag = hashlib.sha256(), ""
    for start in range(0, size, PART_BYTES):
        piece = read(url, start, min(start + PART_BYTES, size), etag=etag)
        sha.update(piece.raw)
        etag = piece.etag
    return sha.hexdigest()


def _is_done(folder: Path, url: str) -> bool:
    """True when this very model is there, complete. Raises UsageError when another one is."""
    if size_of(f"{url}/{MANIFEST}") is None:
        return False
    if read(f"{url}/{MANIFEST}").raw != (folder / MANIFEST).read_bytes():
        raise _taken(url)
    remove(f"{url}/{UNFINISHED}")
    return True


def _put(path: Path, url: str, digest: str, verify: bool) -> None:
    """Upload a file unless it is there already. Raises InfrastructureError."""
    size = path.stat().st_size
    if size_of(url) == size and remote_digest(url, size) == digest:
        return
    upload(url, path)
    found = size_of(url)
    if found != size or (verify and remote_digest(url, size) != digest):
        raise InfrastructureError(
            Problem(
                thing=url,
                cause=f"holds other bytes than {path.name} after its upload",
                remedy="Upload it again; if it goes on, the bucket or a proxy is broken",
            )
        )


def _taken(url: str) -> UsageError:
    return UsageError(
        Problem(thing=url, cause="holds another model already", remedy="Give another prefix")
    )
