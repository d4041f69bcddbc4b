"""Plan merges that no disk here could hold: checkpoints with true headers and configs, and weights
that are holes in sparse files.

    python benchmarks/merge/plan.py DIR [GB/s]

Two cases, each planned by `recycler plan` in a process of its own: 16 members of 104 billion
parameters (the shape of Command R+, 42 shards each), and 2 members of 100,000 tensors (a mixture of
experts). Prints what it says, and what it took.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from recycler.io.strict_yaml import dump_yaml
from recycler.pool.storage.writer import header_bytes, num_bytes, shard_plan

LAYERS, HIDDEN, INNER, HEADS, KEYS, VOCABULARY = 64, 12288, 33792, 96, 8, 256_000
LAYER = {
    "input_layernorm": (HIDDEN,),
    "self_attn.q_norm": (HEADS, HIDDEN // HEADS),
    "self_attn.k_norm": (KEYS, HIDDEN // HEADS),
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS * HIDDEN // HEADS, HIDDEN),
    "self_attn.v_proj": (KEYS * HIDDEN // HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
LARGE = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)} | {
    f"model.layers.{index}.{name}.weight": shape
    for index in range(LAYERS)
    for name, shape in LAYER.items()
}
PROJECTIONS = ("gate", "up", "down")


def _expert(index: int) -> str:
    layer, place = divmod(index, 1563)
    expert, projection = divmod(place, len(PROJECTIONS))
    return f"model.layers.{layer}.mlp.experts.{expert}.{PROJECTIONS[projection]}_proj.weight"


EXPERTS = {_expert(index): (1024, 2048) for index in range(100_000)}


def write(folder: Path, shapes: dict[str, tuple[int, ...]], config: dict) -> None:
    """A checkpoint of bfloat16 tensors that takes no room: real headers, an index, holes for
    numbers.
    """
    folder.mkdir(parents=True)
    infos = {name: ("BF16", shape) for name, shape in shapes.items()}
    shards, weight_map = shard_plan(infos, 5_000_000_000), {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, _ = header_bytes(infos, names)
        with (folder / file).open("wb") as out:
            out.write(header)
            out.truncate(len(header) + sum(num_bytes(infos[name]) for name in names))
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(
            {
                "metadata": {"total_size": sum(map(num_bytes, infos.values()))},
                "weight_map": weight_map,
            }
        )
    )
    (folder / "config.json").write_text(
        json.dumps(
            {"model_type": "cohere", "tie_word_embeddings": True, "dtype": "bfloat16"} | config
        )
    )


def main(place: Path, bandwidth: str) -> None:
    for case, count, shapes, config in (
        ("104b", 16, LARGE, {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS}),
        ("experts", 2, EXPERTS, {"num_hidden_layers": 64}),
    ):
        for number in range(count):
            if not (place / f"{case}-{number}").exists():
                write(place / f"{case}-{number}", shapes, config)
        recipe = place / f"{case}.yaml"
        recipe.write_text(
            dump_yaml(
                {
                    "method": "linear",
                    "members": {f"m{number}": f"{case}-{number}" for number in range(count)},
                    "weights": {f"m{number}": 1 / count for number in range(count)},
                }
            )
        )
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            subprocess.run(
                [sys.executable, "-m", "recycler", "plan", str(recipe), "--bandwidth", bandwidth],
                capture_output=True,
                text=True,
                check=True,
            ).stdout,
            end="",
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"planned in {time.perf_counter() - start:.2f} s "
            f"({after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.2f} CPU, "
            f"imports included), {after.ru_maxrss / 1024:.0f} MB\n",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "2")
