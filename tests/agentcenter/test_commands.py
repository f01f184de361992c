"""Commands at the wire: what is written, what waits, what is taken back, and what is told."""

from random import Random

from hpack import Decoder
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.commands import (
    COMMAND_SECONDS,
    QUEUE_BYTES,
    QUEUE_COMMANDS,
    TOTAL_BYTES,
    Commands,
    Outcome,
)
from elkeid.agentcenter.gateway import Gateway
from elkeid.fleet.grpc_client import MessageReceived
from elkeid.wire.command import COMMAND_BYTES, ConfigItem, Task, encode_command
from elkeid.wire.compression import decompressor, snappy_frame
from elkeid.wire.http2_frames import DEFAULT_WINDOW
from tests.agentcenter.host import Host, batch, make_gateway
from tests.wire.http2_peer import GREETING, block, data, frames, headers, message, request

MiB = 1 << 20
PREFIX = 5  # of a gRPC message
TASK = encode_command(Task(5100, "collector", "{}", "tok1"))


def noise(size: int) -> bytes:
    """A Command of about so many bytes that do not compress."""
    return encode_command(Task(1, "p", "", Random(size).randbytes(size).hex()[:size]))


def received(host: Host, encoding: str = "snappy") -> list[bytes]:
    """The Commands that a host got, decompressed."""
    return [
        decompressor(encoding)(event.body, 8 * MiB) if event.compressed else event.body
        for event in host.events
        if isinstance(event, MessageReceived)
    ]


