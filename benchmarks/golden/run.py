"""A golden run: what recycler writes and prints for two small jobs, normalised, and its digests.

    OMP_NUM_THREADS=1 python benchmarks/golden/run.py OUT                  # record
    OMP_NUM_THREADS=1 python benchmarks/golden/run.py OUT --against OTHER  # and compare
    OMP_NUM_THREADS=1 python benchmarks/golden/run.py OUT --code CHECKOUT  # of another commit

A refactoring shows the same digests before and after. Two pico pools are merged by one worker with
a fixed seed, once on all items and once with `fidelity`; one merge is refined, two are exported.
Recorded are every ledger row, what each command printed with its exit code, and the digest of every
exported file. `normalise` lists what is dropped: times, lease, places, speeds. Bits depend on the
machine's BLAS, so both sides of a comparison are recorded on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

TASK = {"data": "echo.jsonl", "answer": "{a}"}
ROWS = {"search": {"rows": [0, 60]}, "holdout": {"rows": [60, 90]}}
ECHO = {**TASK, **ROWS, "prompt": "{q} = ", "max_new_tokens": 3}
SUMS = {**TASK, **ROWS, "prompt": "{q}: ", "scorer": "bits_per_byte"}
WORDS = {**SUMS, "answer": "{w}"}
SUITE = {"version": 1, "tasks": {"echo": ECHO, "sums": SUMS, "words": WORDS}}
OBJECTIVES = [
    {"suite": "echo", "task": "words", "metric": "bits_per_byte", "direction": "minimize"},
    {"suite": "echo", "task": "sums", "metric": "bits_per_byte", "direction": "minimize"},
]
ANSWERED = {"suite": "echo", "task": "echo", "metric": "exact_match", "direction": "maximize"}
JOB = {
    "version": 1,
    "name": "golden",
    "pool": {"members": ["pool/members"], "base": "pool/base"},
    "suites": ["echo.yaml"],
    "objectives": OBJECTIVES,
    "engine": {"name": "transformers", "workers": 1},
    "budget": {"trials": 12},
    "seed": 3,
}
JOBS = {
    "whole": JOB,
    "fidelity": {
        **JOB,
        "fidelity": {"items_per_task": 50},
        "method": "ties",
        "objectives": [*OBJECTIVES, ANSWERED],
    },
}
RECIPES = {
    "linear": {"merge_method": "linear", "normalize": True},
    "dare_ties": {"merge_method": "dare_ties", "base": True, "density": 0.5},
    "slerp": {"merge_method": "slerp", "base": True, "t": 0.3, "num_models": 1},
}
COMMANDS = (  # (name, words of the command)
    ("inspect", "inspect pool/members --base pool/base"),
    ("inspect-json", "inspect pool/members --base pool/base --deltas --json"),
    ("inspect-nowhere", "inspect nowhere/*"),
    ("plan", "plan whole.yaml"),
    ("plan-json", "plan fidelity.yaml --json"),
    ("plan-bad", "plan bad.yaml"),
    ("front-before", "front whole"),
    ("run", "run whole.yaml --dir whole"),
    ("run-again", "run whole.yaml --dir whole"),
    ("run-fidelity", "run fidelity.yaml --dir fidelity"),
    ("status", "status whole"),
    ("status-json", "status fidelity --json"),
    ("front", "front whole"),
    ("front-holdout", "front whole --holdout"),
    ("front-json", "front whole --json"),
    ("front-csv", "front whole --csv"),
    ("front-fidelity-json", "front fidelity --json"),
    ("preview", "preview whole"),
    ("preview-json", "preview fidelity --json"),
    ("why", "why whole"),
    ("why-json", "why whole --json"),
    ("refine", "refine whole --trial knee --layers 2 --steps 12 --batch 24"),
    ("front-refined", "front whole --json"),
    ("why-best", "why whole --trial best:echo:sums/bits_per_byte"),
    ("export-knee", "export whole --trial knee --to export-knee"),
    ("export-best", "export fidelity --trial best:echo:sums/bits_per_byte --to export-best --json"),
    ("score", "score export-knee --suite echo.yaml --engine transformers --json"),
    ("report", "report whole --html report.html"),
    ("study", "study whole --storage sqlite:///study.db"),
    ("pack", "pack pool/members --base pool/base --to packed"),
    ("unpack", "unpack packed unpacked"),
    ("merge-linear", "merge linear.yaml merge-linear"),
    ("merge-dare", "merge dare_ties.yaml merge-dare"),
    ("merge-slerp", "merge slerp.yaml merge-slerp"),
    ("plan-merge", "plan dare_ties.yaml --json"),
    ("suite", "suite build echo.yaml --model pool/base --frozen items.jsonl"),
    ("without", "without whole m1 --dir without"),
)
FOLDERS = ("export-knee", "export-best", "packed", "unpacked", "merge-linear", "merge-dare")
FOLDERS += ("merge-slerp",)
DROPPED_COLUMNS = ("opened_at", "closed_at", "merge_seconds", "score_seconds")
DROPPED_FACTS = ("elapsed_seconds", "stamps")  # stamps: places and moments of the members' files
DROPPED_KEYS = re.compile(
    r'("[a-z_]*(?:seconds|_at|created|date|timestamp)[a-z_]*": )[-\d.e+"T:Z]+'
)
PROGRESS = re.compile(r"\[ *\d+%\]")
TEXTS = (".json", ".md", ".yaml", ".yml", ".txt")
PATTERNS = (  # (what is dropped, pattern, what stands there instead)
    ("a moment", r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+\d\d:\d\d)?", "<moment>"),
    ("a date", r"\b\d{4}-\d\d-\d\d\b", "<date>"),
    ("a clock", r"\b\d+:\d\d:\d\d\b", "<clock>"),
    ("a speed", r"[\d.,]+ ?(GB|MB|items|tokens|it)/s", "<speed>"),
    ("seconds", r"[\d.,]+ ?(s|ms|min|h|seconds|minutes|hours)\b", "<seconds>"),
    ("memory in use", r"[\d.,]+ [GMk]i?B (?=free|of memory)", "<bytes>"),
    ("an export's size: its card names places", r'(s": \d+,\s+"num_bytes": )\d+', r"\1<bytes>"),
    ("a report's size: it tells times", r"report.html \([\d,]+ characters", "report.html (<size>"),
    ("a process", r"\bpid[ =]\d+", "pid <n>"),
)


def normalise(text: str, place: Path) -> str:
    """Drop what two runs of the same code differ in: the folder, times, speeds, processes."""
    text = text.replace(str(place), "<place>")
    text = DROPPED_KEYS.sub(r"\1<dropped>", text)
    for _, pattern, shown in PATTERNS:
        text = re.sub(pattern, shown, text)
    lines = [line.rstrip() for line in text.splitlines() if not _is_noise(line)]
    return "\n".join(lines) + "\n"


def _is_noise(line: str) -> bool:
    """True for what libraries print while they load, and for progress, shown once in a while."""
    noise = ("Warning", "[transformers]", "Loading weights")
    return any(word in line for word in noise) or PROGRESS.match(line) is not None


def make_inputs(place: Path) -> None:
    """Write pool, suite, jobs and recipes below `place`."""
    from recycler.testing import make_pico_pool

    place.mkdir(parents=True)
    make_pico_pool(place / "pool", num_members=3)
    words = ("the fox", "a lazy dog", "jumps over", "quick", "brown bears")
    rows = [
        {"q": f"{k}+{k % 7}", "a": str(k + k % 7), "w": words[k % len(words)]} for k in range(90)
    ]
    (place / "echo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "echo.yaml").write_text(json.dumps(SUITE))
    for name, job in JOBS.items():
        (place / f"{name}.yaml").write_text(json.dumps(job))
    bad = {**JOB, "objectivs": [], "budget": {"trials": "many"}, "sampler": "simplx"}
    (place / "bad.yaml").write_text(json.dumps(bad))
    for name, recipe in RECIPES.items():
        (place / f"{name}.yaml").write_text(json.dumps(_mergekit(recipe)))


def _mergekit(recipe: dict) -> dict:
    """A mergekit file over two members of the pool."""
    own = {"weight": 0.6}
    if "density" in recipe:
        own["density"] = recipe["density"]
    models = [{"model": f"pool/members/m{k}", "parameters": dict(own)} for k in range(2)]
    document = {"merge_method": recipe["merge_method"], "models": models, "dtype": "bfloat16"}
    if recipe.get("base"):
        document["base_model"] = "pool/base"
    if "t" in recipe:
        document["models"] = [{"model": "pool/members/m0"}]
        document["parameters"] = {"t": recipe["t"]}
    return document


def run_commands(place: Path, code: Path) -> dict[str, str]:
    """What each command printed, by its name; every one runs as a process of its own in `place`."""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    said = {}
    for name, words in COMMANDS:
        command = [sys.executable, "-m", "recycler", *words.split()]
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        text = f"$ recycler {words}\nexit {done.returncode}\n--- stdout\n{done.stdout}"
        said[f"cli/{name}"] = normalise(f"{text}\n--- stderr\n{done.stderr}", place)
        print(f"{name}: exit {done.returncode}", file=sys.stderr, flush=True)
    return said


def ledger_rows(path: Path, place: Path) -> str:
    """Every row of a SQLite ledger as a line of JSON, table by table."""
    lines = []
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    for table in ("migrations", "facts", "trials", "scores", "outcomes", "files"):
        for row in connection.execute(f"SELECT * FROM {table}"):
            names = [name for name in row.keys() if name not in DROPPED_COLUMNS]  # noqa: SIM118
            values = {name: _shown(row[name]) for name in names}
            if values.get("key") not in DROPPED_FACTS:
                lines.append(f"{table} {json.dumps(values, sort_keys=True)}")
    lines.sort()
    connection.close()
    text = "\n".join(line.replace(str(place), "<place>") for line in lines)
    return DROPPED_KEYS.sub(r"\1<dropped>", text) + "\n"


def _without_job_digest(rows: str) -> str:
    """Drop the digest of a job file that `recycler without` wrote: it names places."""
    return re.sub(r'(\\"job\\": \\")[0-9a-f]{64}', r"\1<dropped>", rows)


def _shown(value: object) -> object:
    return zlib.decompress(value).decode() if isinstance(value, bytes) else value


def folder_digests(folder: Path, place: Path) -> str:
    """SHA-256 of every file below `folder`, of text files as they read normalised.

    Where one text file holds the digest or size of another, that of the normalised text stands.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    contents = {path: path.read_bytes() for path in paths}
    texts = {path for path in paths if path.suffix in TEXTS}
    shown = {}
    for path in texts:
        clean = normalise(contents[path].decode(), place).encode()
        shown[_sha256(contents[path])] = _sha256(clean)
        contents[path] = clean
    for path in texts:
        raw = re.sub(rb'("num_bytes"|"bytes"|"size"): \d+', rb"\1: <bytes>", contents[path])
        for before, after in shown.items():
            raw = raw.replace(before.encode(), after.encode())
        contents[path] = raw
    return "".join(f"{_sha256(contents[path])} {path.relative_to(folder)}\n" for path in paths)


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def record(out: Path, code: Path) -> dict[str, str]:
    """Run everything below `out` and write each normalised text to `out/texts`."""
    place = (out / "work").resolve()
    make_inputs(place)
    texts = run_commands(place, code.resolve())
    for name in (*JOBS, "without"):
        rows = ledger_rows(place / name / "ledger.sqlite", place)
        texts[f"ledger/{name}"] = rows if name in JOBS else _without_job_digest(rows)
    for name in FOLDERS:
        texts[f"files/{name}"] = folder_digests(place / name, place)
    for name, text in texts.items():
        path = out / "texts" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return texts


