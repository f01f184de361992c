"""Simulated hosts: who they are and what their heartbeats say.

Everything of a host follows from the fleet's seed and the host's number, so that two runs show
the same hosts.

Source: docs/protocol.md, "Heartbeats".
"""

import random
import uuid
from collections.abc import Callable, Mapping

from attrs import define, frozen

from elkeid.fleet.records import Identity, Template, encode_entries, own_template
from elkeid.wire.datatypes import AGENT_HEARTBEAT, PLUGIN_HEARTBEAT

Chance = Callable[[], float]
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "elkeid.fleet")
HEARTBEAT_SECONDS = 60.0
MANY_HOSTS = 1 << 24  # numbers that still give each host its own 10.x.y.z

STOCK_PLUGINS = {
    "baseline": "1.0.1.23",
    "collector": "1.0.0.140",
    "driver": "1.7.0.24",
    "journal_watcher": "1.0.0.23",
    "rasp": "1.9.1.44",
    "scanner": "3.1.9.6",
}
"""What an agent of a stock set-up has loaded: name -> version."""

_GiB = 1 << 30
_TRADES = ("api", "app", "cache", "db", "edge", "mail", "queue", "search", "web", "worker")
_SITES = ("ams1", "fra2", "iad3", "nrt1", "sin2")


@frozen
class _System:
    """An operating system as hosts report it."""

    platform: str
    family: str
    version: str
    kernel: str


_SYSTEMS = (
    _System("ubuntu", "debian", "22.04", "5.15.0-91-generic"),
    _System("ubuntu", "debian", "24.04", "6.8.0-45-generic"),
    _System("debian", "debian", "12.5", "6.1.0-18-amd64"),
    _System("centos", "rhel", "7.9.2009", "3.10.0-1160.el7.x86_64"),
    _System("rocky", "rhel", "9.3", "5.14.0-362.8.1.el9_3.x86_64"),
    _System("debian", "debian", "10", "5.10"),
)
_MODELS = (("KVM", "QEMU"), ("PowerEdge R650", "Dell Inc."), ("ProLiant DL360 Gen10", "HPE"))
_CPUS = ("Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", "AMD EPYC 7543 32-Core Processor")


@define
class Activity:
    """What an agent did since its last heartbeat; the speeds it reports are made of this."""

    seconds: float = HEARTBEAT_SECONDS  # from that one to the next
    records: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    commands: int = 0


class Host:
    """One simulated host.

    Args:
        seed: the fleet's.
        number: the host's, from 0.
        id_prefix: put before the agent id.
        hostname: the name to bear; made up when empty.
    """

    __slots__ = ("_boot", "_pid", "_static", "idc", "identity")

    def __init__(self, seed: int, number: int, id_prefix: str = "", hostname: str = "") -> None:
        chance = random.Random(f"{seed}/{number}")  # noqa: S311 - a simulation, nothing secret
        site = _SITES[number % len(_SITES)]
        low = number % MANY_HOSTS
        network = f"10.{low >> 16}.{low >> 8 & 255}"
        trade = _TRADES[number // len(_SITES) % len(_TRADES)]
        self.idc = site
        self.identity = Identity(
            agent_id=id_prefix + str(uuid.uuid5(NAMESPACE, f"{seed}/{number}")),
            hostname=hostname or f"{trade}-{site}-{number:05}",
            intranet_ipv4=(f"{network}.{low & 255}",),
            intranet_ipv6=(f"fd00:e1::{low >> 16:x}:{low & 0xFFFF:x}",),
        )
        system = chance.choice(_SYSTEMS)
        model, vendor = chance.choice(_MODELS)
        self._boot = chance.randrange(3600, 200 * 86400)  # seconds up when the agent starts
        self._pid = chance.randrange(400, 4000)
        self._static = encode_entries(
            {
                "kernel_version": system.kernel,
                "arch": "amd64",
                "platform": system.platform,
                "platform_family": system.family,
                "platform_version": system.version,
                "state": "running",
                "state_detail": "[]",
                "pid": str(self._pid),
                "nproc": str(chance.choice((2, 4, 8, 16, 64))),
                "total_mem": str(chance.choice((4, 8, 16, 64, 256)) * _GiB),
                "host_serial": f"SN-{chance.randrange(1 << 40):010X}",
                "host_id": str(uuid.uuid5(NAMESPACE, f"host/{seed}/{number}")),
                "host_model": model,
                "host_vendor": vendor,
                "dns": f"{network}.2,{network}.3",
                "gateway": f"{network}.1",
                "cpu_name": chance.choice(_CPUS),
            }
        )

    def heartbeat(
        self,
        start: float,
        net_mode: str,
        activity: Activity,
        chance: Chance,
        place: tuple[str, str] = ("", ""),
    ) -> Template:
        """The agent's own heartbeat.

        Args:
            start: when the agent started, unix seconds.
            net_mode: the list of addresses its connection came of: ``sd``, ``private`` or
                ``unknown``.
            activity: since the last one.
            chance: gives numbers from 0 to 1.
            place: IDC and region that the agent was told; its own where empty.
        """
        load = chance() * 4
        moving = {
            "idc": place[0] or self.idc,
            "region": place[1] or "default",
            "net_mode": net_mode,
            "rx_speed": f"{activity.bytes_received / activity.seconds:.8f}",
            "tx_speed": f"{activity.bytes_sent / activity.seconds:.8f}",
            "rx_tps": f"{activity.commands / activity.seconds:.8f}",
            "tx_tps": f"{activity.records / activity.seconds:.8f}",
            "cpu": f"{chance() / 50:.8f}",
            "rss": str(28_000_000 + int(chance() * 8_000_000)),
            "read_speed": "0.00000000",
            "write_speed": f"{chance() * 500:.8f}",
            "nfd": str(20 + int(chance() * 10)),
            "start_time": str(int(start)),
            "du": str(41_943_040 + int(chance() * 1_000_000)),
            "ngr": str(28 + int(chance() * 8)),
            "load_1": f"{load:.2f}",
            "load_5": f"{load * 0.8:.2f}",
            "load_15": f"{load * 0.7:.2f}",
            "running_procs": str(1 + int(load)),
            "total_procs": str(200 + int(chance() * 400)),
            "boot_time": str(int(start) - self._boot),
            "cpu_usage": f"{chance():.8f}",
            "mem_usage": f"{0.2 + chance() * 0.6:.8f}",
        }
        return own_template(AGENT_HEARTBEAT, self._static + encode_entries(moving))

    def plugin_heartbeat(
        self, name: str, version: str, start: float, share: float, chance: Chance
    ) -> Template:
        """The heartbeat of one plugin.

        Args:
            name: the plugin's.
            version: the plugin's.
            start: when it was loaded, unix seconds.
            share: records/s that it gave the agent, kept or not.
            chance: gives numbers from 0 to 1.
        """
        fields: Mapping[str, str] = {
            "name": name,
            "pversion": version,
            "cpu": f"{chance() / 100:.8f}",
            "rss": str(12_000_000 + int(chance() * 20_000_000)),
            "read_speed": "0.00000000",
            "write_speed": "0.00000000",
            "pid": str(self._pid + 7 + len(name)),
            "nfd": str(8 + int(chance() * 8)),
            "start_time": str(int(start)),
            "du": "8388608",
            "rx_tps": "0.00000000",
            "tx_tps": f"{share:.8f}",
            "rx_speed": "0.00000000",
            "tx_speed": f"{share * 700:.8f}",
        }
        return own_template(PLUGIN_HEARTBEAT, encode_entries(fields))
