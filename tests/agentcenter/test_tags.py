"""Tags: asked for, remembered, in every record; nobody waits long, and nobody known at all."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter import tags as tags_module
from elkeid.agentcenter.gateway import Gateway
from elkeid.agentcenter.tag_store import TagStore
from elkeid.agentcenter.tags import QUERY_IDS, TAGS_BYTES, TagBook, joined_tags
from tests.agentcenter.host import Host, MemoryLog, batch, make_gateway
from tests.agentcenter.manager import DOWN, Manager
from tests.eventlog.support import result_of


class Site:
    """A gateway that knows tags, and its Manager."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.gateway: Gateway
        self.log: MemoryLog
        self.clock: Clock
        self.gateway, self.log, self.clock = make_gateway(**changes)
        self.tags: dict[str, object] = {"a1": "t1,t2"}
        self.manager = Manager(self.answer)
        self.book = TagBook(
            self.gateway.table,
            clock=self.clock,
            in_thread=execute,
            manager=self.manager.client,
            store=TagStore(directory / "tags.db"),
            wait_seconds=self.gateway.settings.tag_wait_seconds,
            slices=self.gateway.slices,
        )
        self.gateway.know_tags(self.book)
        result_of(self.book.open())

    def answer(self, path: str, body: Any) -> Any:
        assert path == "/api/v1/agent/queryInfo"
        return {each: {"tags": self.tags[each]} for each in body["id_list"] if each in self.tags}

    def asked(self) -> list[list[str]]:
        return [body["id_list"] for _, body in self.manager.asked]

    def stored(self) -> list[tuple[int, list[str]]]:
        """Data type and tags of every record, in order."""
        self.log.commit()
        return [(data.data_type, data.tags) for _, data in self.log.kept]