def digests(texts: dict[str, str]) -> str:
    """One line per text, then one over all of them."""
    by_name = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    lines = [f"{value[:16]} {name}" for name, value in sorted(by_name.items())]
    whole = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return "\n".join([*lines, f"{whole[:16]} all"]) + "\n"


def read_texts(out: Path) -> dict[str, str]:
    """The texts that an earlier call recorded."""
    folder = out / "texts"
    paths = sorted(folder.rglob("*.txt"))
    return {str(path.relative_to(folder).with_suffix("")): path.read_text() for path in paths}


def _again(name: str, texts: dict[str, str]) -> str | None:
    """A recorded text, of a command normalised once more: an older record dropped less."""
    text = texts.get(name)
    return normalise(text, Path("<place>")) if text and name.startswith("cli/") else text


def main() -> int:
    """Record, print the digests, and with --against name what differs; 1 where something does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--code", type=Path, default=Path(__file__).resolve().parents[2])
    arguments = parser.parse_args()
    texts = record(arguments.out, arguments.code)
    (arguments.out / "digests.txt").write_text(digests(texts))
    print(digests(texts), end="")
    if arguments.against is None:
        return 0
    before = read_texts(arguments.against)
    differing = [name for name in before | texts if _again(name, before) != _again(name, texts)]
    print("\n".join(f"differs: {name}" for name in differing) or "all texts are the same")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
