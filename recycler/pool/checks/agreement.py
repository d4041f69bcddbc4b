"""Do the checkpoints of a pool agree, as far as headers and configs can tell? Each is compared with
the template.

Configs of transformers 4 and 5 spell some things differently (rope_theta beside or inside
rope_parameters, keys left out when they have their default); they are brought to one spelling
before they are compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from recycler.pool.checks.findings import Finding, named, refuse, warn
from recycler.pool.checks.vocabulary import (
    chat_template_findings,
    token_range_findings,
    tokenizer_findings,
)
from recycler.pool.storage.headers import FLOAT_DTYPES
from recycler.types import Checkpoint, Pool

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
ONE_ARCHITECTURE = "Only checkpoints of one architecture can be merged; leave it out"
COMPUTING = frozenset(
    (  # config keys that change what equal weights compute
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "hidden_activation",
        "activation_function",
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_eps",
        "norm_epsilon",
        "attention_bias",
        "mlp_bias",
        "qkv_bias",
        "clip_qkv",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "no_rope_layers",
        "sliding_window_pattern",
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "n_routed_experts",
        "n_shared_experts",
        "norm_topk_prob",
        "routed_scaling_factor",
        "scoring_func",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "decoder_sparse_step",
        "mlp_only_layers",
        "logit_scale",
        "logits_scaling",
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "query_pre_attn_scalar",
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "use_qk_norm",
        "qk_layernorm",
        "parallel_attn",
        "alibi",
        "new_decoder_architecture",
        "multi_query",
        "use_parallel_residual",
        "scale_attn_weights",
        "scale_embedding",
    )
)
HARMLESS = frozenset(
    (  # config keys that do not, or that are compared elsewhere
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "use_cache",
        "architectures",
        "model_type",
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
        "tie_word_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_interleaved",
        "partial_rotary_factor",
        "initializer_range",
        "attention_dropout",
        "hidden_dropout",
        "dropout",
        "embd_pdrop",
        "resid_pdrop",
        "attn_pdrop",
        "pretraining_tp",
        "router_aux_loss_coef",
        "output_router_logits",
        "gradient_checkpointing",
        "is_llama_config",
        "id2label",
        "label2id",
        "attn_implementation",
        "_attn_implementation",
        "unsloth_version",
        "unsloth_fixed",
        "transformers.js_config",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "task_specific_params",
        "chunk_size_feed_forward",
        "quantization_config",
        "compression_config",
    )
)
_MISSING = object()


def soundness(checkpoint: Checkpoint) -> list[Finding]:
    """What is wrong with one checkpoint by itself: quantized, or a config that contradicts its
    tensors.
    """
    return [
        *_quantized(checkpoint),
        *_sizes(checkpoint),
        *token_range_findings(checkpoint, _rows(checkpoint)),
    ]


def compare(pool: Pool) -> list[Finding]:
    """Every way in which the members differ from the template (base, or first member) that headers
    and configs show.
    """
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
    packed = [
        name
        for name, info in checkpoint.tensors.items()
        if info.dtype.startswith("F8")
        or (info.dtype in ("U8", "I8", "I32") and len(info.shape) > 1 and "weight" in name)
    ]
    config = [
        key for key in ("quantization_config", "compression_config") if checkpoint.config.get(key)
    ]
    if config or packed:
        yield refuse(
            "quantized",
            checkpoint,
            f"is quantized ({config[0] if config else named(packed)})",
            "Merge the unquantized weights and quantize the result",
        )


def _sizes(checkpoint: Checkpoint) -> Iterator[Finding]:
    text = _text_config(checkpoint.config)
    rows, vocab_size = _rows(checkpoint), text.get("vocab_size")
    if rows is not None and vocab_size is not None and rows != vocab_size:
        yield refuse(
            "vocabulary",
            checkpoint,
            f"config.json has vocab_size {vocab_size}, the embeddings have {rows} rows",
            "Save it again with save_pretrained",
        )
    layers = {
        int(match[1])
        for name in checkpoint.tensors
        if (match := re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.", name))
        and not name.startswith(("vision", "model.vision", "visual"))
    }
    claimed = text.get("num_hidden_layers")
    if layers and claimed is not None and not (len(layers) == claimed == max(layers) + 1):
        yield refuse(
            "config",
            checkpoint,
            f"config.json has num_hidden_layers {claimed}, the tensors have {len(layers)} layers "
            f"up to number {max(layers)}",
            "A shard is missing, or the config is another model's",
        )
    tied = text.get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings"))
    if (
        tied is False
        and EMBEDDINGS in checkpoint.tensors
        and not any("head" in name or "output" in name for name in checkpoint.tensors)
        and _is_causal(checkpoint)
    ):
        yield refuse(
            "tied_head",
            checkpoint,
            f"has no {HEAD}, and config.json says that the head is not tied",
            "Set tie_word_embeddings to true if it was trained so, else save it again with its "
            "head",
        )


def _is_causal(checkpoint: Checkpoint) -> bool:
    return any(
        str(name).endswith("ForCausalLM") for name in checkpoint.config.get("architectures") or ()
    )


def _rows(checkpoint: Checkpoint) -> int | None:
    """Rows of the input embeddings, where their name is a known one."""
    for name in (
        EMBEDDINGS,
        "transformer.wte.weight",
        "model.language_model.embed_tokens.weight",
        "gpt_neox.embed_in.weight",
    ):
        if name in checkpoint.tensors and len(checkpoint.tensors[name].shape) == 2:
            return checkpoint.tensors[name].shape[0]
    return None


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


# ---------------------------------------------------------------- one checkpoint against the template


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
    missing = [name for name in template.tensors if name not in member.tensors]
    extra = [name for name in member.tensors if name not in template.tensors]
    ties = tuple(_is_tied(checkpoint) for checkpoint in (member, template))
    if HEAD in missing or HEAD in extra:
        tied, untied = (member, template) if HEAD in missing else (template, member)
        yield refuse(
            "tied_head",
            member,
            f"{untied.name!r} has its own {HEAD}, {tied.name!r} ties it to {EMBEDDINGS!r}",
            "Save all of them tied, or all untied",
        )
    elif ties[0] != ties[1]:
        yield refuse(
            "tied_head",
            member,
            f"has tie_word_embeddings {ties[0]} where {template.name!r} has {ties[1]}",
            "Save all of them tied, or all untied",
        )
    missing, extra = ([name for name in names if name != HEAD] for names in (missing, extra))
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
    dtypes = [name for name in common if member.tensors[name].dtype != template.tensors[name].dtype]
    if dtypes:
        ours, theirs = member.tensors[dtypes[0]].dtype, template.tensors[dtypes[0]].dtype
        both = ours in FLOAT_DTYPES and theirs in FLOAT_DTYPES
        remedy = (
            "Save all checkpoints in one dtype (model.to(dtype).save_pretrained), so that no "
            "rounding is hidden"
            if both
            else "Leave it out: such tensors cannot be merged"
        )
        yield refuse(
            "dtypes",
            member,
            f"holds {named(dtypes)} as {ours} where {template.name!r} has {theirs}",
            remedy,
        )


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


def _is_tied(checkpoint: Checkpoint) -> bool:
    claimed = _text_config(checkpoint.config).get(
        "tie_word_embeddings", checkpoint.config.get("tie_word_embeddings")
    )
    return bool(claimed) if claimed is not None else HEAD not in checkpoint.tensors


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters in one spelling (that of transformers 5), whichever version wrote them;
    empty without rope.
    """
    inner = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(inner, dict):
        return {"rope_parameters": inner}
    if inner and all(isinstance(value, dict) for value in inner.values()):  # one set per layer type
        return {
            f"{kind}.{key}": value
            for kind, part in inner.items()
            for key, value in _one_rope(config, part).items()
        }
    return (
        _one_rope(config, inner)
        if inner or "rope_theta" in config or "num_attention_heads" in config
        else {}
    )


