"""Instances, a nemesis and a checker for three nodes on the simulated network.

The checker knows what really happened: when each instance renewed, and where. A *fact* about
timing holds only once it has been true for ten seconds: news needs that long at most.
"""

import json
from collections.abc import Callable
from contextlib import suppress

from attrs import define, field
from twisted.internet.defer import Deferred

from elkeid.discovery.client import DiscoveryClient
from elkeid.web.client import CallFailed

from .simulation import Node, World

NODES = ["10.9.0.1", "10.9.0.2", "10.9.0.3"]
MEMBERS = [f"{name}:8088" for name in NODES]
NAMES = ("hids_svr_grpc", "hids_svr_http")
SETTLED = 10.0  # seconds
Address = tuple[str, str]  # name, ip


@define(eq=False)
class Instance:
    """One registered instance: ours, renewing every 5 s everywhere, or like upstream's."""

    world: World
    name: str
    ip: str
    slow: bool  # renews every 30 s at a node of its choice, as upstream's clients do
    alive: bool = False
    weight: int = 0
    client: DiscoveryClient | None = None
    life: int = 0
    renewed: dict[str, float] = field(factory=dict)  # node -> when it was last heard there

    @property
    def address(self) -> Address:
        """What it is known by."""
        return self.name, self.ip

    @property
    def silence(self) -> float:
        """Seconds since any node heard it."""
        return self.world.now - max(self.renewed.values(), default=-1e9)

    def start(self) -> None:
        """Register, and go on renewing."""
        self.alive = True
        self.life += 1
        if self.slow:
            self._renew_somewhere(self.life)
            return
        self.client = DiscoveryClient(self.world.clients, self.world.client(self.ip), MEMBERS)
        self.client.register(self.name, self.ip, 6751, self._load)

    def die(self) -> None:
        """Fall silent, without a word."""
        self.alive = False
        if self.client is not None:
            for renewal in self.client._renewals:
                under_way = renewal.loop.stop()
                if under_way is not None:
                    under_way.cancel()
            self.client = None

    def _load(self) -> tuple[int, dict[str, object]]:
        self.weight += 1
        return self.weight, {"limit": 100_000}

    def _renew_somewhere(self, life: int) -> None:
        if not self.alive or self.life != life:
            return
        self.weight += 1
        member = self.world.random.choice(MEMBERS)
        body = {
            "name": self.name,
            "ip": self.ip,
            "port": 6751,
            "weight": self.weight,
            "extra": {"limit": 100_000},
        }
        http = self.world.client(self.ip)

        async def renew() -> None:
            with suppress(CallFailed):  # as upstream's: what fails is not tried again
                await http.post(f"http://{member}/registry/register", body)

        Deferred.fromCoroutine(renew())
        self.world.later(30, lambda: self._renew_somewhere(life))


