"""Two Ray nodes with token auth, PostgreSQL and an S3 server as processes of their own, by the
commands of docs/cluster.md.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from postgres import needs_postgres
from recycler.ledger import Ledger
from recycler.ledger.place import job_place
from recycler.testing import make_pico_pool
from small_job import JOB, SUITE

pytestmark = [pytest.mark.ray, needs_postgres]
# never reached: the job is stopped when all has been killed, and ends with a smaller budget
TRIALS = 5000
QUICK = {"RECYCLER_LEASE_SECONDS": "4", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def slow_suite():
    """Answers so long that a trial takes a moment in which things can be killed."""
    suite = json.loads(json.dumps(SUITE))
    suite["tasks"]["echo"]["max_new_tokens"] = 100
    return suite


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A job over a pool in a bucket, and the pool's twin on disk."""
    folder = tmp_path_factory.mktemp("work")
    make_pico_pool(folder / "pool")
    (folder / "echo.jsonl").write_text(
        "".join(json.dumps({"q": f"{k}+{k}", "a": str(2 * k)}) + "\n" for k in range(10))
    )
    (folder / "echo.yaml").write_text(yaml.safe_dump(slow_suite()))
    job = {
        **JOB,
        "name": "echo",
        "pool": {"members": ["s3://models/pool/members"], "base": "s3://models/pool/base"},
        "engine": {"name": "transformers", "workers": 2},
        "budget": {"trials": TRIALS},
        "sampler": "random",
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder


@pytest.fixture(scope="module")
def cluster(work):
    from local_cluster import LocalCluster

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with LocalCluster(nodes=2, cpus=1, environment={**QUICK, "PATH": path}) as running:
        for name, value in running.environment.items():
            os.environ[name] = value
        from recycler.pool.storage import bucket

        for file in (work / "pool").rglob("*"):
            if file.is_file():
                bucket.upload(f"s3://models/pool/{file.relative_to(work / 'pool')}", file)
        yield running


@pytest.fixture(scope="module", autouse=True)
def own_environment():
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def recycler(work, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "recycler", *arguments],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, (
        f"{arguments}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done


def driver_of(work, job):
    """The process that holds the job's lease, by the ledger's own word."""
    state = json.loads(recycler(work, "status", job, "--json").stdout)["state"]
    return psutil.Process(int(re.match(r"running: driven by process (\d+) on", state)[1]))


def workers(cluster):
    """Processes of this cluster's actors."""
    nodes = [psutil.Process(node.process.pid) for node in cluster.nodes if node.process]
    return [
        child
        for node in nodes
        for child in node.children(recursive=True)
        if any("ray::_Actor" in word for word in command_of(child))
    ]


def command_of(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def until(what, ready, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, what
        time.sleep(0.3)
    return found


def test_a_job_survives_its_driver_a_worker_and_a_node_and_its_export_is_the_merge(work, cluster):
    job = recycler(work, "submit", "job.yaml").stdout.strip()
    assert (
        recycler(work, "submit", "job.yaml").stdout.strip() == job
    )  # the same job again is that job
    place = job_place(cluster.postgres.url, job)
    ledger = until("the driver did not open its ledger", lambda: open_there(place))

    def until_more(what, count=4):
        target = ledger.counts()["SCORED"] + count
        until(what, lambda: ledger.counts()["SCORED"] >= target)

    until_more("no trial was scored", 2)
    driver_of(work, job).send_signal(signal.SIGKILL)
    until("the kill went unnoticed", lambda: "FAILED" in recycler(work, "list", "--json").stdout)
    recycler(work, "resume", job)
    until_more("the resumed driver scored nothing")

    until("no worker was found", lambda: workers(cluster))[0].send_signal(signal.SIGKILL)
    until_more("nothing was scored after a worker was killed")

    cluster.nodes[1].kill()
    until_more("nothing was scored after a node was killed")
    cluster.add_node()
    until("the node that joined got no worker", lambda: len(workers(cluster)) == 2)
    until_more("nothing was scored after a node joined")

    assert "is stopped" in recycler(work, "stop", job).stderr
    assert json.loads(recycler(work, "status", job, "--json").stdout)["state"].startswith(
        "unfinished"
    )
    spec = yaml.safe_load((work / "job.yaml").read_text())
    (work / "job.yaml").write_text(yaml.safe_dump({**spec, "budget": {"trials": 10}}))
    assert (
        recycler(work, "resume", "job.yaml", "--wait").stdout.strip() == job
    )  # a budget is no part of a job's id
    assert json.loads(recycler(work, "status", job, "--json").stdout)["state"] == "finished"

    found = ledger.trials()
    assert {trial.state for trial in found} == {"SCORED"} and [
        trial.number for trial in found
    ] == list(range(len(found)))
    assert "Pareto front" in recycler(work, "front", job, "--holdout").stdout
    assert "Pareto front" in recycler(work, "logs", job).stdout
    check_exports(work, job, found)
    ledger.close()


def open_there(place):
    from recycler.errors import NotFoundError

    try:
        ledger = Ledger(place, create=False)
    except NotFoundError:
        return None
    return ledger if ledger.facts.job else None


def check_exports(work, job, found):
    """One-hot weights come out of the bucket as the member that went in; a merge as the weights
    that were scored.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from recycler.pool.catalog import open_checkpoint
    from recycler.pool.materialise import materialise
    from recycler.pool.storage.hashing import model_digest
    from recycler.pool.storage.tensors import iterate_tensors
    from recycler.types import Pool

    for number in ("1", "knee"):
        recycler(work, "export", job, "--trial", number, "--to", f"s3://models/out/{number}")
    exported = open_checkpoint("s3://models/out/1")
    folder = str(materialise(Pool(members=(exported,))).members[0].location)
    ours, theirs = (
        load_file(f"{folder}/model.safetensors"),
        load_file(work / "pool/members/m1/model.safetensors"),
    )
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name].view(torch.int16), theirs[name].view(torch.int16)) for name in ours
    )
    AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    knee = model_digest(iterate_tensors(open_checkpoint("s3://models/out/knee")))
    assert knee in {trial.weights_digest for trial in found}


def test_secrets_stay_in_the_environment(work, cluster):
    said = (
        recycler(work, "submit", "job.yaml", "--dry-run").stdout
        + recycler(work, "list", "--json").stdout
    )
    job = json.loads(recycler(work, "list", "--json").stdout)["jobs"][0]["id"]
    said += recycler(work, "logs", job).stdout
    for secret in (cluster.token, cluster.postgres.password, "local-secret"):
        assert secret not in said
    refused = recycler(
        work,
        "submit",
        "job.yaml",
        "--ledger",
        cluster.postgres.url.replace("recycler@", "recycler:hunter2@"),
        code=2,
    )
    assert "holds a password" in refused.stderr and "hunter2" not in refused.stderr


def test_an_open_cluster_or_a_wrong_token_is_refused(work, cluster):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Open(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Open)
    Thread(target=server.serve_forever, daemon=True).start()
    refused = recycler(
        work,
        "submit",
        "job.yaml",
        "--address",
        f"http://127.0.0.1:{server.server_address[1]}",
        code=2,
    )
    server.shutdown()
    assert "takes jobs from anybody" in refused.stderr and "RAY_AUTH_MODE=token" in refused.stderr
    token, os.environ["RAY_AUTH_TOKEN"] = os.environ["RAY_AUTH_TOKEN"], "0" * 32
    try:
        assert "refuses our token" in recycler(work, "list", code=2).stderr
    finally:
        os.environ["RAY_AUTH_TOKEN"] = token
    assert (
        "cannot be reached"
        in recycler(work, "submit", "job.yaml", "--address", "http://127.0.0.1:9", code=5).stderr
    )
