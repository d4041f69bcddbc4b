"""serve: the service and its dashboard."""

from __future__ import annotations

import argparse
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from recycler.cli.arguments import Commands, add_command
from recycler.cli.jobs import ledger_url
from recycler.errors import Problem, UsageError

if TYPE_CHECKING:
    from recycler.service.proxy import TrustedProxy

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
    """recycler serve: loopback without a token; elsewhere tokens, told once in the addresses."""
    try:  # these load the web framework, which is an extra
        # loads uvicorn
        import uvicorn

        # loads torch and fastapi
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
    proxy = _proxy(arguments, trusted_proxy)
    local = proxy is None and arguments.host in LOOPBACK_NAMES and not arguments.allow_host
    needs_token = arguments.token or not local
    token, viewer = (secrets.token_urlsafe(32) if needs_token else None for _ in range(2))
    own_names = [] if local else _names(arguments.host)
    app = create_app(
        root,
        ledger_url=ledger_url(arguments.ledger),
        token=token,
        viewer_token=viewer,
        export_place=arguments.exports,
        proxy=proxy,
        allowed_hosts=[*LOOPBACK_NAMES, *own_names, *arguments.allow_host],
    )
    _say_where(arguments, root, token, viewer)
    if proxy is not None:
        _say_proxy(proxy)
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


def _proxy(
    arguments: argparse.Namespace, trusted_proxy: Callable[..., TrustedProxy]
) -> TrustedProxy | None:
    """Build the trusted proxy that the flags name. Raises UsageError for operators without one."""
    if arguments.trusted_proxy:
        operators = arguments.operators or ""
        return trusted_proxy(arguments.trusted_proxy, arguments.user_header, operators)
    if arguments.operators:
        raise UsageError(
            Problem(
                thing="--operators",
                cause="names users, and no proxy is trusted to name them",
                remedy="Add --trusted-proxy ADDRESS",
            )
        )
    return None


def _say_where(
    arguments: argparse.Namespace, root: Path, token: str | None, viewer: str | None
) -> None:
    """Print the addresses to open, with their tokens where these are needed."""
    host = socket.gethostname() if arguments.host in EVERYWHERE else arguments.host
    shown = f"[{host}]" if ":" in host else host
    place = f"http://{shown}:{arguments.port}/"
    if token is None:
        line = f"recycler: serving {root} at {place} to this machine, without a token"
    else:
        line = (
            f"recycler: serving {root}; open one of these, they are told once\n  operator: "
            f"{place}?token={token}\n  viewer:   {place}?token={viewer}"
        )
    print(line, file=sys.stderr)


def _say_proxy(proxy: TrustedProxy) -> None:
    """Print the proxy that is believed about users, and its operators."""
    operators = ", ".join(sorted(proxy.operators)) or "none, all may only read"
    print(
        f"recycler: believes {', '.join(map(str, proxy.networks))} about users in "
        f"{proxy.header}; operators: {operators}",
        file=sys.stderr,
    )


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
