"""Checks of every request (host, token, origin, size), and headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recycler.service.proxy import TrustedProxy

MAX_BODY_BYTES = 1_000_000
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?", re.ASCII)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAFE_HEADERS = {
    # Plotly writes its own style elements, hence 'unsafe-inline' for styles only; scripts come from
    # this server alone.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
SIGN_IN = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>recycler: token needed</title><h1>A "
    "token is needed</h1>"
    "<p>Open the address that <code>recycler serve</code> printed when it started. <a "
    'href="/">Opened it already? Go on.</a></p></html>'
)
UserRole = Literal["viewer", "operator"]


@dataclass(frozen=True, slots=True)
class Keys:
    """Tokens of operators and viewers.

    Without an operator token everybody is an operator (loopback only); viewers may only read.
    """

    operator: str | None = None
    viewer: str | None = None

    @property
    def cookie(self) -> str:
        """Name of the session cookie: another for each token, since cookies know no ports."""
        return f"recycler-{_session(self.operator or '', 'name')[:8]}"

    def of_token(self, token: str) -> UserRole | None:
        return self._match(token, lambda known: known)

    def of_session(self, session: str) -> UserRole | None:
        return self._match(session, lambda known: _session(known, "session"))

    def _match(self, given: str, of: Callable[[str], str]) -> UserRole | None:
        """Compare with both tokens, whatever the first comparison says."""
        found: UserRole | None = None
        tokens: tuple[tuple[UserRole, str | None], ...] = (
            ("viewer", self.viewer),
            ("operator", self.operator),
        )
        for role, known in tokens:
            if known is not None and hmac.compare_digest(given.encode(), of(known).encode()):
                found = role
        return found


class SafeHeaders:
    """Puts the security headers on every answer, refusals included."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class AllowedHosts:
    """Refuse requests for other host names than those given.

    A foreign name that leads here is DNS rebinding. IPv6 is understood.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]):
        self.app, self._names = app, {name.strip("[]").lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and _host_name(Headers(scope=scope).get("host", "")) not in self._names
        ):
            return await _refuse(400, "the host is not one of this service's names")(
                scope, receive, send
            )
        return await self.app(scope, receive, send)


class Guard:
    """Refuse requests without a right, from another site, or too large.

    A right is a token or a user of a trusted proxy. A token in the address is exchanged for a
    cookie.
    """

    def __init__(self, app: ASGIApp, keys: Keys, proxy: TrustedProxy | None = None):
        self.app, self._keys, self._proxy = app, keys, proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # nothing here speaks WebSocket
            return await send({"type": "websocket.close", "code": 1008})
        answer = self._check(scope)
        if answer is not None:
            return await answer(scope, receive, send)
        if scope["method"] not in SAFE_METHODS:
            body = await _read_body(receive)
            if body is None:
                return await _refuse(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes")(
                    scope, receive, send
                )
            receive = _replay(body, receive)
        return await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["path"] == "/healthz":
            return None
        if (exchanged := self._exchange(scope, headers)) is not None:
            return exchanged
        role = (self._proxy.role(scope, headers) if self._proxy else None) or self._role(headers)
        if role is None:
            return (
                HTMLResponse(SIGN_IN, 401)
                if "text/html" in headers.get("accept", "")
                else _refuse(401, "a token is needed: Authorization: Bearer TOKEN")
            )
        if scope["path"].startswith("/api/") and headers.get("sec-fetch-site", "none") not in (
            "same-origin",
            "none",
        ):
            return _refuse(403, "requests from other sites are refused")
        if scope["method"] in SAFE_METHODS:
            return None
        if not _same_origin(headers):
            return _refuse(403, "writes from other origins are refused")
        if scope["method"] != "POST":  # nothing else is routed: 405
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refuse(415, "writes must be application/json")
        return _refuse(403, "a viewer may only read") if role == "viewer" else None

    def _role(self, headers: Headers) -> UserRole | None:
        if self._keys.operator is None:
            return "operator"
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._keys.of_token(token.strip())
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self._keys.cookie)
        except CookieError:
            return None
        return self._keys.of_session(morsel.value) if morsel else None

    def _exchange(self, scope: Scope, headers: Headers) -> Response | None:
        """?token=... on a page: the cookie is set and the token leaves the address."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        token = next((value for name, value in query if name == "token"), None)
        if (
            token is None
            or self._keys.operator is None
            or scope["method"] != "GET"
            or scope["path"].startswith("/api/")
        ):
            return None
        role = self._keys.of_token(token)
        if role is None:
            return HTMLResponse(SIGN_IN, 401)
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        answer = RedirectResponse(
            "/" + scope["path"].lstrip("/\\") + (f"?{rest}" if rest else ""), 303
        )
        known = self._keys.operator if role == "operator" else self._keys.viewer
        answer.set_cookie(
            self._keys.cookie,
            _session(known or "", "session"),
            httponly=True,
            samesite="strict",
            secure=scope["scheme"] == "https",
            path="/",
        )
        return answer


def _host_name(host: str) -> str | None:
    """Name in a Host header, in lower case, without port and brackets; None if malformed."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower() if match else None


def _same_origin(headers: Headers) -> bool:
    """True for requests of this site, and of clients that are no browser.

    Browsers send Origin with every write; a client that sends neither it nor Sec-Fetch-Site is
    none.
    """
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and parts.netloc.lower() == headers.get("host", "").lower()
        and not parts.path
    )


def _session(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def _refuse(status: int, cause: str) -> JSONResponse:
    return JSONResponse(
        {"problems": [{"thing": "request", "cause": cause, "remedy": "", "where": ""}]}, status
    )


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None when it is too large."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
