"""A real PostgreSQL of Debian's package for tests, as an unprivileged user when the tests run as
root.
"""

from contextlib import contextmanager

import pytest

needs_postgres = pytest.mark.postgres


def is_installed():
    try:
        from local_cluster import postgres_folder  # needs psutil, which a quick install lacks
    except ModuleNotFoundError:
        return False
    return postgres_folder() is not None


@contextmanager
def postgres_server():
    """A running server that is gone afterwards, its data too."""
    from local_cluster import Postgres  # as above

    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()
