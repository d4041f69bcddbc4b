"""Merge the same checkpoints with recycler and with mergekit, each in its own process with one
thread; print ratios.

    python benchmarks/merge/models.py 135m 8 POOL && python benchmarks/merge/run.py POOL 135m 8
    --mergekit .../bin/mergekit-yaml
    python benchmarks/merge/run.py POOL 135m 8 --live  # into live weights, against a plain copy
    recycler pack POOL/135m-[1-4] --base POOL/135m-0 --to PACK && python benchmarks/merge/run.py
    POOL 135m 5 --live --packed PACK

CPU-seconds are of the whole process less its imports: on a shared machine they say more than the
wall does. Anonymous memory is sampled every 20 ms from /proc.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from recycler.merge.files.mergekit_write import recipe_to_mergekit
from recycler.merge.stream import merge_into
from recycler.pool.catalog import open_pool
from recycler.pool.storage.tensors import ResidentPool
from recycler.types import Recipe

OURS = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from recycler.merge.files.recipe_yaml import open_recipe
from recycler.merge.to_disk import merge_to_folder
from recycler.pool.storage.tensors import ResidentPool
recipe, pool = open_recipe(sys.argv[1])
merge_to_folder(recipe, ResidentPool(pool), Path(sys.argv[2]), max_shard_bytes=500_000_000)
"""
IMPORTS = {
    "recycler": "import torch; import recycler.merge.files.recipe_yaml, recycler.merge.to_disk",
    "mergekit": "import mergekit.scripts.run_yaml, mergekit.merge",
}
METHODS = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {},
    "dare_ties": {"density": 0.5},
    "ties": {"density": 0.5},
    "della": {"density": 0.5},
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MKL_NUM_THREADS": "1"}


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, and peak anonymous megabytes of a command.

    Raises CalledProcessError.
    """
    before, start, peak, done = (
        resource.getrusage(resource.RUSAGE_CHILDREN),
        time.perf_counter(),
        [0],
        threading.Event(),
    )
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def watch() -> None:
        while not done.wait(0.02):
            try:
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("RssAnon"):
                        peak[0] = max(peak[0], int(line.split()[1]))
            except OSError:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise subprocess.CalledProcessError(code, command)
    return (
        time.perf_counter() - start,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        peak[0] / 1024,
    )


def recipe_for(method: str, names: list[str]) -> Recipe:
    names = names[:2] if method == "slerp" else names
    members, base = (names, None) if method in ("linear", "slerp") else (names[1:], names[0])
    options = tuple(METHODS[method].items())
    return Recipe(
        method=method,
        members=tuple(members),
        base=base,
        weights=((1 / len(members),) * len(members),),
        options=options,
    )


def disk(arguments: argparse.Namespace) -> None:
    folders = {
        f"{arguments.kind}-{index}": arguments.pool / f"{arguments.kind}-{index}"
        for index in range(arguments.count)
    }
    num_bytes = sum(
        file.stat().st_size for folder in folders.values() for file in folder.glob("*.safetensors")
    )
    for folder in folders.values():
        for file in folder.glob("*.safetensors"):
            file.read_bytes()  # page cache
    python = arguments.mergekit.parent / "python"
    imports = {
        "recycler": measure([sys.executable, "-c", IMPORTS["recycler"]])[1],
        "mergekit": measure([str(python), "-c", IMPORTS["mergekit"]])[1],
    }
    print(
        f"{arguments.count} x {arguments.kind}, {num_bytes / 1e6:,.0f} MB; imports: recycler "
        f"{imports['recycler']:.1f} CPU-s, mergekit {imports['mergekit']:.1f} CPU-s"
    )
    with tempfile.TemporaryDirectory(dir=arguments.pool) as aside:
        copied = Path(aside) / "copied"
        first = next(iter(folders.values()))
        wall, cpu, _ = measure(
            [
                "sh",
                "-c",
                f"cat {' '.join(str(folder) + '/*.safetensors' for folder in folders.values())} "
                f"> /dev/null; cp -r {first} {copied}",
            ]
        )
        shutil.rmtree(copied)
        print(
            f"plain file copies (all inputs read, one output written): wall {wall:.2f} s, CPU "
            f"{cpu:.2f} s"
        )
        print(
            "| method | recycler wall / net CPU s / anon MB | mergekit wall / net CPU s / anon "
            "MB | wall ratio | net CPU ratio |\n|---|---|---|---|---|"
        )
        for method in arguments.methods:
            config = Path(aside) / f"{method}.yml"
            config.write_text(recipe_to_mergekit(recipe_for(method, list(folders)), folders))
            row = {}
            for tool, command in (
                ("recycler", [sys.executable, "-c", OURS, str(config), f"{aside}/out"]),
                (
                    "mergekit",
                    [
                        str(arguments.mergekit),
                        str(config),
                        f"{aside}/out",
                        "--no-copy-tokenizer",
                        "--quiet",
                        "--out-shard-size",
                        "500M",
                        "--async-write",
                    ],
                ),
            ):
                runs = []
                for _ in range(arguments.repeats):
                    runs.append(measure(command))
                    shutil.rmtree(f"{aside}/out")
                wall, cpu, anon = (min(column) for column in zip(*runs, strict=True))
                row[tool] = (wall, max(cpu - imports[tool], 0.01), anon)
            ours, theirs = row["recycler"], row["mergekit"]
            cells = [f"{wall:.2f} / {cpu:.2f} / {anon:.0f}" for wall, cpu, anon in (ours, theirs)]
            print(
                f"| {method} | {cells[0]} | {cells[1]} | {theirs[0] / ours[0]:.1f} | "
                f"{theirs[1] / ours[1]:.1f} |",
                flush=True,
            )


def live(arguments: argparse.Namespace) -> None:
    """Merging a resident pool into live weights against plain copies of as many bytes (K reads + 1
    write): CPU-seconds, best of repeats.

    The same members plain and, with --packed, from a packed pool, which is unpacked into the local
    cache when it is first used.
    """
    torch.set_num_threads(1)
    folders = [
        arguments.pool / f"{arguments.kind}-{index}"
        for index in range(1 if arguments.packed else 0, arguments.count)
    ]
    pools = {"plain": ResidentPool(open_pool(folders))}
    if arguments.packed:
        pools["packed"] = ResidentPool(open_pool([arguments.packed]))
        start = time.process_time()
        for member in pools["packed"].pool.members:
            pools["packed"].tensor(member.name, next(iter(member.tensors)))
        print(
            f"unpacking {len(pools['packed'].pool.members)} members once (0 when the cache holds "
            f"them): {time.process_time() - start:.1f} CPU-s"
        )
    print("| pool | K | copy s | merge s | ratio |\n|---|---|---|---|---|")
    for kind, resident in pools.items():
        for count in (2, 4, 8, 16):
            copied, merged = live_seconds(resident, count, arguments.repeats)
            print(
                f"| {kind} | {count} | {copied:.3f} | {merged:.3f} | {merged / copied:.2f} |",
                flush=True,
            )


def live_seconds(resident: ResidentPool, count: int, repeats: int) -> tuple[float, float]:
    """(CPU-seconds to copy as many bytes, to merge) for `count` members, of which there may be
    fewer, taken again and again.
    """
    members = resident.pool.members
    names = [members[index % len(members)].name for index in range(count)]
    live_weights = {
        name: torch.zeros(info.shape, dtype=torch.bfloat16)
        for name, info in resident.pool.template.tensors.items()
    }
    others = {name: torch.zeros_like(tensor) for name, tensor in live_weights.items()}
    recipe = Recipe(
        method="linear",
        members=tuple(names),
        weights=(tuple(1 / (index + 2) for index in range(count)),),
    )

    def copy() -> None:
        for name in live_weights:
            for index in range(
                0, count - 1, 2
            ):  # a copy reads one and writes one: (K + 1) / 2 copies move as many bytes
                (others if index % 4 else live_weights)[name].copy_(
                    resident.tensor(names[index], name)
                )

    copies, merges = [], []
    for act in (copy, lambda: merge_into(recipe, resident, live_weights)):
        act()
    for _ in range(repeats):  # in turn, so that both see the same load
        for act, times in (
            (copy, copies),
            (lambda: merge_into(recipe, resident, live_weights), merges),
        ):
            start = time.process_time()
            act()
            times.append(time.process_time() - start)
    return min(copies) * (count + 1) / 2 / len(range(0, count - 1, 2)), min(merges)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("kind")
    parser.add_argument("count", type=int)
    parser.add_argument(
        "--mergekit", type=Path, default=Path("/tmp/mergekit-venv/bin/mergekit-yaml")
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--live", action="store_true")
    parser.add_argument(
        "--packed", help="with --live: the same members as a packed pool, beside the plain one"
    )
    arguments = parser.parse_args()
    live(arguments) if arguments.live else disk(arguments)


if __name__ == "__main__":
    main()
