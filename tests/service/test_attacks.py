"""What the service refuses: foreign hosts and origins, forged writes, traversal, large bodies,
guessed tokens, markup.
"""

import json
from pathlib import Path
from urllib.parse import quote, unquote

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="needs recycler[service]")
pytest.importorskip("plotly", reason="needs recycler[service]")
pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")

from fastapi.testclient import TestClient

from recycler.dashboard.pages import STATIC as STATIC_FOLDER
from recycler.errors import UsageError
from recycler.service import create_app
from recycler.service.guard import MAX_BODY_BYTES, SAFE_HEADERS
from recycler.service.proxy import trusted_proxy
from service_client import API, JSON, TOKEN, VIEWER, client_of
from service_runs import EVIL


@pytest.fixture(scope="module")
def locked(root):
    return client_of(
        root, token=TOKEN, viewer_token=VIEWER, allowed_hosts=["127.0.0.1", "merge.example"]
    )


@pytest.fixture(scope="module")
def client(root):
    return client_of(root)


EXPORT = f"{API}/jobs/demo/export"
OWN = {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}

HOSTS = [
    "evil.example",
    "evil.example:8765",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "169.254.169.254",
    "0.0.0.0",
    "[::1]",
    "",
    "127.0.0.1@evil.example",
    "merge.example",
]
ORIGINS = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "https://127.0.0.1"},
    {"origin": "http://127.0.0.1:9999"},
    {"origin": "http://localhost:8765"},
    {"origin": "file://"},
    {"origin": "http://127.0.0.1:8765.evil.example"},
    {"origin": "http://127.0.0.1:8765/x"},
    {"origin": "http://[bad"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "cross-site"},
]
CONTENT_TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/json",
    "application/jsonp",
    "",
]
IDS = [
    "..",
    "../secret",
    "%2e%2e",
    "%2e%2e%2fsecret",
    "..%2fsecret",
    "..%5csecret",
    "%252e%252e%252fsecret",
    "..%c0%afsecret",
    "demo%2f..%2f..%2fsecret",
    "demo%00",
    "%00",
    "linked",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "C:%5c",
    "demo%0a",
    "Demo",
    ".hidden",
    "-rf",
    "a" * 64,
    "demo%20",
    "%ef%bc%8e%ef%bc%8e",
    "~root",
    "$(id)",
    "secret",
    "pool",
]
STATIC = [
    "pages.py",
    "../pages.py",
    "..%2fpages.py",
    "%2e%2e%2fpages.py",
    "..%5cpages.py",
    "%2fetc%2fpasswd",
    "style.css%00.py",
    "....//pages.py",
]
TOKENS = [
    "",
    "x",
    TOKEN[:-1],
    TOKEN + "x",
    TOKEN.upper(),
    " " + TOKEN[1:],
    "tökén",
    "null",
    "0",
    "\x7f",
]


