"""Who asks: addresses, networks, and clients behind proxies."""

import ipaddress
from collections.abc import Iterable
from typing import Any

from twisted.web.http_headers import Headers

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_IPV6_PREFIX = 64  # bits: what one customer has to himself

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


def address_of(peer: str) -> str:
    """What counts as one address: an IPv4 address, or the network that an IPv6 one is of."""
    try:
        ip = ipaddress.ip_address(peer.partition("%")[0])  # without the zone of a link
    except ValueError:
        return peer[:64]
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None or ip.version == 4:
        return str(mapped or ip)
    return str(ipaddress.ip_network(f"{ip}/{_IPV6_PREFIX}", strict=False))


def client_behind(request: Any, proxies: Networks) -> str:
    """The IP address that a request comes from, without a port.

    A proxy adds the address of its peer to the end of ``X-Forwarded-For``. What stands before
    the last address that is no proxy of ours may be anybody's invention.

    Args:
        request: of twisted.web.
        proxies: whose word counts.
    """
    peer: str = getattr(request.getClientAddress(), "host", "")
    return peer if peer not in proxies else forwarded(peer, request.requestHeaders, proxies)


def forwarded(peer: str, headers: Headers, proxies: Networks) -> str:
    """The client that a proxy at ``peer`` speaks for, see `client_behind`."""
    lines = headers.getRawHeaders(b"x-forwarded-for") or []
    addresses = b",".join(lines).decode("latin-1").split(",")[-HOPS:]
    for text in reversed(addresses):
        try:
            peer = str(ipaddress.ip_address(text.strip()))
        except ValueError:
            break
        if peer not in proxies:
            break
    return peer