class Deployment:
    """Three nodes and twenty instances, a quarter of these like upstream's."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.nodes = [Node(self.world, name, MEMBERS) for name in NODES]
        self.instances = {
            (name, f"10.3.{row}.{number}"): Instance(
                self.world, name, f"10.3.{row}.{number}", slow=number >= 7
            )
            for row, name in enumerate(NAMES)
            for number in range(10)
        }
        for node in self.nodes:
            node.heard = self._heard
            node.start()
        for instance in self.instances.values():
            self.world.later(self.world.random.uniform(0, 5), instance.start)

    def _heard(self, node: Node, path: str, body: bytes) -> None:
        if path == "/registry/register":
            told = json.loads(body)
            instance = self.instances[told["name"], told["ip"]]
            if instance.alive:
                instance.renewed[node.name] = self.world.now


class Nemesis:
    """Breaks things, two at a time at most, and mends them again."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.world = deployment, deployment.world
        self.active: list[Callable[[], None]] = []
        self.done: dict[str, int] = {}
        self.enabled = True

    def maybe(self) -> None:
        """Called every second."""
        if not self.enabled or len(self.active) >= 2 or self.world.random.random() > 0.1:
            return
        kinds = [self.kill, self.pause, self.split, self.isolate, self.deafen, self.skew]
        kinds += [self.slow, self.silence, self.silence]
        act = self.world.random.choice(kinds)
        mend = act()
        if mend is None:
            return
        self.done[act.__name__] = self.done.get(act.__name__, 0) + 1
        longest = self.world.random.choice([3, 10, 30, 70, 200])

        def end() -> None:
            if mend in self.active:
                self.active.remove(mend)
                mend()

        self.active.append(mend)
        self.world.later(self.world.random.uniform(1, longest), end)

    def heal(self) -> None:
        """Mend everything now."""
        for mend in self.active:
            mend()
        self.active.clear()

    def _node(self) -> Node | None:
        running = [node for node in self.deployment.nodes if node.serving]
        return self.world.random.choice(running) if len(running) > 1 else None

    def kill(self) -> Callable[[], None] | None:
        """kill -9, and a start after a while."""
        node = self._node()
        if node is None:
            return None
        node.kill()
        return node.start

    def pause(self) -> Callable[[], None] | None:
        """SIGSTOP and SIGCONT."""
        node = self._node()
        if node is None:
            return None
        node.pause()
        return node.resume

    def split(self) -> Callable[[], None] | None:
        """Two nodes do not reach each other."""
        return self._cut([frozenset(self.world.random.sample(NODES, 2))])

    def isolate(self) -> Callable[[], None] | None:
        """One node reaches no other and no instance reaches it; agents do."""
        node = self.world.random.choice(NODES)
        others = [name for name in NODES if name != node]
        everyone = [*others, *(each.ip for each in self.deployment.instances.values())]
        return self._cut([frozenset((node, other)) for other in everyone])

    def deafen(self) -> Callable[[], None] | None:
        """Half of the instances do not reach one node."""
        node = self.world.random.choice(NODES)
        ips = [each.ip for each in self.deployment.instances.values()]
        return self._cut([frozenset((node, ip)) for ip in self.world.random.sample(ips, 10)])

    def _cut(self, links: list[frozenset[str]]) -> Callable[[], None] | None:
        new = [link for link in links if link not in self.world.cuts]
        self.world.cuts.update(new)
        return lambda: self.world.cuts.difference_update(new)

    def skew(self) -> Callable[[], None] | None:
        """A node's wall clock jumps."""
        node = self.world.random.choice(self.deployment.nodes)
        node.skew = self.world.random.uniform(-25, 25)

        def mend() -> None:
            node.skew = 0.0

        return mend

    def slow(self) -> Callable[[], None] | None:
        """Messages take up to 0.9 s, each another time, so that they overtake each other."""
        self.world.slow = 0.9

        def mend() -> None:
            self.world.slow = 0.02

        return mend

    def silence(self) -> Callable[[], None] | None:
        """An instance dies, and another one starts in its place after a while."""
        alive = [each for each in self.deployment.instances.values() if each.alive]
        if len(alive) < 17:
            return None
        instance = self.world.random.choice(alive)
        instance.die()
        return instance.start


