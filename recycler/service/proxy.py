"""Users named by a proxy that signed them in, believed from its addresses only.

oauth2-proxy, Authelia, an ingress.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import Scope

from recycler.errors import Problem, UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedProxy:
    """Peers in `networks` that name the user in `header`.

    Users among `operators` may write, all others may read.
    """

    networks: tuple[Network, ...]
    header: str
    operators: frozenset[str]

    def role(self, scope: Scope, headers: Headers) -> Literal["viewer", "operator"] | None:
        """None from any other peer, and where the header is missing, given twice or no plain name:

        a token is needed then.
        """
        if not self._is_trusted(scope):
            return None
        names = headers.getlist(self.header)
        if len(names) != 1 or not _is_name(name := names[0].strip()):
            return None
        return "operator" if name in self.operators else "viewer"

    def _is_trusted(self, scope: Scope) -> bool:
        """By the address of the connection itself; X-Forwarded-For is written by anybody."""
        try:
            address = ipaddress.ip_address((scope.get("client") or ("",))[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.networks)


def trusted_proxy(networks: Iterable[str], header: str, operators: str) -> TrustedProxy:
    """From the words of the command line; `operators` are joined by commas. Raises UsageError."""
    found = []
    for text in networks:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise UsageError(
                Problem(
                    thing=f"--trusted-proxy {text}",
                    cause="is not an address or a network",
                    remedy="Write one such as 10.0.0.7 or 10.0.0.0/24",
                )
            ) from None
        if network.prefixlen == 0:
            raise UsageError(
                Problem(
                    thing=f"--trusted-proxy {text}",
                    cause="holds every address: anybody could name themselves an operator",
                    remedy="Give the proxy's own address",
                )
            )
        found.append(network)
    if (
        not header
        or not header.isascii()
        or not all(letter.isalnum() or letter == "-" for letter in header)
        or header.lower() in ("host", "origin", "cookie", "authorization", "content-type", "accept")
    ):
        raise UsageError(
            Problem(
                thing=f"--user-header {header}",
                cause="is no header that a proxy could name users in",
                remedy="Give one such as X-Forwarded-User",
            )
        )
    return TrustedProxy(
        networks=tuple(found),
        header=header,
        operators=frozenset(name for part in operators.split(",") if (name := part.strip())),
    )


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and name.isascii() and name.isprintable()
