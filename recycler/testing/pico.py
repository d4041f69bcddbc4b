"""Tiny real pools for tests of engines, pools and runs: built in a second, and with a tokenizer."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from recycler.pool.catalog import open_pool
from recycler.types import Pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Architecture = Literal["llama", "qwen2", "qwen3"]
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
DELTA_SCALE = 0.02  # of a member's random delta, beside weights of about 0.08


def make_pico_pool(
    directory: Path,
    *,
    architecture: Architecture = "llama",
    num_members: int = 3,
    tied: bool = True,
    seed: int = 0,
) -> Pool:
    """A base and random relatives of it, saved as bfloat16 Hugging Face folders.

    The base is in `directory`/base, the members in `directory`/members. Two layers, hidden size 64,
    100 characters: small enough to build in a second, real enough for every engine.
    """
    tokenizer = pico_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    model = _pico_model(architecture, len(tokenizer), tied)
    base = {name: _random(name, value, generator) for name, value in model.state_dict().items()}

    def save(weights: dict[str, Tensor], folder: Path) -> None:
        model.load_state_dict(_tie(weights) if tied else weights)
        model.to(torch.bfloat16).save_pretrained(folder)
        model.to(torch.float32)
        tokenizer.save_pretrained(folder)

    save(base, directory / "base")
    for index in range(num_members):
        member = {
            name: value + DELTA_SCALE * torch.randn(value.shape, generator=generator)
            for name, value in base.items()
        }
        save(member, directory / "members" / f"m{index}")
    return open_pool([str(directory / "members")], base=directory / "base")


def pico_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable character; its ids are the same in every pico pool."""
    # heavy, and not needed to import this module
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [*SPECIAL_TOKENS, *sorted(set(string.printable) - set("\r\x0b\x0c\t"))]
    ids = {token: index for index, token in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, bos, eos, unknown = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
    )


def _pico_model(architecture: Architecture, vocab_size: int, tied: bool) -> Any:
    """A `transformers` model of two layers, with random weights."""
    # heavy, and not needed to import this module
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[architecture]
    # Qwen3's own head_dim is 128, whatever the hidden size
    heads = {"head_dim": 32} if architecture == "qwen3" else {}
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **heads,
    )
    return model_class(config)


def _random(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Weights wide enough that a random model has opinions; norms near one.

    No model ends its text by itself.
    """
    noise = torch.randn(like.shape, generator=generator)
    if "embed_tokens" in name or "lm_head" in name:
        noise[SPECIAL_TOKENS.index("<eos>")] = 0.0
    return 1.0 + 0.1 * noise if "norm" in name else 0.15 * noise


def _tie(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the head that is the embeddings."""
    return {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