def _one_rope(config: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    rope = {
        "rope_theta": config.get("rope_theta") or 10_000.0,
        "rope_type": inner.get("type", "default"),
        "partial_rotary_factor": config.get("partial_rotary_factor") or 1.0,
    }
    rope |= {key: value for key, value in inner.items() if key != "type" and value is not None}
    return {key: float(value) if type(value) is int else value for key, value in rope.items()}


def _rope(member: Checkpoint, template: Checkpoint) -> Iterator[Finding]:
    ours, theirs = rope_of(_text_config(member.config)), rope_of(_text_config(template.config))
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
    ours, theirs = _flat(member.config), _flat(template.config)
    drift, other = [], []
    for key in sorted(ours.keys() | theirs.keys()):
        last = key.rsplit(".", 1)[-1]
        if (
            last in HARMLESS
            or any(part.startswith("rope_") for part in key.split("."))
            or _same(ours.get(key, _MISSING), theirs.get(key, _MISSING))
        ):
            continue
        (drift if last in COMPUTING else other).append(
            f"{key} {_shown(ours.get(key, _MISSING))} where {template.name!r} has "
            f"{_shown(theirs.get(key, _MISSING))}"
        )
    if drift:
        yield refuse(
            "config",
            member,
            f"config.json has {'; '.join(drift[:6])}",
            "Equal weights would compute different things; leave it out, or correct the config "
            "if it is the config that is wrong",
        )
    if other:
        yield warn(
            "config",
            member,
            f"config.json has {'; '.join(other[:6])}",
            f"Merges get the config of {template.name!r}",
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and len(prefix) < 200
            else {f"{prefix}{key}": value}
        )
    heads = flat.get(f"{prefix}num_attention_heads")
    if heads and type(flat.get(f"{prefix}hidden_size")) is int:  # what is left out has these values
        flat[f"{prefix}head_dim"] = (
            flat.get(f"{prefix}head_dim") or flat[f"{prefix}hidden_size"] // heads
        )
        flat[f"{prefix}num_key_value_heads"] = flat.get(f"{prefix}num_key_value_heads") or heads
    return flat


def _same(ours: Any, theirs: Any) -> bool:
    """Equal, or left out on one side and saying nothing on the other (None, False, all layers with
    full attention).
    """
    if ours is _MISSING or theirs is _MISSING:
        given = theirs if ours is _MISSING else ours
        return (
            given is None
            or given is False
            or given in ([], 0)
            or (isinstance(given, list) and set(map(str, given)) == {"full_attention"})
        )
    return ours == theirs


def _special_ids(member: Checkpoint, template: Checkpoint, pool: Pool) -> Iterator[Finding]:
    """Among members, another bos or eos is refused; a base often has others than its instruct
    models, which is told.
    """
    first = pool.members[0]
    reference, level = (template, warn) if member is first else (first, refuse)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ours, theirs = (
            _text_config(checkpoint.config).get(key, checkpoint.config.get(key))
            for checkpoint in (member, reference)
        )
        if ours == theirs:
            continue
        how = level if key != "pad_token_id" and ours is not None and theirs is not None else warn
        yield how(
            "special_ids",
            member,
            f"has {key} {_shown(ours)} where {reference.name!r} has {_shown(theirs)}",
            f"Merges get the {key} of {template.name!r}"
            if how is warn
            else "Texts would end or begin with different tokens; give all members the same",
        )


def _shown(value: Any) -> str:
    text = "nothing" if value is _MISSING or value is None else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
