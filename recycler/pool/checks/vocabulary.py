"""Agreement of tokenizers: rows of the embeddings must mean the same tokens in every member."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from recycler.errors import Problem, UnsafeInputError, raise_problems
from recycler.pool.checks.findings import Finding, refuse, warn
from recycler.pool.storage.files import local_folder
from recycler.pool.storage.hf_folder import parse_json
from recycler.types import Checkpoint, Pool

MAX_TOKENIZER_BYTES = 200_000_000
# compared by bytes, where tokenizer.json is absent
OTHER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
ONE_TOKENIZER = (
    "Rows of the embeddings would mean different tokens; give all members one tokenizer, or leave "
    "it out"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizerFile:
    """A tokenizer.json: its bytes, its JSON, and the id of every token, added ones included."""

    source: str
    raw: bytes
    data: dict[str, Any]
    tokens: dict[str, int]

    @classmethod
    def parse(cls, source: str, raw: bytes) -> Self:
        """The tokenizer in these bytes; `source` names them in errors.

        Raises UnsafeInputError for anything else, and for ids that are not whole numbers.
        """
        data = _parse(source, raw)
        tokens = _tokens(source, data)
        for token, index in tokens.items():
            if type(index) is not int or index < 0:
                raise _unsound(source, f"gives {token[:40]!r} the id {str(index)[:40]}")
        return cls(source=source, raw=raw, data=data, tokens=tokens)


def read_tokenizer(checkpoint: Checkpoint) -> TokenizerFile | None:
    """A checkpoint's tokenizer.json, or None. Raises UnsafeInputError."""
    raw = _raw(checkpoint, "tokenizer.json")
    return None if raw is None else TokenizerFile.parse(_source(checkpoint), raw)


def token_range_findings(checkpoint: Checkpoint, rows: int | None) -> Iterator[Finding]:
    """Ids of a tokenizer that are beyond the embeddings' rows: they would read past their end."""
    raw = _raw(checkpoint, "tokenizer.json")
    if raw is None or rows is None:
        return
    beyond = []
    for token, index in _tokens_in(checkpoint, raw).items():
        if type(index) is not int or not 0 <= index < rows:
            beyond.append((index, token))
    if beyond:
        index, token = min(beyond, key=str)
        yield refuse(
            "vocabulary",
            checkpoint,
            f"its tokenizer has {len(beyond)} ids outside the {rows} rows of the embeddings, "
            f"such as {token[:40]!r}: {index}",
            "Resize the embeddings, or use the tokenizer it was trained with",
        )


def tokenizer_findings(pool: Pool) -> list[Finding]:
    """Differences of each tokenizer from the first one: vocabulary, added tokens, merges, parts."""
    held = _held(pool.base_first, "tokenizer.json")
    if not held:
        return _other_files(pool.base_first)
    (first, reference), *others = held
    findings: list[Finding] = []
    if pool.template.name not in [checkpoint.name for checkpoint, _ in held]:
        findings.append(
            warn(
                "tokenizer",
                pool.template,
                f"has no tokenizer.json, which {first.name!r} has",
                "Merges get the template's files: copy a tokenizer into its folder",
            )
        )
    for checkpoint, raw in others:
        if raw != reference:
            findings += _compare(checkpoint, first, raw, reference)
    return findings


def check_vocabularies(pool: Pool) -> None:
    """Raise UnsafeInputError when a row of the embeddings does not mean one token everywhere.

    Nothing else is compared. Tokens that only some checkpoints have count too: a merge would keep
    the template's tokenizer and lose them.
    """
    held = _held(pool.base_first, "tokenizer.json")
    problems = []
    for checkpoint, raw in held[1:]:
        first, reference = held[0]
        if raw == reference:
            continue
        ours, theirs = _tokens_in(checkpoint, raw), _tokens_in(first, reference)
        differing = _differing(ours, theirs)
        if differing:
            token = differing[0]
            problems.append(
                Problem(
                    thing=f"checkpoint {checkpoint.name!r}",
                    cause=f"gives {len(differing)} tokens other ids than {first.name!r}, "
                    f"such as {token[:40]!r}: {ours.get(token)} and {theirs.get(token)}",
                    remedy="Rows are merged by their place. In a recipe, tokenizer: union or "
                    "base puts them in order; else give all one vocabulary "
                    "(model.resize_token_embeddings in the same order)",
                )
            )
    raise_problems(problems, UnsafeInputError)


