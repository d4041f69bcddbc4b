"""Read the contents of a safetensors file from its header, and trust nothing that does not add up.

The library accepts a few things that are refused here: a header that does not start with '{',
unknown keys, names with '..'.
"""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path
from typing import Any

from recycler.errors import Problem, UnsafeInputError
from recycler.location import Location, parse_location
from recycler.types import TensorInfo

Source = str | Path | Location  # of a file or object, as errors name it
DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
MAX_HEADER_BYTES = 25_000_000  # the Hugging Face hub's own limit; 100,000 tensors need about 12 MB
MAX_DIMENSIONS = 16
MAX_TENSORS = 200_000
PREFIX_BYTES = 8  # the header's length, little endian
_NAME = re.compile(r"[A-Za-z0-9_.\-/]{1,512}")
_KEYS = {"dtype", "shape", "data_offsets"}
_OTHER_FORMATS = (
    (
        b"PK\x03\x04",
        "is a zip archive, as torch.save writes: a pickle, which can run code when opened",
    ),
    (b"\x80\x02", "is a pickle, which can run code when opened"),
    (b"\x80\x03", "is a pickle, which can run code when opened"),
    (b"\x80\x04", "is a pickle, which can run code when opened"),
    (b"\x80\x05", "is a pickle, which can run code when opened"),
    (b"GGUF", "is a GGUF file"),
    (b"\x89HDF", "is an HDF5 file"),
    (b"version ", "is a git-lfs pointer, not the file itself (git lfs pull)"),
    (b"<!DOCTY", "is a web page"),
    (b"<html", "is a web page"),
    (b"\x1f\x8b", "is gzip-compressed"),
)


def broken(source: Source, cause: str) -> UnsafeInputError:
    """The error for a weight file that is not what it should be."""
    return UnsafeInputError(
        Problem(
            thing=str(source),
            cause=cause,
            remedy="The file is damaged or not safetensors; save it again from its source",
        )
    )


def changed_since(info: TensorInfo) -> UnsafeInputError:
    """The error for a file that has become shorter than its header said."""
    return broken(
        info.file, f"ends within tensor {info.name!r}: it was changed since its header was read"
    )


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file by name, in the header's order.

    It reads 8 bytes and the header. Raises UnsafeInputError with the file and the reason, unless
    the tensors tile the data section exactly.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise broken(path, "is not a regular file")
        with path.open("rb") as file:
            length = header_length(path, file.read(PREFIX_BYTES), status.st_size)
            raw = file.read(length)
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})") from None
    return parse_header(path, raw, length=length, size=status.st_size)


def header_length(source: Source, prefix: bytes, size: int) -> int:
    """Length in bytes of the JSON header, from a file's first 8 bytes and its size.

    Raises UnsafeInputError.
    """
    for magic, what in _OTHER_FORMATS:
        if prefix.startswith(magic) and (
            len(magic) > 2 or int.from_bytes(prefix.ljust(8, b"\0"), "little") > size
        ):
            raise broken(source, what)
    if len(prefix) < PREFIX_BYTES:
        raise broken(source, f"holds {size:,} bytes, shorter than a safetensors header")
    length = int.from_bytes(prefix, "little")
    if PREFIX_BYTES + length > size:
        raise broken(source, f"claims a header of {length:,} bytes in a file of {size:,}")
    if length > MAX_HEADER_BYTES:
        raise broken(
            source, f"claims a header of {length:,} bytes; {MAX_HEADER_BYTES:,} is the limit"
        )
    return length


def parse_header(
    source: Source, raw: bytes, *, length: int, size: int, etag: str = ""
) -> dict[str, TensorInfo]:
    """Tensors by name from a header's bytes.

    The file has `size` bytes, and its header should have `length`. Memory stays within some tens of
    bytes for each byte of header. Raises UnsafeInputError.
    """
    if len(raw) < length:
        raise broken(source, "is truncated inside its header")
    if raw[:1] != b"{":
        raise broken(source, "has a header that does not start with '{'")
    if (
        raw.count(b'"data_offsets"') > MAX_TENSORS
        or raw.count(b"[") + raw.count(b"{") > 3 * MAX_TENSORS + 10_000
        or raw.count(b",") > 12 * MAX_TENSORS
    ):
        raise broken(source, f"has a header of more than {MAX_TENSORS:,} tensors")
    header = _parse(source, raw)
    return _tile(source, header, data_start=PREFIX_BYTES + length, size=size, etag=etag)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that refuses a key that stands twice: either may be meant."""
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a name stands twice")
    return keys


def no_constants(word: str) -> object:
    """`parse_constant` that refuses NaN and infinities, which are not JSON."""
    raise ValueError(f"{word} is not JSON")


def _natural(digits: str) -> int:
    """`parse_int` that refuses a sign: the library refuses -0 too."""
    if digits.startswith("-"):
        raise ValueError(f"{digits[:20]} is not a natural number")
    return int(digits)


def _parse(source: Source, raw: bytes) -> dict[str, object]:
    try:
        header = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=no_constants,
            parse_int=_natural,
        )
    except (ValueError, RecursionError) as error:
        raise broken(source, f"has a header that is not JSON ({str(error)[:200]})") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise broken(source, "has __metadata__ that is not a mapping of text to text")
    return header


def _tile(
    source: Source, header: dict[str, object], *, data_start: int, size: int, etag: str
) -> dict[str, TensorInfo]:
    file = parse_location(source)
    infos = [
        _tensor_info(file, name, entry, data_start, size, etag) for name, entry in header.items()
    ]
    end = data_start
    for info in sorted(infos, key=lambda info: (info.start, info.num_bytes)):
        if info.start != end:
            raise broken(
                source,
                f"tensor {info.name!r} starts at byte {info.start - data_start:,}, where "
                f"{end - data_start:,} was expected",
            )
        end += info.num_bytes
    if end != size:
        raise broken(
            source,
            f"tensors cover {end - data_start:,} bytes of a data section of {size - data_start:,}",
        )
    return {info.name: info for info in infos}


def _tensor_info(
    source: Location, name: str, entry: object, data_start: int, size: int, etag: str
) -> TensorInfo:
    if not _NAME.fullmatch(name) or ".." in name or name.startswith("/"):
        raise broken(source, f"tensor name {name[:80]!r} is not allowed")
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        raise broken(source, f"tensor {name!r} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise broken(source, f"tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not isinstance(offsets, list)
        or len(offsets) != 2
    ):
        raise broken(
            source,
            f"tensor {name!r} has a shape of more than {MAX_DIMENSIONS} numbers, or offsets that "
            "are not two numbers",
        )
    if not all(type(number) is int and 0 <= number < 2**62 for number in (*shape, *offsets)):
        raise broken(source, f"tensor {name!r} has a shape or offsets that are not natural numbers")
    num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != num_bytes:
        raise broken(
            source,
            f"tensor {name!r} of {dtype} {shape} needs {num_bytes:,} bytes, its offsets span "
            f"{offsets[1] - offsets[0]:,}",
        )
    return TensorInfo(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        file=source,
        start=data_start + offsets[0],
        num_bytes=num_bytes,
        file_bytes=size,
        etag=etag,
    )
