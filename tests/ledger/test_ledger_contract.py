"""Every ledger keeps the laws of the contract: a SQLite file, and a schema of PostgreSQL."""

import os

import pytest

from ledger_contract import LedgerContract
from postgres import needs_postgres, postgres_server
from recycler.ledger.place import job_place


class TestFile(LedgerContract):
    @pytest.fixture
    def place(self, tmp_path):
        return tmp_path / "ledger.sqlite"


@needs_postgres
class TestDatabase(LedgerContract):
    @pytest.fixture(scope="class")
    def server(self):
        with postgres_server() as running:
            os.environ["PGPASSWORD"] = running.password
            yield running
            del os.environ["PGPASSWORD"]

    @pytest.fixture
    def place(self, server, request):
        return job_place(server.url, f"{abs(hash(request.node.name)):x}")