def raw_get(client, target):
    """(status, body) of a GET whose path no client has tidied up, as an attacker's bytes would
    arrive.
    """
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(target),
        "raw_path": target.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8765")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8765),
    }
    anyio.run(client.app, scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode(
        errors="replace"
    )


@pytest.mark.parametrize("host", HOSTS)
def test_foreign_hosts_are_refused(client, host):
    assert client.get(f"{API}/jobs", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("headers", ORIGINS, ids=str)
def test_writes_from_elsewhere_are_refused(client, headers):
    assert (
        client.post(EXPORT, headers={**JSON, **headers}, content=b'{"trial": "8"}').status_code
        == 403
    )


@pytest.mark.parametrize("kind", CONTENT_TYPES)
def test_writes_that_a_form_could_send_are_refused(client, kind):
    assert (
        client.post(
            EXPORT, headers={**OWN, "content-type": kind}, content=b'{"trial": "8"}'
        ).status_code
        == 415
    )


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_reads_from_other_sites_are_refused(client, site):
    assert (
        client.get(f"{API}/jobs/demo/trials", headers={"sec-fetch-site": site}).status_code == 403
    )


@pytest.mark.parametrize("bad", IDS)
def test_ids_lead_nowhere_else(client, bad):
    for path in (
        f"{API}/jobs/{bad}",
        f"{API}/jobs/{bad}/front",
        f"/jobs/{bad}/front",
        f"{API}/jobs/demo/exports/{bad}",
        f"{API}/jobs/{bad}/source",
    ):
        status, body = raw_get(client, path)
        assert status in (404, 422), (path, status)
        assert "hypervolume" not in body and "root:" not in body


@pytest.mark.parametrize("bad", STATIC)
def test_static_files_are_known_by_name_only(client, bad):
    assert raw_get(client, f"/static/x/{bad}")[0] == 404


@pytest.mark.parametrize("bad", ["..", "../x", "A", "x/y", "x\n", "", "a" * 64, ".x"])
def test_submissions_cannot_choose_a_place(client, root, bad):
    before = sorted(path.name for path in root.parent.rglob("*"))
    assert client.post(f"{API}/jobs", json={"text": "version: 1\n", "id": bad}).status_code == 422
    assert sorted(path.name for path in root.parent.rglob("*")) == before


DESTINATIONS = [
    "..",
    "../x",
    "x/../y",
    "x/..",
    "/etc/x",
    "//x",
    "x//y",
    "x/",
    "C:\\x",
    "..\\x",
    "x\n",
    "x\x00",
    "",
    " ",
    ".x",
    "x/.y",
    "-x",
    "~/x",
    "s3://b/x",
    "file:///tmp/x",
    "linked/x",
    "link",
    "a/b/c/d/e",
    "a" * 64,
    "%2e%2e/x",
    "\uff0e\uff0e/x",
    "$(id)",
    "x;y",
    "x --to y",
    7,
    ["x"],
    {"x": 1},
]


@pytest.mark.parametrize("bad", DESTINATIONS, ids=repr)
def test_exports_stay_below_their_root(root, tmp_path, bad):
    place = tmp_path / "exports"
    place.mkdir()
    (place / "linked").symlink_to(tmp_path)
    (place / "link").symlink_to(tmp_path / "new")
    client = client_of(root, export_place=str(place))
    before = sorted(tmp_path.rglob("*")), sorted((root / "demo").rglob("*"))
    assert client.post(EXPORT, json={"trial": "8", "destination": bad}).status_code == 422
    assert (
        not isinstance(bad, str)
        or not bad
        or client.get(f"{API}/jobs/demo/trials/8/recipe", params={"destination": bad}).status_code
        == 422
    )
    assert (sorted(tmp_path.rglob("*")), sorted((root / "demo").rglob("*"))) == before


def test_without_an_export_root_no_destination_is_taken(client):
    assert client.post(EXPORT, json={"trial": "8", "destination": "x"}).status_code == 422
    assert client.post(EXPORT, json={"trial": "8", "dtype": "int8"}).status_code == 422


@pytest.mark.parametrize(
    "bad",
    [
        "trial-8-int8",
        "trial-8-float16-zz",
        "trial-8-../../x",
        "trial-8.json",
        "trial-8-float16-0123456g",
        "trial-",
        "trial-8-",
    ],
)
def test_export_ids_are_of_one_shape(client, bad):
    assert raw_get(client, f"{API}/jobs/demo/exports/{bad}")[0] in (404, 422)


@pytest.mark.parametrize("token", TOKENS)
def test_guessed_tokens_are_refused(locked, token):
    locked.cookies.clear()
    assert (
        locked.get(f"{API}/jobs", headers={"authorization": f"Bearer {token}".encode()}).status_code
        == 401
    )
    assert locked.get("/", params={"token": token}).status_code == 401
    assert (
        locked.get(f"{API}/jobs", headers={"cookie": f"recycler-x={token}".encode()}).status_code
        == 401
    )


def test_large_bodies_are_refused(client):
    def slowly():
        for _ in range(3):
            yield b" " * (MAX_BODY_BYTES // 2)

    assert (
        client.post(
            EXPORT, headers={**JSON, **OWN}, content=b" " * (MAX_BODY_BYTES + 1)
        ).status_code
        == 413
    )
    assert client.post(EXPORT, headers={**JSON, **OWN}, content=slowly()).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"trial": 8}',
        b'{"trial": "8", "to": "/tmp/x"}',
        b"\xff\xfe",
        b'{"trial": "' + b"9" * 300 + b'"}',
        b"[" * 5000,
    ],
)
def test_bodies_of_another_shape_are_refused(client, body):
    assert client.post(EXPORT, headers={**JSON, **OWN}, content=body).status_code in (400, 422)


@pytest.mark.parametrize(
    "query",
    ["", "1", "1,1", "1,2,3,4,5", "a,b", "1,-2", "1,1e3", "1, 2", "0x1,2", "١,٢", "1,99999999999"],
)
def test_comparisons_of_nonsense_are_refused(client, query):
    assert client.get(f"{API}/jobs/demo/compare", params={"trials": query}).status_code == 422


def test_a_token_is_exchanged_for_a_cookie_and_leaves_the_address(locked):
    locked.cookies.clear()
    answer = locked.get("/jobs/demo/front", params={"token": TOKEN, "x": "1"})
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 303 and answer.headers["location"] == "/jobs/demo/front?x=1"
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in cookie
    assert locked.get(f"{API}/jobs").status_code == 200
    assert (
        locked.post(
            f"{API}/jobs/demo/export",
            headers={**JSON, "origin": "http://evil.example"},
            content=b'{"trial": "8"}',
        ).status_code
        == 403
    )


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example"])
def test_the_exchange_never_leads_to_another_site(locked, path):
    answer = locked.get(f"http://127.0.0.1{path}", params={"token": TOKEN})
    assert not answer.headers.get("location", "/").startswith(("//", "/\\", "http"))