class Checker:
    """Compares what the nodes answer with what is so."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.world = deployment, deployment.world
        self._since: dict[tuple[object, ...], float] = {}
        self._filled: set[tuple[str, int, str]] = set()
        self.answers = self.preserved = 0
        self.orders = 0  # pairs of a silent and a fresh instance that were seen

    def lasting(self, seconds: float, holds: bool, *what: object) -> bool:
        """Whether something has held for so long."""
        if not holds:
            self._since.pop(what, None)
            return False
        return self.world.now - self._since.setdefault(what, self.world.now) > seconds

    def check(self) -> None:
        """Look at every node; called every second."""
        for node in self.deployment.nodes:
            for other in self.deployment.nodes:
                both = node.serving and other.serving
                self.lasting(0, both and self.world.linked(node.name, other.name), node, other)
            if node.serving:
                for name in NAMES:
                    self._check_list(node, name)
            else:
                for key in [key for key in self._since if key[1] is node]:
                    del self._since[key]  # nobody was asked

    def listed(self, node: Node, name: str) -> list[str]:
        """The addresses that a node answers, in its order."""
        body = json.loads(node.get(f"/registry/detail?name={name}&steer=no"))
        return [record["ip"] for record in body["data"]]

    def reached(self, node: Node, instance: Instance) -> bool:
        """Whether it has renewed in the last 10 s at a node that can reach this one since."""
        return any(
            self.world.now - at <= SETTLED and self._since.get((node, other), self.world.now) <= at
            for other in self.deployment.nodes
            if (at := instance.renewed.get(other.name, -1e9)) >= 0
        )

    def _check_list(self, node: Node, name: str) -> None:
        now, where = self.world.now, f"{node.name} at {self.world.now:.1f} s, {name}"
        ips = self.listed(node, name)
        self.answers += 1
        kept = name in node.role.registry.preserved()
        self.preserved += kept
        key = (node.name, node.boot, name)
        assert ips or key not in self._filled, f"{where}: emptied"
        if ips:
            self._filled.add(key)
        assert len(ips) == len(set(ips)), f"{where}: twice in {ips}"
        settled = []
        for instance in self.deployment.instances.values():
            if instance.name != name:
                continue
            healthy = self.reached(node, instance)
            missing = healthy and instance.ip not in ips
            assert not self.lasting(SETTLED, missing, "missing", node, instance), (
                f"{where}: {instance.ip} misses in {ips}"
            )
            if self.lasting(SETTLED, healthy, "healthy", node, instance):
                settled.append(instance.ip)
            if instance.ip in ips and instance.silence > 135:
                assert kept, f"{where}: {instance.ip} is silent for {instance.silence:.1f} s"
        for instance in self.deployment.instances.values():
            limit = 75 if instance.slow else 45
            if instance.name != name or instance.ip not in ips or instance.silence <= limit:
                continue
            after = [ip for ip in ips[ips.index(instance.ip) :] if ip in settled]
            self.orders += 1
            assert not after, (
                f"{where}: {instance.ip}, silent for {instance.silence:.1f} s, precedes {after}; "
                f"now {now}"
            )

    def silence(self, name: str, ip: str) -> float:
        """Seconds since any node heard an instance."""
        return self.deployment.instances[name, ip].silence

    def check_alike(self) -> None:
        """All nodes list the same, but for what is just about to be dropped or kept."""
        for name in NAMES:
            unsure = [not node.role.registry.sure(self.world.now) for node in self.deployment.nodes]
            kept = [name in node.role.registry.preserved() for node in self.deployment.nodes]
            lists = []
            for node in self.deployment.nodes:
                records = {r.ip: r for r in node.role.registry.records(name, self.world.now)}
                if not any(unsure):
                    old = [ip for ip in records if self.silence(name, ip) > 135]
                    assert not old, f"{node.name} at {self.world.now:.1f} s keeps {old}"
                fresh = {
                    ip: record for ip, record in records.items() if self.silence(name, ip) < 95
                }
                # Nodes may differ by a moment about when an instance ceases to be green.
                surely = {
                    ip
                    for ip in fresh
                    if self.silence(name, ip)
                    < (55 if self.deployment.instances[name, ip].slow else 25)
                }
                lists.append((set(fresh), {ip for ip in surely if fresh[ip].status == 0}))
            assert (any(kept) and any(unsure)) or all(each == lists[0] for each in lists), (
                f"at {self.world.now:.1f} s, {name}: {lists}"
            )


def run(seed: int, seconds: float) -> tuple[Checker, Nemesis]:
    """Break and mend for so long, healing everything every five minutes."""
    deployment = Deployment(seed)
    checker, nemesis = Checker(deployment), Nemesis(deployment)
    world = deployment.world
    world.run(10)
    end, heal = world.now + seconds, world.now + 300
    while world.now < end:
        world.run(1)
        checker.check()
        nemesis.maybe()
        if world.now >= heal:
            nemesis.heal()
            for _ in range(10):
                world.run(1)
                checker.check()
            checker.check_alike()
            heal = world.now + 300
    return checker, nemesis
