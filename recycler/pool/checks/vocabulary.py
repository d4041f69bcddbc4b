"""Do tokenizers agree? Rows of the embeddings must mean the same tokens in every member."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from recycler.errors import Problem, UnsafeInputError
from recycler.pool.checks.findings import Finding, refuse, warn
from recycler.pool.storage.files import local_folder
from recycler.pool.storage.hf_folder import parse_json
from recycler.types import Checkpoint, Pool

MAX_TOKENIZER_BYTES = 200_000_000
OTHER_FILES = (
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)  # compared by bytes, where tokenizer.json is absent
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
ONE_TOKENIZER = (
    "Rows of the embeddings would mean different tokens; give all members one tokenizer, or leave "
    "it out"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizerFile:
    """A tokenizer.json: its bytes, what they say, and the id of every token, added ones included."""

    source: str
    raw: bytes
    data: dict[str, Any]
    tokens: dict[str, int]

    @classmethod
    def parse(cls, source: str, raw: bytes) -> Self:
        """Raises UnsafeInputError for what is not a tokenizer, or has ids that are not whole
        numbers.
        """
        data = _parse(source, raw)
        tokens = _tokens(source, data)
        if wrong := [
            token for token, index in tokens.items() if type(index) is not int or index < 0
        ]:
            raise _unsound(source, f"gives {wrong[0][:40]!r} the id {str(tokens[wrong[0]])[:40]}")
        return cls(source=source, raw=raw, data=data, tokens=tokens)


def read_tokenizer(checkpoint: Checkpoint) -> TokenizerFile | None:
    """A checkpoint's tokenizer.json, or None. Raises UnsafeInputError."""
    raw = _raw(checkpoint, "tokenizer.json")
    return None if raw is None else TokenizerFile.parse(_source(checkpoint), raw)


def token_range_findings(checkpoint: Checkpoint, rows: int | None) -> Iterator[Finding]:
    """A tokenizer with ids beyond the embeddings' rows would read past their end."""
    raw = _raw(checkpoint, "tokenizer.json")
    if raw is None or rows is None:
        return
    tokens = _tokens(_source(checkpoint), _parse(_source(checkpoint), raw))
    beyond = sorted(
        (
            (index, token)
            for token, index in tokens.items()
            if not (type(index) is int and 0 <= index < rows)
        ),
        key=str,
    )
    if beyond:
        yield refuse(
            "vocabulary",
            checkpoint,
            f"its tokenizer has {len(beyond)} ids outside the {rows} rows of the embeddings, "
            f"such as {beyond[0][1][:40]!r}: {beyond[0][0]}",
            "Resize the embeddings, or use the tokenizer it was trained with",
        )


def tokenizer_findings(pool: Pool) -> list[Finding]:
    """Each checkpoint's tokenizer against the first one's that has any: vocabulary, added tokens,
    merges, the other parts.
    """
    checkpoints = (*([pool.base] if pool.base else []), *pool.members)
    files = {checkpoint.name: _raw(checkpoint, "tokenizer.json") for checkpoint in checkpoints}
    with_file = [checkpoint for checkpoint in checkpoints if files[checkpoint.name] is not None]
    findings: list[Finding] = []
    if files[pool.template.name] is None and with_file:
        findings.append(
            warn(
                "tokenizer",
                pool.template,
                f"has no tokenizer.json, which {with_file[0].name!r} has",
                "Merges get the template's files: copy a tokenizer into its folder",
            )
        )
    for checkpoint in with_file[1:]:
        if files[checkpoint.name] != files[with_file[0].name]:
            findings += _compare(
                checkpoint, with_file[0], files[checkpoint.name], files[with_file[0].name]
            )
    if not with_file:
        findings += _other_files(checkpoints)
    return findings


def check_vocabularies(pool: Pool) -> None:
    """Raise UnsafeInputError when a row of the embeddings means one token here and another there;
    nothing else is compared.

    Tokens that only some checkpoints have count too: a merge would keep the template's tokenizer
    and lose them.
    """
    checkpoints = (*([pool.base] if pool.base else []), *pool.members)
    first, *others = [
        (checkpoint, raw)
        for checkpoint in checkpoints
        if (raw := _raw(checkpoint, "tokenizer.json")) is not None
    ] or [(None, b"")]
    problems = []
    for checkpoint, raw in others:
        if raw != first[1]:
            ours, theirs = (
                _tokens(_source(one), _parse(_source(one), its))
                for one, its in ((checkpoint, raw), first)
            )
            differing = sorted(
                token
                for token in ours.keys() | theirs.keys()
                if ours.get(token) != theirs.get(token)
            )
            if differing:
                problems.append(
                    Problem(
                        thing=f"checkpoint {checkpoint.name!r}",
                        cause=f"gives {len(differing)} tokens other ids than {first[0].name!r}, "
                        f"such as {differing[0][:40]!r}: {ours.get(differing[0])} and "
                        f"{theirs.get(differing[0])}",
                        remedy="Rows are merged by their place. In a recipe, tokenizer: union or "
                        "base puts them in order; else give all one vocabulary "
                        "(model.resize_token_embeddings in the same order)",
                    )
                )
    if problems:
        raise UnsafeInputError(problems)


