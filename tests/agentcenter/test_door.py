"""Who comes in, who waits, who is turned away, and when the port is open; no sockets."""

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from elkeid.agentcenter import door as door_module
from elkeid.agentcenter.door import Door, Entry
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.handshakes import UNDER_WAY
from elkeid.agentcenter.link import AgentLink
from elkeid.wire.grpc import Status
from tests.agentcenter.host import Host, Transport, make_gateway


class Wire(Transport):
    """A TCP transport that tells its protocol of an abort, as real ones do."""

    reset = False
    left = False

    def peer_left(self) -> bool:
        return self.left

    def abortConnection(self) -> None:
        self.reset = True
        protocol: Any = self.protocol
        protocol.connectionLost(Failure(ConnectionAborted()))


class Ports:
    """Stands in for the operating system: opens, closes, refuses to open."""

    def __init__(self) -> None:
        self.open = False
        self.fails = False

    def listen(self, door: Door) -> Any:
        if self.fails:
            raise OSError("in use")
        self.open = True
        return self

    def stopListening(self) -> None:
        self.open = False


class House:
    """A door with a real gateway behind it; TLS is left out."""

    def __init__(self, **changes: Any) -> None:
        self.gateway: Gateway
        self.clock: Clock
        self.gateway, _, self.clock = make_gateway(**changes)
        self.ports = Ports()
        self.others_have_room = False
        self.links: list[AgentLink] = []
        self.door = Door(
            self.gateway.settings,
            self.gateway,
            self.clock,
            listen=self.ports.listen,
            secure=self._secure,
            others_have_room=lambda: self.others_have_room,
        )
        self.gateway.turns_away = self.door.turns_away
        self.door.open()

    def _secure(self, transport: Any, link: AgentLink, held: bytes) -> None:
        self.links.append(link)
        transport.protocol = link
        link.makeConnection(transport)
        transport.resumeProducing()
        link.dataReceived(held)

    def dial(self, host: str = "10.0.0.1", hello: bytes = b"") -> Wire:
        """A connection is accepted."""
        entry = self.door.buildProtocol(IPv4Address("TCP", host, 40000))
        wire = Wire()
        wire.protocol = entry
        entry.makeConnection(wire)
        if hello and not wire.reset:
            entry.dataReceived(hello)
        return wire

    def enter(self, host: str = "10.0.0.1") -> Wire:
        """A connection whose handshake succeeds."""
        wire = self.dial(host, b"P")
        assert wire.protocol is self.links[-1]
        self.links[-1].handshakeCompleted()
        return wire


def test_connection_comes_in_with_its_first_bytes() -> None:
    """What it said before its turn is not lost, and it is read on from then on."""
    house = House()
    wire = house.dial()
    assert house.door.silent == 1
    entry: Any = wire.protocol
    entry.dataReceived(b"PRI * HTT")
    assert house.door.silent == 0
    assert house.door.handshakes.under_way == 1
    link: Any = wire.protocol
    assert isinstance(link, AgentLink)
    assert link.peer == ("10.0.0.1", 40000)
    assert wire.producerState == "producing"
    link.handshakeCompleted()
    assert house.door.handshakes.under_way == 0
    assert house.gateway.links == {link}


def test_handshake_waits_for_its_turn_unread() -> None:
    """Nothing is read of a connection that waits; what came of it goes on when it is its turn."""
    house = House()
    for number in range(UNDER_WAY):
        house.dial(f"10.0.1.{number}", b"P")
    late = house.dial(hello=b"P")
    assert isinstance(late.protocol, Entry)
    assert late.producerState == "paused"
    house.clock.advance(0.1)
    house.links[0].handshakeCompleted()
    assert late.protocol is house.links[-1]
    assert late.producerState == "producing"


def test_failed_handshake_frees_its_turn() -> None:
    """A connection that is lost on the way counts as failed, and the next one begins."""
    house = House()
    wires = [house.dial(f"10.0.1.{number}", b"P") for number in range(UNDER_WAY)]
    late = house.dial(hello=b"P")
    house.clock.advance(0.1)
    wires[0].abortConnection()
    assert late.protocol is house.links[-1]
    assert house.gateway.counters.failed_handshakes == 1


