"""One vocabulary for a pool whose members have several, and the tokenizer of its merges.

Only rows of the embeddings are put into another order, while they are read; a pool whose
vocabularies agree is left as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from recycler.errors import Problem, UnsafeInputError, UsageError, raise_problems
from recycler.pool.checks.vocabulary import TokenizerFile, check_vocabularies, read_tokenizer
from recycler.pool.storage.gathered import GatheredTensor
from recycler.pool.storage.headers import DTYPE_BYTES, FLOAT_DTYPES
from recycler.pool.tokens.union_tokenizer import union_tokenizer, with_added_tokens
from recycler.types import Checkpoint, Pool, TensorInfo

TokenizerPolicy = Literal["refuse", "union", "base"]
POLICIES: tuple[str, ...] = get_args(TokenizerPolicy)
BY_TOKEN = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_tokens_per_layer|lm_head|wte|embed_in|embed_out"
    r"|word_embeddings|tok_embeddings|output)\.(?:weight|bias)$"
)
EMBEDDINGS = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$"
)
# older spellings of a vocabulary, without the new tokens
STALE = ("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedPool(Pool):
    """A pool whose members' embeddings were brought to one vocabulary, by `policy`.

    `tokenizer` is None where the template's own files have that vocabulary.
    """

    policy: TokenizerPolicy
    tokenizer: TokenizerFile | None

    def write_tokenizer(self, folder: Path) -> None:
        """Bring the template's tokenizer files, copied into `folder`, to the pool's vocabulary."""
        if self.tokenizer is None:
            return
        (folder / "tokenizer.json").write_bytes(self.tokenizer.raw)
        config = folder / "tokenizer_config.json"
        if config.is_file():
            config.write_bytes(with_added_tokens(config.read_bytes(), self.tokenizer))
        for name in STALE:
            (folder / name).unlink(missing_ok=True)


def align_vocabularies(pool: Pool, policy: TokenizerPolicy, origin: str | None = None) -> Pool:
    """The pool with one vocabulary: the template's (`base`), or every token (`union`).

    `union` has the template's tokens first. `refuse` returns the pool when all vocabularies agree.
    A row that a member lacks is the base's, else the mean of those that have it. `origin` is what a
    mergekit file calls its base, which may be a member. Raises UnsafeInputError with every problem.
    """
    if policy == "refuse":
        check_vocabularies(pool)
        return pool
    checkpoints = pool.base_first
    sizes = [_num_rows(checkpoint) for checkpoint in checkpoints]
    files = [read_tokenizer(checkpoint) for checkpoint in checkpoints]
    present = [file for file in files if file is not None]
    if len(set(sizes)) == 1 and all(file.tokens == present[0].tokens for file in present):
        return pool
    _refuse_member_as_base(pool, origin)
    raise_problems(list(_problems(checkpoints, files, sizes)), UnsafeInputError)
    if policy == "union":
        target = union_tokenizer(present)
        num_rows = max(target.tokens.values()) + 1
    else:
        target, num_rows = present[0], sizes[0]
    rows = _row_map(present, target, num_rows, sizes[0])
    members = [
        _aligned(index, checkpoints, rows, has_base=pool.base is not None)
        for index in range(len(checkpoints))
    ]
    base = members.pop(0) if pool.base else None
    return AlignedPool(
        members=tuple(members),
        base=base,
        policy=policy,
        tokenizer=None if target is present[0] else target,
    )


def _refuse_member_as_base(pool: Pool, origin: str | None) -> None:
    """Raise UsageError where a mergekit file's base is a member and rows would be undetermined.

    With two members, the mean of those that have a token is the one that has it.
    """
    if origin in pool.names and (origin != pool.names[0] or len(pool.members) > 2):
        raise UsageError(
            Problem(
                thing=f"base_model {origin!r}",
                cause="is one of several merged models whose vocabularies differ, so that rows "
                "would stand in which no recipe says",
                remedy="Leave base_model out and put that model first: its tokenizer is then the "
                "base's",
            )
        )


def _problems(
    checkpoints: Sequence[Checkpoint], files: Sequence[TokenizerFile | None], sizes: Sequence[int]
) -> Iterator[Problem]:
    """Checkpoints whose rows cannot be told apart by token; `sizes` are their numbers of rows."""
    for checkpoint, file, size in zip(checkpoints, files, sizes, strict=True):
        thing = f"checkpoint {checkpoint.name!r}"
        if file is None:
            yield Problem(
                thing=thing,
                cause="has no tokenizer.json, so nobody can tell which token a row of its "
                "embeddings is",
                remedy="Copy its tokenizer into its folder",
            )
            continue
        if not size:
            yield Problem(
                thing=thing,
                cause="has no embeddings of a known name",
                remedy="Merge it with tokenizer: refuse, which needs equal vocabularies",
            )
            continue
        beyond = [token for token, index in file.tokens.items() if not 0 <= index < size]
        if beyond:
            yield Problem(
                thing=thing,
                cause=f"its tokenizer has {len(beyond)} ids outside the {size} rows of the "
                f"embeddings, such as {min(beyond)[:40]!r}",
                remedy="Use the tokenizer it was trained with",
            )


def _num_rows(checkpoint: Checkpoint) -> int:
    """Rows of the input embeddings; 0 where their name is not a known one."""
    for name, info in checkpoint.tensors.items():
        if EMBEDDINGS.search(name) and len(info.shape) == 2:
            return info.shape[0]
    return 0


def _row_map(
    files: list[TokenizerFile], target: TokenizerFile, num_rows: int, template_rows: int
) -> np.ndarray:
    """(checkpoints, rows) int32: the row of each checkpoint for each row of the merge.

    It is -1 where the checkpoint lacks the token. Rows that no token of the merge has (padding) are
    the template's, by place.
    """
    rows = np.full((len(files), num_rows), -1, dtype=np.int32)
    common_rows = min(num_rows, template_rows)
    rows[0, :common_rows] = np.arange(common_rows, dtype=np.int32)
    rows[0, list(target.tokens.values())] = -1
    for own_rows, file in zip(rows, files, strict=True):
        for token, index in target.tokens.items():
            if token in file.tokens:
                own_rows[index] = file.tokens[token]
    return rows


def _aligned(
    own: int, checkpoints: Sequence[Checkpoint], rows: np.ndarray, *, has_base: bool
) -> Checkpoint:
    """Checkpoint number `own` with its rows by token gathered from those of all."""
    checkpoint, num_rows = checkpoints[own], _num_rows(checkpoints[own])
    tensors: dict[str, TensorInfo] = dict(checkpoint.tensors)
    for name, info in checkpoint.tensors.items():
        sources = _sources(name, checkpoints)
        is_by_row = info.dtype in FLOAT_DTYPES and info.shape[:1] == (num_rows,)
        if sources and is_by_row:
            shape = (rows.shape[1], *info.shape[1:])
            tensors[name] = GatheredTensor(
                name=info.name,
                dtype=info.dtype,
                shape=shape,
                file=info.file,
                start=info.start,
                num_bytes=math.prod(shape) * DTYPE_BYTES[info.dtype],
                file_bytes=info.file_bytes,
                etag=info.etag,
                sources=sources,
                rows=rows,
                own=own,
                base=0 if has_base else None,
            )
    config = _with_vocab_size(checkpoint.config, rows.shape[1])
    return replace(checkpoint, tensors=tensors, config=config)


def _sources(name: str, checkpoints: Sequence[Checkpoint]) -> tuple[TensorInfo, ...]:
    """A tensor of all checkpoints whose rows are tokens; empty where it is not such a tensor."""
    found = [other.tensors[name] for other in checkpoints if name in other.tensors]
    is_alike = len({info.shape[1:] for info in found}) == 1
    if not BY_TOKEN.search(name) or len(found) < len(checkpoints) or not is_alike:
        return ()
    return tuple(found)


def _with_vocab_size(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The config with another number of rows of the embeddings."""
    inner = config.get("text_config")
    if isinstance(inner, dict) and "vocab_size" in inner:
        return {**config, "text_config": {**inner, "vocab_size": rows}}
    return {**config, "vocab_size": rows}
