"""Two families of small models with a common base:

Llama-like with a tied head, Qwen-like with biases and a head of its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
# float32 members have no two deltas of equal size, which bfloat16 ones have by the thousand
FAMILIES = {
    "llama-tied": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, tie_word_embeddings=True),
        torch.bfloat16,
    ),
    "qwen-untied": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, tie_word_embeddings=False),
        torch.bfloat16,
    ),
    "qwen-untied, float32 members": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, tie_word_embeddings=False),
        torch.float32,
    ),
}


def build(folder: Path, family: str, *, num_members: int = 3) -> None:
    """Write base and m1..mK: the base is random, members are the base plus random deltas of 5 %
    with a common part.
    """
    kind, config, dtype = FAMILIES[family]
    torch.manual_seed(0)
    base = kind(config)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(
                0.02 * torch.randn_like(parameter)
            )  # norms and biases too, which start at one and zero
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    common = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    base.to(dtype).save_pretrained(folder / "base")
    for number in range(1, num_members + 1):
        generator = torch.Generator().manual_seed(number)
        model = kind(config)
        deltas = {
            name: 0.05
            * tensor.std()
            * (0.5 * common[name] + torch.randn(tensor.shape, generator=generator))
            for name, tensor in state.items()
        }
        model.load_state_dict({name: tensor + deltas[name] for name, tensor in state.items()})
        model.tie_weights()
        model.to(dtype).save_pretrained(folder / f"m{number}")