def chat_template_findings(pool: Pool) -> list[Finding]:
    """Other chat templates: a warning, since every merge gets the template checkpoint's."""
    theirs = _chat_template(pool.template)
    return [
        warn(
            "chat_template",
            member,
            f"has another chat template than {pool.template.name!r}",
            f"Merges get that of {pool.template.name!r}; prompts of the suites are built with it",
        )
        for member in pool.members
        if member is not pool.template and _chat_template(member) != theirs
    ]


def _compare(
    checkpoint: Checkpoint, reference: Checkpoint, ours_raw: bytes, theirs_raw: bytes
) -> Iterator[Finding]:
    ours, theirs = _parse(_source(checkpoint), ours_raw), _parse(_source(reference), theirs_raw)
    our_tokens, their_tokens = (
        _tokens(_source(checkpoint), ours),
        _tokens(_source(reference), theirs),
    )
    said = []
    differing = sorted(
        token
        for token in our_tokens.keys() | their_tokens.keys()
        if our_tokens.get(token) != their_tokens.get(token)
    )
    if differing:
        said.append(
            f"{len(differing)} tokens, such as {differing[0][:40]!r}: "
            f"{our_tokens.get(differing[0])} and {their_tokens.get(differing[0])}"
        )
    if _added(ours) != _added(theirs) and not differing:
        said.append("properties of added tokens")
    if _merges(ours) != _merges(theirs):
        said.append("merges")
    said += [part for part in PARTS if _canonical(ours.get(part)) != _canonical(theirs.get(part))]
    if said:
        yield refuse(
            "tokenizer",
            checkpoint,
            f"its tokenizer differs from that of {reference.name!r} in {'; '.join(said)}",
            ONE_TOKENIZER,
        )


def _other_files(checkpoints: tuple[Checkpoint, ...]) -> list[Finding]:
    findings = []
    for name in OTHER_FILES:
        held = [
            (checkpoint, raw)
            for checkpoint in checkpoints
            if (raw := _raw(checkpoint, name)) is not None
        ]
        findings += [
            refuse(
                "tokenizer",
                checkpoint,
                f"its {name} differs from that of {held[0][0].name!r}",
                ONE_TOKENIZER,
            )
            for checkpoint, raw in held[1:]
            if raw != held[0][1]
        ]
    return findings


def _raw(checkpoint: Checkpoint, name: str) -> bytes | None:
    path = local_folder(checkpoint) / name
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise UnsafeInputError(
                Problem(
                    thing=str(path),
                    cause=f"is larger than {MAX_TOKENIZER_BYTES:,} bytes",
                    remedy="Save the tokenizer again",
                )
            )
        return path.read_bytes()
    except OSError as error:
        raise UnsafeInputError(
            Problem(
                thing=str(path), cause=f"cannot be read ({error.strerror})", remedy="Check the file"
            )
        ) from None


def _source(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.location}/tokenizer.json"


def _parse(source: str, raw: bytes) -> dict[str, Any]:
    data = parse_json(source, raw)
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise _unsound(source, "is not a tokenizer")
    return data


def _tokens(source: str, data: dict[str, Any]) -> dict[str, Any]:
    """Token -> id, added tokens included; Unigram vocabularies are lists, in which the place is the
    id.
    """
    vocabulary, added = data["model"].get("vocab", {}), data.get("added_tokens") or []
    try:
        pairs = (
            vocabulary.items()
            if isinstance(vocabulary, dict)
            else ((entry[0], index) for index, entry in enumerate(vocabulary))
        )
        return {str(token): index for token, index in pairs} | {
            str(token["content"]): token["id"] for token in added
        }
    except (KeyError, TypeError, IndexError) as error:
        raise _unsound(source, f"has a vocabulary that cannot be read ({error!r})") from None


def _added(data: dict[str, Any]) -> list[str]:
    return sorted(_canonical(token) for token in data.get("added_tokens") or [])


def _merges(data: dict[str, Any]) -> list[Any]:
    """Merges as pairs, whether they were written 'a b' or ['a', 'b']."""
    merges = data["model"].get("merges") or []
    return (
        [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        if isinstance(merges, list)
        else [merges]
    )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _chat_template(checkpoint: Checkpoint) -> str | None:
    raw = _raw(checkpoint, "chat_template.jinja")
    if raw is not None:
        return raw.decode("utf-8", errors="replace")
    raw = _raw(checkpoint, "tokenizer_config.json")
    config = (
        parse_json(f"{checkpoint.location}/tokenizer_config.json", raw) if raw is not None else {}
    )
    template = config.get("chat_template") if isinstance(config, dict) else None
    return (
        None
        if template is None
        else _canonical(template)
        if not isinstance(template, str)
        else template
    )


def _unsound(source: str, cause: str) -> UnsafeInputError:
    return UnsafeInputError(Problem(thing=source, cause=cause, remedy="Save the tokenizer again"))