def test_a_viewer_reads_and_never_writes(locked):
    locked.cookies.clear()
    headers = {"authorization": f"Bearer {VIEWER}"}
    assert locked.get(f"{API}/jobs", headers=headers).status_code == 200
    for path in ("/jobs", "/jobs/demo/stop", "/jobs/demo/resume", "/jobs/demo/export", "/validate"):
        assert (
            locked.post(API + path, headers={**headers, **JSON}, content=b"{}").status_code == 403
        )


PROXY = trusted_proxy(
    ["10.0.0.7", "10.1.0.0/16", "fd00::/64"], "X-Forwarded-User", "ada, grace@example.org"
)


def behind_proxy(root, peer):
    app = create_app(
        root, token=TOKEN, viewer_token=VIEWER, proxy=PROXY, allowed_hosts=["127.0.0.1"]
    )
    return TestClient(
        app, base_url="http://127.0.0.1:8765", follow_redirects=False, client=(peer, 50_000)
    )


@pytest.mark.parametrize("peer", ["10.0.0.7", "10.1.2.3", "::ffff:10.0.0.7", "fd00::5"])
def test_a_trusted_proxy_names_operators_and_viewers(root, peer):
    client = behind_proxy(root, peer)
    assert client.get(f"{API}/jobs").status_code == 401  # it named nobody
    assert client.get(f"{API}/jobs", headers={"x-forwarded-user": "eve"}).status_code == 200
    assert (
        client.post(
            f"{API}/validate", headers={"x-forwarded-user": "eve"}, json={"text": "x"}
        ).status_code
        == 403
    )
    for name in ("ada", "grace@example.org"):
        assert (
            client.post(
                f"{API}/validate", headers={"x-forwarded-user": name}, json={"text": "x"}
            ).status_code
            == 200
        )
        assert (
            client.post(
                f"{API}/validate",
                headers={"x-forwarded-user": name, "origin": "http://evil.example"},
                json={"text": "x"},
            ).status_code
            == 403
        )
    assert (
        client.post(
            f"{API}/validate", headers={"authorization": f"Bearer {TOKEN}"}, json={"text": "x"}
        ).status_code
        == 200
    )
    assert (
        client.post(
            f"{API}/validate",
            headers={"x-forwarded-user": "eve", "authorization": f"Bearer {TOKEN}"},
            json={"text": "x"},
        ).status_code
        == 403
    )  # who the proxy names is who it is


@pytest.mark.parametrize(
    "peer",
    [
        "10.0.0.8",
        "127.0.0.1",
        "::1",
        "10.0.0.70",
        "::ffff:10.0.0.8",
        "fd01::5",
        "testclient",
        "",
        "10.0.0.7.evil.example",
        "10.0.0.7%eth0",
    ],
)
@pytest.mark.parametrize(
    "headers",
    [{}, {"x-forwarded-for": "10.0.0.7"}, {"forwarded": "for=10.0.0.7"}, {"x-real-ip": "10.0.0.7"}],
    ids=str,
)
def test_nobody_else_names_users(root, peer, headers):
    client = behind_proxy(root, peer)
    assert (
        client.get(f"{API}/jobs", headers={"x-forwarded-user": "ada", **headers}).status_code == 401
    )
    assert (
        client.post(
            f"{API}/validate",
            headers={"x-forwarded-user": "ada", "authorization": f"Bearer {VIEWER}", **headers},
            json={"text": "x"},
        ).status_code
        == 403
    )


@pytest.mark.parametrize(
    "names",
    [
        [""],
        [" "],
        ["ada", "ada"],
        ["eve", "ada"],
        ["ad\u00e9".encode("latin-1")],
        ["ada\tx"],
        ["a" * 201],
    ],
    ids=repr,
)
def test_names_that_are_no_names_are_nobody(root, names):
    client = behind_proxy(root, "10.0.0.7")
    assert (
        client.get(
            f"{API}/jobs", headers=[("x-forwarded-user", name) for name in names]
        ).status_code
        == 401
    )


@pytest.mark.parametrize("name", ["Ada", "ada,eve", "ada grace@example.org", "ada;", "%61da", "ad"])
def test_names_are_compared_whole(root, name):
    assert (
        behind_proxy(root, "10.0.0.7")
        .post(f"{API}/validate", headers={"x-forwarded-user": name}, json={"text": "x"})
        .status_code
        == 403
    )


