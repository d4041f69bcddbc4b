"""`recycler serve` as a process: it tells its token once, believes no header it was not told to,
and refuses what cannot work.
"""

import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")

import httpx

from recycler.cli import main
from service_runs import make_run

API = "/api/v1"

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    make_run(root, "demo")
    return root


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        pytest.param(
            "::1", marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
        ),
    ],
)
def test_serve_tells_its_token_once_and_stops_when_asked(root, host):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "recycler",
            "serve",
            "--root",
            str(root),
            "--host",
            host,
            "--port",
            str(port),
            "--token",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stderr.readline() for _ in range(3)]
        address = lines[1].split()[-1]
        assert address.startswith(f"{place}/?token=")
        with httpx.Client(follow_redirects=True) as web:
            for _ in range(100):
                try:
                    answer = web.get(address)
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            assert answer.status_code == 200 and "token" not in str(answer.url)
            assert web.get(f"{place}{API}/jobs").status_code == 200
        assert httpx.get(f"{place}{API}/jobs").status_code == 401
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_serve_believes_the_connection_s_own_address_and_no_other(root):
    """uvicorn by itself takes the address out of X-Forwarded-For from peers on this machine."""
    for network, status in (("10.0.0.7", 401), ("127.0.0.1", 200)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "recycler",
                "serve",
                "--root",
                str(root),
                "--port",
                str(port),
                "--trusted-proxy",
                network,
                "--operators",
                "ada",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            for _ in range(200):
                try:
                    answer = httpx.post(
                        f"http://127.0.0.1:{port}{API}/validate",
                        json={"text": "x"},
                        headers={"x-forwarded-for": "10.0.0.7", "x-forwarded-user": "ada"},
                    )
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            assert answer.status_code == status
        finally:
            process.kill()
            process.wait()


def test_serve_refuses_operators_that_nobody_names(tmp_path, capsys):
    assert main(["serve", "--root", str(tmp_path), "--operators", "ada"]) == 2
    assert "--trusted-proxy" in capsys.readouterr().err


def test_serve_refuses_a_root_that_is_no_folder(tmp_path, capsys):
    assert main(["serve", "--root", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_port_that_cannot_be_had_is_told_before_any_address(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port, cause in (
            (taken.getsockname()[1], "cannot be listened on"),
            (99999, "is no port"),
            (0, "is no port"),
        ):
            assert main(["serve", "--root", str(tmp_path), "--port", str(port)]) == 2
            said = capsys.readouterr().err
            assert cause in said and "serving" not in said
