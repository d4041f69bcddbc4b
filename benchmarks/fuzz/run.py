"""Fuzz every reader of foreign bytes with atheris (libFuzzer with Python's coverage), in a process
a target.

    python3.11 -m venv /tmp/fuzz-venv && /tmp/fuzz-venv/bin/pip install atheris==3.0.0 &&
    /tmp/fuzz-venv/bin/pip install -e . /tmp/fuzz-venv/bin/python benchmarks/fuzz/run.py --minutes
    60 --out /tmp/fuzz

Anything but a RecyclerError is written down once per place in the code, with the input, in
OUT/found; a hang (20 s) or more than 1.5 GB ends the process, is kept by libFuzzer in OUT/found
too, and the target is started again. Figures: OUT/report.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
WORDS = (
    "dtype shape data_offsets __metadata__ F32 BF16 weight_map metadata total_size "
    "model.norm.weight model.safetensors num_hidden_layers vocab_size rope_scaling text_config "
    "tie_word_embeddings "
    "hidden_size num_attention_heads architectures auto_map models slices sources layer_range "
    "parameters weight density filter value merge_method base_model normalize tokenizer_source "
    "linear ties slerp "
    "dare_linear della method members base groups match options seed checkpoints tensors small "
    "kind same raw exact lowrank split as digest error schema_version ratio r lora_alpha "
    "rank_pattern alpha_pattern "
    "null true false 1e999 -1 0.5 NaN [] {} [[ ]] .. ../ vocab merges added_tokens content id "
    "model epsilon lambda gamma t tokens source tokenizer gradient passthrough modules float32"
).split()


def fuzz(target: str, out: Path, seconds: int) -> None:
    """Run one target in this process until libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["recycler", "yaml"]):
        from targets import Targets
    from recycler.errors import RecyclerError

    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm"))
    targets, seen = Targets(place), set()
    corpus = out / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in targets.seeds(target):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    one = targets.all()[target]

    def test(data: bytes) -> None:
        try:
            one(data)
        except RecyclerError:
            pass
        except Exception as error:  # everything else is what we look for
            frames = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if "recycler" in frame.filename
            ]
            key = (
                type(error).__name__,
                *((Path(frame.filename).name, frame.lineno) for frame in frames[-1:]),
            )
            if key not in seen:
                seen.add(key)
                name = f"{target}-{key[0]}-" + "-".join(f"{file}-{line}" for file, line in key[1:])
                (out / "found" / name).write_bytes(data)
                (out / "found" / f"{name}.txt").write_text(traceback.format_exc())

    (out / "words.dict").write_text("".join(f'"{word}"\n' for word in WORDS))
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={seconds}",
            "-timeout=20",
            "-rss_limit_mb=1500",
            f"-artifact_prefix={out}/found/{target}-",
            f"-dict={out}/words.dict",
            "-max_len=8192",
            "-print_final_stats=1",
            "-verbosity=1",
        ],
        test,
    )
    atheris.Fuzz()


def drive(out: Path, minutes: float, names: tuple[str, ...]) -> None:
    """Run all targets in turn; a target that ends early is started again."""
    (out / "found").mkdir(parents=True, exist_ok=True)
    total, report = 0, []
    for name in names:
        (out / "corpus" / name).mkdir(parents=True, exist_ok=True)
        start, share, executions, ends = time.monotonic(), minutes * 60 / len(names), 0, 0
        while (
            (left := int(share - (time.monotonic() - start))) > 5 and ends < 20 or ends == 0
        ):  # once at least, however short the run
            done = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--target",
                    name,
                    "--out",
                    str(out),
                    "--seconds",
                    str(max(left, 1)),
                ],
                capture_output=True,
                text=True,
                errors="replace",
            )
            found = re.search(r"number_of_executed_units: *(\d+)", done.stderr)
            executions += int(found[1]) if found else 0
            ends += 1
            (out / f"{name}.log").write_text(done.stdout[-2000:] + done.stderr[-8000:])
        coverage = re.findall(r"cov: (\d+)", (out / f"{name}.log").read_text())
        total += executions
        report.append(
            f"{name}: {executions} inputs in {time.monotonic() - start:.0f} s, coverage "
            f"{coverage[-1] if coverage else '?'}, {ends - 1} restarts, corpus "
            f"{len(list((out / 'corpus' / name).iterdir()))}"
        )
        (out / "report.txt").write_text(
            "\n".join(
                [
                    *report,
                    f"{total} inputs; "
                    f"{len([path for path in (out / 'found').iterdir() if path.suffix != '.txt'])} "
                    "found",
                ]
            )
            + "\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("/tmp/fuzz"))
    parser.add_argument("--only", default="")
    parser.add_argument("--target", default="")
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.target:
        fuzz(arguments.target, arguments.out, arguments.seconds)
    else:
        text = (HERE / "targets.py").read_text()
        names = tuple(
            re.findall(r'"(\w+)"', re.search(r"^NAMES = \((.*)\)", text, re.MULTILINE)[1])
        )
        drive(
            arguments.out,
            arguments.minutes,
            tuple(name for name in names if arguments.only in name),
        )


if __name__ == "__main__":
    main()