def test_connection_that_says_nothing_is_reset() -> None:
    """After the time that a handshake may take; it never had a turn."""
    house = House(handshake_seconds=15)
    wire = house.dial()
    house.clock.advance(11.9)
    assert not wire.reset
    house.clock.advance(0.2)
    assert wire.reset
    assert house.door.refused == {"silent": 1}
    assert house.door.silent == 0
    assert not house.clock.getDelayedCalls()


def test_connection_that_waits_too_long_is_reset() -> None:
    """Its agent has given up by then: shaking hands with it would be in vain."""
    house = House(handshake_seconds=3, handshake_rate=1)
    for number in range(UNDER_WAY):
        house.enter(f"10.0.1.{number}")
    waiting = [house.dial(hello=b"P") for _ in range(4)]
    house.clock.pump([0.5] * 5)
    assert [wire.reset for wire in waiting] == [False, False, True, True]
    assert house.door.refused["late"] == 2


def test_peer_that_left_before_its_turn_costs_no_handshake() -> None:
    """Its agent gave up while it waited unread."""
    house = House()
    for number in range(UNDER_WAY):
        house.dial(f"10.0.1.{number}", b"P")
    gone, late = house.dial(hello=b"P"), house.dial(hello=b"P")
    gone.left = True
    house.clock.advance(0.1)
    house.links[0].handshakeCompleted()
    assert (gone.reset, late.protocol is house.links[-1]) == (True, True)
    assert house.door.refused == {"left": 1}


def test_silent_crowd_makes_room() -> None:
    """Who says nothing is reset when there are too many, the oldest first."""
    house = House()
    wires = [house.dial(f"10.0.1.{n % 250}") for n in range(door_module.STRANGERS)]
    assert house.door.room() == 0
    house.clock.advance(door_module.SILENT_SECONDS)
    assert house.door.room() == 1
    assert (wires[0].reset, wires[1].reset) == (True, False)
    assert house.door.refused == {"crowded": 1}


def test_full_house_closes_its_port_while_another_has_room() -> None:
    """Agents dial that one at once; the port opens again when some have left, not at the first."""
    house = House(connection_limit=20)
    house.others_have_room = True
    wires = [house.enter(f"10.0.0.{n}") for n in range(20)]
    assert house.ports.open
    extra = house.dial("10.0.0.99")
    assert (extra.reset, house.ports.open) == (True, False)
    assert (house.door.refused["full"], house.door.closings) == (1, 1)
    house.clock.advance(60)
    assert not house.door.is_open
    wires[0].abortConnection()
    house.clock.advance(0)
    house.clock.advance(2)
    assert house.ports.open
    house.door.close()
    assert not house.ports.open
    assert not [call for call in house.clock.getDelayedCalls() if "_look" in str(call)]


def test_closed_port_opens_when_the_others_are_full_too() -> None:
    """An agent that finds no open port anywhere would exit after seven tries."""
    house = House(connection_limit=1)
    house.others_have_room = True
    house.enter()
    house.dial("10.0.0.2")
    assert not house.ports.open
    house.others_have_room = False
    house.clock.advance(1.1)
    assert house.ports.open


def test_port_that_cannot_be_opened_again_is_tried_on() -> None:
    """Somebody else may have taken it meanwhile."""
    house = House(connection_limit=1)
    house.others_have_room = True
    wire = house.enter()
    house.dial("10.0.0.2")
    house.ports.fails = True
    wire.abortConnection()
    house.clock.advance(1.1)
    assert not house.door.is_open
    house.ports.fails = False
    house.clock.advance(1.1)
    assert house.door.is_open


def test_full_house_without_others_refuses_by_a_status() -> None:
    """The connection is let in, and its stream ends before the first message is read."""
    house = House(connection_limit=1)
    first = Host(house.gateway)
    first.open()
    assert not house.dial("10.0.0.2").reset
    second = Host(house.gateway, "10.0.0.2")
    ended = second.ended(second.open())
    assert ended is not None
    assert (ended.status, ended.message) == (Status.UNKNOWN, "out of max connection limit")
    house.clock.advance(0)
    assert not second.lost
    assert house.ports.open