class CommandTests(SynchronousTestCase):
    """`Commands` over real connections."""

    def setUp(self) -> None:
        self.gateway: Gateway
        self.clock: Clock
        self.gateway, _, self.clock = make_gateway()
        self.commands = Commands(self.gateway.table.get, self.clock)
        self.gateway.follow(self.commands)
        self.host, self.stream = self.join("a1")

    def tearDown(self) -> None:
        """Nothing is left behind, whatever became of the commands."""
        for link in list(self.gateway.links):
            link.abort()
            link.connectionLost()
        assert self.commands.bytes == 0
        assert self.commands.figures().waiting == 0
        assert self.clock.getDelayedCalls() == []

    def join(self, agent_id: str, address: str = "10.0.0.1", port: int = 1) -> tuple[Host, int]:
        host = Host(self.gateway, address, port)
        stream = host.open()
        host.send(stream, batch(agent_id, 1000))
        return host, stream

    def send(self, *parts: bytes, agent_id: str = "a1") -> list[Outcome]:
        """Ask for commands; the outcome is in the list once it is known."""
        told: list[Outcome] = []
        self.commands.send(agent_id, parts).addCallback(told.append)
        return told

    def fill_window(self) -> None:
        """Let the host read no more, and use its window up to the last byte."""
        self.host.frozen = True
        size = DEFAULT_WINDOW - PREFIX
        body = next(  # a snappy stream of exactly that size
            command for extra in range(200) if wire_size(command := noise(size - extra)) == size
        )
        self.assertEqual(self.send(body), [Outcome.WRITTEN])

    def test_written(self) -> None:
        """A command is compressed as the stream is, and told as written at once."""
        self.assertEqual(self.send(TASK), [Outcome.WRITTEN])
        self.host.pump()
        self.assertEqual(received(self.host), [TASK])
        self.assertEqual(self.commands.written, 1)
        self.assertEqual(self.commands.figures().outcomes, {"written": 1})

    def test_bytes_on_the_wire(self) -> None:
        """The same bytes as stock gateways send: a task of zero values, and an empty Command."""
        self.host.frozen = True
        self.assertEqual(self.send(b"\x12\x00"), [Outcome.WRITTEN])
        framed = "0100000014" + "ff060000734e61507059010600009bbefe0f1200"
        self.assertTrue(self.host.transport.value().endswith(bytes.fromhex(framed)))
        self.assertEqual(self.send(b""), [Outcome.WRITTEN])
        self.assertTrue(self.host.transport.value().endswith(b"\0\0\0\5\0\0\0\0\0\1" + bytes(5)))

    def test_order(self) -> None:
        """What belongs together goes out in order, behind what was asked for before."""
        self.fill_window()
        first = self.send(noise(100_000))
        both = self.send(b"\x1a\x00", TASK)
        self.assertEqual((first, both), ([], []))
        self.host.frozen = False
        self.host.pump()
        self.assertEqual((first, both), ([Outcome.WRITTEN], [Outcome.WRITTEN]))
        self.assertEqual(received(self.host)[1:], [noise(100_000), b"\x1a\x00", TASK])
        self.assertEqual(self.commands.written, 4)

    def test_large_config(self) -> None:
        """A config of 4 MiB goes out window by window, and is whole however small the reads."""
        random = Random(4)
        items = [ConfigItem(f"p{n}", "", "1", random.randbytes(2048).hex()) for n in range(1_000)]
        config = encode_command(config=items)
        self.assertTrue(COMMAND_BYTES * 0.9 < len(config) <= COMMAND_BYTES)
        outcome = self.send(config)
        self.assertEqual(outcome, [])  # the window holds 64 KiB
        self.host.pump()
        self.assertEqual(outcome, [Outcome.WRITTEN])
        self.assertEqual(received(self.host), [config])

    def test_incompressible(self) -> None:
        """What compression would make too large for an agent goes out as it is."""
        body = b"\x12" + Random(1).randbytes(COMMAND_BYTES - 1)
        outcome = self.send(body)
        self.host.pump()
        self.assertEqual(outcome, [Outcome.WRITTEN])
        self.assertEqual([len(each) for each in received(self.host)], [COMMAND_BYTES])

    def test_not_connected(self) -> None:
        """An id that nobody holds, or whose stream was told its end, gets nothing."""
        self.assertEqual(self.send(TASK, agent_id="a2"), [Outcome.NOT_CONNECTED])
        self.gateway.take_leave(0)
        self.assertEqual(self.send(TASK), [Outcome.NOT_CONNECTED])

    def test_withdrawn(self) -> None:
        """What is not begun within 4 s is taken back, in the wire state as in the queue."""
        self.fill_window()
        first, second = self.send(noise(70)), self.send(noise(71))
        self.clock.advance(COMMAND_SECONDS - 0.1)
        later = self.send(TASK)
        self.assertEqual((first, second), ([], []))
        self.clock.advance(0.1)
        self.assertEqual((first, second), ([Outcome.WITHDRAWN], [Outcome.WITHDRAWN]))
        self.host.frozen = False
        self.host.pump()
        self.assertEqual(later, [Outcome.WRITTEN])
        self.assertEqual(received(self.host)[1:], [TASK])

    def test_partly_written(self) -> None:
        """What is begun says so after 4 s; the rest follows, whole."""
        self.host.frozen = True
        outcome, behind = self.send(noise(100_000)), self.send(TASK)
        self.clock.advance(COMMAND_SECONDS)
        self.assertEqual((outcome, behind), ([Outcome.PARTLY], [Outcome.WITHDRAWN]))
        self.host.frozen = False
        self.host.pump()
        self.assertEqual(received(self.host), [noise(100_000)])
        self.assertEqual(self.commands.written, 1)

    def test_first_half_written(self) -> None:
        """Of two that belong together the second is taken back: partly written."""
        self.host.frozen = True
        outcome = self.send(TASK, noise(65_520), noise(99))
        self.clock.advance(COMMAND_SECONDS)
        self.assertEqual(outcome, [Outcome.PARTLY])
        self.host.frozen = False
        self.host.pump()
        self.assertEqual(received(self.host), [TASK, noise(65_520)])

    def test_transport_is_full(self) -> None:
        """While the transport has enough to send nothing is begun; then it goes on."""
        self.host.link.pauseProducing()
        outcome = self.send(TASK)
        self.assertEqual(outcome, [])
        self.host.link.resumeProducing()
        self.assertEqual(outcome, [Outcome.WRITTEN])
        self.host.link.pauseProducing()
        outcome = self.send(TASK)
        self.clock.advance(COMMAND_SECONDS)
        self.assertEqual(outcome, [Outcome.WITHDRAWN])
        self.host.link.resumeProducing()

    def test_transport_is_full_in_between(self) -> None:
        """Bytes that the window let through but the transport did not are no written command."""
        outcome = self.send(noise(100_000))
        self.host.events += self.host.client.receive_data(self.host.transport.value())
        self.host.transport.clear()
        self.host.link.pauseProducing()
        self.host.link.dataReceived(self.host.client.data_to_send())
        self.assertEqual(outcome, [])
        self.clock.advance(COMMAND_SECONDS)
        self.assertEqual(outcome, [Outcome.PARTLY])
        self.host.link.resumeProducing()
        self.host.pump()
        self.assertEqual(received(self.host), [noise(100_000)])

    def test_connection_lost(self) -> None:
        """Whatever was not wholly written when the connection went is lost, once."""
        self.host.frozen = True
        half, whole = self.send(noise(100_000)), self.send(TASK)
        self.host.drop()
        self.assertEqual((half, whole), ([Outcome.LOST], [Outcome.LOST]))

    def test_stream_replaced(self) -> None:
        """Commands for a stream that another replaced are lost; new ones go to the new one."""
        self.host.frozen = True
        waiting = self.send(noise(100_000))
        new, _ = self.join("a1", port=2)
        self.assertEqual(waiting, [Outcome.LOST])
        self.assertEqual(self.send(TASK), [Outcome.WRITTEN])
        new.pump()
        self.assertEqual(received(new), [TASK])

    def test_call_reset(self) -> None:
        """An agent that resets its stream loses what waited."""
        self.host.frozen = True
        waiting = self.send(noise(100_000))
        self.host.client.cancel_call(self.stream)
        self.host.frozen = False
        self.host.pump()
        self.assertEqual(waiting, [Outcome.LOST])

    def test_ended_while_it_waits(self) -> None:
        """What is under way when we end a stream still goes out; what is behind it is lost."""
        self.fill_window()
        first, second = self.send(noise(70)), self.send(TASK)
        self.gateway.take_leave(0)
        self.host.frozen = False
        self.host.pump()
        self.assertEqual((first, second), ([Outcome.WRITTEN], [Outcome.LOST]))
        self.assertEqual(received(self.host)[1:], [noise(70)])

    def test_queue_full_by_count(self) -> None:
        """So many commands wait for one agent at most; other agents have their own queue."""
        other, _ = self.join("a2", "10.0.0.2")
        self.fill_window()
        for _ in range(QUEUE_COMMANDS):
            self.assertEqual(self.send(TASK), [])
        self.assertEqual(self.send(TASK), [Outcome.QUEUE_FULL])
        self.assertEqual(self.send(TASK, agent_id="a2"), [Outcome.WRITTEN])
        other.pump()
        self.assertEqual(received(other), [TASK])

    def test_queue_full_by_bytes(self) -> None:
        """So many bytes wait for one agent at most."""
        self.fill_window()
        large = b"\x12" + bytes(COMMAND_BYTES - 1)
        for _ in range(QUEUE_BYTES // COMMAND_BYTES):
            self.assertEqual(self.send(large), [])
        self.assertEqual(self.send(large), [Outcome.QUEUE_FULL])

    def test_all_queues_full(self) -> None:
        """So many bytes wait for all agents together at most."""
        self.fill_window()
        self.commands.bytes += TOTAL_BYTES - 100
        self.assertEqual(self.send(bytes(101)), [Outcome.QUEUE_FULL])
        self.assertEqual(self.send(bytes(100)), [])
        self.commands.bytes -= TOTAL_BYTES - 100

    def test_cut_at_every_piece(self) -> None:
        """However much of a large command went out before the cut, it is told as lost, once."""
        body = noise(300_000)
        for pieces in range(12):
            host, _ = self.join(f"cut{pieces}", f"10.0.1.{pieces}")
            outcome = self.send(body, TASK, agent_id=f"cut{pieces}")
            for _ in range(pieces):
                host.events += host.client.receive_data(host.transport.value())
                host.transport.clear()
                host.link.dataReceived(host.client.data_to_send())
            if not outcome:
                host.drop()
                self.assertEqual(outcome, [Outcome.LOST], pieces)
            else:
                self.assertEqual(outcome, [Outcome.WRITTEN])
        self.assertTrue(self.commands.outcomes[Outcome.WRITTEN])
        self.assertTrue(self.commands.outcomes[Outcome.LOST])

    def test_asked_again_from_an_outcome(self) -> None:
        """Whoever hears of an outcome may send at once."""
        told: list[Outcome] = []

        def again(outcome: Outcome) -> None:
            told.append(outcome)
            if len(told) < 5:
                self.commands.send("a1", [TASK]).addCallback(again)

        self.commands.send("a1", [TASK]).addCallback(again)
        self.host.pump()
        self.assertEqual(told, [Outcome.WRITTEN] * 5)
        self.assertEqual(received(self.host), [TASK] * 5)

    def test_encodings(self) -> None:
        """Commands go out in the encoding that the agent's stream has."""
        for number, encoding in enumerate(("identity", "gzip", "zstd")):
            host = Host(self.gateway, f"10.0.2.{number}")
            call = headers(1, fields=block(request(grpc_encoding=encoding)))
            host.link.dataReceived(GREETING + call + data(1, message(batch(f"e{number}", 1000))))
            host.transport.clear()
            self.assertEqual(self.send(TASK, agent_id=f"e{number}"), [Outcome.WRITTEN])
            answer, command = frames(host.transport.value())
            self.assertIn(
                (b"grpc-encoding", encoding.encode()), Decoder().decode(answer.data, raw=True)
            )
            self.assertEqual(command.data[0], encoding != "identity")
            self.assertEqual(decompressor(encoding)(command.data[PREFIX:], MiB), TASK)


def wire_size(command: bytes) -> int:
    """Bytes of a Command as snappy streams have it."""
    return len(snappy_frame(command))
