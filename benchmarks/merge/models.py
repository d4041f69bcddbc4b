"""Synthetic Llama checkpoints for the merge bench: a base and fine-tunes that are base + noise,
bfloat16, cut into shards.

python benchmarks/merge/models.py {135m|1b} N OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from recycler.pool.storage.writer import write_model

# hidden, layers, heads, kv heads, intermediate, vocabulary, tied: SmolLM2-135M and TinyLlama-1.1B
SHAPES = {
    "135m": (576, 30, 9, 3, 1536, 49152, True),
    "1b": (2048, 22, 32, 4, 5632, 32000, False),
}


def main(kind: str, count: int, out: Path) -> None:
    hidden, layers, heads, kv_heads, inner, vocabulary, tied = SHAPES[kind]
    key = hidden // heads * kv_heads
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
    layer = {
        "input_layernorm": (hidden,),
        "mlp.down_proj": (hidden, inner),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "post_attention_layernorm": (hidden,),
        "self_attn.k_proj": (key, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (key, hidden),
    }
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    shapes |= {
        f"model.layers.{index}.{name}.weight": shape
        for index in range(layers)
        for name, shape in layer.items()
    }
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, hidden)

    def tensors(number: int):
        for index, (name, shape) in enumerate(shapes.items()):
            base = torch.randn(shape, generator=torch.Generator().manual_seed(index)).mul_(0.02)
            if number:
                base = (
                    base.bfloat16()
                    .float()
                    .add_(
                        torch.randn(
                            shape,
                            generator=torch.Generator().manual_seed(1_000_000 * number + index),
                        ),
                        alpha=0.002,
                    )
                )
            yield name, base.bfloat16()

    for number in range(count):
        folder = out / f"{kind}-{number}"
        write_model(
            tensors(number),
            {name: ("BF16", shape) for name, shape in shapes.items()},
            folder,
            max_shard_bytes=1_000_000_000,
        )
        (folder / "config.json").write_text(json.dumps(config))
        print(folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
