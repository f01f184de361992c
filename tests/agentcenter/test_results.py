"""Task results reach the Manager: from disk, in order, at least once, whatever happens."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter import kept_results
from elkeid.agentcenter.kept_results import KEPT_FILE, LAST_PAUSE_SECONDS
from elkeid.agentcenter.outbox import ASIDE_FILE, BATCH_ITEMS, FIELD_BYTES, ITEM_BYTES
from elkeid.agentcenter.results import LAST_RETRY_SECONDS, RESULTS_PATH, ResultsOutbox
from elkeid.agentcenter.table import Agent
from elkeid.config import MiB
from elkeid.errors import OperatorError
from elkeid.eventlog import LogReader
from elkeid.eventlog.cursors import READERS_DIRECTORY
from elkeid.eventlog.log import HOUSEKEEPING_SECONDS
from elkeid.wire import item
from elkeid.wire.mqdata import decode, records
from tests.agentcenter.host import Host, batch, make_gateway
from tests.agentcenter.manager import DOWN, Manager, refusal
from tests.eventlog.support import BROKEN, FULL, NOW, Disk, Killed, result_of


class Somebody:
    """A stream that nobody looks at."""

    peer_host = peer_addr = "10.0.0.1"


AGENT = Agent("a1", Somebody(), 0)


def body(token: str, **fields: str) -> bytes:
    return item.encode({"token": token, "status": "succeed", **fields})


class Outbox:
    """An outbox whose thread is instantaneous, on a folder that outlives it."""

    def __init__(
        self,
        directory: Path,
        manager: Manager,
        clock: Clock | None = None,
        disk: Disk | None = None,
    ) -> None:
        if clock is None:
            clock = Clock()
            clock.advance(NOW)
        self.clock, self.disk, self.directory = clock, disk or Disk(), directory
        self.disk.root = directory
        self.box = ResultsOutbox(
            directory,
            cap_bytes=16 * MiB,
            fsync=1.0,
            clock=clock,
            in_thread=execute,
            manager=manager.client,
            wall=clock.seconds,
            files=self.disk,
        )
        result_of(self.box.open())

    def bring(self, *tokens: str, data_type: int = 5100) -> None:
        """An agent brings results, and the turn ends."""
        self.box.results(AGENT, [(data_type, body(token)) for token in tokens])
        self.box.commit()

    def advance(self, seconds: float, step: float = 1.0) -> None:
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step

    def kill(self) -> None:
        """End as by ``kill -9``: the kernel closes the files, nothing else happens."""
        self.box._log._release()
        if self.box._reader is not None:
            self.box._reader.close()
        for call in list(self.clock.getDelayedCalls()):
            call.cancel()


class ResultsTests(SynchronousTestCase):
    """`ResultsOutbox`."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="results"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.taken: list[dict[str, str]] = []
        self.manager = Manager(self.take)

    def take(self, path: str, items: Any) -> Any:
        self.assertEqual(path, RESULTS_PATH)
        self.taken += items
        return None

    def outbox(self) -> Outbox:
        outbox = Outbox(self.directory, self.manager)
        self.addCleanup(lambda: result_of(outbox.box.stop()))
        return outbox

    def tokens(self) -> list[str]:
        return [each["token"] for each in self.taken]

    def test_flat_maps_with_their_data_type(self) -> None:
        """The Manager gets each body's fields and the data type, whatever the agent calls so."""
        outbox = self.outbox()
        outbox.box.results(AGENT, [(8010, body("t1", data_type="7", msg="done"))])
        outbox.advance(1)
        self.assertEqual(
            self.taken,
            [{"token": "t1", "status": "succeed", "data_type": "8010", "msg": "done"}],
        )
        figures = outbox.box.figures()
        self.assertEqual((figures.sent, figures.waiting, figures.retries), (1, 0, 0))

    def test_batches(self) -> None:
        """Results of one moment go out together, a hundred in a call."""
        outbox = self.outbox()
        outbox.bring(*[f"t{number}" for number in range(150)])
        outbox.bring(*[f"t{number}" for number in range(150, 250)])
        outbox.advance(1)
        self.assertEqual([len(items) for _, items in self.manager.asked], [100, 100, 50])
        self.assertEqual(self.tokens(), [f"t{number}" for number in range(250)])

    def test_manager_away(self) -> None:
        """It is asked again and again, ever more seldom, and what came meanwhile follows."""
        outbox = self.outbox()
        self.manager.answer = lambda path, items: DOWN
        outbox.bring("t1")
        outbox.advance(300)
        self.assertTrue(10 < len(self.manager.asked) < 30)
        outbox.bring("t2")
        self.assertEqual(outbox.box.figures().waiting, 2)
        self.manager.answer = self.take
        outbox.advance(LAST_RETRY_SECONDS + 1)
        self.assertEqual(self.tokens(), ["t1", "t2"])

    def test_a_restart_forgets_nothing(self) -> None:
        """What was committed is sent by the next process, also after ``kill -9``."""
        outbox = Outbox(self.directory, self.manager)
        self.manager.answer = lambda path, items: DOWN
        outbox.bring("t1", "t2")
        outbox.advance(3)
        outbox.kill()
        self.manager.answer = self.take
        outbox = self.outbox()
        outbox.advance(1)
        self.assertEqual(self.tokens(), ["t1", "t2"])
        self.assertEqual(outbox.box.figures().sent, 2)

    def test_transient_refusals_are_waited_out(self) -> None:
        """A Manager whose database is away says so by a code: nothing is set aside."""
        outbox = self.outbox()
        self.manager.answer = lambda path, items: refusal(3)
        outbox.bring("t1")
        outbox.advance(60)
        self.assertFalse((self.directory / ASIDE_FILE).exists())
        self.manager.answer = self.take
        outbox.advance(LAST_PAUSE_SECONDS)
        self.assertEqual(self.tokens(), ["t1"])

    def picky(self, path: str, items: Any) -> Any:
        """A Manager that fails with some results, for a reason of its own."""
        if any(each["token"].startswith("bad") for each in items):
            return refusal(3)
        return self.take(path, items)

    def test_what_is_refused_for_ever_holds_up_nobody(self) -> None:
        """Others get past within minutes; those of the same token wait behind it, and all are
        taken in order when the Manager changes its mind, also after a restart.
        """
        outbox = Outbox(self.directory, self.manager)
        self.manager.answer = self.picky
        tokens = [
            f"bad{number % 3}" if number in (3, 4, 9) else f"t{number}" for number in range(9)
        ]
        outbox.bring(*tokens)
        outbox.advance(200)
        self.assertEqual(self.tokens(), [each for each in tokens if each.startswith("t")])
        outbox.box.results(AGENT, [(5100, body("bad0", msg="second")), (5100, body("later"))])
        outbox.box.commit()
        outbox.advance(1)
        self.assertEqual(self.tokens()[-1], "later")
        figures = outbox.box.figures()
        self.assertEqual((figures.kept, figures.waiting, figures.taken_late), (3, 0, 0))
        result_of(outbox.box.stop())
        self.assertEqual(outbox.clock.getDelayedCalls(), [])

        del self.taken[:]
        outbox = self.outbox()
        outbox.advance(1)
        self.assertEqual((self.taken, outbox.box.figures().kept), ([], 3))
        self.manager.answer = self.take
        outbox.advance(LAST_PAUSE_SECONDS)
        self.assertEqual(
            [each.get("msg") for each in self.taken if each["token"] == "bad0"], [None, "second"]
        )
        figures = outbox.box.figures()
        self.assertEqual((figures.kept, figures.taken_late), (0, 3))
        self.assertEqual(len(self.taken), 3)

    def test_kept_aside_and_then_refused_for_good(self) -> None:
        """The Manager's last word counts."""
        outbox = self.outbox()
        self.manager.answer = self.picky
        outbox.bring("bad")
        outbox.advance(60)
        self.manager.answer = lambda path, items: refusal(5, 400)
        outbox.advance(LAST_PAUSE_SECONDS)
        (line,) = (self.directory / ASIDE_FILE).read_text().splitlines()
        self.assertEqual(json.loads(line)["result"]["token"], "bad")
        self.assertEqual(outbox.box.figures().kept, 0)

    def test_only_so_many_are_kept_aside(self) -> None:
        """Beyond, results wait on disk until the Manager takes some; none is lost."""
        self.patch(kept_results, "KEPT_ITEMS", 2)
        outbox = self.outbox()
        self.manager.answer = self.picky
        outbox.bring("bad1", "bad2", "bad1", "bad3", "t1")
        outbox.advance(400)
        figures = outbox.box.figures()
        self.assertEqual((self.taken, figures.kept, figures.waiting), ([], 2, 3))
        self.manager.answer = self.take
        outbox.advance(2 * LAST_PAUSE_SECONDS)
        self.assertEqual(sorted(self.tokens()), ["bad1", "bad1", "bad2", "bad3", "t1"])
        self.assertEqual(outbox.box.figures().kept, 0)

    def test_kept_aside_while_nobody_is_there(self) -> None:
        """With the Manager away they are tried no more often than new ones."""
        outbox = self.outbox()
        self.manager.answer = self.picky
        outbox.bring("bad1", "bad2")
        outbox.advance(200)
        self.manager.answer = lambda path, items: DOWN
        del self.manager.asked[:]
        outbox.advance(300)
        self.assertTrue(1 < len(self.manager.asked) <= 11)

    def test_no_disk_for_those_kept_aside(self) -> None:
        """A start with a file that cannot be opened says so; a damaged one is begun anew."""
        (self.directory / KEPT_FILE).mkdir()
        box = Outbox.__new__(Outbox)
        with self.assertRaisesRegex(OperatorError, "move it away"):
            box.__init__(self.directory, self.manager)  # type: ignore[misc]
        box.kill()
        (self.directory / KEPT_FILE).rmdir()
        (self.directory / KEPT_FILE).write_text("no database")
        self.outbox()
        self.assertTrue((self.directory / (KEPT_FILE + ".damaged")).exists())

    def test_poison_is_found_and_set_aside(self) -> None:
        """Those that the Manager never takes are kept aside with its reason; all others pass."""
        outbox = self.outbox()

        def answer(path: str, items: Any) -> Any:
            if any(each["token"].startswith("bad") for each in items):
                return refusal(5, 400)
            return self.take(path, items)

        self.manager.answer = answer
        tokens = [f"bad{number}" if number in (3, 4, 70) else f"t{number}" for number in range(99)]
        outbox.bring(*tokens)
        outbox.advance(1)
        self.assertEqual(self.tokens(), [each for each in tokens if not each.startswith("bad")])
        figures = outbox.box.figures()
        self.assertEqual((figures.sent, figures.set_aside, figures.waiting), (96, 3, 0))
        lines = (self.directory / ASIDE_FILE).read_text().splitlines()
        aside = [json.loads(line) for line in lines]
        self.assertEqual([each["result"]["token"] for each in aside], ["bad3", "bad4", "bad70"])
        self.assertIn("code 5", aside[0]["reason"])
        self.assertEqual((self.directory / ASIDE_FILE).stat().st_mode & 0o77, 0)

    def test_bodies_that_are_no_item(self) -> None:
        """An empty or unreadable body is counted, and stops nothing."""
        outbox = self.outbox()
        outbox.box.results(AGENT, [(5100, b""), (5100, b"\xff\xff"), (6000, body("t1"))])
        outbox.advance(1)
        self.assertEqual(self.tokens(), ["t1"])
        figures = outbox.box.figures()
        self.assertEqual((figures.unreadable, figures.set_aside, figures.sent), (2, 2, 1))

    def test_a_huge_result_is_shortened(self) -> None:
        """Of a result that no Manager would read, what says how the task ended is sent."""
        outbox = self.outbox()
        outbox.box.results(AGENT, [(5100, body("t1", msg="m" * ITEM_BYTES, more="x"))])
        outbox.advance(1)
        (sent,) = self.taken
        self.assertEqual(set(sent), {"token", "status", "msg", "data_type"})
        self.assertEqual(len(sent["msg"]), FIELD_BYTES)
        self.assertEqual(outbox.box.figures().shortened, 1)

    def test_large_results_share_no_call(self) -> None:
        """A call brings no more than Managers read."""
        outbox = self.outbox()
        text = "m" * (ITEM_BYTES // 2)
        outbox.box.results(AGENT, [(5100, body(f"t{number}", msg=text)) for number in range(3)])
        outbox.advance(1)
        self.assertEqual([len(items) for _, items in self.manager.asked], [1, 1, 1])

    def test_a_stop_waits_for_the_answer_under_way(self) -> None:
        """What the Manager takes while we stop is not sent again by the next process."""
        outbox = Outbox(self.directory, self.manager)
        answer: Deferred[object] = Deferred()
        self.manager.answer = lambda path, items: answer
        outbox.bring("t1")
        outbox.advance(1)
        stopped = Deferred.fromCoroutine(outbox.box.stop())
        self.assertNoResult(stopped)
        answer.callback(None)
        self.successResultOf(stopped)
        self.manager.answer = self.take
        outbox = self.outbox()
        outbox.advance(1)
        self.assertEqual(self.taken, [])

    def test_a_stop_does_not_wait_for_ever(self) -> None:
        """A Manager that is silent or away does not hold a stop; the results stay."""
        for answer in (Deferred[object](), DOWN):
            self.manager.answer = lambda path, items, answer=answer: answer  # type: ignore[misc]
            outbox = Outbox(self.directory, self.manager)
            outbox.bring("t1")
            outbox.advance(1)
            stopped = Deferred.fromCoroutine(outbox.box.stop())
            outbox.clock.advance(1)
            self.successResultOf(stopped)
            self.assertEqual(outbox.clock.getDelayedCalls(), [])
        self.manager.answer = self.take
        outbox = self.outbox()
        outbox.advance(1)
        self.assertEqual(self.tokens(), ["t1", "t1"])

    def test_taken_results_leave_the_disk(self) -> None:
        """What the Manager has is deleted a few minutes later."""
        outbox = self.outbox()
        outbox.bring(*["t"] * BATCH_ITEMS)
        outbox.advance(400, step=5)
        self.assertEqual(list(self.directory.glob("control/*.seg")), [])
        self.assertEqual(len(self.taken), BATCH_ITEMS)

    def test_one_agent_has_its_share(self) -> None:
        """A flood of results of one agent costs no other agent any; what was sent makes room."""
        outbox = self.outbox()
        self.manager.answer = lambda path, items: DOWN
        other = Agent("a2", Somebody(), 0)
        for number in range(20):
            outbox.box.results(AGENT, [(5100, body(f"t{number}", msg="m" * 50_000))])
        outbox.box.results(other, [(5100, body("other"))])
        outbox.advance(1)
        self.assertEqual(outbox.box.figures().dropped, 10)
        self.manager.answer = self.take
        outbox.advance(LAST_RETRY_SECONDS)
        self.assertEqual(self.tokens(), [*[f"t{number}" for number in range(10)], "other"])
        outbox.box.results(AGENT, [(5100, body("later", msg="m" * 500_000))])
        outbox.advance(1)
        self.assertEqual(self.tokens()[-1], "later")
        self.assertEqual(outbox.box._waiting, {})

    def test_the_cap(self) -> None:
        """At the cap the oldest results are given up and counted; the others still arrive."""
        outbox = self.outbox()
        self.manager.answer = lambda path, items: DOWN
        text = "m" * (MiB // 4)
        for number in range(80):
            agent = Agent(f"a{number}", Somebody(), 0)
            outbox.box.results(agent, [(5100, body(f"t{number}", msg=text))])
            outbox.box.commit()
            outbox.advance(11 if number % 8 == 7 else 0)
        figures = outbox.box.figures()
        self.assertGreater(figures.expired, 3)
        self.assertEqual(figures.waiting + figures.expired, 80)
        self.assertLess(figures.bytes_on_disk, 17 * MiB)
        self.manager.answer = self.take
        outbox.advance(2 * LAST_RETRY_SECONDS)
        figures = outbox.box.figures()
        self.assertEqual((figures.waiting, figures.sent + figures.expired), (0, 80))
        tokens = [f"t{number}" for number in range(80)]
        self.assertEqual(self.tokens()[-10:], tokens[-10:])

    def test_a_disk_that_refuses_is_told(self) -> None:
        """When a result cannot be written, the commit says so and it is counted as dropped."""
        outbox = self.outbox()
        outbox.disk.always["writev"] = FULL
        outbox.box.results(AGENT, [(5100, body("t1"))])
        self.assertFalse(outbox.box.commit())
        self.assertTrue(outbox.box.commit())
        outbox.box.results(AGENT, [(5100, body("t2"))])
        outbox.clock.advance(0)  # the turn ends, and writes by itself
        self.assertFalse(outbox.box.commit())
        outbox.disk.always.clear()
        self.assertEqual(outbox.box.figures().dropped, 2)
        (problem,) = outbox.box.problems()
        self.assertIn("task results: control records are dropped", problem)
        outbox.clock.advance(2 * HOUSEKEEPING_SECONDS)
        self.assertEqual(outbox.box.problems(), [])

    def test_results_that_others_gave_up_are_counted(self) -> None:
        """They never came here, and stand in the ledger all the same."""
        outbox = self.outbox()
        outbox.box.refused(3)
        self.assertEqual(outbox.box.figures().dropped, 3)

    def test_progress_that_cannot_be_noted_down_is_said_once(self) -> None:
        """Results go out all the same, and the log is not filled while the disk refuses."""
        outbox = self.outbox()
        places = self.directory / READERS_DIRECTORY
        places.rename(self.directory / "away")
        places.touch()  # a folder that is missing would be made
        with capturedLogs() as events:
            outbox.bring(*[f"t{number}" for number in range(350)])
            outbox.advance(1)
        self.assertEqual(len(self.tokens()), 350)
        said = [formatEvent(each) for each in events if "ResultsOutbox" in each["log_namespace"]]
        self.assertEqual(len(said), 1, said)
        self.assertIn("Not a directory", said[0])
        places.unlink()
        (self.directory / "away").rename(places)
        outbox.bring("last")
        outbox.advance(1)
        self.assertEqual(outbox.box.figures().waiting, 0)

    def test_a_disk_that_cannot_be_read_is_tried_again(self) -> None:
        """The sending goes on when the disk does."""
        outbox = self.outbox()
        reader = outbox.box._reader
        assert reader is not None
        inner, reader._reader = reader._reader, None  # type: ignore[assignment]
        outbox.bring("t1")
        outbox.advance(1)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)
        reader._reader = inner
        outbox.advance(LAST_RETRY_SECONDS)
        self.assertEqual(self.tokens(), ["t1"])


class GatewayTests(SynchronousTestCase):
    """Results between an agent's stream and the outbox."""

    def test_on_disk_before_the_end_is_told(self) -> None:
        """OK after a half-close means that the results are on disk, too."""
        directory = Path(tempfile.mkdtemp(prefix="results"))
        self.addCleanup(shutil.rmtree, directory)
        gateway, log, _ = make_gateway()
        outbox = Outbox(directory, Manager(lambda path, items: DOWN))
        self.addCleanup(lambda: result_of(outbox.box.stop()))
        log.before_commit = outbox.box.commit
        gateway.follow(outbox.box)
        host = Host(gateway)
        stream = host.open()
        host.send(stream, batch("a1", 5100, 59, 8010, token="t1"))
        host.client.half_close(stream)
        host.pump()
        ended = host.ended(stream)
        assert ended is not None
        self.assertEqual(ended.status, 0)
        with LogReader(directory) as reader:
            found = [
                decode(record + entry.suffix)
                for entry in reader.entries()
                for record in records(entry.region)
            ]
        self.assertEqual(
            [(each.agent_id, each.data_type) for each in found], [("a1", 5100), ("a1", 8010)]
        )

    def test_a_result_that_was_not_written_is_no_success(self) -> None:
        """The agent is told that something was lost."""
        gateway, log, _ = make_gateway()
        log.before_commit = lambda: False
        host = Host(gateway)
        stream = host.open()
        host.send(stream, batch("a1", 5100))
        host.client.half_close(stream)
        host.pump()
        ended = host.ended(stream)
        assert ended is not None
        self.assertEqual(ended.status, 15)


FATES = st.sampled_from([FULL, BROKEN, ("short", 30), "kill", ("kill", 40), ("kill", 4000)])


class OutboxMachine(RuleBasedStateMachine):
    """The model: what is on disk, what the Manager has, in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="results"))
        self.clock = Clock()
        self.clock.advance(NOW)
        self.mode = "up"
        self.taken: list[int] = []
        self.stored: list[int] = []
        self.buffered: list[int] = []
        self.perhaps: set[int] = set()  # the process died while they were written
        self.number = 0
        self.manager = Manager(self.answer)
        self.outbox: Outbox | None = None

    def answer(self, path: str, items: Any) -> Any:
        if self.mode == "down":
            return DOWN
        if self.mode == "busy":
            return refusal(3)
        numbers = [int(each["msg"]) for each in items]
        if self.mode == "picky" and any(number % 5 == 0 for number in numbers):
            return refusal(3)
        if any(number % 7 == 0 for number in numbers):
            return refusal(5)
        self.taken += numbers
        return DOWN if self.mode == "answers are lost" else None

    @initialize()
    def start(self) -> None:
        self.outbox = Outbox(self.directory, self.manager, self.clock)

    @precondition(lambda self: self.outbox is None)
    @rule()
    def restart(self) -> None:
        self.start()

    @rule(mode=st.sampled_from(["up", "up", "down", "busy", "picky", "answers are lost"]))
    def change(self, mode: str) -> None:
        self.mode = mode

    @precondition(lambda self: self.outbox is not None)
    @rule(count=st.integers(1, 12))
    def bring(self, count: int) -> None:
        assert self.outbox is not None
        numbers = list(range(self.number + 1, self.number + count + 1))
        self.number += count
        self.outbox.box.results(
            AGENT, [(5100, body(f"t{number % 8}", msg=str(number))) for number in numbers]
        )
        self.buffered += numbers

    @precondition(lambda self: self.outbox is not None)
    @rule(fates=st.lists(FATES, max_size=2))
    def commit(self, fates: list[Any]) -> None:
        assert self.outbox is not None
        numbers, self.buffered = self.buffered, []
        if not numbers:
            return
        self.outbox.disk.failures["writev"] = list(fates)
        try:
            if self.outbox.box.commit():
                self.stored += numbers
        except Killed:
            self.perhaps.update(numbers)
            self.kill()
        else:
            self.outbox.disk.failures.clear()

    @precondition(lambda self: self.outbox is not None and not self.buffered)
    @rule(seconds=st.sampled_from([0.3, 2.0, 40.0]))
    def wait(self, seconds: float) -> None:
        assert self.outbox is not None
        self.outbox.advance(seconds)

    @precondition(lambda self: self.outbox is not None)
    @rule()
    def kill(self) -> None:
        assert self.outbox is not None
        self.outbox.kill()
        self.outbox, self.buffered = None, []

    @precondition(lambda self: self.outbox is not None and not self.buffered)
    @rule()
    def stop(self) -> None:
        assert self.outbox is not None
        result_of(self.outbox.box.stop())
        self.outbox = None

    def teardown(self) -> None:
        """In the end the Manager has everything that was on disk, in order per token, and no
        poison.
        """
        try:
            if self.outbox is None:
                self.start()
            assert self.outbox is not None
            self.commit([])
            self.mode = "up"
            self.outbox.advance(2 * LAST_PAUSE_SECONDS, step=5)
            figures = self.outbox.box.figures()
            result_of(self.outbox.box.stop())
            first = list(dict.fromkeys(self.taken))
            for token in range(8):
                of_token = [number for number in first if number % 8 == token]
                assert of_token == sorted(of_token)
            expected = {number for number in self.stored if number % 7}
            assert expected <= set(first) <= expected | self.perhaps
            assert figures.waiting == figures.expired == 0
            assert figures.kept == 0
        finally:
            shutil.rmtree(self.directory)


OutboxMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
OutboxMachineTests = OutboxMachine.TestCase
