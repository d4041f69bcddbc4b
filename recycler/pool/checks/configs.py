"""Configs of checkpoints in one spelling, so that they can be compared.

transformers 4 and 5 spell some things differently: rope_theta beside or inside rope_parameters, and
keys that are left out when they have their default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]
COMPUTING = frozenset(  # keys that change what equal weights compute
    """
    hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim hidden_act hidden_activation activation_function rms_norm_eps layer_norm_eps
    layer_norm_epsilon norm_eps norm_epsilon attention_bias mlp_bias qkv_bias clip_qkv
    sliding_window use_sliding_window max_window_layers layer_types no_rope_layers
    sliding_window_pattern num_experts num_local_experts num_experts_per_tok
    n_routed_experts n_shared_experts norm_topk_prob routed_scaling_factor scoring_func
    moe_intermediate_size shared_expert_intermediate_size decoder_sparse_step
    mlp_only_layers logit_scale logits_scaling final_logit_softcapping
    attn_logit_softcapping query_pre_attn_scalar embedding_multiplier attention_multiplier
    residual_multiplier use_qk_norm qk_layernorm parallel_attn alibi
    new_decoder_architecture multi_query use_parallel_residual scale_attn_weights
    scale_embedding
    """.split()
)
HARMLESS = frozenset(  # keys that do not, or that are compared elsewhere
    """
    _name_or_path name_or_path transformers_version dtype torch_dtype use_cache
    architectures model_type vocab_size bos_token_id eos_token_id pad_token_id unk_token_id
    tie_word_embeddings rope_theta rope_scaling rope_parameters rope_interleaved
    partial_rotary_factor initializer_range attention_dropout hidden_dropout dropout
    embd_pdrop resid_pdrop attn_pdrop pretraining_tp router_aux_loss_coef
    output_router_logits gradient_checkpointing is_llama_config id2label label2id
    attn_implementation _attn_implementation unsloth_version unsloth_fixed
    transformers.js_config return_dict output_attentions output_hidden_states problem_type
    task_specific_params chunk_size_feed_forward quantization_config compression_config
    """.split()
)
MISSING = object()
"""Stands for the value of a key that a config does not have."""
_SILENT: tuple[Any, ...] = (None, False, [], 0)
"""Values that say the same as leaving the key out."""


def text_config(config: Config) -> Config:
    """The part of a config that is about the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def text_value(config: Config, key: str) -> Any:
    """The value of a key about the language model, from the inner config or the outer one."""
    return text_config(config).get(key, config.get(key))


def rope_of(config: Config) -> dict[str, Any]:
    """Rotary parameters in the spelling of transformers 5, whichever version wrote them.

    Empty for a model without them.
    """
    inner = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(inner, dict):
        return {"rope_parameters": inner}
    if inner and all(isinstance(value, dict) for value in inner.values()):
        return _rope_by_layer_type(config, inner)
    if inner or "rope_theta" in config or "num_attention_heads" in config:
        return _one_rope(config, inner)
    return {}


def _rope_by_layer_type(config: Config, inner: Mapping[str, Config]) -> dict[str, Any]:
    rope: dict[str, Any] = {}
    for kind, part in inner.items():
        for key, value in _one_rope(config, part).items():
            rope[f"{kind}.{key}"] = value
    return rope


def _one_rope(config: Config, inner: Config) -> dict[str, Any]:
    rope = {
        "rope_theta": config.get("rope_theta") or 10_000.0,
        "rope_type": inner.get("type", "default"),
        "partial_rotary_factor": config.get("partial_rotary_factor") or 1.0,
    }
    rope |= {key: value for key, value in inner.items() if key != "type" and value is not None}
    for key, value in rope.items():
        if type(value) is int:
            rope[key] = float(value)
    return rope


def flat_config(config: Config, prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted key, with the defaults of the heads filled in."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and len(prefix) < 200:
            flat |= flat_config(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    heads, size = flat.get(f"{prefix}num_attention_heads"), flat.get(f"{prefix}hidden_size")
    if heads and type(size) is int:
        flat[f"{prefix}head_dim"] = flat.get(f"{prefix}head_dim") or size // heads
        flat[f"{prefix}num_key_value_heads"] = flat.get(f"{prefix}num_key_value_heads") or heads
    return flat


def is_same(ours: Any, theirs: Any) -> bool:
    """True for equal values, and for a missing one beside one that says nothing.

    None, False, an empty list, 0, and a list of layers with full attention alone say nothing.
    """
    if ours is not MISSING and theirs is not MISSING:
        return ours == theirs
    given = theirs if ours is MISSING else ours
    if isinstance(given, list) and set(map(str, given)) == {"full_attention"}:
        return True
    return given in _SILENT


def differing_keys(ours: Config, theirs: Config) -> list[str]:
    """Dotted keys of two configs whose values differ, but for those that are harmless."""
    ours, theirs = flat_config(ours), flat_config(theirs)
    return [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if not _is_harmless(key) and not is_same(ours.get(key, MISSING), theirs.get(key, MISSING))
    ]


def _is_harmless(key: str) -> bool:
    parts = key.split(".")
    return parts[-1] in HARMLESS or any(part.startswith("rope_") for part in parts)
