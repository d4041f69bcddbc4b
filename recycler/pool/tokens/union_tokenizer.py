"""One tokenizer that knows the tokens of several: the first, and the others' tokens after it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from recycler.errors import Problem, UnsafeInputError
from recycler.pool.checks.vocabulary import TokenizerFile

FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
PLAIN = dict.fromkeys(FLAGS[1:], False) | {"normalized": True}  # of an added token


def union_tokenizer(files: Sequence[TokenizerFile]) -> TokenizerFile:
    """The first file with every token of the others; its own ids stay, new ones follow them.

    Ordinary tokens come before those that some file has as added tokens, each by file and id.
    Ordinary ones go into the model's vocabulary, so the first tokenizer's merges cut texts as
    before. Raises UnsafeInputError.
    """
    first = files[0]
    added: dict[str, dict[str, Any]] = {}
    for file in files:
        for token in _added(file):
            added.setdefault(token["content"], token)  # settings of the first that has it
    ids = _union_ids(files, added)
    if len(ids) == len(first.tokens) and len(added) == len(_added(first)):
        return first
    model = dict(first.data["model"])
    entries = [token | {"id": ids[content]} for content, token in added.items()]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = ids
    else:  # Unigram: places are ids, and added tokens come after them
        entries += [
            {"id": index, "content": token, **PLAIN}
            for token, index in ids.items()
            if token not in first.tokens and token not in added
        ]
    entries.sort(key=lambda entry: entry["id"])
    data = first.data | {"model": model, "added_tokens": entries}
    return _checked(first.source, _to_bytes(data), ids)


def _union_ids(files: Sequence[TokenizerFile], added: Collection[str]) -> dict[str, int]:
    """Ids by token: the first file's, then other ordinary tokens, then other added ones."""
    new: list[str] = []
    for file in files:
        by_id = sorted(file.tokens, key=file.tokens.__getitem__)
        new += [token for token in by_id if token not in added]
    for file in files:
        new += [token["content"] for token in _added(file)]
    ids = dict(files[0].tokens)
    following = max(ids.values()) + 1
    for token in new:
        if token not in ids:
            ids[token], following = following, following + 1
    return ids


def with_added_tokens(config: bytes, tokenizer: TokenizerFile) -> bytes:
    """tokenizer_config.json with the added tokens of a tokenizer, where it lists them."""
    data = json.loads(config)
    if not isinstance(data, dict) or "added_tokens_decoder" not in data:
        return config
    decoder: dict[str, Any] = {}
    for token in _added(tokenizer):
        decoder[str(token["id"])] = {flag: token.get(flag, False) for flag in FLAGS}
    return _to_bytes(data | {"added_tokens_decoder": decoder})


def _to_bytes(data: Any) -> bytes:
    """JSON as tokenizers' own files have it."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _checked(source: str, raw: bytes, ids: dict[str, int]) -> TokenizerFile:
    """The tokenizer in these bytes, if the tokenizers library gives its tokens these ids too.

    It numbers added tokens itself. Raises UnsafeInputError.
    """
    # that library is only needed where vocabularies differ
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_str(raw.decode()).get_vocab(with_added_tokens=True)
    except Exception as error:  # it raises plain Exception
        raise _cannot(source, str(error)[:200]) from None
    if found != ids:
        raise _cannot(source, f"{len(found.items() ^ ids.items())} ids would change")
    return TokenizerFile.parse(source, raw)


def _cannot(source: str, why: str) -> UnsafeInputError:
    return UnsafeInputError(
        Problem(
            thing=source,
            cause=f"cannot be extended ({why})",
            remedy="Use tokenizer: base, or save the tokenizer again",
        )
    )


def _added(file: TokenizerFile) -> list[dict[str, Any]]:
    """The added tokens of a file, by id."""
    return sorted(file.data.get("added_tokens") or [], key=lambda token: token["id"])
