"""Objects in buckets: list, read a range of one version, upload. The only file that knows obstore.

Every read after the first is bound to the version (etag) that the first one saw, and what comes
back is compared with what was asked for: the right bytes or an error, never a mixture. Credentials
and endpoints come from the environment, as the clouds' own tools read them. RECYCLER_BUCKET_TIMEOUT
is the seconds one request may take (default 60).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from recycler.errors import InfrastructureError, Problem, RecyclerError, UsageError

SCHEMES = ("s3", "gs", "az", "file")
ATTEMPTS = 4  # of our own, for what obstore does not try again: 429, a listing that breaks off
MAX_TIMEOUT = 86_400  # seconds for one request
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes of one version of an object, its etag, and the size of the whole object in bytes."""

    raw: bytes
    etag: str
    size: int


def split_url(url: str) -> tuple[str, str]:
    """('s3://bucket', 'key/of/object') of a URL; for file:// all is key. Raises UsageError."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise UsageError(
            Problem(
                thing=url,
                cause=f"has the scheme {scheme!r}",
                remedy=f"Known: {', '.join(SCHEMES)}, hf",
            )
        )
    if scheme == "file":
        return "file:///", rest.strip("/")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UsageError(
            Problem(thing=url, cause="names no bucket", remedy=f"Write {scheme}://BUCKET/PREFIX")
        )
    return f"{scheme}://{bucket}", key.strip("/")


def trimmed(url: str) -> str:
    """A URL without slashes at its end."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rstrip('/')}"


def list_prefix(url: str) -> tuple[dict[str, int], list[str]]:
    """(sizes of the objects directly below a prefix by name, names of the prefixes below it).

    Raises as `read` does.
    """
    root, prefix = split_url(url)
    found = _try(
        url, lambda: _obstore().list_with_delimiter(_store(root), f"{prefix}/" if prefix else None)
    )
    objects = {entry["path"].rsplit("/", 1)[-1]: entry["size"] for entry in found["objects"]}
    return objects, sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found["common_prefixes"])


def size_of(url: str) -> int | None:
    """An object's size in bytes, or None when there is none."""
    root, key = split_url(url)

    def head() -> int | None:
        try:
            return int(_obstore().head(_store(root), key)["size"])
        except FileNotFoundError:
            return None

    return _try(url, head)


def read(url: str, start: int = 0, end: int | None = None, *, etag: str = "") -> Piece:
    """Bytes [start, end) of an object (to its end by default), of the version `etag` if given.

    A range that reaches beyond the object's end returns what is there. Raises UsageError when there
    is no such object or no permission, InfrastructureError when the bucket does not answer well, or
    holds another version by now.
    """
    root, key = split_url(url)
    options: dict[str, Any] = {"if_match": etag} if etag else {}
    if end is not None:
        options["range"] = (start, end)
    elif start:
        options["range"] = {"offset": start}

    def get() -> Piece:
        result = _obstore().get(_store(root), key, options=options)
        raw = bytes(result.bytes())
        return _checked(
            url,
            Piece(raw=raw, etag=result.meta["e_tag"] or "", size=result.meta["size"]),
            start,
            end,
            tuple(result.range),
            etag,
        )

    return _try(url, get)


def _checked(
    url: str, piece: Piece, start: int, end: int | None, served: tuple[int, int], etag: str
) -> Piece:
    if etag and piece.etag != etag:
        raise _overwritten(url)
    wanted = (min(start, piece.size), piece.size if end is None else min(end, piece.size))
    if served != wanted or len(piece.raw) != wanted[1] - wanted[0]:
        raise InfrastructureError(
            Problem(
                thing=url,
                cause=f"the bucket sent bytes {served[0]:,} to {served[1]:,} ({len(piece.raw):,}) "
                f"where {wanted[0]:,} to {wanted[1]:,} were asked for",
                remedy="Try again; if it goes on, a proxy in between is broken",
            )
        )
    return piece


def write_new(url: str, raw: bytes) -> bool:
    """Write an object and return True; False, and nothing written, when there is one already.

    It is atomic: of two writers exactly one is told True.
    """
    root, key = split_url(url)
    asked = 0

    def put() -> bool:
        nonlocal asked
        asked += 1
        try:
            _obstore().put(_store(root), key, raw, mode="create", use_multipart=False)
        except _obstore().exceptions.AlreadyExistsError:
            return False
        return True

    done = _try(url, put)
    return done or (asked > 1 and read(url).raw == raw)  # a lost answer, and not another writer


