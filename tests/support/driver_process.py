"""`recycler run` and `recycler front` as processes of their own."""

import subprocess
import sys


def start(job, run):
    return subprocess.Popen(
        [sys.executable, "-m", "recycler", "run", str(job), "--dir", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(job, run):
    process = start(job, run)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def front_json(run):
    return subprocess.run(
        [sys.executable, "-m", "recycler", "front", str(run), "--json"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
