"""Read what a safetensors file holds from its header alone, and believe nothing that does not add up.

The library accepts a few things that we do not: a header that does not start with '{', unknown keys, names with '..'.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from recycler.errors import Problem, UnsafeInputError
from recycler.types import TensorInfo

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
MAX_HEADER_BYTES = 100_000_000
_NAME = re.compile(r"[A-Za-z0-9_.\-/]{1,512}")


def _broken(path: Path, cause: str) -> UnsafeInputError:
    return UnsafeInputError(Problem(thing=str(path), cause=cause, remedy="The file is damaged or not safetensors; save it again from its source"))


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file by name, in file order. Reads 8 bytes plus the header.

    Raises UnsafeInputError, naming the file and the reason, unless the tensors tile the data section exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _broken(path, "shorter than a safetensors header")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES or 8 + length > size:
            raise _broken(path, f"claims a header of {length:,} bytes in a file of {size:,}")
        raw = file.read(length)
    if len(raw) < length:
        raise _broken(path, "truncated inside its header")
    if raw[:1] != b"{":
        raise _broken(path, "header does not start with '{'")
    return _tile(path, _parse(path, raw), data_start=8 + length, data_bytes=size - 8 - length)


def _parse(path: Path, raw: bytes) -> dict[str, dict]:
    def no_duplicates(pairs: list[tuple[str, object]]) -> dict:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("a name stands twice in the header")
        return keys

    try:
        header = json.loads(raw, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"header is not JSON ({error})") from None
    header.pop("__metadata__", None)
    return header


def _tile(path: Path, header: dict[str, dict], *, data_start: int, data_bytes: int) -> dict[str, TensorInfo]:
    infos = [_tensor_info(path, name, entry, data_start) for name, entry in header.items()]
    end = data_start
    for info in sorted(infos, key=lambda info: (info.start, info.num_bytes)):
        if info.start != end:
            raise _broken(path, f"tensor {info.name!r} starts at byte {info.start - data_start:,}, where {end - data_start:,} was expected")
        end += info.num_bytes
    if end != data_start + data_bytes:
        raise _broken(path, f"tensors cover {end - data_start:,} bytes of a data section of {data_bytes:,}")
    return {info.name: info for info in infos}


def _tensor_info(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    if not _NAME.fullmatch(name) or ".." in name or name.startswith("/"):
        raise _broken(path, f"tensor name {name[:80]!r} is not allowed")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"tensor {name!r} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise _broken(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 else [None]
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise _broken(path, f"tensor {name!r} has a shape or offsets that are not natural numbers")
    num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != num_bytes:
        raise _broken(path, f"tensor {name!r} of {dtype} {shape} needs {num_bytes:,} bytes, its offsets span {offsets[1] - offsets[0]:,}")
    return TensorInfo(name=name, dtype=dtype, shape=tuple(shape), file=str(path), start=data_start + offsets[0], num_bytes=num_bytes)
