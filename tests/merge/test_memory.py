"""A merge holds at most K + 3 of its largest tensors, whatever the size of the model: proved by a
limit on the process's memory.
"""

import json
import subprocess
import sys

import pytest

from handmade import CONFIG, write_checkpoint

pytestmark = pytest.mark.long

ROWS, COLUMNS, NUM_TENSORS, K = 2048, 2048, 10, 3  # 8 MiB a tensor in bfloat16
LARGEST = 2 * ROWS * COLUMNS
SLACK = 32 << 20  # blocks, buffers, thread stacks, and what the allocator keeps
CHILD = """
import json, re, resource, shutil, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.merge.to_disk import merge_to_folder
from recycler.pool.catalog import open_pool
from recycler.pool.storage.tensors import ResidentPool
from recycler.types import Recipe

place, method = Path(sys.argv[1]), sys.argv[2]
options, allowed = json.loads(sys.argv[3]), int(sys.argv[4])
count = MERGE_METHODS[method].num_members or 3
def merge(kind, out):
    base = place / f"{kind}-0" if MERGE_METHODS[method].needs_base else None
    pool = open_pool([place / f"{kind}-{index}" for index in range(1, count + 1)], base)
    recipe = Recipe(
        method=method, members=pool.names, base="base" if pool.base else None,
        weights=((0.5,) * count,), options=tuple(options.items()),
    )
    merge_to_folder(recipe, ResidentPool(pool), out)
    shutil.rmtree(out)
def limit(more):
    if not MERGE_METHODS[method].elementwise:
        # files are mapped, privately: that counts as data and is not
        for index in range(0 if MERGE_METHODS[method].needs_base else 1, count + 1):
            shards = (place / f"large-{index}").glob("*.safetensors")
            more += sum(path.stat().st_size for path in shards)
    now = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + more, resource.RLIM_INFINITY))
merge("small", place / f"warm-{method}")  # libraries, threads and the native kernel
limit(allowed)
merge("large", place / f"out-{method}")
print("merged")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base and three members of ten tensors each, 80 MiB of holes a checkpoint: they cost no
    disk.
    """
    root = tmp_path_factory.mktemp("memory")
    names = [
        "model.embed_tokens.weight",
        *(f"model.layers.{index}.mlp.up_proj.weight" for index in range(NUM_TENSORS - 1)),
    ]
    header = {
        name: {
            "dtype": "BF16",
            "shape": [ROWS, COLUMNS],
            "data_offsets": [index * LARGEST, (index + 1) * LARGEST],
        }
        for index, name in enumerate(names)
    }
    raw = json.dumps(header).encode()
    for number in range(K + 1):
        write_checkpoint(root / f"small-{number}")
        folder = root / f"large-{number}"
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps(
                CONFIG
                | {"num_hidden_layers": NUM_TENSORS - 1, "vocab_size": ROWS, "hidden_size": COLUMNS}
            )
        )
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + NUM_TENSORS * LARGEST)
    return root


def merged(place, method, options, allowed):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(place), method, json.dumps(options), str(allowed)],
        capture_output=True,
        text=True,
    )
    return done.stdout == "merged\n", done.stderr[-500:]


BY_BLOCK = [
    ("linear", {}),
    ("task_arithmetic", {}),
    ("layer_swap", {"bottom": 1, "top": 1}),
    ("lines", {}),
]
BY_TENSOR = [
    ("ties", {"density": 0.3}),
    ("dare_ties", {"density": 0.5}),
    ("della", {"density": 0.5}),
    ("breadcrumbs", {"density": 0.8}),
    ("sce", {"select_topk": 0.5}),
    ("slerp", {}),
    ("multislerp", {}),
    ("karcher", {}),
    ("model_stock", {}),
]


@pytest.mark.parametrize(
    "method,options",
    [*BY_BLOCK, *BY_TENSOR],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_merge_holds_at_most_k_plus_3_of_the_largest_tensor(place, method, options):
    assert (K + 3) * LARGEST + SLACK <= NUM_TENSORS * LARGEST + (
        1 << 20
    )  # less than the output alone
    done, said = merged(place, method, options, (K + 3) * LARGEST + SLACK)
    assert done, said


def test_the_limit_bites(place):
    """Too little is noticed: the law above is not empty."""
    assert not merged(place, "ties", {"density": 0.3}, LARGEST)[0]
