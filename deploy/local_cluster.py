"""A whole cluster on this machine, to try docs/cluster.md.

S3 server, PostgreSQL, and two Ray nodes with token auth.

    python deploy/local_cluster.py            # prints the variables to export in another terminal
    python deploy/local_cluster.py --nodes 3

Ctrl-C ends everything. Needs `pip install 'recycler[postgres]' 'moto[server]'` and Debian's
postgresql. Everything listens on 127.0.0.1 and is removed at the end; what it started it ends by
its own process ids.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until(what: str, ready: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} after {seconds:.0f} s")
        time.sleep(0.1)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def end(
    process: subprocess.Popen[bytes] | None, *, hard: bool = False, seconds: float = 15.0
) -> None:
    """End a process and all that it has started, by their ids."""
    if process is None:
        return
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        family = [own, *own.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if hard:
                member.kill()
            else:
                member.terminate()
    _, alive = psutil.wait_procs(family, timeout=seconds)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


class S3:
    """moto's S3 server with one bucket."""

    def __init__(self, bucket: str = "models"):
        self.port, self.bucket = free_port(), bucket
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local-secret",
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until("the S3 server does not answer", lambda: listens(self.port))
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("PUT", f"/{self.bucket}")
        connection.getresponse().read()

    def remove(self) -> None:
        end(self.process)


def postgres_folder() -> Path | None:
    """Folder of PostgreSQL's programs; None when it is not installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parent.parent.name),
    )
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return Path(path).parent if path else None


class Postgres:
    """A PostgreSQL server with data of its own, open to this machine with a password."""

    def __init__(self) -> None:
        programs = postgres_folder()
        if programs is None:
            raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
        self.programs, self.port, self.password = programs, free_port(), secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="recycler-pg-"))
        self.folder.chmod(0o755)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address without the password, which goes into PGPASSWORD."""
        return f"postgresql://recycler@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, on the same port and data if it ran before."""
        data = self.folder / "data"
        if not data.exists():
            self._make_data(data)
        command = [
            *self._as_user(),
            str(self.programs / "postgres"),
            "-D",
            str(data),
            "-p",
            str(self.port),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"unix_socket_directories={self.folder}",
            "-c",
            "shared_buffers=32MB",
        ]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        wait_until("PostgreSQL does not answer", self._is_ready)

    def _make_data(self, data: Path) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        if os.getuid() == 0:
            shutil.chown(self.folder, UNPRIVILEGED)
            shutil.chown(secret, UNPRIVILEGED)
        subprocess.run(
            [
                *self._as_user(),
                str(self.programs / "initdb"),
                "-D",
                str(data),
                "-U",
                "recycler",
                "-A",
                "scram-sha-256",
                f"--pwfile={secret}",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        secret.unlink()

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop it by a signal: SIGINT cuts connections at once, SIGKILL is a crash."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def remove(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        command = [str(self.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command).returncode == 0

    def _as_user(self) -> list[str]:
        if os.getuid() != 0:
            return []
        return ["setpriv", f"--reuid={UNPRIVILEGED}", "--regid=nogroup", "--clear-groups", "--"]


class RayNode:
    """One `ray start --block`: a head when `head` is None, else a node that joins it."""

    def __init__(self, environment: dict[str, str], *, cpus: int, head: RayNode | None = None):
        self.head, self.cpus, self.environment = head, cpus, environment
        if head is None:
            self.port, self.dashboard_port = free_port(), free_port()
            self.folder = Path(tempfile.mkdtemp(prefix="rr-"))  # short: sockets lie in it
        else:
            self.port, self.dashboard_port = head.port, head.dashboard_port
            self.folder = head.folder
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Address of the Jobs API."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start(self) -> None:
        ray = Path(sys.executable).parent / "ray"
        place = [f"--address=127.0.0.1:{self.port}"]
        if self.head is None:
            place = [
                "--head",
                f"--port={self.port}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard_port}",
                f"--temp-dir={self.folder}",
            ]
        command = [
            str(ray),
            "start",
            "--block",
            "--disable-usage-stats",
            "--node-ip-address=127.0.0.1",
            f"--num-cpus={self.cpus}",
            "--num-gpus=0",
            "--object-store-memory=100000000",
            f"--dashboard-agent-listen-port={free_port()}",
            *place,
        ]
        log = (self.folder / f"node-{os.getpid()}-{id(self)}.log").open("wb")
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **self.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if self.head is None:
            wait_until("Ray's dashboard does not answer", lambda: listens(self.dashboard_port), 180)

    def kill(self) -> None:
        """End everything on it at once, as when a machine goes away."""
        end(self.process, hard=True)
        self.process = None

    def remove(self) -> None:
        end(self.process)
        self.process = None
        if self.head is None:
            shutil.rmtree(self.folder, ignore_errors=True)


class LocalCluster:
    """All servers together, as a context manager; `environment` is for nodes and users."""

    def __init__(self, *, nodes: int = 2, cpus: int = 1, environment: dict[str, str] | None = None):
        self.s3, self.postgres, self.token = S3(), Postgres(), secrets.token_hex(16)
        self.cache = Path(tempfile.mkdtemp(prefix="recycler-cache-"))
        self._more, self._nodes, self._cpus = environment or {}, nodes, cpus
        self.nodes: list[RayNode] = []

    @property
    def environment(self) -> dict[str, str]:
        found = {
            **self.s3.environment,
            "PGPASSWORD": self.postgres.password,
            "RECYCLER_LEDGER": self.postgres.url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RECYCLER_CACHE": str(self.cache),
        }
        if self.nodes:
            found["RAY_API_SERVER_ADDRESS"] = self.nodes[0].address
        return {**found, **self._more}

    def __enter__(self) -> LocalCluster:
        try:
            self.s3.start()
            self.postgres.start()
            for _ in range(self._nodes):
                self.add_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def add_node(self) -> RayNode:
        """Start one more node, which joins."""
        environment = {**self.environment, "RAY_JOB_STOP_WAIT_TIME_S": "30"}
        environment.pop("RAY_API_SERVER_ADDRESS", None)
        head = self.nodes[0] if self.nodes else None
        node = RayNode(environment, cpus=self._cpus, head=head)
        self.nodes.append(node)
        node.start()
        return node

    def __exit__(self, *_exception: object) -> None:
        for node in reversed(self.nodes):
            node.remove()
        self.postgres.remove()
        self.s3.remove()
        shutil.rmtree(self.cache, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="cores of each node")
    arguments = parser.parse_args()
    with LocalCluster(nodes=arguments.nodes, cpus=arguments.cpus) as cluster:
        for name, value in cluster.environment.items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        print(f"# the bucket is s3://{cluster.s3.bucket}; Ctrl-C ends everything", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