class TagTests(SynchronousTestCase):
    """`TagBook` behind a gateway."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tags"))
        self.addCleanup(shutil.rmtree, self.directory)

    def site(self, **changes: Any) -> Site:
        site = Site(self.directory, **changes)
        self.addCleanup(lambda: result_of(site.book.stop()))
        return site

    def test_the_first_batch_has_its_tags(self) -> None:
        """Batches of an unknown agent are stored once its tags are known, in their order."""
        site = self.site()
        host = Host(site.gateway)
        stream = host.open()
        host.send(stream, batch("a1", 59))
        host.send(stream, batch("a1", 60))
        self.assertEqual(site.stored(), [])
        self.assertGreater(site.book.held_bytes, 0)
        site.clock.advance(0.02)
        host.send(stream, batch("a1", 61))
        self.assertEqual(site.stored(), [(kind, ["t1", "t2"]) for kind in (59, 60, 61)])
        self.assertEqual(site.book.held_bytes, 0)
        self.assertEqual(site.book.figures().waits, {"answered": 1})

    def test_a_known_agent_never_waits(self) -> None:
        """What is known is used at once, and outlives connections and processes."""
        site = self.site()
        host = Host(site.gateway)
        host.send(host.open(), batch("a1", 59))
        site.clock.advance(0.1)
        host.drop()
        site.manager.answer = lambda path, body: DOWN
        again = Host(site.gateway)
        again.send(again.open(), batch("a1", 60))
        self.assertEqual(site.stored()[-1], (60, ["t1", "t2"]))
        site.clock.advance(10)
        result_of(site.book.stop())
        later = self.site()
        later.manager.answer = lambda path, body: DOWN
        host = Host(later.gateway)
        host.send(host.open(), batch("a1", 61))
        self.assertEqual(later.stored(), [(61, ["t1", "t2"])])
        self.assertEqual((self.directory / "tags.db").stat().st_mode & 0o77, 0)

    def test_nobody_waits_longer_than_the_setting(self) -> None:
        """Without an answer in time the batch is stored without tags; later ones have them."""
        site = self.site()
        answer: Deferred[object] = Deferred()
        site.manager.answer = lambda path, body: answer
        host = Host(site.gateway)
        stream = host.open()
        host.send(stream, batch("a1", 59))
        site.clock.advance(0.19)
        self.assertEqual(site.stored(), [])
        site.clock.advance(0.02)
        self.assertEqual(site.stored(), [(59, [])])
        answer.callback({"a1": {"tags": ["t3"]}})
        host.send(stream, batch("a1", 60))
        self.assertEqual(site.stored()[-1], (60, ["t3"]))
        self.assertEqual(site.book.figures().waits, {"late": 1})

    def test_nobody_waits_for_a_manager_that_is_away(self) -> None:
        """A failed query lets its agents go on; it is repeated, ever more seldom."""
        site = self.site()
        site.manager.answer = lambda path, body: DOWN
        host = Host(site.gateway)
        stream = host.open()
        host.send(stream, batch("a1", 59))
        site.clock.advance(0.02)
        self.assertEqual(site.stored(), [(59, [])])
        for _ in range(100):
            site.clock.advance(1)
        self.assertTrue(5 <= len(site.asked()) <= 8, site.asked())
        site.manager.answer = site.answer
        for _ in range(64):
            site.clock.advance(1)
        host.send(stream, batch("a1", 60))
        self.assertEqual(site.stored()[-1], (60, ["t1", "t2"]))

    def test_the_end_is_told_after_what_waits_is_stored(self) -> None:
        """A half-close waits with the batches before it."""
        site = self.site()
        host = Host(site.gateway)
        stream = host.open()
        host.send(stream, batch("a1", 59))
        host.client.half_close(stream)
        host.pump()
        self.assertIsNone(host.ended(stream))
        site.clock.advance(0.02)
        host.pump()
        ended = host.ended(stream)
        assert ended is not None
        self.assertEqual(ended.status, 0)
        self.assertEqual(site.stored(), [(59, ["t1", "t2"])])

    def test_what_waits_is_stored_whatever_ends_the_stream(self) -> None:
        """A lost connection, a broken rule and a stop lose nothing that was read."""

        def lose(host: Host, stream: int) -> None:
            host.drop()

        def break_a_rule(host: Host, stream: int) -> None:
            host.send(stream, b"\xff\xff")

        def cancel(host: Host, stream: int) -> None:
            host.client.cancel_call(stream)
            host.pump()

        for end in (lose, break_a_rule, cancel):
            site = Site(Path(tempfile.mkdtemp(dir=self.directory)))
            host = Host(site.gateway)
            stream = host.open()
            host.send(stream, batch("a1", 59, 5100))
            end(host, stream)
            self.assertEqual([kind for kind, _ in site.stored()], [59, 5100])
            self.assertEqual(site.book.held_bytes, 0)
            result_of(site.book.stop())

    def test_room_for_waiting_is_bounded(self) -> None:
        """Beyond the bound over all streams batches go on without tags."""
        self.patch(tags_module, "HELD_BYTES", 100)
        site = self.site()
        one, two = Host(site.gateway), Host(site.gateway, port=40001)
        stream = one.open()
        one.send(stream, batch("a1", 59))
        one.send(stream, batch("a1", 60, hostname="h" * 80))
        self.assertEqual(site.stored(), [(59, []), (60, [])])
        self.assertEqual(site.book.held_bytes, 0)
        site.book.held_bytes = 100
        two.send(two.open(), batch("a2", 61))
        self.assertEqual(site.stored()[-1], (61, []))
        site.book.held_bytes = 0
        self.assertEqual(site.book.figures().waits["full"], 2)

    def test_many_agents_are_asked_for_together(self) -> None:
        """Ids of one moment go out in few calls."""
        site = self.site()
        hosts = [Host(site.gateway, port=40000 + number) for number in range(20)]
        for number, host in enumerate(hosts):
            host.send(host.open(), batch(f"a{number}", 59))
        site.clock.advance(0.02)
        self.assertEqual([len(ids) for ids in site.asked()], [20])
        for number in range(QUERY_IDS + 10):
            site.book._ask(f"b{number}", urgent=False)
        site.clock.advance(0.02)
        self.assertEqual([len(ids) for ids in site.asked()[1:]], [QUERY_IDS, 10])

    def test_all_are_refreshed(self) -> None:
        """New tags of a connected agent reach its records within 270 s."""
        site = self.site()
        host = Host(site.gateway)
        stream = host.open()
        host.send(stream, batch("a1", 59))
        site.clock.advance(0.1)
        site.tags["a1"] = ["new"]
        for _ in range(271):
            site.clock.advance(1)
        host.send(stream, batch("a1", 60))
        self.assertEqual(site.stored()[-1], (60, ["new"]))

    def test_told_of_a_change(self) -> None:
        """Tags that changed are asked for when the Manager says so, of who is connected."""
        site = self.site()
        host = Host(site.gateway)
        host.send(host.open(), batch("a1", 59))
        site.clock.advance(0.1)
        site.manager.asked.clear()
        site.tags["a1"] = "t3"
        self.assertEqual(site.book.refresh(["nobody"]), 0)
        self.assertEqual(site.book.refresh(["a1", "nobody", "a1"]), 1)
        site.clock.advance(0.02)
        self.assertEqual(site.asked(), [["a1"]])
        self.assertEqual(site.book.tags_of("a1"), b"t3")
        self.assertEqual(site.book.refresh(None), 1)

    def test_an_older_answer_changes_nothing(self) -> None:
        """Of two answers that cross, the one asked for later counts."""
        site = self.site()
        answers: list[Deferred[object]] = []

        def slow(path: str, body: Any) -> Any:
            answers.append(Deferred())
            return answers[-1]

        site.manager.answer = slow
        for _ in range(2):
            site.book._ask("a1", urgent=True)
            site.clock.advance(0.02)
        answers[1].callback({"a1": {"tags": "new"}})
        answers[0].callback({"a1": {"tags": "old"}})
        self.assertEqual(site.book.tags_of("a1"), b"new")

    def test_silence_about_an_agent_changes_nothing(self) -> None:
        """An answer without the agent, or without anything, keeps what is known."""
        site = self.site()
        site.book._ask("a1", urgent=True)
        site.clock.advance(0.02)
        for answer in ({}, None, [], {"a1": None}):
            site.manager.answer = lambda path, body, answer=answer: answer  # type: ignore[misc]
            site.book._ask("a1", urgent=True)
            site.clock.advance(0.02)
            self.assertEqual(site.book.tags_of("a1"), b"t1,t2")

    def test_agents_known_are_bounded(self) -> None:
        """Of more agents than the bound the ones seen last are remembered, on disk too."""
        self.patch(tags_module, "KNOWN_LIMIT", 3)
        site = self.site()
        for number in range(5):
            site.tags[f"b{number}"] = "t"
            site.book._ask(f"b{number}", urgent=True)
            site.clock.advance(6)
        result_of(site.book.stop())
        store = TagStore(self.directory / "tags.db")
        self.assertEqual(sorted(store.open()), ["b2", "b3", "b4"])
        store.close()

    def test_who_has_left_is_not_asked_for(self) -> None:
        """While no Manager answers, those that come and go leave nothing behind."""
        site = self.site()
        site.manager.answer = lambda path, body: DOWN
        for number in range(5):
            host = Host(site.gateway)
            host.send(host.open(), batch(f"b{number}", 59))
            if number % 2:
                site.clock.advance(0.02)
            host.drop()
        asked = len(site.manager.asked)
        site.clock.advance(100)
        self.assertEqual(len(site.manager.asked), asked)
        self.assertEqual([kind for kind, _ in site.stored()], [59] * 5)

    def test_damaged_store(self) -> None:
        """A damaged file is moved aside; a folder that cannot be used costs only the memory."""
        (self.directory / "tags.db").write_bytes(b"no database" * 1000)
        site = self.site()
        site.book._ask("a1", urgent=True)
        site.clock.advance(6)
        self.assertTrue((self.directory / "tags.db.damaged").exists())
        lost = Site(self.directory / "missing")
        lost.book._ask("a1", urgent=True)
        lost.clock.advance(6)
        self.assertEqual(lost.book.tags_of("a1"), b"t1,t2")
        result_of(lost.book.stop())


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"tags": "a,b"}, b"a,b"),
        ({"tags": ["a", "b", 5, ""]}, b"a,b"),
        ({"tags": ""}, b""),
        ({"tags": []}, b""),
        ({"tags": None}, b""),
        ({}, b""),
        (None, None),
        ("a", None),
        ({"tags": ["x" * TAGS_BYTES, "b"]}, b"x" * TAGS_BYTES),
        ({"tags": ["a", "x" * TAGS_BYTES]}, b"a"),
    ],
)
def test_forms_of_tags(told: object, expected: bytes | None) -> None:
    """Lists and joined text are the same; what is too long ends before the tag that is."""
    assert joined_tags(told) == expected
