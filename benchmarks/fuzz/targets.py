"""What is fuzzed: each target takes bytes and must either read them or raise a RecyclerError."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from recycler.io.strict_yaml import load_yaml
from recycler.location import PACK_MANIFEST, parse_location
from recycler.merge.files.mergekit_yaml import read_mergekit, read_tokenizer_policy
from recycler.merge.files.recipe_yaml import read_recipe, recipe_to_yaml
from recycler.pool.adapters.config import read_adapter_config
from recycler.pool.adapters.fold import fold_adapter
from recycler.pool.catalog import open_checkpoint
from recycler.pool.checks.agreement import compare, soundness
from recycler.pool.pack_writer import pack_pool, unpack
from recycler.pool.storage.headers import read_header
from recycler.pool.storage.hf_folder import check_config, check_index, parse_json
from recycler.types import Checkpoint, Pool

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from handmade import CONFIG, file_bytes, model_arrays, tokenizer, write_checkpoint, write_sharded

torch.set_num_threads(1)


class Targets:
    """`place`: an empty folder in memory (/dev/shm) that the targets may write to."""

    def __init__(self, place: Path):
        self.place = place
        self.file = place / "model.safetensors"
        self.sound = open_checkpoint(write_checkpoint(place / "sound"), "sound")
        base = open_checkpoint(write_checkpoint(place / "base"), "base")
        member = open_checkpoint(
            write_checkpoint(place / "member", model_arrays(1, near=model_arrays(), scale=0.01)),
            "member",
        )
        pack_pool(Pool(members=(member,), base=base), place / "packed", ratio=2.0)
        self.write_adapter()

    def write_adapter(self) -> None:
        name, folder = (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight",
            self.place / "adapter",
        )
        header = {
            name.format("A"): {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]},
            name.format("B"): {"dtype": "F32", "shape": [8, 2], "data_offsets": [64, 128]},
        }
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(file_bytes(header, bytes(128)))
        (folder / "adapter_config.json").write_text(
            json.dumps(
                {
                    "peft_type": "LORA",
                    "r": 2,
                    "lora_alpha": 4.0,
                    "rank_pattern": {},
                    "alpha_pattern": {},
                    "use_rslora": False,
                    "target_modules": ["q_proj"],
                }
            )
        )

    # ------------------------------------------------------------ safetensors

    def header_file(self, data: bytes) -> None:
        """A whole file.

        What we accept, the library must accept too, with the same tensors, all inside the file.
        """
        self.file.write_bytes(data)
        infos = read_header(self.file)
        with safe_open(self.file, framework="pt") as file:
            assert set(file.keys()) == set(infos)
            for name, info in infos.items():
                assert (
                    info.start + info.num_bytes <= len(data)
                    and tuple(file.get_slice(name).get_shape()) == info.shape
                )

    def header_json(self, data: bytes) -> None:
        """The JSON alone: the length before it is made right, the first byte says how much data
        follows.
        """
        self.header_file(
            len(data[1:]).to_bytes(8, "little") + data[1:] + bytes(data[0] if data else 0)
        )

    def index(self, data: bytes) -> None:
        check_index("index", parse_json("index", data), self.sound.tensors)

    def config(self, data: bytes) -> None:
        """One member's config.json, and what the preflight makes of it beside a sound one."""
        config = check_config("config.json", parse_json("config.json", data))
        odd = Checkpoint(
            name="odd", location=self.sound.location, tensors=self.sound.tensors, config=config
        )
        soundness(odd)
        compare(Pool(members=(self.sound, odd)))
        compare(Pool(members=(odd, self.sound)))

    def tokenizer(self, data: bytes) -> None:
        folder = self.place / "member"
        (folder / "tokenizer.json").write_bytes(data)
        odd = Checkpoint(
            name="odd", location=parse_location(folder), tensors=self.sound.tensors, config=CONFIG
        )
        soundness(odd)
        compare(Pool(members=(self.sound, odd)))

    # ------------------------------------------------------------ YAML

    def mergekit(self, data: bytes) -> None:
        document = load_yaml(self.place / "x.yml", data.decode("utf-8", errors="replace"))
        read_tokenizer_policy(document, *read_mergekit(document))

    def recipe(self, data: bytes) -> None:
        """What is read is written and read again: the same recipe."""
        recipe, sources = read_recipe(self.place / "x.yml", data.decode("utf-8", errors="replace"))
        assert read_recipe(self.place / "x.yml", recipe_to_yaml(recipe, sources))[0] == recipe

    # ------------------------------------------------------------ packs and adapters

    def manifest(self, data: bytes) -> None:
        """The manifest of a pack whose data is sound; nothing may be written outside the target."""
        (self.place / "packed" / PACK_MANIFEST).write_bytes(data)
        shutil.rmtree(self.place / "out", ignore_errors=True)
        before = sorted(path.name for path in self.place.iterdir())
        try:
            unpack(self.place / "packed", self.place / "out")
        finally:
            assert (
                sorted(path.name for path in self.place.iterdir() if path.name != "out") == before
            )

    def packed_data(self, data: bytes) -> None:
        """The data of a pack whose manifest is sound."""
        (self.place / "packed" / "member.safetensors").write_bytes(data)
        shutil.rmtree(self.place / "out", ignore_errors=True)
        unpack(self.place / "packed", self.place / "out")

    def adapter_config(self, data: bytes) -> None:
        (self.place / "adapter" / "adapter_config.json").write_bytes(data)
        read_adapter_config(self.place / "adapter")
        shutil.rmtree(self.place / "folded", ignore_errors=True)
        fold_adapter(self.place / "base", self.place / "adapter", self.place / "folded")

    def all(self) -> dict[str, Callable[[bytes], None]]:
        return {name: getattr(self, name) for name in NAMES}

    # ------------------------------------------------------------ where mutation begins

    def seeds(self, name: str) -> list[bytes]:
        sound = (self.place / "sound" / "model.safetensors").read_bytes()
        length = int.from_bytes(sound[:8], "little")
        small = {
            "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "__metadata__": {"format": "pt"},
            "n": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
        }
        folder = write_sharded(self.place / "sharded")
        rope = CONFIG | {
            "text_config": {"rope_scaling": {"type": "linear", "factor": 2}, "vocab_size": 12},
            "layer_types": ["full_attention"],
            "eos_token_id": [1, 2],
        }
        return {
            "header_file": [sound, file_bytes(small, bytes(16)), file_bytes({}, b"")],
            "header_json": [
                b"\x10" + json.dumps(small).encode(),
                b"\x00{}",
                bytes([len(sound) - 8 - length & 255]) + sound[8 : 8 + length],
            ],
            "index": [
                (folder / "model.safetensors.index.json").read_bytes(),
                b'{"weight_map":{"model.norm.weight":"model.safetensors"},"metadata":{"total_size":1}}',
            ],
            "config": [json.dumps(CONFIG).encode(), json.dumps(rope).encode()],
            "tokenizer": [
                json.dumps(tokenizer()).encode(),
                json.dumps(tokenizer(type="Unigram", vocab=[["a", 0.5], ["b", 1]])).encode(),
            ],
            "mergekit": [text.encode() for text in MERGEKIT],
            "recipe": [text.encode() for text in RECIPES],
            "manifest": [(self.place / "packed" / PACK_MANIFEST).read_bytes()],
            "packed_data": [(self.place / "packed" / "member.safetensors").read_bytes()],
            "adapter_config": [
                (self.place / "adapter" / "adapter_config.json").read_bytes(),
                b'{"peft_type":"LORA","r":2,"lora_alpha":4,"rank_pattern":{"q_proj":2},"alpha_pattern":{".*q":1}}',
            ],
        }[name]