def test_far_too_many_are_reset_even_without_others() -> None:
    """Connections kept only to be refused are bounded as well."""
    house = House(connection_limit=20)
    for number in range(22):
        house.enter(f"10.0.0.{number}")
    assert house.dial("10.0.0.99").reset
    assert house.ports.open


def test_strangers_do_not_fill_the_house() -> None:
    """Who has no key cannot close the port, and who comes last of many is still turned away."""
    house = House(connection_limit=1)
    house.others_have_room = True
    waiting = [house.dial(f"10.0.0.{number}") for number in range(5)]
    assert house.ports.open
    house.enter("10.0.1.1")
    entry: Any = waiting[0].protocol
    entry.dataReceived(b"P")
    assert (waiting[0].reset, waiting[1].reset, house.ports.open) == (True, False, False)


def test_refused_stream_is_sent_elsewhere_when_another_has_room() -> None:
    """Else the agent would come back on its connection for half a minute."""
    house = House(connection_limit=1)
    first, second = Host(house.gateway), Host(house.gateway, "10.0.0.2")
    first.open()
    house.others_have_room = True
    stream = second.open()
    ended = second.ended(stream)
    assert ended is not None
    assert ended.status == Status.UNKNOWN
    house.clock.advance(0)
    second.pump()
    second.client.half_close(stream)
    second.pump()
    assert second.lost


def test_closing_the_door_resets_who_waits() -> None:
    """They try the next address at once; timers are gone."""
    house = House()
    silent = house.dial("10.0.0.1")
    shaking = house.dial("10.0.0.2", b"P")
    done = house.enter("10.0.0.3")
    house.door.close()
    assert (silent.reset, shaking.reset, done.reset) == (True, True, False)
    assert house.door.refused == {"stopping": 2}


PROXY = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"
PROXY += bytes([192, 0, 2, 7, 10, 0, 0, 1]) + b"\x9c\x40\x1a\x5f"


def test_peer_behind_a_proxy() -> None:
    """Its address is the one that the proxy tells; what follows the header is TLS."""
    house = House(proxy_networks=("10.1.0.0/16",))
    wire = house.dial("10.1.0.1")
    entry: Any = wire.protocol
    for at in range(len(PROXY)):
        entry.dataReceived(PROXY[at : at + 1])
    assert wire.protocol is entry  # nothing of its own has come
    assert wire.producerState == "producing"
    entry.dataReceived(b"P")
    assert house.links[-1].peer == ("192.0.2.7", 40000)
    house.dial("10.1.0.1", PROXY + b"PRI")
    assert house.links[-1].peer == ("192.0.2.7", 40000)


def test_proxy_without_a_header_is_refused() -> None:
    """Else all agents behind it would share one address, and replace each other."""
    house = House(proxy_networks=("10.1.0.0/16",))
    assert house.dial("10.1.0.1", b"\x16\x03\x01").reset
    assert house.door.refused == {"proxy": 1}


def test_header_from_elsewhere_is_broken_tls() -> None:
    """Nobody but a proxy says who the peer is."""
    house = House(proxy_networks=("10.1.0.0/16",))
    house.dial("10.2.0.1", PROXY)
    assert house.links[-1].peer == ("10.2.0.1", 40000)


def test_health_check_of_a_proxy() -> None:
    """It speaks for itself, and has the proxy's own address."""
    house = House(proxy_networks=("10.1.0.0/16",))
    local = PROXY[:12] + b"\x20\x00\x00\x00"
    wire = house.dial("10.1.0.1", local)
    assert not wire.reset
    entry: Any = wire.protocol
    entry.dataReceived(b"P")
    assert house.links[-1].peer == ("10.1.0.1", 40000)


def test_open_files_bound_who_may_come() -> None:
    """Where open files are few, strangers and agents together get no more than their share."""
    house = House(connection_limit=10)
    house.door._connections = 5
    wires = [house.dial(f"10.0.1.{n}") for n in range(3)]
    assert house.door.room() == 2
    wires += [house.dial(f"10.0.1.{n}") for n in range(3, 5)]
    assert house.door.room() == 0
    house.clock.advance(1)  # the oldest silent one makes room
    assert house.door.room() == 1
    assert [wire.reset for wire in wires] == [True, False, False, False, False]
