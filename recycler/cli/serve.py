"""serve: the service and its dashboard."""

from __future__ import annotations

import argparse
import secrets
import socket
import sys
from pathlib import Path

from recycler.errors import Problem, UsageError

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")


def serve(arguments: argparse.Namespace) -> None:
    """recycler serve: loopback without a token; anywhere else tokens are made and told once, as addresses."""
    try:
        import uvicorn

        from recycler.service.app import create_app
        from recycler.service.proxy import trusted_proxy
    except ModuleNotFoundError as error:
        raise UsageError(Problem(thing="recycler serve", cause=f"needs {error.name}, which is not installed", remedy="pip install 'recycler[service]'")) from None
    from recycler.cli.jobs import ledger_url

    root = Path(arguments.root)
    if not root.is_dir():
        raise UsageError(Problem(thing=f"root {root}", cause="is not a folder", remedy="Give the folder that holds run folders"))
    proxy = trusted_proxy(arguments.trusted_proxy, arguments.user_header, arguments.operators) if arguments.trusted_proxy else None
    if arguments.operators and proxy is None:
        raise UsageError(Problem(thing="--operators", cause="names users, and no proxy is trusted to name them", remedy="Add --trusted-proxy ADDRESS"))
    local = proxy is None and arguments.host in LOOPBACK_NAMES and not arguments.allow_host
    token, viewer = (None, None) if local and not arguments.token else (secrets.token_urlsafe(32), secrets.token_urlsafe(32))
    app = create_app(root, ledger_url=ledger_url(arguments.ledger), token=token, viewer_token=viewer, export_place=arguments.exports, proxy=proxy, allowed_hosts=[*LOOPBACK_NAMES, *([] if local else _names(arguments.host)), *arguments.allow_host])
    host = socket.gethostname() if arguments.host in EVERYWHERE else arguments.host
    place = f"http://{f'[{host}]' if ':' in host else host}:{arguments.port}/"
    if token is None:
        print(f"recycler: serving {root} at {place} to this machine, without a token", file=sys.stderr)
    else:
        print(f"recycler: serving {root}; open one of these, they are told once\n  operator: {place}?token={token}\n  viewer:   {place}?token={viewer}", file=sys.stderr)
    if proxy is not None:
        print(f"recycler: believes {', '.join(map(str, proxy.networks))} about users in {proxy.header}; operators: {', '.join(sorted(proxy.operators)) or 'none, all may only read'}", file=sys.stderr)
    # proxy_headers=False: else X-Forwarded-For could put another address in place of the connection's own
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=2)


def _names(host: str) -> list[str]:
    """Names under which a server at `host` may be asked for."""
    return [socket.gethostname(), socket.getfqdn()] if host in EVERYWHERE else [host]