def chat_template_findings(pool: Pool) -> list[Finding]:
    """Warnings of other chat templates, since every merge gets the template checkpoint's."""
    name, theirs = pool.template.name, _chat_template(pool.template)
    cause = f"has another chat template than {name!r}"
    remedy = f"Merges get that of {name!r}; prompts of the suites are built with it"
    return [
        warn("chat_template", member, cause, remedy)
        for member in pool.members
        if member is not pool.template and _chat_template(member) != theirs
    ]


def _compare(
    checkpoint: Checkpoint, reference: Checkpoint, ours_raw: bytes, theirs_raw: bytes
) -> Iterator[Finding]:
    """A refusal that names what differs between two tokenizers, if anything does."""
    ours, theirs = _parse(_source(checkpoint), ours_raw), _parse(_source(reference), theirs_raw)
    our_tokens = _tokens(_source(checkpoint), ours)
    their_tokens = _tokens(_source(reference), theirs)
    said = []
    differing = _differing(our_tokens, their_tokens)
    if differing:
        token = differing[0]
        said.append(
            f"{len(differing)} tokens, such as {token[:40]!r}: "
            f"{our_tokens.get(token)} and {their_tokens.get(token)}"
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
    """Differences of the older spellings of a vocabulary, file by file."""
    findings = []
    for name in OTHER_FILES:
        held = _held(checkpoints, name)
        for checkpoint, raw in held[1:]:
            first, reference = held[0]
            if raw != reference:
                cause = f"its {name} differs from that of {first.name!r}"
                findings.append(refuse("tokenizer", checkpoint, cause, ONE_TOKENIZER))
    return findings


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Tokens that have other ids, or are missing on one side, sorted."""
    tokens = ours.keys() | theirs.keys()
    return sorted(token for token in tokens if ours.get(token) != theirs.get(token))


def _held(checkpoints: Iterable[Checkpoint], name: str) -> list[tuple[Checkpoint, bytes]]:
    """The checkpoints that have a file of this name, and its bytes."""
    held = []
    for checkpoint in checkpoints:
        raw = _raw(checkpoint, name)
        if raw is not None:
            held.append((checkpoint, raw))
    return held


def _raw(checkpoint: Checkpoint, name: str) -> bytes | None:
    """The bytes of a small file of a checkpoint; None where there is none."""
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


def _tokens_in(checkpoint: Checkpoint, raw: bytes) -> dict[str, Any]:
    """Ids by token of a checkpoint's tokenizer.json."""
    source = _source(checkpoint)
    return _tokens(source, _parse(source, raw))


def _tokens(source: str, data: dict[str, Any]) -> dict[str, Any]:
    """Ids by token, added tokens included.

    Vocabularies of Unigram models are lists, in which a token's place is its id.
    """
    vocabulary, added = data["model"].get("vocab", {}), data.get("added_tokens") or []
    tokens: dict[str, Any] = {}
    try:
        if isinstance(vocabulary, dict):
            tokens |= {str(token): index for token, index in vocabulary.items()}
        else:
            tokens |= {str(entry[0]): index for index, entry in enumerate(vocabulary)}
        return tokens | {str(token["content"]): token["id"] for token in added}
    except (KeyError, TypeError, IndexError) as error:
        raise _unsound(source, f"has a vocabulary that cannot be read ({error!r})") from None


def _added(data: dict[str, Any]) -> list[str]:
    return sorted(_canonical(token) for token in data.get("added_tokens") or [])


def _merges(data: dict[str, Any]) -> list[Any]:
    """Merges as pairs, whether they were written 'a b' or ['a', 'b']."""
    merges = data["model"].get("merges") or []
    if not isinstance(merges, list):
        return [merges]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _chat_template(checkpoint: Checkpoint) -> str | None:
    raw = _raw(checkpoint, "chat_template.jinja")
    if raw is not None:
        return raw.decode("utf-8", errors="replace")
    raw = _raw(checkpoint, "tokenizer_config.json")
    if raw is None:
        return None
    config = parse_json(f"{checkpoint.location}/tokenizer_config.json", raw)
    template = config.get("chat_template") if isinstance(config, dict) else None
    if template is None or isinstance(template, str):
        return template
    return _canonical(template)


def _unsound(source: str, cause: str) -> UnsafeInputError:
    return UnsafeInputError(Problem(thing=source, cause=cause, remedy="Save the tokenizer again"))
