"""A real PostgreSQL of Debian's package for tests, as an unprivileged user when the tests run as
root.
"""

from contextlib import contextmanager

import pytest

from local_cluster import Postgres, postgres_folder

needs_postgres = pytest.mark.skipif(
    postgres_folder() is None, reason="PostgreSQL is not installed (apt-get install postgresql)"
)


@contextmanager
def postgres_server():
    """A running server that is gone afterwards, its data too."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()
