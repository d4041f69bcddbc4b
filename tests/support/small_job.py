"""A job of two tasks over a pico pool: its files, and changes of them."""

import shutil

import yaml

SUITE = {
    "version": 1,
    "tasks": {
        "echo": {
            "data": "echo.jsonl",
            "prompt": "{q} = ",
            "answer": "{a}",
            "max_new_tokens": 4,
            "search": {"rows": [0, 5]},
            "holdout": {"rows": [5, 10]},
        },
        "bits": {
            "data": "echo.jsonl",
            "prompt": "{q}: ",
            "answer": "{a}",
            "scorer": "bits_per_byte",
            "search": {"rows": [0, 5]},
            "holdout": {"rows": [5, 10]},
        },
    },
}

JOB = {
    "version": 1,
    "pool": {"members": ["pool/members"], "base": "pool/base"},
    "suites": ["echo.yaml"],
    "budget": {"trials": 2},
    "objectives": [
        {"suite": "echo", "task": "echo", "metric": "exact_match", "direction": "maximize"},
        {"suite": "echo", "task": "bits", "metric": "bits_per_byte", "direction": "minimize"},
    ],
}


def set_job(folder, **changes):
    (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, **changes}))


def write_job(sound, folder, pool, **more):
    for name in ("echo.yaml", "echo.jsonl"):
        shutil.copyfile(sound / name, folder / name)
    (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, "pool": pool, **more}))
    return folder / "job.yaml"
