"""Which of the configured members this node is itself, and in which zone an address lies."""

import ipaddress
import socket
from collections.abc import Callable, Sequence

from elkeid.config import DiscoverySettings, dialled_from_here, is_loopback, split_endpoint
from elkeid.discovery.load import zone_of
from elkeid.discovery.registry import Record


def is_local(address: str) -> bool:
    """Say whether an IP address is one of this machine."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def other_members(
    settings: DiscoverySettings, advertised: str, local: Callable[[str], bool] = is_local
) -> list[str]:
    """The members that are not surely this node, as they stand in URLs.

    A name that leads here is only found out by asking who answers there.

    Args:
        settings: of the registry.
        advertised: address that others dial to reach this node.
        local: whether an IP address is one of this machine.
    """
    return [
        netloc(member)
        for member in settings.members
        if not _is_own(*split_endpoint(member), settings, advertised, local)
    ]


def _is_own(
    host: str, port: int, settings: DiscoverySettings, advertised: str, local: Callable[[str], bool]
) -> bool:
    if port != settings.port:
        return False
    if host in (advertised, settings.listen, dialled_from_here(settings.listen)):
        return True
    if is_loopback(host) and is_loopback(settings.listen):
        return True
    if not ipaddress.ip_address(settings.listen).is_unspecified:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return is_loopback(host)
    return local(host)


def netloc(member: str) -> str:
    """``host:port`` as it stands in a URL, with brackets around an IPv6 address."""
    host, port = split_endpoint(member)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Zones:
    """Networks and the zones that they make up.

    Args:
        zones: ``name=network`` each; of networks that overlap the smallest counts.
    """

    def __init__(self, zones: Sequence[str]) -> None:
        pairs = [zone.split("=", 1) for zone in zones]
        self._networks = sorted(
            ((ipaddress.ip_network(network), name) for name, network in pairs),
            key=lambda pair: -pair[0].prefixlen,
        )

    def of_address(self, address: str) -> str | None:
        """The zone of an IP address, if it lies in one."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return None
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return next((name for network, name in self._networks if ip in network), None)

    def of_record(self, record: Record) -> str | None:
        """The zone of an instance: the one that it names, else that of its address."""
        return zone_of(record.extra) or self.of_address(record.ip)