NAMES = (
    "header_file",
    "header_json",
    "index",
    "config",
    "tokenizer",
    "mergekit",
    "recipe",
    "manifest",
    "packed_data",
    "adapter_config",
)
MERGEKIT = (
    "models:\n- model: a\n  parameters:\n    weight: 0.5\n    density: [0.1, 0.5]\n- model: b\n  "
    "parameters:\n    weight:\n    - filter: mlp\n      value: 0.3\n    - value: 1\n"
    "merge_method: ties\nbase_model: c\nparameters:\n  normalize: true\n  int8_mask: true\n"
    "dtype: float16\n",
    "slices:\n- sources:\n  - model: a\n    layer_range: [0, 2]\n  - model: b\n    layer_range: "
    "[0, 2]\n  parameters:\n    t: [0, 0.5, 1]\n- sources:\n  - model: a\n    layer_range: [2, "
    "4]\n  - model: b\n    layer_range: [2, 4]\nmerge_method: slerp\nbase_model: a\nparameters:\n"
    "  t:\n  - filter: self_attn\n    value: [0, 1]\n  - value: 0.5\ntokenizer_source: union\n"
    "out_dtype: bfloat16\n",
    "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, "
    "parameters: {weight: [0, 1]}}\ntokenizer: {source: base, tokens: {}}\nchat_template: auto\n",
    "merge_method: della\nbase_model: b\nmodels:\n- {model: a, parameters: {weight: 1, density: "
    "0.4, epsilon: 0.1}}\nparameters: {lambda: 0.5}\nname: x\n",
)
RECIPES = (
    "method: ties\nbase: {llama: ../llama}\nmembers: {math: ../math-v3, code: ../code-v1}\n"
    "weights: {math: 0.7, code: 0.3}\noptions: {density: 0.5}\ndtype: bfloat16\nseed: 0\n",
    "method: dare_ties\nbase: {b: b}\nmembers: {x: x, y: y}\ngroups:\n- {name: mlp, match: mlp, "
    "weights: {x: 1, y: 0}}\n- {name: rest, match: '', weights: {x: .5, y: -1e3}}\noptions: "
    "{density: [0.1, 0.9], rescale: false}\nseed: 7\n",
)
