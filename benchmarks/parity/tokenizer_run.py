"""Merge models whose vocabularies overlap, with recycler and with mergekit 0.1.5, and compare;
print a markdown table.

    python benchmarks/parity/tokenizer_run.py --mergekit /tmp/mergekit-venv/bin/mergekit-yaml

mergekit numbers new tokens in an order that differs from run to run, so rows are compared by their
token. Without a base_model it draws the model whose tokenizer comes first, so every case has one.
Then both tokenizers, and that of the first model, cut some texts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from run import ulps
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recycler.export.export import export_recipe
from recycler.merge.files.recipe_yaml import open_recipe

TEXTS = {
    "base": "the cat sat on the mat and the dog sat on the log with the other cats",
    "m1": "le chat et le chien sont sur le tapis avec les autres chats the cat",
    "m2": "def add(a, b): return a + b for index in range(ten): print(index) le chat",
}
ADDED = {"base": ["<|user|>"], "m1": ["<|user|>", "<|outil|>"], "m2": ["<|tool|>", "<|outil|>"]}
BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")
MODELS = (
    "models:\n- {model: M1, parameters: {weight: 0.5SETTING}}\n- {model: M2, parameters: {weight: "
    "0.3SETTING}}\n"
)
CASES = {
    "linear": "merge_method: linear\nbase_model: M1\n"
    + MODELS
    + "parameters: {normalize: false}\n",
    "slerp": "merge_method: slerp\nbase_model: M1\nmodels:\n- {model: M1}\n- {model: M2}\n"
    "parameters: {t: 0.4}\n",
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: BASE\n" + MODELS,
    "ties": "merge_method: ties\nbase_model: BASE\n" + MODELS.replace("SETTING", ", density: 0.5"),
}


def build(folder: Path, *, tied: bool, dtype: torch.dtype) -> None:
    """base, m1 and m2: byte-level BPE of other texts, weights near the base's where both have the
    row.
    """
    torch.manual_seed(0)
    common = None
    for name, text in TEXTS.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        tokenizer.train_from_iterator(
            [text] * 3,
            trainers.BpeTrainer(
                vocab_size=300,
                special_tokens=["<s>", "</s>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        tokenizer.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in ADDED[name]]
        )
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokenizer.get_vocab_size(),
                hidden_size=64,
                intermediate_size=176,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=tied,
            )
        )
        state = model.state_dict()
        common = common or {
            key: tensor.clone() for key, tensor in state.items() if key not in BY_TOKEN
        }
        model.load_state_dict(
            state
            | {key: tensor + 0.05 * torch.randn_like(tensor) for key, tensor in common.items()}
        )
        model.tie_weights()
        model.to(dtype).save_pretrained(folder / name)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
        ).save_pretrained(folder / name)


def mergekit(command: str, config: Path, out: Path) -> None:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [command, str(config), str(out), "--quiet"], env=environment, capture_output=True, text=True
    )
    if not (out / "tokenizer.json").exists():
        raise SystemExit(f"{config}: mergekit failed\n{done.stderr[-2000:]}")


def compare(ours: Path, theirs: Path, template: Path) -> str:
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (ours, theirs, template)]
    ids = [tokenizer.get_vocab() for tokenizer in tokenizers[:2]]
    if ids[0].keys() != ids[1].keys():
        return f"vocabularies differ: {sorted(ids[0].keys() ^ ids[1].keys())[:4]}"
    cut = [
        sum(tokenizer.tokenize(text) == tokenizers[2].tokenize(text) for text in TEXTS.values())
        for tokenizer in tokenizers[:2]
    ]
    order = [torch.tensor([vocabulary[token] for token in sorted(ids[0])]) for vocabulary in ids]
    tensors = [load_file(folder / "model.safetensors") for folder in (ours, theirs)]
    if tensors[0].keys() != tensors[1].keys() or any(
        len(pair[0][BY_TOKEN[0]]) != len(ids[0]) for pair in [tensors]
    ):
        return (
            f"tensors differ: {sorted(tensors[0].keys() ^ tensors[1].keys())}, "
            f"{len(tensors[0][BY_TOKEN[0]])} rows for {len(ids[0])} tokens"
        )
    apart = {
        name: ulps(
            *(
                own[name][rows] if name in BY_TOKEN else own[name]
                for own, rows in zip(tensors, order, strict=True)
            )
        )
        for name in tensors[0]
    }
    by_token, rest = (
        sum(int((apart[name] > 0).sum()) for name in apart if (name in BY_TOKEN) is wanted)
        for wanted in (True, False)
    )
    most, total = (
        max(int(distance.max()) for distance in apart.values()),
        sum(tensor.numel() for tensor in tensors[0].values()),
    )
    verdict = (
        "bit for bit"
        if not by_token + rest
        else f"{by_token} elements of rows by token and {rest} others, at most {most} ulp"
    )
    return (
        f"{verdict} of {total:,}; {len(ids[0])} tokens; of {len(TEXTS)} texts {cut[0]} are cut as "
        f"before (mergekit {cut[1]})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", default="/tmp/mergekit-venv/bin/mergekit-yaml")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {
        "tied, bfloat16": (True, torch.bfloat16),
        "untied, float32 members": (False, torch.float32),
    }
    print("| case | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds), flush=True)
    with tempfile.TemporaryDirectory() as place:
        for number, (tied, dtype) in enumerate(kinds.values()):
            build(Path(place) / str(number), tied=tied, dtype=dtype)
        for source in ("union", "base"):
            for case, text in CASES.items():
                cells = []
                for number in range(len(kinds)):
                    folder = Path(place) / str(number)
                    config = folder / f"{source}-{case.replace(', ', '-')}.yml"
                    for word, name in (
                        ("BASE", "base"),
                        ("M1", "m1"),
                        ("M2", "m2"),
                        ("SETTING", ""),
                    ):
                        text = text.replace(word, str(Path(place) / "N" / name) if name else "")
                    config.write_text(
                        text.replace(f"{place}/N", str(folder))
                        + f"tokenizer_source: {source}\ndtype: float32\nout_dtype: bfloat16\n"
                    )
                    mergekit(arguments.mergekit, config, config.with_suffix(".theirs"))
                    export_recipe(*open_recipe(config), config.with_suffix(".ours"))
                    cells.append(
                        compare(
                            config.with_suffix(".ours"),
                            config.with_suffix(".theirs"),
                            folder / ("base" if "base_model: BASE" in CASES[case] else "m1"),
                        )
                    )
                print(f"| {case}, {source} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
