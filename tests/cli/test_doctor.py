"""doctor tells the truth about a machine, a cluster, a bucket and a ledger, at once, without a
secret and without a trace.
"""

import http.client
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recycler.cli import machine_checks, main, service_checks

LEVELS = ("ok", "warn", "fail")


def found(capsys, *words):
    """(exit code, {name: check}) of recycler doctor --json."""
    code = main(["doctor", "--json", *words])
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1 and document["ok"] == (code == 0)
    assert all(
        check["level"] in LEVELS and (check["level"] == "ok") == (check["remedy"] == "")
        for check in document["checks"]
    )
    return code, {check["name"]: check for check in document["checks"]}


def test_a_machine_that_runs_these_tests_is_fit(capsys, tmp_path):
    code, checks = found(capsys, "--dir", str(tmp_path))
    assert code == 0 and {"python", "torch", "ray", "folder", "disk", "clock", "sandbox"} <= set(
        checks
    )
    assert checks["folder"]["level"] == "ok" and list(tmp_path.iterdir()) == []


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from recycler.cli import main; main(['doctor', '--json']); "
        "print(sorted({'torch', 'ray', 'vllm', 'optuna', 'transformers', 'pandas', 'numpy', "
        "'sqlalchemy'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_a_folder_that_cannot_be_written_fails(capsys):
    code, checks = found(capsys, "--dir", "/proc/1/nowhere")
    assert code == 5 and checks["folder"]["level"] == "fail"


def test_a_library_outside_its_window_fails(monkeypatch):
    monkeypatch.setattr(machine_checks.metadata, "version", lambda name: "99.0")
    levels = {check.name: check.level for check in machine_checks.versions()}
    assert levels["transformers"] == "fail" and levels["torch"] == "ok"


def test_a_library_that_is_missing_fails_unless_it_is_optional(monkeypatch):
    def missing(name):
        raise machine_checks.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine_checks.metadata, "version", missing)
    checks = {check.name: check for check in machine_checks.versions()}
    assert (
        checks["torch"].level == "fail"
        and checks["vllm"].level == "ok"
        and "recycler[vllm]" in checks["vllm"].found
    )


def test_a_driver_of_the_gpu_that_fails_is_told(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'couldn'\\''t communicate with the NVIDIA driver' >&2\nexit 9\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert next(machine_checks.gpus()).level == "fail"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.1, 143771 MiB'\n")
    monkeypatch.setattr(machine_checks.metadata, "version", lambda name: "2.13.0+cpu")
    gpu, build = machine_checks.gpus()
    assert gpu.level == "ok" and "H200" in gpu.found and build.level == "warn"


def test_no_sandbox_is_a_warning_with_a_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    check = next(machine_checks.sandbox())
    assert check.level == "warn" and check.remedy


# ---------------------------------------------------------------- Ray


@pytest.fixture
def head():
    """A dashboard that asks for the token `right`; with `server.open` it asks for none."""

    class Jobs(BaseHTTPRequestHandler):
        def do_GET(self):
            fits = self.server.open or self.headers.get("Authorization") == "Bearer right"
            self.send_response(200 if fits else 401)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Jobs)
    server.open, server.url = False, f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "token, code, level", [("right", 0, "ok"), ("wrong-token-of-the-tests", 5, "fail")]
)
def test_a_cluster_with_a_token(head, token, code, level, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    given, checks = found(capsys, "--address", head.url, "--dir", str(tmp_path))
    assert (given, checks["ray"]["level"]) == (code, level) and "wrong-token" not in json.dumps(
        checks
    )
    assert checks["clock of the head"]["level"] == "ok"


def test_a_cluster_without_a_token_fails_even_when_we_have_one(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    head.open = True
    assert next(service_checks.ray(head.url)).level == "fail"


def test_the_token_of_a_file_is_used(head, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("right\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert next(service_checks.ray(head.url)).level == "ok"


def test_a_head_that_is_away_fails(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert next(service_checks.ray("http://127.0.0.1:9")).level == "fail"


# ---------------------------------------------------------------- bucket, ledger


def test_a_folder_as_a_bucket_is_tried_and_left_as_it_was(tmp_path, capsys):
    (tmp_path / "x").write_text("kept")
    code, checks = found(capsys, "--dir", str(tmp_path), "--bucket", f"file://{tmp_path}")
    assert code == 0 and {"bucket read", "conditional write", "bucket range"} <= set(checks)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_real_s3_server_is_tried_and_left_as_it_was(monkeypatch, tmp_path):
    pytest.importorskip("moto", reason="needs moto[server], see the test extra")
    from chaos import s3_server

    with s3_server() as (host, port):
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        connection = http.client.HTTPConnection(host, port)
        connection.request("PUT", "/doctors")
        connection.getresponse().read()
        checks = {check.name: check for check in service_checks.bucket("s3://doctors/pool/")}
        assert {check.level for check in checks.values()} == {"ok"} and len(checks) == 3
        from recycler.pool.storage.bucket import list_prefix

        assert list_prefix("s3://doctors/pool") == ({}, [])
        assert [check.level for check in service_checks.bucket("s3://no-such-bucket")][-1] == "fail"


def test_a_bucket_that_overwrites_is_found(monkeypatch, tmp_path):
    """A server that ignores If-None-Match tells each of two writers that it was the first."""
    from recycler.pool.storage import bucket

    def overwriting(url, raw):
        (tmp_path / url.rsplit("/", 1)[-1]).write_bytes(raw)
        return True

    monkeypatch.setattr(bucket, "write_new", overwriting)
    levels = {check.name: check.level for check in service_checks.bucket(f"file://{tmp_path}")}
    assert levels["conditional write"] == "fail" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["ftp://x/y", "s3://", "file:///nowhere/at/all"])
def test_a_url_that_is_no_bucket_never_ends_in_a_traceback(url):
    assert {check.level for check in service_checks.bucket(url)} <= set(LEVELS)


def test_a_ledger_that_is_away_fails_without_its_password(monkeypatch, capsys, tmp_path):
    database = pytest.importorskip("recycler.ledger.database", reason="needs shared ledgers")
    monkeypatch.setattr(database, "OPEN_SECONDS", 0.5)
    code, checks = found(
        capsys, "--dir", str(tmp_path), "--ledger", "postgresql://me:swordfish@127.0.0.1:1/x"
    )
    assert (
        code == 5 and checks["ledger"]["level"] == "fail" and "swordfish" not in json.dumps(checks)
    )


def test_people_see_a_line_a_check_and_remedies_only_where_needed(capsys, tmp_path):
    main(["doctor", "--dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in LEVELS or line.startswith("      ") for line in lines)
