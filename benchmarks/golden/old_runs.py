"""Make the fixture of old runs: a finished and an unfinished run, on SQLite and on Postgres.

    python benchmarks/golden/old_runs.py CHECKOUT OUT

`CHECKOUT` is a work tree of the commit whose runs are kept. Newer code must resume, show and
export what lies in `OUT` (tests/run/test_old_runs.py). Places are replaced by PLACE, so that the
fixture can be copied anywhere; the pool travels with it, since ledgers keep digests of weights.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from run import JOB, make_inputs

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

from local_cluster import Postgres  # noqa: E402

PLACE = "/old-place"
SCORED_BEFORE_THE_KILL = 8
KEPT = ("job.yaml", "echo.yaml", "echo.jsonl", "pool")
COUNT_SCORED = "SELECT count(*) FROM trials WHERE state = 'SCORED'"


def drive(checkout: Path, place: Path, run: str, *, scored: int | None, ledger: str = "") -> None:
    """Run the job of `place`; with `scored`, kill the driver once so many trials are scored."""
    words = ["run", "job.yaml", "--dir", run, *(["--ledger", ledger] if ledger else [])]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "recycler", *words]
    process = subprocess.Popen(command, cwd=place, env=environment, start_new_session=True)
    while process.poll() is None:
        if scored is not None and _num_scored(place / run, ledger) >= scored:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    process.wait()


def _num_scored(run: Path, ledger: str) -> int:
    if ledger:
        return _ask_postgres(run, ledger)
    try:
        with sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True) as connection:
            return connection.execute(COUNT_SCORED).fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def _ask_postgres(run: Path, ledger: str) -> int:
    place = run / "ledger.url"
    if not place.exists():
        return 0
    schema = "recycler_" + place.read_text().strip().rpartition("job=")[2]
    query = COUNT_SCORED.replace("trials", f'"{schema}".trials')
    done = subprocess.run(["psql", ledger, "-tAc", query], capture_output=True, text=True)
    return int(done.stdout.strip() or 0) if done.returncode == 0 else 0


def keep_sqlite(run: Path, out: Path, place: Path) -> None:
    """Copy a run folder whole, its ledger without a write-ahead log and without places."""
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("*.lock", "*-wal", "*-shm", "*.sqlite"))
    source, target = (sqlite3.connect(folder / "ledger.sqlite") for folder in (run, out))
    source.backup(target)
    target.execute("UPDATE facts SET value = replace(value, ?, ?)", (str(place), PLACE))
    target.commit()
    target.execute("PRAGMA journal_mode = DELETE")
    source.close()
    target.close()
    _without_place(out, place)


def _without_place(folder: Path, place: Path) -> None:
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace(str(place), PLACE))


def keep_postgres(ledger: str, out: Path, place: Path) -> None:
    """Write the job's schema as SQL text."""
    command = ["pg_dump", "--no-owner", "--inserts", "--exclude-schema=public", ledger]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    out.write_text(text.replace(str(place), PLACE).replace(socket.gethostname(), "old-host"))


def main(checkout: Path, out: Path) -> None:
    """Make the four runs and keep them below `out`."""
    place = Path(tempfile.mkdtemp(prefix="old-runs-")) / "work"
    make_inputs(place)
    (place / "job.yaml").write_text(str({**JOB, "budget": {"trials": 6}}).replace("'", '"'))
    out.mkdir(parents=True)
    for name in KEPT:
        copy = shutil.copytree if (place / name).is_dir() else shutil.copyfile
        copy(place / name, out / name)
    for run, scored in (("finished", None), ("unfinished", SCORED_BEFORE_THE_KILL)):
        drive(checkout, place, run, scored=scored)
        keep_sqlite(place / run, out / run, place)
        server = Postgres()
        try:
            server.start()
            os.environ["PGPASSWORD"] = server.password
            drive(checkout, place, f"{run}-postgres", scored=scored, ledger=server.url)
            keep_postgres(server.url, out / f"{run}.sql", place)
        finally:
            server.remove()
    front = [sys.executable, "-m", "recycler", "front", "finished", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(front, cwd=place, env=environment, capture_output=True, check=True)
    (out / "front.json").write_bytes(done.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
