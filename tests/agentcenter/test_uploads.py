"""Uploads: asked for, bounded, zipped, delivered; host and Manager hear what really happened."""

import hashlib
import io
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, execute, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.manager_client import ManagerClient
from elkeid.agentcenter.upload_file import UploadFile, prepare_folder
from elkeid.agentcenter.upload_tokens import (
    UNCONFIRMED_BURST,
    TokenCheck,
    UploadTokenRoutes,
    well_formed,
)
from elkeid.agentcenter.uploads import (
    CHECK_LIMIT,
    MANAGER_PATH,
    UNKNOWN_BURST,
    UNKNOWN_RATE,
    UPLOAD_PATH,
    Uploads,
)
from elkeid.config import MiB
from elkeid.fleet.grpc_client import GrpcClientConnection, MessageReceived
from elkeid.web.client import FileBody, Reply, Unreachable
from elkeid.wire.protobuf import length_delimited
from tests.agentcenter.face import Face
from tests.agentcenter.host import Host, make_gateway
from tests.agentcenter.manager import DOWN
from tests.eventlog.support import result_of

TOKEN = "c0000000000000000001"


def piece(token: str | bytes, data: bytes = b"") -> bytes:
    raw = token if isinstance(token, bytes) else token.encode()
    return length_delimited(1, raw) + length_delimited(2, data)


def form_of(body: FileBody) -> tuple[str, bytes, str]:
    """File name, content and hash of a form, after looking that its digest holds."""
    whole = body.head + body.path.read_bytes() + body.tail
    assert len(whole) == body.size
    assert hashlib.sha256(whole).hexdigest() == body.sha256
    match = re.fullmatch(
        rb'--(\w+)\r\nContent-Disposition: form-data; name="file"; filename="([^"]+)"\r\n'
        rb"Content-Type: application/octet-stream\r\n\r\n(.*)\r\n--\1\r\n"
        rb'Content-Disposition: form-data; name="hash"\r\n\r\n(\w+)\r\n--\1--\r\n',
        whole,
        re.DOTALL,
    )
    assert match
    return match[2].decode(), match[3], match[4].decode()


class Peers:
    """Stands where the HTTP client is: Managers and other gateways."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.stock = False
        self.token_answer: Any = None
        self.peers: dict[str, Any] = {}
        self.upload_answers: list[Any] = []
        self.files: list[tuple[str, bytes, str]] = []

    async def post(self, url: str, body: Any, *, seconds: float, limit: int) -> Reply:
        assert url == "http://m:1/api/v1/inner/token"
        assert seconds <= 3
        if self.token_answer is not None:
            return await self._give(self.token_answer)
        if self.stock:
            return Reply(404, b'{"code":10}', None)
        return self._json({"known": body["token"] in self.known})

    async def get(self, url: str, query: Any, *, seconds: float, limit: int) -> Reply:
        return await self._give(self.peers[url])

    async def call(
        self, method: str, url: str, body: FileBody, *, seconds: float, headers: Any
    ) -> Reply:
        assert (method, url) == ("POST", f"http://m:1{MANAGER_PATH}")
        assert headers["content-type"].startswith("multipart/form-data; boundary=")
        self.files.append(form_of(body))
        return await self._give(self.upload_answers.pop(0) if self.upload_answers else "x.zip")

    async def _give(self, answer: Any) -> Reply:
        if isinstance(answer, Deferred):
            answer = await answer
        if answer is DOWN:
            raise Unreachable("away")
        return answer if isinstance(answer, Reply) else self._json(answer)

    @staticmethod
    def _json(data: object) -> Reply:
        return Reply(200, msgspec.json.encode({"code": 0, "msg": "", "data": data}), None)


class Results:
    """Keeps the results; whether they are on disk yet."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, int, dict[str, str]]] = []
        self.committed = 0

    def add(self, agent_id: str, data_type: int, fields: dict[str, str]) -> None:
        self.kept.append((agent_id, data_type, fields))

    def commit(self) -> bool:
        self.committed = len(self.kept)
        return True


