"""One Ray node for all tests that need a Ray and not a Ray of their own."""

import secrets
import subprocess
import sys
from contextlib import contextmanager

from local_cluster import RayNode, listens, wait_until

GUARD = "import os, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), 15)"
"""Ends a process group as soon as its own standard input closes."""


@contextmanager
def ray_node():
    """A node of two cores; yields the environment of who uses it, and is gone afterwards.

    A test process that is killed takes the node with it.
    """
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    node, guard = RayNode({**access, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}, cpus=2), None
    try:
        node.start()
        command = [sys.executable, "-S", "-c", GUARD, str(node.process.pid)]
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        wait_until("Ray does not answer", lambda: listens(node.port), 180)
        yield {**access, "RAY_ADDRESS": f"127.0.0.1:{node.port}"}
    finally:
        if guard:
            guard.kill()
            guard.wait()
        node.kill()  # asked politely it takes a quarter of a minute
        node.remove()
