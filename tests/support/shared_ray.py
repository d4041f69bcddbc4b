"""One Ray node for all tests that need a Ray and not a Ray of their own."""

import secrets
from contextlib import contextmanager

from local_cluster import RayNode, listens, wait_until


@contextmanager
def ray_node():
    """A node of two cores; yields the environment of who uses it, and is gone afterwards."""
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    node = RayNode({**access, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}, cpus=2)
    try:
        node.start()
        wait_until("Ray does not answer", lambda: listens(node.port), 180)
        yield {**access, "RAY_ADDRESS": f"127.0.0.1:{node.port}"}
    finally:
        node.kill()  # asked politely it takes a quarter of a minute
        node.remove()
