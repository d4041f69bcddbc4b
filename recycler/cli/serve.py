"""serve: the service and its dashboard."""

from __future__ import annotations

import argparse
import secrets
import socket
import sys
from pathlib import Path

from recycler.cli.arguments import Commands, add_command
from recycler.errors import Problem, UsageError

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")


def add_serve(commands: Commands) -> None:
    """Add `recycler serve`."""
    parser = add_command(
        commands,
        "serve",
        "dashboard and HTTP API over a folder of runs",
        serve,
    )
    parser.add_argument(
        "--root", default=".", help="folder that holds run folders (default: the current one)"
    )
    parser.add_argument(
        "--ledger",
        metavar="URL",
        help="show the jobs of this database too: postgresql://USER@HOST/DATABASE (default: "
        "RECYCLER_LEDGER)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: 127.0.0.1); any other needs the token that is printed",
    )
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--token", action="store_true", help="need a token on this machine too")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which browsers may ask; may be given again",
    )
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="CIDR",
        help="believe a proxy at this address about who its users are; may be given again",
    )
    parser.add_argument(
        "--user-header",
        default="X-Forwarded-User",
        metavar="NAME",
        help="header in which that proxy names the user (default: X-Forwarded-User)",
    )
    parser.add_argument(
        "--operators",
        metavar="A,B",
        help="users of that proxy who may write; all others may only read",
    )
    parser.add_argument(
        "--exports",
        metavar="DIR|URL",
        help="where exports may go besides their run folders: a folder, or a prefix of a bucket "
        "(s3://...)",
    )


def serve(arguments: argparse.Namespace) -> None:
    """recycler serve: loopback without a token; anywhere else tokens are made and told once, as
    addresses.
    """
    try:
        import uvicorn

        from recycler.service.app import create_app
        from recycler.service.proxy import trusted_proxy
    except ModuleNotFoundError as error:
        raise UsageError(
            Problem(
                thing="recycler serve",
                cause=f"needs {error.name}, which is not installed",
                remedy="pip install 'recycler[service]'",
            )
        ) from None
    from recycler.cli.jobs import ledger_url

    root = Path(arguments.root)
    if not root.is_dir():
        raise UsageError(
            Problem(
                thing=f"root {root}",
                cause="is not a folder",
                remedy="Give the folder that holds run folders",
            )
        )
    listening = _listen(arguments.host, arguments.port)
    proxy = (
        trusted_proxy(arguments.trusted_proxy, arguments.user_header, arguments.operators or "")
        if arguments.trusted_proxy
        else None
    )
    if arguments.operators and proxy is None:
        raise UsageError(
            Problem(
                thing="--operators",
                cause="names users, and no proxy is trusted to name them",
                remedy="Add --trusted-proxy ADDRESS",
            )
        )
    local = proxy is None and arguments.host in LOOPBACK_NAMES and not arguments.allow_host
    token, viewer = (
        (None, None)
        if local and not arguments.token
        else (secrets.token_urlsafe(32), secrets.token_urlsafe(32))
    )
    app = create_app(
        root,
        ledger_url=ledger_url(arguments.ledger),
        token=token,
        viewer_token=viewer,
        export_place=arguments.exports,
        proxy=proxy,
        allowed_hosts=[
            *LOOPBACK_NAMES,
            *([] if local else _names(arguments.host)),
            *arguments.allow_host,
        ],
    )
    host = socket.gethostname() if arguments.host in EVERYWHERE else arguments.host
    place = f"http://{f'[{host}]' if ':' in host else host}:{arguments.port}/"
    if token is None:
        print(
            f"recycler: serving {root} at {place} to this machine, without a token", file=sys.stderr
        )
    else:
        print(
            f"recycler: serving {root}; open one of these, they are told once\n  operator: "
            f"{place}?token={token}\n  viewer:   {place}?token={viewer}",
            file=sys.stderr,
        )
    if proxy is not None:
        print(
            f"recycler: believes {', '.join(map(str, proxy.networks))} about users in "
            f"{proxy.header}; operators: "
            f"{', '.join(sorted(proxy.operators)) or 'none, all may only read'}",
            file=sys.stderr,
        )
    # proxy_headers=False: else X-Forwarded-For could put another address in place of the
    # connection's own
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
    )
    server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound before any address is told.

    Raises UsageError for a port that is none, is taken or is not ours to take.
    """
    if not 0 < port < 65536:
        raise UsageError(
            Problem(
                thing=f"--port {port}", cause="is no port", remedy="Give a number from 1 to 65535"
            )
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UsageError(
            Problem(
                thing=f"{host} port {port}",
                cause=f"cannot be listened on ({error.strerror or error})",
                remedy="Give another --port or --host, or end what has it",
            )
        ) from None
    return listening


def _names(host: str) -> list[str]:
    """Names under which a server at `host` may be asked for."""
    return [socket.gethostname(), socket.getfqdn()] if host in EVERYWHERE else [host]