def upload(url: str, path: Path) -> None:
    """Write a file to an object, in parts when it is large."""
    root, key = split_url(url)
    _try(url, lambda: _obstore().put(_store(root), key, path))


def remove(url: str) -> None:
    """Remove an object, if it is there."""
    root, key = split_url(url)

    def delete() -> None:
        with suppress(FileNotFoundError):
            _obstore().delete(_store(root), key)

    _try(url, delete)


# ---------------------------------------------------------------- obstore


def _obstore() -> Any:
    # compiled, and only needed where a bucket is: the CLI starts without it
    import obstore
    import obstore.store

    return obstore


def _store(root: str) -> Any:
    return _open_store(root, os.environ.get("AWS_ENDPOINT_URL", ""), _timeout())


def _timeout() -> float:
    text = os.environ.get("RECYCLER_BUCKET_TIMEOUT") or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise UsageError(
            Problem(
                thing="RECYCLER_BUCKET_TIMEOUT",
                cause=f"is {text[:40]!r}, which is no number of seconds up to {MAX_TIMEOUT:,}",
                remedy="Set it to 60, or unset it",
            )
        )
    return seconds


@lru_cache(maxsize=64)
def _open_store(root: str, endpoint: str, timeout: float) -> Any:
    if root == "file:///":
        return _obstore().store.LocalStore("/")
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=timeout),
        "connect_timeout": timedelta(seconds=min(timeout, 10)),
    }
    if endpoint.startswith("http://"):
        client["allow_http"] = True  # named by the user who runs it
    backoff = {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    }
    return _obstore().store.from_url(
        root,
        client_options=client,
        retry_config={
            "max_retries": 4,
            "backoff": backoff,
            "retry_timeout": timedelta(seconds=max(5 * timeout, 10)),
        },
    )


def _try(url: str, act: Callable[[], Value]) -> Value:
    """Call `act`, and again after a pause when the bucket is busy or breaks off.

    Raises its errors in our own words: UsageError, InfrastructureError.
    """
    errors = _obstore().exceptions
    attempt = 0
    while True:
        attempt += 1
        try:
            return act()
        except RecyclerError:
            raise
        except (errors.BaseError, OSError, ValueError) as error:
            refusal = _refusal(url, error)
            if refusal is None and (attempt == ATTEMPTS or not _may_pass(error)):
                remedy = "The bucket did not answer well; try again"
                refusal = InfrastructureError(
                    Problem(thing=url, cause=_short(error), remedy=remedy)
                )
            if refusal is not None:
                raise refusal from None
        time.sleep(0.1 * 2**attempt * (1 + random.random()))


def _refusal(url: str, error: Exception) -> RecyclerError | None:
    """An error that comes again however often one asks; None for any other."""
    errors = _obstore().exceptions
    if isinstance(error, errors.PreconditionError):
        return _overwritten(url)
    if isinstance(error, FileNotFoundError):
        return UsageError(
            Problem(thing=url, cause="is not there", remedy="Check bucket and prefix")
        )
    denied = (errors.PermissionDeniedError, errors.UnauthenticatedError, PermissionError)
    if isinstance(error, denied):
        return UsageError(
            Problem(
                thing=url,
                cause=f"access denied ({_short(error)})",
                remedy="Check the credentials in the environment",
            )
        )
    if "404 Not Found" in str(error):  # of a bucket; that of an object is a FileNotFoundError
        return UsageError(
            Problem(thing=url, cause="is not there: no such bucket", remedy="Check its name")
        )
    return None


def _may_pass(error: Exception) -> bool:
    """True for an error that may be gone at the next attempt."""
    return any(
        word in str(error) for word in ("429", "Too Many Requests", "SlowDown", "response body")
    )


def _overwritten(url: str) -> InfrastructureError:
    return InfrastructureError(
        Problem(
            thing=url,
            cause="was overwritten while it was read",
            remedy="Start again, when nobody writes to it any more",
        )
    )


def _short(error: Exception) -> str:
    """The first sentences of an error that may quote whole pages."""
    text = " ".join(str(error).partition("Debug source")[0].split())
    return text if len(text) <= 300 else text[:297] + "..."
