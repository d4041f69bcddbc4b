"""schemathesis asks a running service everything that its OpenAPI document allows, and much that it
does not.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")
pytest.importorskip("schemathesis", reason="needs schemathesis, see the test extra")

from service_runs import make_run, served

# not unsupported_method: a POST without JSON is refused (415) before it is routed
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance,missing_required_header,"
    "use_after_free"
)
KNOWN_JOB = '[parameters]\n"path.job" = "demo"\n"path.number" = 1\n"query.trials" = "0,1"\n'


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A finished run whose checkpoints are there, an interrupted one, and a ledger that cannot be
    read.
    """
    root = tmp_path_factory.mktemp("runs")
    make_run(root, "demo", merges=4, checkpoints=True)
    make_run(root, "live", merges=4, finished=False)
    (root / "torn").mkdir()
    (root / "torn" / "ledger.sqlite").write_bytes(b"this is no database" * 100)
    with served(root) as address:
        yield address


def schemathesis(address, folder, num_examples, *, config="", checks=CHECKS):
    (folder / "schemathesis.toml").write_text(config)
    program = Path(sys.executable).with_name("st")
    assert program.exists() or shutil.which("st")
    return subprocess.run(
        [
            str(program) if program.exists() else "st",
            "run",
            f"{address}/api/v1/openapi.json",
            "--checks",
            checks,
            "--max-examples",
            str(num_examples),
            "--seed",
            "0",
            "--no-color",
            "--generation-database",
            "none",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=3000,
    )


@pytest.mark.parametrize("config", ["", KNOWN_JOB], ids=["any-id", "known-job"])
@pytest.mark.parametrize("num_examples", [10, pytest.param(400, marks=pytest.mark.slow)])
def test_every_answer_is_one_that_the_document_names_and_none_is_a_server_error(
    address, tmp_path, num_examples, config
):
    told = schemathesis(address, tmp_path, num_examples, config=config)
    assert told.returncode == 0, told.stdout[-6000:]
    assert int(re.search(r"(\d+) generated", told.stdout)[1]) > 100


def test_schemathesis_would_find_a_wrong_answer(address, tmp_path):
    """A check that the service cannot pass fails: a job file of any text is well-formed JSON, and
    no job.
    """
    assert schemathesis(address, tmp_path, 5, checks="positive_data_acceptance").returncode != 0


def test_a_path_with_two_methods_names_both(address):
    import httpx

    answer = httpx.options(f"{address}/api/v1/jobs")
    assert (
        answer.status_code == 405
        and answer.headers["allow"] == "GET, POST"
        and answer.json()["problems"]
    )