class UploadTests(SynchronousTestCase):
    """Uploads over a connection in memory."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="uploads"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.folder = self.directory / "uploads"
        self.in_thread: Any = execute
        self.room = 1 << 40
        self.build()

    def build(self, **changes: Any) -> None:
        self.gateway: Gateway
        self.clock: Clock
        self.gateway, _, self.clock = make_gateway(**changes)
        self.http: Any = Peers()
        manager = ManagerClient(self.http, ["m:1"])
        self.results = Results()

        self.newcomers: set[str] = set()  # peers that only ServiceDiscovery knows of yet
        self.listing: Deferred[None] = succeed(None)

        def peers() -> list[str]:
            return [url.split("/")[2] for url in self.http.peers]

        async def listed() -> list[str]:
            await self.listing
            return peers()

        self.uploads = Uploads(
            self.gateway,
            folder=self.folder,
            in_thread=self.work,
            manager=manager,
            results=self.results,
            check=TokenCheck(
                self.gateway.tokens,
                manager=manager,
                peers=lambda: [each for each in peers() if each not in self.newcomers],
                listed=listed,
                http=self.http,
                clock=self.clock,
                monotonic=self.clock.seconds,
            ),
            room=lambda: self.room,
        )
        result_of(self.uploads.open())
        self.gateway.tokens.sent(TOKEN, "a1")
        self.host = Host(self.gateway)

    def work(self, function: Any, *args: Any) -> Any:
        """What stands for the thread now."""
        return self.in_thread(function, *args)

    def begin(self) -> int:
        stream = self.host.client.open_call(UPLOAD_PATH)
        self.host.pump()
        return stream

    def bring(self, *pieces: bytes, token: str | bytes = TOKEN, stream: int | None = None) -> int:
        """Bring a whole file."""
        stream = self.begin() if stream is None else stream
        for data in pieces:
            self.host.send(stream, piece(token, data))
        self.host.client.half_close(stream)
        self.host.pump()
        return stream

    def ends(self, stream: int, status: int, outcome: str) -> None:
        """The host was told this status and SUCCESS or FAILED with it; nothing is left."""
        self.host.pump()
        ended = self.host.ended(stream)
        assert ended is not None
        self.assertEqual(ended.status, status, ended)
        answers = [
            event.body
            for event in self.host.events
            if isinstance(event, MessageReceived) and event.stream_id == stream
        ]
        self.assertEqual(answers, [b"" if status == 0 else b"\x08\x01"])
        self.assertEqual(self.uploads.outcomes[outcome], 1, self.uploads.outcomes)
        self.clean()

    def clean(self) -> None:
        """No file, no count and no timer of an upload is left."""
        self.assertEqual(list(self.folder.iterdir()), [])
        self.assertEqual(self.uploads.under_way, {})
        self.assertEqual((self.uploads.held_bytes, self.uploads.queued_bytes), (0, 0))
        self.assertEqual(self.results.committed, len(self.results.kept))

    def reported(self) -> list[tuple[str, str]]:
        """Status and message of each result."""
        for _, data_type, fields in self.results.kept:
            self.assertEqual((data_type, fields["token"]), (5100, TOKEN))
        return [(fields["status"], fields["msg"]) for _, _, fields in self.results.kept]

    # --- the way of a file

    def test_a_file_reaches_the_manager(self) -> None:
        """Zipped with one entry named as the token, hashed, and the stored name is reported."""
        stream = self.bring(b"hello ", b"world", b"")
        self.ends(stream, 0, "delivered")
        ((name, content, md5),) = self.http.files
        self.assertEqual(name, f"file/{TOKEN}.zip")
        self.assertEqual(md5, hashlib.md5(content).hexdigest())
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (entry,) = archive.infolist()
            self.assertEqual((entry.filename, entry.compress_type), (TOKEN, zipfile.ZIP_DEFLATED))
            self.assertEqual(archive.read(entry), b"hello world")
        self.assertEqual(
            self.results.kept, [("a1", 5100, {"token": TOKEN, "status": "succeed", "msg": "x.zip"})]
        )

    def test_an_empty_file(self) -> None:
        """A file of no bytes is a file."""
        self.ends(self.bring(b""), 0, "delivered")
        with zipfile.ZipFile(io.BytesIO(self.http.files[0][1])) as archive:
            self.assertEqual(archive.read(TOKEN), b"")

    def test_a_token_is_good_once(self) -> None:
        """After a delivery another file of the token is refused, and no result is made."""
        self.http.known.add(TOKEN)
        self.ends(self.bring(b"x"), 0, "delivered")
        self.ends(self.bring(b"y"), 7, "token")
        self.assertEqual(self.reported(), [("succeed", "x.zip")])

    def test_private_files(self) -> None:
        """Files under way are for us alone, and the token does not name them."""
        self.host.send(self.begin(), piece(TOKEN, b"x"))
        (path,) = self.folder.iterdir()
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.folder.stat().st_mode & 0o777, 0o700)
        self.assertNotIn(TOKEN, path.name)
        self.host.drop()

    def test_leftovers_are_removed(self) -> None:
        """What a killed process left is gone after the next start."""
        left = UploadFile(self.folder, TOKEN)
        left.write([b"x"])
        result_of(self.uploads.open())
        self.clean()
        left.discard()

    # --- tokens

    def test_hostile_tokens(self) -> None:
        """No path, no NUL, no flood: they are refused, and nothing is made of them."""
        for token in ("../../etc/passwd", "a\0b", "", "a/b", "x" * MiB, "ä", b"\xff\xfe", "a\n"):
            stream = self.begin()
            self.host.send(stream, piece(token, b"x"))
            self.ends(stream, 3, "token")
            self.uploads.outcomes.clear()
        self.assertEqual(self.results.kept, [])
        self.assertFalse(well_formed("a\n"))

    def test_the_manager_confirms(self) -> None:
        """A token that another gateway sent is good if the Manager made it."""
        self.http.known.add("t2")
        stream = self.bring(b"x", token="t2")
        self.ends(stream, 0, "delivered")
        self.assertEqual(self.results.kept[0][0], "")

    def test_a_peer_confirms(self) -> None:
        """Or if another gateway knows it, while the Manager is away."""
        self.http.token_answer = DOWN
        self.http.peers = {
            "https://p:1/upload/token": DOWN,
            "https://p:2/upload/token": {"known": False},
            "https://p:3/upload/token": Reply(404, b"{}", None),
            "https://p:4/upload/token": {"known": True},
        }
        self.ends(self.bring(b"x", token="t2"), 0, "delivered")

    def test_a_newcomer_confirms(self) -> None:
        """Or a gateway that came up a moment ago, which ServiceDiscovery lists."""
        self.http.peers = {
            "https://p:1/upload/token": {"known": False},
            "https://p:2/upload/token": {"known": True},
        }
        self.newcomers.add("p:2")
        self.ends(self.bring(b"x", token="t2"), 0, "delivered")

    def test_a_silent_registry_stops_nothing(self) -> None:
        """Gateways that are known are asked without waiting for ServiceDiscovery's list."""
        self.listing = Deferred()
        self.http.peers = {"https://p:1/upload/token": {"known": True}}
        self.ends(self.bring(b"x", token="t2"), 0, "delivered")

    def test_nobody_confirms(self) -> None:
        """Refused, without a result; whoever holds the client key could bring anything."""
        self.http.peers = {"https://p:2/upload/token": {"known": False}}
        self.ends(self.bring(b"x", token="t2"), 7, "token")
        self.assertEqual((self.results.kept, self.http.files), ([], []))

    def test_silence_confirms_nothing(self) -> None:
        """A check takes 3 s at most; the host is paused meanwhile."""
        answer: Deferred[object] = Deferred()
        self.http.token_answer = answer
        stream = self.begin()
        for _ in range(4):
            self.host.send(stream, piece("t2", b"x" * 200_000), compressed=False)
        self.assertLess(self.uploads.held_bytes, 500_000)
        self.clock.advance(2.9)
        self.assertIsNone(self.host.ended(stream))
        self.clock.advance(0.2)
        self.ends(stream, 7, "token")

    def test_stock_managers_confirm_nothing(self) -> None:
        """With one that does not know the route a token of their form does, within a quota."""
        self.http.stock = True
        self.ends(self.bring(b"x", token="t2"), 7, "token")
        for number in range(int(UNCONFIRMED_BURST)):
            self.bring(b"x", token=f"d{number:019d}")
        self.assertEqual(self.uploads.outcomes["delivered"], UNCONFIRMED_BURST)
        self.bring(b"x", token="e" * 20)
        self.assertEqual(self.uploads.outcomes["token"], 2)
        self.clock.advance(60)
        self.host = Host(self.gateway)
        self.bring(b"x", token="e" * 20)
        self.assertEqual(self.uploads.outcomes["delivered"], UNCONFIRMED_BURST + 1)

    def test_two_files_of_one_token(self) -> None:
        """The second is refused while the first is under way, which goes on."""
        first, second = self.begin(), self.begin()
        self.host.send(first, piece(TOKEN, b"x"))
        self.host.send(second, piece(TOKEN, b"y"))
        ended = self.host.ended(second)
        assert ended is not None
        self.assertEqual((ended.status, self.results.kept), (6, []))
        self.ends(self.bring(stream=first), 0, "delivered")

    def test_our_own_route(self) -> None:
        """Other gateways are told which tokens were sent here."""
        face = Face([UploadTokenRoutes(self.gateway.tokens)], self.clock)
        for token, known in ((TOKEN, True), ("t2", False)):
            status, answer = face.ask("GET", "/upload/token", query=f"token={token}")
            self.assertEqual((status, answer["data"]), (200, {"known": known}))
        status, _ = face.ask("GET", "/upload/token", query=f"token={TOKEN}", signed=False)
        self.assertEqual(status, 403)

    # --- limits

    def test_a_file_that_is_too_large(self) -> None:
        """Ended at the piece that goes beyond, with a result."""
        self.build(upload_bytes=MiB)
        stream = self.begin()
        for _ in range(3):
            self.host.send(stream, piece(TOKEN, b"x" * 400_000), compressed=False)
        self.ends(stream, 8, "too_large")
        self.assertEqual(self.reported(), [("failed", f"the file is larger than {MiB} bytes")])

    def test_no_room(self) -> None:
        """Neither the quota of all files nor the disk's free space is exceeded."""
        self.room = 10
        stream = self.begin()
        self.host.send(stream, piece(TOKEN, b"x" * 11))
        self.ends(stream, 8, "no_room")
        self.room = 1 << 40
        self.build(upload_disk_bytes=MiB)
        stream = self.begin()
        for _ in range(3):
            self.host.send(stream, piece(TOKEN, b"x" * 400_000), compressed=False)
        self.ends(stream, 8, "no_room")

    def test_too_many_at_once(self) -> None:
        """One more than the limit is refused with a result; those under way go on."""
        self.build(upload_limit=1)
        self.gateway.tokens.sent("t2", "a2")
        first, second = self.begin(), self.begin()
        self.host.send(first, piece("t2", b"x"))
        self.host.send(second, piece(TOKEN, b"y"))
        ended = self.host.ended(second)
        assert ended is not None
        self.assertEqual(ended.status, 8)
        self.assertEqual(self.reported(), [("failed", "too many uploads at once")])
        self.ends(self.bring(token="t2", stream=first), 0, "delivered")

    def refused(self, token: str) -> tuple[int, str]:
        """How an upload of a token that nobody knows ends."""
        ended = self.host.ended(self.bring(b"", token=token))
        assert ended is not None
        return ended.status, ended.message

    def test_guessed_tokens_of_one_address(self) -> None:
        """They take no place of files that were asked for, and nobody is asked again and again."""
        self.build(upload_limit=1)
        guessing, answers = self.host, [Deferred[Any](), Deferred[Any]()]
        for number, answer in enumerate(answers):
            self.http.token_answer = answer
            self.host.send(self.begin(), piece(f"guessed-{number}", b"x"))
        self.http.token_answer = None
        self.assertEqual(self.uploads.unknown, 2)
        self.host = Host(self.gateway)
        ended = self.host.ended(self.bring(b"asked for"))
        assert ended is not None
        self.assertEqual(ended.status, 0)
        self.host = guessing
        for answer in answers:
            answer.callback({"known": False})
        self.assertEqual((self.uploads.unknown, self.uploads.outcomes["token"]), (0, 2))
        for number in range(2, int(UNKNOWN_BURST)):
            self.assertEqual(self.refused(f"guessed-{number}")[0], 7)
        self.assertEqual(self.refused("one-more"), (8, "too many unknown tokens"))
        self.clock.advance(1 / UNKNOWN_RATE)
        self.assertEqual(self.refused("later")[0], 7)
        self.clean()

    def test_unknown_tokens_at_once(self) -> None:
        """So many wait for the Manager's word; then no more, but those asked for."""
        answer: Deferred[Any] = Deferred()
        self.http.token_answer = answer
        self.uploads.unknown = CHECK_LIMIT - 1
        first = self.begin()
        self.host.send(first, piece("guessed-1", b"x"))
        self.http.token_answer = None
        self.assertEqual(self.refused("guessed-2"), (8, "too many unknown tokens"))
        self.assertIsNone(self.host.ended(first))
        answer.callback({"known": False})
        self.ends(first, 7, "token")
        self.assertEqual(self.uploads.unknown, CHECK_LIMIT - 1)
        self.uploads.unknown = CHECK_LIMIT
        self.ends(self.bring(b"asked for"), 0, "delivered")

    def test_a_confirmed_token_needs_a_place(self) -> None:
        """The limit holds as well for files that another gateway asked for."""
        self.build(upload_limit=1)
        self.http.known.add(TOKEN[:-1] + "9")
        self.gateway.tokens.sent("t2", "a2")
        first, second = self.begin(), self.begin()
        self.host.send(first, piece("t2", b"x"))
        self.host.send(second, piece(TOKEN[:-1] + "9", b"y"))
        ended = self.host.ended(second)
        assert ended is not None
        self.assertEqual((ended.status, ended.message), (8, "too many uploads at once"))
        self.assertEqual(self.uploads.unknown, 0)
        self.bring(token="t2", stream=first)

    def test_malformed_messages(self) -> None:
        """Bytes that are no message, too large ones, bombs, and none at all."""
        for message in (b"\xff\xff", b"\x08\x01", b"\x12" + b"\x05abc", b"x" * (5 * MiB)):
            stream = self.begin()
            self.host.send(stream, message)
            self.ends(stream, 3, "malformed")
            self.uploads.outcomes.clear()
        self.ends(self.bring(), 3, "malformed")
        self.assertEqual(self.results.kept, [])

    def test_a_slow_disk_pauses_the_host(self) -> None:
        """While the thread is behind, the host sends no more than fits."""
        waiting: list[tuple[Deferred[Any], Any]] = []

        def slow(function: Any, *args: Any) -> Deferred[Any]:
            waiting.append((Deferred(), lambda: function(*args)))
            return waiting[-1][0]

        stream = self.begin()
        self.in_thread = slow
        for _ in range(10):
            self.host.send(stream, piece(TOKEN, b"x" * 500_000), compressed=False)
        self.assertLess(self.uploads.held_bytes, 2 * MiB)
        self.host.client.half_close(stream)
        for _ in range(40):
            if not waiting:
                break
            done, work = waiting.pop(0)
            done.callback(work())
            self.host.pump()
        self.ends(stream, 0, "delivered")
        with zipfile.ZipFile(io.BytesIO(self.http.files[0][1])) as archive:
            self.assertEqual(archive.getinfo(TOKEN).file_size, 5_000_000)

    # --- what goes wrong

    def test_a_silent_host(self) -> None:
        """Before the first message and between two, a host that says nothing is given up."""
        stream = self.begin()
        self.clock.advance(61)
        self.ends(stream, 4, "silent")
        self.assertEqual(self.results.kept, [])
        self.uploads.outcomes.clear()
        stream = self.begin()
        self.host.send(stream, piece(TOKEN, b"x"))
        self.clock.advance(59)
        self.host.send(stream, piece(TOKEN, b"x"))
        self.clock.advance(61)
        self.ends(stream, 4, "silent")
        self.assertEqual(self.reported(), [("failed", "no message within 60 s")])

    def test_a_host_that_takes_too_long(self) -> None:
        """It is told before its own deadline, ten minutes after the begin."""
        stream = self.begin()
        for _ in range(12):
            self.host.send(stream, piece(TOKEN, b"x"))
            self.clock.advance(50)
        self.ends(stream, 4, "late")

    def test_a_broken_stream(self) -> None:
        """A lost connection and a cancelled call give a failed result, and no file is left."""
        stream = self.begin()
        self.host.send(stream, piece(TOKEN, b"x"))
        self.host.drop()
        self.clean()
        self.assertEqual(self.reported(), [("failed", "the upload broke off")])
        self.host = Host(self.gateway)
        stream = self.begin()
        self.host.send(stream, piece(TOKEN, b"x"))
        self.host.client.cancel_call(stream)
        self.host.pump()
        self.clean()
        self.assertEqual(len(self.results.kept), 2)

    def test_broken_while_the_token_is_checked(self) -> None:
        """What was not whole fails if somebody asked for it; what was is delivered."""
        for whole, expected in ((False, "broken"), (True, "delivered")):
            self.build()
            answer: Deferred[object] = Deferred()
            self.http.token_answer = answer
            stream = self.begin()
            self.host.send(stream, piece("t2", b"x"))
            if whole:
                self.host.client.half_close(stream)
                self.host.pump()
            self.host.drop()
            self.assertEqual(self.results.kept, [])
            answer.callback({"known": True})
            self.assertEqual(dict(self.uploads.outcomes), {expected: 1})
            self.clean()

    def test_the_manager_comes_back(self) -> None:
        """Failures are repeated while the host waits."""
        self.http.upload_answers = [DOWN, DOWN, Reply(200, b'{"code":7}', None)]
        stream = self.bring(b"x")
        self.assertIsNone(self.host.ended(stream))
        for _ in range(20):
            self.clock.advance(1)
        self.ends(stream, 0, "delivered")
        self.assertEqual(len(self.http.files), 4)
        self.assertEqual(self.reported(), [("succeed", "x.zip")])

    def test_the_manager_stays_away(self) -> None:
        """Then host and Manager hear of a failure, before the host gives up."""
        self.http.upload_answers = [DOWN] * 100
        stream = self.bring(b"x")
        for _ in range(595):
            self.clock.advance(1)
        self.host.pump()
        ended = self.host.ended(stream)
        assert ended is not None
        self.assertNotEqual(ended.status, 0)
        self.assertEqual([status for status, _ in self.reported()], ["failed"])
        self.clean()

    def test_the_manager_refuses(self) -> None:
        """A refusal for good is told at once."""
        self.http.upload_answers = [Reply(400, b'{"code":5,"data":"hash: missing"}', None)]
        self.ends(self.bring(b"x"), 14, "manager")
        self.assertEqual(
            self.reported(), [("failed", "the Manager answered code 5: hash: missing")]
        )

    def test_a_host_that_leaves_after_the_end(self) -> None:
        """What came whole is delivered though the host is gone."""
        answer: Deferred[object] = Deferred()
        self.http.upload_answers = [answer]
        self.bring(b"x")
        self.host.drop()
        answer.callback("y.zip")
        self.assertEqual(self.reported(), [("succeed", "y.zip")])
        self.clean()

    def test_a_failing_disk(self) -> None:
        """The host is told; the result says so; nothing is left."""

        def full(function: Any, *args: Any) -> Deferred[Any]:
            if getattr(function, "__name__", "") == "write":
                return execute(self._full)
            return execute(function, *args)

        self.in_thread = full
        stream = self.begin()
        self.host.send(stream, piece(TOKEN, b"x"))
        self.ends(stream, 13, "disk")
        self.assertEqual(self.reported(), [("failed", "the gateway's disk refused the file")])

    def test_cut_at_every_byte(self) -> None:
        """Wherever the host's bytes end, nothing is left, and the result says what came whole."""
        client = GrpcClientConnection("gateway")
        stream = client.open_call(UPLOAD_PATH)
        client.send_message(stream, piece(TOKEN, b"hello "), False)
        client.send_message(stream, piece(TOKEN, b"world"), False)
        client.half_close(stream)
        data = client.data_to_send()
        outcomes = []
        for end in range(len(data) + 1):
            self.build()
            self.host.link.dataReceived(data[:end])
            self.host.drop()
            self.clean()
            self.assertEqual(self.clock.getDelayedCalls(), [])
            outcomes.append([status for status, _ in self.reported()])
        self.assertEqual(outcomes[-1], ["succeed"])
        kinds = [tuple(each) for each in outcomes]
        self.assertEqual(list(dict.fromkeys(kinds)), [(), ("failed",), ("succeed",)])

    def test_broken_while_the_disk_works(self) -> None:
        """A stream that breaks within a write is forgotten once that write is over."""
        waiting: list[tuple[Deferred[Any], Any]] = []

        def slow(function: Any, *args: Any) -> Deferred[Any]:
            waiting.append((Deferred(), lambda: function(*args)))
            return waiting[-1][0]

        stream = self.begin()
        self.host.send(stream, piece(TOKEN, b"x"))
        self.in_thread = slow
        self.host.send(stream, piece(TOKEN, b"y"))
        self.host.send(stream, piece(TOKEN, b"z"))
        self.host.drop()
        self.assertEqual(self.reported(), [("failed", "the upload broke off")])
        while waiting:
            done, work = waiting.pop(0)
            done.callback(work())
        self.clean()

    def test_a_draining_gateway(self) -> None:
        """A file that begins now could not be delivered before the end."""
        self.gateway.draining = 14
        self.ends(self.bring(b"x"), 14, "stopping")
        self.assertEqual(self.reported(), [("failed", "this AgentCenter is stopping")])

    @staticmethod
    def _full() -> None:
        raise OSError(28, "No space left on device")

    def test_a_stop(self) -> None:
        """What is not whole fails at once, what is under way to the Manager when we end."""
        self.gateway.tokens.sent("t2", "a2")
        self.http.upload_answers = [Deferred()]
        whole = self.bring(b"x")
        other = Host(self.gateway, port=40001)
        stream = other.client.open_call(UPLOAD_PATH)
        other.pump()
        other.send(stream, piece("t2", b"x"))
        self.gateway.draining = 14
        self.gateway.take_leave(0)
        other.pump()
        self.assertIsNotNone(other.ended(stream))
        self.assertIsNone(self.host.ended(whole))
        self.gateway.abort()
        self.host.drop()
        other.drop()
        result_of(self.uploads.stop())
        self.assertEqual(
            [(fields["token"], fields["status"]) for _, _, fields in self.results.kept],
            [("t2", "failed"), (TOKEN, "failed")],
        )
        self.clean()
        self.assertEqual(self.clock.getDelayedCalls(), [])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """An operator's mistake is told as one."""
    (tmp_path / "uploads").write_text("")
    try:
        prepare_folder(tmp_path / "uploads")
    except OSError:
        return
    raise AssertionError
