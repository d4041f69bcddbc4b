"""FastAPI's test client of the service over a folder of runs."""

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")
pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")

from fastapi.testclient import TestClient

from recycler.service import create_app

API = "/api/v1"

TOKEN, VIEWER = "operator-token-of-the-tests", "viewer-token-of-the-tests"

JSON = {"content-type": "application/json"}


def client_of(root, **settings):
    return TestClient(
        create_app(root, **{"token": None, **settings}),
        base_url="http://127.0.0.1:8765",
        follow_redirects=False,
    )
