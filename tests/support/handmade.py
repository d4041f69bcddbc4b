"""Checkpoints written byte by byte, by no library that refuses to write what tests need."""

import json

import numpy as np

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U8": 1, "F8_E4M3": 1}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 12,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
SHAPES = {"model.embed_tokens.weight": (12, 8), "model.norm.weight": (8,)} | {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "self_attn.q_proj.weight": (8, 8),
        "mlp.up_proj.weight": (16, 8),
        "input_layernorm.weight": (8,),
    }.items()
}


def file_bytes(header, data=b"", *, length=None):
    """A safetensors file from a header (dict, or raw bytes) and a data section; `length` lies about
    the header's.
    """
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def bf16(values):
    return (np.asarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def model_arrays(seed=0, *, near=None, scale=0.1, shapes=SHAPES):
    """float32 arrays by name: fresh ones, or `near` plus noise of `scale`."""
    random = np.random.default_rng(seed)
    noise = {
        name: random.standard_normal(shape).astype(np.float32) * scale
        for name, shape in shapes.items()
    }
    return {name: near[name] + noise[name] for name in shapes} if near else noise


def shard_bytes(arrays, dtype="BF16"):
    """A well-formed file; arrays that are not float32 are stored as I64 or U8."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        kind = {"float32": dtype, "int64": "I64", "uint8": "U8"}[str(array.dtype)]
        raw = (
            bf16(array).tobytes()
            if kind == "BF16"
            else array.astype(np.float16).tobytes()
            if kind == "F16"
            else array.tobytes()
        )
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return file_bytes(header, data)


def tokenizer(**changes):
    vocabulary = {
        token: index for index, token in enumerate(["<pad>", "<bos>", "<eos>", *"abcdefgh"])
    }
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": token, "special": True}
            for token, index in list(vocabulary.items())[:3]
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b", "c d"]} | changes,
    }


def write_checkpoint(
    folder, arrays=None, *, config=None, dtype="BF16", tokenizer_json=None, files=None, without=()
):
    """A small Llama-like folder; `config` changes keys of CONFIG, `without` drops some, `files`
    adds or replaces whole files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = model_arrays() if arrays is None else arrays
    (folder / "model.safetensors").write_bytes(shard_bytes(arrays, dtype))
    settings = {
        key: value for key, value in (CONFIG | (config or {})).items() if key not in without
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(
        json.dumps(tokenizer() if tokenizer_json is None else tokenizer_json)
    )
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_sharded(folder, index=None, *, total=None, shards=2):
    """The same in several shards with an index; `index` changes the weight_map, `total` the
    total_size.
    """
    write_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    arrays = model_arrays()
    names, weight_map, num_bytes = list(arrays), {}, 0
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: arrays[name] for name in names[number::shards]}
        (folder / file).write_bytes(shard_bytes(part))
        weight_map |= dict.fromkeys(part, file)
        num_bytes += sum(2 * array.size for array in part.values())
    document = {
        "metadata": {"total_size": num_bytes if total is None else total},
        "weight_map": weight_map | (index or {}),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    return folder
