"""One tokenizer that knows the tokens of several: the first one, to which the others' tokens are
appended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from recycler.errors import Problem, UnsafeInputError
from recycler.pool.checks.vocabulary import TokenizerFile

FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
PLAIN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}


def union_tokenizer(files: Sequence[TokenizerFile]) -> TokenizerFile:
    """The first file with every token of the others; ids of the first stay, new ones follow without
    gaps.

    Ordinary tokens come before those that some file has as added tokens, each by file and id.
    Ordinary ones go into the model's vocabulary, so the first tokenizer's merges cut texts as
    before. Raises UnsafeInputError.
    """
    added = {
        token["content"]: token for file in reversed(files) for token in _added(file)
    }  # settings of the first that has it
    ids = dict(files[0].tokens)
    following = max(ids.values()) + 1
    ordinary = [
        token
        for file in files
        for token in sorted(file.tokens, key=file.tokens.__getitem__)
        if token not in added
    ]
    for token in (*ordinary, *(token["content"] for file in files for token in _added(file))):
        if token not in ids:
            ids[token], following = following, following + 1
    if len(ids) == len(files[0].tokens) and len(added) == len(_added(files[0])):
        return files[0]
    model = dict(files[0].data["model"])
    entries = [token | {"id": ids[content]} for content, token in added.items()]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = ids
    else:  # Unigram: places are ids, and added tokens come after them
        entries += [
            {"id": index, "content": token, **PLAIN}
            for token, index in ids.items()
            if token not in files[0].tokens and token not in added
        ]
    data = files[0].data | {
        "model": model,
        "added_tokens": sorted(entries, key=lambda entry: entry["id"]),
    }
    return _checked(
        files[0].source, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode(), ids
    )


def with_added_tokens(config: bytes, tokenizer: TokenizerFile) -> bytes:
    """tokenizer_config.json with the added tokens of a tokenizer, where it lists them."""
    data = json.loads(config)
    if not isinstance(data, dict) or "added_tokens_decoder" not in data:
        return config
    data["added_tokens_decoder"] = {
        str(token["id"]): {flag: token.get(flag, False) for flag in FLAGS}
        for token in _added(tokenizer)
    }
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _checked(source: str, raw: bytes, ids: dict[str, int]) -> TokenizerFile:
    """What the tokenizers library makes of it must have these ids: it numbers added tokens itself."""
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
    return sorted(file.data.get("added_tokens") or [], key=lambda token: token["id"])
