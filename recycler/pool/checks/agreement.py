"""Agreement of the checkpoints of a pool, as far as headers and configs tell.

Each checkpoint is compared with the template: the base, or the first member.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from recycler.pool.checks.configs import (
    COMPUTING,
    MISSING,
    differing_keys,
    flat_config,
    rope_of,
    text_config,
    text_value,
)
from recycler.pool.checks.findings import Finding, named, refuse, warn
from recycler.pool.checks.vocabulary import (
    chat_template_findings,
    token_range_findings,
    tokenizer_findings,
)
from recycler.pool.storage.headers import FLOAT_DTYPES
from recycler.types import Checkpoint, Pool, TensorInfo

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
KNOWN_EMBEDDINGS = (
    EMBEDDINGS,
    "transformer.wte.weight",
    "model.language_model.embed_tokens.weight",
    "gpt_neox.embed_in.weight",
)
ONE_ARCHITECTURE = "Only checkpoints of one architecture can be merged; leave it out"
MAX_KEYS = 6  # of a config that are told
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")


def soundness(checkpoint: Checkpoint) -> list[Finding]:
    """Faults of one checkpoint by itself: quantized, or a config that contradicts its tensors."""
    return [
        *_quantized(checkpoint),
        *_rows_against_config(checkpoint),
        *_layers_against_config(checkpoint),
        *_missing_head(checkpoint),
        *token_range_findings(checkpoint, _rows(checkpoint)),
    ]


def compare(pool: Pool) -> list[Finding]:
    """Every difference between members and template that headers and configs show."""
    template = pool.template
    findings: list[Finding] = []
    for member in pool.members:
        if member is not template:
            findings += [
                *_architecture(member, template),
                *_tensors(member, template),
                *_rope(member, template),
                *_config(member, template),
                *_special_ids(member, template, pool),
            ]
    return findings + tokenizer_findings(pool) + chat_template_findings(pool)


# ---------------------------------------------------------------- one checkpoint


def _quantized(checkpoint: Checkpoint) -> Iterator[Finding]:
    packed = [name for name, info in checkpoint.tensors.items() if _is_packed(name, info)]
    settings = ("quantization_config", "compression_config")
    given = [key for key in settings if checkpoint.config.get(key)]
    if given or packed:
        said = given[0] if given else named(packed)
        yield refuse(
            "quantized",
            checkpoint,
            f"is quantized ({said})",
            "Merge the unquantized weights and quantize the result",
        )


def _is_packed(name: str, info: TensorInfo) -> bool:
    """True for 8-bit floats, and for integers where weights are expected."""
    is_integer_matrix = info.dtype in ("U8", "I8", "I32") and len(info.shape) > 1
    return info.dtype.startswith("F8") or (is_integer_matrix and "weight" in name)


def _rows_against_config(checkpoint: Checkpoint) -> Iterator[Finding]:
    rows, vocab_size = _rows(checkpoint), text_config(checkpoint.config).get("vocab_size")
    if rows is not None and vocab_size is not None and rows != vocab_size:
        yield refuse(
            "vocabulary",
            checkpoint,
            f"config.json has vocab_size {vocab_size}, the embeddings have {rows} rows",
            "Save it again with save_pretrained",
        )


def _layers_against_config(checkpoint: Checkpoint) -> Iterator[Finding]:
    claimed = text_config(checkpoint.config).get("num_hidden_layers")
    layers = _layers(checkpoint.tensors)
    if not layers or claimed is None:
        return
    if len(layers) != claimed or claimed != max(layers) + 1:
        yield refuse(
            "config",
            checkpoint,
            f"config.json has num_hidden_layers {claimed}, the tensors have {len(layers)} layers "
            f"up to number {max(layers)}",
            "A shard is missing, or the config is another model's",
        )


def _layers(names: Iterable[str]) -> set[int]:
    """Numbers of the layers of the language model."""
    layers = set()
    for name in names:
        match = _LAYER.search(name)
        if match and not name.startswith(("vision", "model.vision", "visual")):
            layers.add(int(match[1]))
    return layers


def _missing_head(checkpoint: Checkpoint) -> Iterator[Finding]:
    is_untied = text_value(checkpoint.config, "tie_word_embeddings") is False
    has_head = any("head" in name or "output" in name for name in checkpoint.tensors)
    if is_untied and not has_head and EMBEDDINGS in checkpoint.tensors and _is_causal(checkpoint):
        yield refuse(
            "tied_head",
            checkpoint,
            f"has no {HEAD}, and config.json says that the head is not tied",
            "Set tie_word_embeddings to true if it was trained so, else save it again with its "
            "head",
        )


def _is_causal(checkpoint: Checkpoint) -> bool:
    names = checkpoint.config.get("architectures") or ()
    return any(str(name).endswith("ForCausalLM") for name in names)


def _rows(checkpoint: Checkpoint) -> int | None:
    """Rows of the input embeddings, where their name is a known one."""
    for name in KNOWN_EMBEDDINGS:
        info = checkpoint.tensors.get(name)
        if info is not None and len(info.shape) == 2:
            return info.shape[0]
    return None


# ---------------------------------------------------------------- a member against the template


def _architecture(member: Checkpoint, template: Checkpoint) -> Iterator[Finding]:
    for key in ("model_type", "architectures"):
        ours, theirs = member.config.get(key), template.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            yield refuse(
                "architecture",
                member,
                f"has {key} {_shown(ours)} where {template.name!r} has {_shown(theirs)}",
                ONE_ARCHITECTURE,
            )
            return


def _tensors(member: Checkpoint, template: Checkpoint) -> Iterator[Finding]:
    yield from _head(member, template)
    missing = [name for name in template.tensors if name not in member.tensors and name != HEAD]
    extra = [name for name in member.tensors if name not in template.tensors and name != HEAD]
    if missing:
        yield refuse(
            "tensors",
            member,
            f"lacks {named(missing)} of {template.name!r}",
            "Save it again with all its tensors, or leave it out",
        )
    if extra:
        yield refuse(
            "tensors",
            member,
            f"has {named(extra)} that {template.name!r} has not",
            "Leave it out, or save it without them; nothing is dropped silently",
        )
    common = [name for name in template.tensors if name in member.tensors]
    yield from _shapes(member, template, common)
    yield from _dtypes(member, template, common)


def _head(member: Checkpoint, template: Checkpoint) -> Iterator[Finding]:
    """A head that one of the two has and the other ties to its embeddings."""
    has_own, template_has = HEAD in member.tensors, HEAD in template.tensors
    is_tied, template_is_tied = _is_tied(member), _is_tied(template)
    if has_own != template_has:
        untied, tied = (member, template) if has_own else (template, member)
        cause = f"{untied.name!r} has its own {HEAD}, {tied.name!r} ties it to {EMBEDDINGS!r}"
    elif is_tied != template_is_tied:
        cause = f"has tie_word_embeddings {is_tied} where {template.name!r} has {template_is_tied}"
    else:
        return
    yield refuse("tied_head", member, cause, "Save all of them tied, or all untied")


def _is_tied(checkpoint: Checkpoint) -> bool:
    claimed = text_value(checkpoint.config, "tie_word_embeddings")
    return HEAD not in checkpoint.tensors if claimed is None else bool(claimed)


def _shapes(member: Checkpoint, template: Checkpoint, common: list[str]) -> Iterator[Finding]:
    differing = [
        name for name in common if member.tensors[name].shape != template.tensors[name].shape
    ]
    ours, theirs = _rows(member), _rows(template)
    if ours is not None and theirs is not None and ours != theirs:
        yield refuse(
            "vocabulary",
            member,
            f"has a vocabulary of {ours} tokens where {template.name!r} has {theirs}",
            "Resize it to the same vocabulary in the same order, or leave it out",
        )
        differing = [name for name in differing if member.tensors[name].shape[:1] != (ours,)]
    if differing:
        name = differing[0]
        yield refuse(
            "shapes",
            member,
            f"holds {named(differing)} of another shape: {list(member.tensors[name].shape)} "
            f"where {template.name!r} has {list(template.tensors[name].shape)}",
            ONE_ARCHITECTURE,
        )


def _dtypes(member: Checkpoint, template: Checkpoint, common: list[str]) -> Iterator[Finding]:
    differing = [
        name for name in common if member.tensors[name].dtype != template.tensors[name].dtype
    ]
    if not differing:
        return
    ours, theirs = member.tensors[differing[0]].dtype, template.tensors[differing[0]].dtype
    remedy = "Leave it out: such tensors cannot be merged"
    if ours in FLOAT_DTYPES and theirs in FLOAT_DTYPES:
        remedy = (
            "Save all checkpoints in one dtype (model.to(dtype).save_pretrained), so that no "
            "rounding is hidden"
        )
    yield refuse(
        "dtypes",
        member,
        f"holds {named(differing)} as {ours} where {template.name!r} has {theirs}",
        remedy,
    )


def _rope(member: Checkpoint, template: Checkpoint) -> Iterator[Finding]:
    ours, theirs = rope_of(text_config(member.config)), rope_of(text_config(template.config))
    differing = sorted(
        key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)
    )
    if differing:
        key = "rope_theta" if "rope_theta" in differing else differing[0]
        yield refuse(
            "rope",
            member,
            f"has {key} {_shown(ours.get(key))} where {template.name!r} has "
            f"{_shown(theirs.get(key))}",
            "Positions would mean different things; leave it out",
        )


def _config(member: Checkpoint, template: Checkpoint) -> Iterator[Finding]:
    """Other differences of the configs: refused where they change the computation, else told."""
    ours, theirs = flat_config(member.config), flat_config(template.config)
    computing: list[str] = []
    other: list[str] = []
    for key in differing_keys(member.config, template.config):
        said = _told_key(key, ours, theirs, template)
        if key.rpartition(".")[2] in COMPUTING:
            computing.append(said)
        else:
            other.append(said)
    if computing:
        yield refuse(
            "config",
            member,
            f"config.json has {'; '.join(computing[:MAX_KEYS])}",
            "Equal weights would compute different things; leave it out, or correct the config "
            "if it is the config that is wrong",
        )
    if other:
        yield warn(
            "config",
            member,
            f"config.json has {'; '.join(other[:MAX_KEYS])}",
            f"Merges get the config of {template.name!r}",
        )


def _told_key(
    key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], template: Checkpoint
) -> str:
    own, other = _shown(ours.get(key, MISSING)), _shown(theirs.get(key, MISSING))
    return f"{key} {own} where {template.name!r} has {other}"


def _special_ids(member: Checkpoint, template: Checkpoint, pool: Pool) -> Iterator[Finding]:
    """Other ids of special tokens.

    Another bos or eos is refused among members; a base often has others than its instruct models,
    which is only told.
    """
    is_first = member is pool.members[0]
    reference = template if is_first else pool.members[0]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ours, theirs = text_value(member.config, key), text_value(reference.config, key)
        if ours == theirs:
            continue
        cause = f"has {key} {_shown(ours)} where {reference.name!r} has {_shown(theirs)}"
        if is_first or key == "pad_token_id" or ours is None or theirs is None:
            remedy = f"Merges get the {key} of {template.name!r}"
            yield warn("special_ids", member, cause, remedy)
        else:
            remedy = "Texts would end or begin with different tokens; give all members the same"
            yield refuse("special_ids", member, cause, remedy)


def _shown(value: Any) -> str:
    """A value of a config as JSON, cut to 80 characters."""
    if value is None or value is MISSING:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
