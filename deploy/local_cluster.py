"""A whole cluster on this machine, to try what docs/cluster.md says:

S3 server, PostgreSQL, and two Ray nodes with token auth.

    python deploy/local_cluster.py            # prints what to export in another terminal; Ctrl-C ends everything
    python deploy/local_cluster.py --nodes 3

Needs `pip install 'recycler[postgres]' 'moto[server]'` and Debian's postgresql. Everything listens
on 127.0.0.1 and is removed at the end; what it started it ends by its own process ids.
"""

from __future__ import annotations

import argparse
import contextlib
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
        return probe.getsockname()[1]


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


def end(process: subprocess.Popen | None, *, hard: bool = False, seconds: float = 15.0) -> None:
    """End a process and all that it has started, by their ids."""
    if process is None:
        return
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        family = [own, *own.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill() if hard else member.terminate()
    _, alive = psutil.wait_procs(family, timeout=seconds)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


class S3:
    """moto's S3 server with one bucket."""

    def __init__(self, bucket: str = "models"):
        self.port, self.bucket, self.process = free_port(), bucket, None

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
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("PUT", f"/{self.bucket}")
        connection.getresponse().read()

    def remove(self) -> None:
        end(self.process)


def postgres_folder() -> Path | None:
    """Where PostgreSQL's programs are; None when it is not installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parent.parent.name),
    )
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return Path(path).parent if path else None


class Postgres:
    """A server with data of its own, that trusts connections from this machine that know the
    password.
    """

    def __init__(self) -> None:
        programs = postgres_folder()
        if programs is None:
            raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
        self.programs, self.port, self.password = programs, free_port(), secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="recycler-pg-"))
        self.folder.chmod(0o755)
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """Without the password, which goes into PGPASSWORD."""
        return f"postgresql://recycler@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, on the same port and data as before if there was a before."""
        data = self.folder / "data"
        if not data.exists():
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

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: at once, connections are cut. SIGKILL would be a crash."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def remove(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        return (
            subprocess.run(
                [str(self.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
            ).returncode
            == 0
        )

    def _as_user(self) -> list[str]:
        return (
            ["setpriv", f"--reuid={UNPRIVILEGED}", "--regid=nogroup", "--clear-groups", "--"]
            if os.getuid() == 0
            else []
        )


class RayNode:
    """One `ray start --block`: a head when `head_port` is None, else a node that joins."""

    def __init__(self, environment: dict[str, str], *, cpus: int, head: RayNode | None = None):
        self.head, self.cpus, self.environment = head, cpus, environment
        self.port = free_port() if head is None else head.port
        self.dashboard_port = free_port() if head is None else head.dashboard_port
        self.folder = (
            Path(tempfile.mkdtemp(prefix="rr-")) if head is None else head.folder
        )  # short: sockets lie in it
        self.process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        """Of the Jobs API."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start(self) -> None:
        ray = Path(sys.executable).parent / "ray"
        place = (
            [
                "--head",
                f"--port={self.port}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard_port}",
                f"--temp-dir={self.folder}",
            ]
            if self.head is None
            else [f"--address=127.0.0.1:{self.port}"]
        )
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
        """As a machine that goes away: everything on it at once."""
        end(self.process, hard=True)
        self.process = None

    def remove(self) -> None:
        end(self.process)
        self.process = None
        if self.head is None:
            shutil.rmtree(self.folder, ignore_errors=True)


class LocalCluster:
    """All of it. `environment` is what nodes and people need; a context manager."""

    def __init__(self, *, nodes: int = 2, cpus: int = 1, environment: dict[str, str] | None = None):
        self.s3, self.postgres, self.token = S3(), Postgres(), secrets.token_hex(16)
        self.cache = Path(tempfile.mkdtemp(prefix="recycler-cache-"))
        self._more, self._nodes, self._cpus = environment or {}, nodes, cpus
        self.nodes: list[RayNode] = []

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.s3.environment,
            "PGPASSWORD": self.postgres.password,
            "RECYCLER_LEDGER": self.postgres.url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RECYCLER_CACHE": str(self.cache),
            **({"RAY_API_SERVER_ADDRESS": self.nodes[0].address} if self.nodes else {}),
            **self._more,
        }

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
        """One more node joins."""
        environment = {
            name: value
            for name, value in self.environment.items()
            if name != "RAY_API_SERVER_ADDRESS"
        }
        node = RayNode(
            {**environment, "RAY_JOB_STOP_WAIT_TIME_S": "30"},
            cpus=self._cpus,
            head=self.nodes[0] if self.nodes else None,
        )
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
        print(
            "\n".join(
                f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()
            ),
            flush=True,
        )
        print(f"# the bucket is s3://{cluster.s3.bucket}; Ctrl-C ends everything", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
