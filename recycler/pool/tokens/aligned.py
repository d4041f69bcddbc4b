"""One vocabulary for members that have several: whose rows of the embeddings mean which tokens, and
the tokenizer of the merge.

Only rows are put into another order, while they are read; a pool whose vocabularies agree is left
as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
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
    r"(?:^|\.)(?:embed_tokens|embed_tokens_per_layer|lm_head|wte|embed_in|embed_out|word_embeddings|tok_embeddings|output)\.(?:weight|bias)$"
)
EMBEDDINGS = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$"
)
STALE = (
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)  # older spellings of a vocabulary, without the new tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedPool(Pool):
    """A pool whose members' embeddings were brought to one vocabulary, by `policy`; `tokenizer` is
    None where the template's own files do.
    """

    policy: TokenizerPolicy
    tokenizer: TokenizerFile | None

    def write_tokenizer(self, folder: Path) -> None:
        """Bring the template's tokenizer files, copied into `folder`, to the pool's vocabulary."""
        if self.tokenizer is None:
            return
        (folder / "tokenizer.json").write_bytes(self.tokenizer.raw)
        if (folder / "tokenizer_config.json").is_file():
            (folder / "tokenizer_config.json").write_bytes(
                with_added_tokens((folder / "tokenizer_config.json").read_bytes(), self.tokenizer)
            )
        for name in STALE:
            (folder / name).unlink(missing_ok=True)


def align_vocabularies(pool: Pool, policy: TokenizerPolicy, origin: str | None = None) -> Pool:
    """The pool with one vocabulary: the template's (`base`), or the template's and then every other
    token (`union`).

    `refuse` gives the pool back when all agree. A row that a member lacks is the base's, else the
    mean of those that have it. `origin` is what a mergekit file calls its base, which may be a
    member. Raises UnsafeInputError with every problem.
    """
    if policy == "refuse":
        check_vocabularies(pool)
        return pool
    checkpoints = (
        pool.template,
        *(member for member in pool.members if member is not pool.template),
    )
    sizes = [_rows(checkpoint) for checkpoint in checkpoints]
    files = [read_tokenizer(checkpoint) for checkpoint in checkpoints]
    present = [file for file in files if file is not None]
    if len(set(sizes)) == 1 and all(file.tokens == present[0].tokens for file in present):
        return pool
    if origin in pool.names and (
        origin != pool.names[0] or len(pool.members) > 2
    ):  # with two, the mean of those that have a token is the one that has it
        raise UsageError(
            Problem(
                thing=f"base_model {origin!r}",
                cause="is one of several merged models whose vocabularies differ, so that rows "
                "would stand in which no recipe says",
                remedy="Leave base_model out and put that model first: its tokenizer is then the "
                "base's",
            )
        )
    raise_problems(list(_problems(checkpoints, files, sizes)), UnsafeInputError)
    target = union_tokenizer(present) if policy == "union" else present[0]
    rows = _row_map(
        present, target, sizes[0] if policy == "base" else max(target.tokens.values()) + 1, sizes[0]
    )
    base = checkpoints.index(pool.base) if pool.base else None
    aligned = {
        checkpoint.name: _aligned(index, checkpoints, rows, base)
        for index, checkpoint in enumerate(checkpoints)
    }
    return AlignedPool(
        members=tuple(aligned[member.name] for member in pool.members),
        base=aligned[pool.base.name] if pool.base else None,
        policy=policy,
        tokenizer=None if target is present[0] else target,
    )


def _problems(
    checkpoints: tuple[Checkpoint, ...], files: list[TokenizerFile | None], sizes: list[int]
) -> list[Problem]:
    problems = []
    for checkpoint, file, size in zip(checkpoints, files, sizes, strict=True):
        if file is None:
            problems.append(
                Problem(
                    thing=f"checkpoint {checkpoint.name!r}",
                    cause="has no tokenizer.json, so nobody can tell which token a row of its "
                    "embeddings is",
                    remedy="Copy its tokenizer into its folder",
                )
            )
        elif not size:
            problems.append(
                Problem(
                    thing=f"checkpoint {checkpoint.name!r}",
                    cause="has no embeddings of a known name",
                    remedy="Merge it with tokenizer: refuse, which needs equal vocabularies",
                )
            )
        elif beyond := sorted(
            token for token, index in file.tokens.items() if not 0 <= index < size
        ):
            problems.append(
                Problem(
                    thing=f"checkpoint {checkpoint.name!r}",
                    cause=f"its tokenizer has {len(beyond)} ids outside the {size} rows of the "
                    f"embeddings, such as {beyond[0][:40]!r}",
                    remedy="Use the tokenizer it was trained with",
                )
            )
    return problems


def _rows(checkpoint: Checkpoint) -> int:
    return next(
        (
            info.shape[0]
            for name, info in checkpoint.tensors.items()
            if EMBEDDINGS.search(name) and len(info.shape) == 2
        ),
        0,
    )


def _row_map(
    files: list[TokenizerFile], target: TokenizerFile, num_rows: int, template_rows: int
) -> np.ndarray:
    """(checkpoints, rows) int32: the row of each checkpoint for each row of the merge, -1 where it
    lacks the token.

    Rows that no token of the merge has (padding) are the template's, by place.
    """
    rows = np.full((len(files), num_rows), -1, dtype=np.int32)
    rows[0, : min(num_rows, template_rows)] = np.arange(
        min(num_rows, template_rows), dtype=np.int32
    )
    rows[0, list(target.tokens.values())] = -1
    for its, file in zip(rows, files, strict=True):
        common = [
            (index, file.tokens[token])
            for token, index in target.tokens.items()
            if token in file.tokens
        ]
        if common:
            places = np.array(common, dtype=np.int64)
            its[places[:, 0]] = places[:, 1]
    return rows


def _aligned(
    own: int, checkpoints: tuple[Checkpoint, ...], rows: np.ndarray, base: int | None
) -> Checkpoint:
    checkpoint, size = checkpoints[own], _rows(checkpoints[own])
    tensors: dict[str, TensorInfo] = dict(checkpoint.tensors)
    for name, info in checkpoint.tensors.items():
        sources = tuple(
            found for other in checkpoints if (found := other.tensors.get(name)) is not None
        )
        if (
            BY_TOKEN.search(name)
            and info.dtype in FLOAT_DTYPES
            and info.shape[:1] == (size,)
            and len(sources) == len(checkpoints)
            and len({source.shape[1:] for source in sources}) == 1
        ):
            shape = (rows.shape[1], *info.shape[1:])
            facts: dict[str, Any] = {
                field.name: getattr(info, field.name) for field in fields(TensorInfo)
            } | {"shape": shape, "num_bytes": int(np.prod(shape)) * DTYPE_BYTES[info.dtype]}
            tensors[name] = GatheredTensor(**facts, sources=sources, rows=rows, own=own, base=base)
    return replace(
        checkpoint, tensors=tensors, config=_with_vocab_size(checkpoint.config, rows.shape[1])
    )


def _with_vocab_size(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    inner = config.get("text_config")
    if isinstance(inner, dict) and "vocab_size" in inner:
        return {**config, "text_config": {**inner, "vocab_size": rows}}
    return {**config, "vocab_size": rows}