@pytest.mark.parametrize(
    "words",
    [
        (["0.0.0.0/0"], "X-User"),
        (["::/0"], "X-User"),
        (["proxy.example"], "X-User"),
        ([""], "X-User"),
        (["10.0.0.7"], "Host"),
        (["10.0.0.7"], "X User"),
        (["10.0.0.7"], ""),
    ],
    ids=str,
)
def test_a_proxy_that_would_be_anybody_is_refused(words):
    with pytest.raises(UsageError):
        trusted_proxy(*words, "ada")
    with pytest.raises(ValueError):
        create_app(Path("."), token=None, proxy=PROXY)


def test_everything_but_health_needs_the_token(locked):
    locked.cookies.clear()
    for path in (
        "/",
        "/jobs/demo",
        "/static/x/style.css",
        "/metrics",
        f"{API}/jobs",
        f"{API}/openapi.json",
        f"{API}/jobs/demo/events",
        "/docs",
        "/nowhere",
    ):
        assert locked.get(path).status_code == 401, path
    assert locked.get("/healthz").status_code == 200


def test_other_hosts_need_a_token(root):
    with pytest.raises(ValueError, match="token"):
        create_app(root, token=None, allowed_hosts=["merge.example"])


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/jobs/evil/front",
        f"{API}/jobs",
        f"{API}/jobs/%2e%2e",
        "/static/x/style.css",
        "/healthz",
    ],
)
def test_every_answer_carries_the_safe_headers(client, path):
    for headers in ({}, {"host": "evil.example"}):
        answer = client.get(path, headers=headers)
        assert all(answer.headers[name] == value for name, value in SAFE_HEADERS.items())
        assert "access-control-allow-origin" not in answer.headers
    assert "script-src 'self';" in SAFE_HEADERS["Content-Security-Policy"]


def test_markup_in_names_and_outputs_stays_data(client):
    for path in (
        f"{API}/jobs/evil/trials",
        f"{API}/jobs/evil/trials/0/items",
        f"{API}/jobs/evil/compare?trials=0,1",
        f"{API}/jobs/evil/events",
    ):
        answer = client.get(path)
        assert EVIL[:12] in answer.text and answer.headers["content-type"].startswith(
            ("application/json", "text/event-stream")
        )
    assert "<img" not in client.get("/jobs/evil/front").text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
def test_other_methods_are_refused(client, method):
    assert (
        client.request(method, f"{API}/jobs/demo", headers=JSON, content=b"{}").status_code == 405
    )


NASTY = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "demo",
            "evil",
            "0",
            "1",
            "0,1",
            "-1",
            "search",
            "holdout",
            "trial-8",
            "9" * 30,
            "\x00",
            "..",
            "NaN",
            "null",
            "0-5;1",
        ]
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_answer_is_a_server_error(client, data):
    """Every operation of the OpenAPI document with hostile values; the test client raises what the
    service does not catch.
    """
    paths = client.app.openapi()["paths"]
    path = data.draw(st.sampled_from(sorted(paths)))
    method, operation = data.draw(
        st.sampled_from(sorted((name, json.dumps(found)) for name, found in paths[path].items()))
    )
    parameters = json.loads(operation).get("parameters", [])
    values = {
        parameter["name"]: data.draw(
            st.sampled_from(["demo", "evil"]) | NASTY if parameter["in"] == "path" else NASTY
        )
        for parameter in parameters
    }
    target = path
    for parameter in parameters:
        if parameter["in"] == "path":
            target = target.replace(
                "{" + parameter["name"] + "}", quote(values[parameter["name"]], safe="")
            )
    query = {
        parameter["name"]: values[parameter["name"]]
        for parameter in parameters
        if parameter["in"] == "query" and data.draw(st.booleans())
    }
    body = (
        json.dumps(
            data.draw(
                st.dictionaries(
                    st.sampled_from(["text", "id", "trial", "dtype", "destination", "x"]),
                    st.one_of(
                        NASTY, st.none(), st.integers(), st.just("[" * 3000), st.just("a: &a [*a]")
                    ),
                )
            )
        )
        if method == "post"
        else None
    )
    headers = {"content-type": "application/json"} | (
        {"Last-Event-ID": quote(values["last-event-id"])} if "last-event-id" in values else {}
    )
    answer = client.request(method, target, params=query, content=body, headers=headers)
    assert answer.status_code < 500, (target, query, body, answer.text)


def test_scripts_never_make_markup_of_text():
    scripts = "".join(path.read_text() for path in STATIC_FOLDER.glob("*.js"))
    assert [
        word
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
            "http://",
            "https://",
        )
        if word in scripts.replace("http://www.w3.org/2000/svg", "")
    ] == []
