"""Who asks: addresses, networks, and clients behind proxies."""

import ipaddress
from collections.abc import Iterable
from typing import Any

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

HOPS = 16
"""Addresses of one ``X-Forwarded-For`` that are looked at, from its end."""


class Networks:
    """A set of IP networks."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks: list[IPNetwork] = [ipaddress.ip_network(each) for each in networks]

    def __contains__(self, address: object) -> bool:
        """Say whether an address lies in one of them; a mapped IPv4 counts as IPv4."""
        try:
            ip = ipaddress.ip_address(str(address))
        except ValueError:
            return False
        mapped = getattr(ip, "ipv4_mapped", None)
        return any((mapped or ip) in network for network in self._networks)


def client_behind(request: Any, proxies: Networks) -> str:
    """The IP address that a request comes from, without a port.

    A proxy adds the address of its peer to the end of ``X-Forwarded-For``. What stands before
    the last address that is no proxy of ours may be anybody's invention.

    Args:
        request: of twisted.web.
        proxies: whose word counts.
    """
    peer: str = getattr(request.getClientAddress(), "host", "")
    if peer not in proxies:
        return peer
    lines = request.requestHeaders.getRawHeaders(b"x-forwarded-for") or []
    addresses = b",".join(lines).decode("latin-1").split(",")[-HOPS:]
    for text in reversed(addresses):
        try:
            peer = str(ipaddress.ip_address(text.strip()))
        except ValueError:
            break
        if peer not in proxies:
            break
    return peer
