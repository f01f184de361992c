"""Forgetting what was kept long enough."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager import uploads
from elkeid.manager.retention import PAUSE_SECONDS, Retention, Rule
from elkeid.manager.store.store import StoreBusy
from elkeid.manager.store.uploads import add_upload, upload_names

from .deployment import Deployment


class RoundTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.times: list[Any] = []  # what `now` does, in place of telling the time
        self.told = 0  # times that it did
        self.asked: list[tuple[str, float]] = []
        self.answers: dict[str, list[Any]] = {}
        rules = [Rule(name, 100.0, self.forgetter(name)) for name in ("a", "b")]
        self.retention = Retention(self.clock, self.now, rules)
        self.retention.start()

    async def now(self) -> float:
        """The time by which things are old."""
        self.told += 1
        if self.times:
            raise self.times.pop(0)
        return 1000 + self.clock.seconds()

    def forgetter(self, name: str) -> Any:
        """What forgets some of these, as ``answers`` say."""

        async def forget_some(before: float) -> bool:
            self.asked.append((name, before))
            answer = (self.answers.get(name) or [False]).pop(0)
            if isinstance(answer, Exception):
                raise answer
            return bool(await answer) if isinstance(answer, Deferred) else answer

        return forget_some

    def stop(self) -> "Deferred[None]":
        """Stop it; no timer is left."""
        stopped = Deferred.fromCoroutine(self.retention.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return stopped

    def test_goes_on_until_nothing_is_left(self) -> None:
        """Each rule is asked again while it says that there is more, every ten minutes."""
        self.answers = {"a": [True, True, False]}
        self.clock.advance(PAUSE_SECONDS)
        self.assertEqual(self.asked, [("a", 1500.0)] * 3 + [("b", 1500.0)])
        self.clock.advance(PAUSE_SECONDS)
        self.assertEqual(self.asked[4:], [("a", 2100.0), ("b", 2100.0)])
        self.assertEqual(self.told, 2)
        self.successResultOf(self.stop())

    def test_nobody_knows_the_time(self) -> None:
        """Nothing is forgotten in that round, and all in the next one."""
        self.times = [StoreBusy("too much"), ValueError("bug")]
        for rounds in (1, 2):
            self.clock.advance(PAUSE_SECONDS)
            self.assertEqual((self.told, self.asked), (rounds, []))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.clock.advance(PAUSE_SECONDS)
        self.assertEqual(self.asked, [("a", 2700.0), ("b", 2700.0)])
        self.successResultOf(self.stop())

    def test_failures_stop_nothing(self) -> None:
        """A database that is away, and a bug, cost that rule its round alone."""
        self.answers = {"a": [StoreBusy("too much"), ValueError("bug")]}
        for _ in range(3):
            self.clock.advance(PAUSE_SECONDS)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual([name for name, _ in self.asked], ["a", "b"] * 3)
        self.successResultOf(self.stop())

    def test_stop_waits_for_what_was_begun(self) -> None:
        """A stop in the middle ends after the piece in hand, and nothing more is forgotten."""
        held: Deferred[bool] = Deferred()
        self.answers = {"a": [held]}
        self.clock.advance(PAUSE_SECONDS)
        stopped = self.stop()
        self.assertNoResult(stopped)
        held.callback(True)
        self.successResultOf(stopped)
        self.assertEqual(self.asked, [("a", 1500.0)])


class UploadTests(SynchronousTestCase):
    def test_old_files_go(self) -> None:
        """Files of agents are removed when they are older than the setting says."""
        self.patch(uploads, "FORGOTTEN_AT_ONCE", 2)
        deployment = Deployment(upload_seconds=3600).start()
        self.addCleanup(deployment.end)
        manager, network = deployment.manager, deployment.network
        now = int(network.wall())
        for number, age in enumerate((5000, 4500, 4000, 0)):
            digest = str(number) * 32
            stored = network.run(manager.store.write(add_upload, digest, digest * 2, 3, now - age))
            (manager.uploads.folder / stored.name).write_bytes(b"abc")
        network.advance(PAUSE_SECONDS)
        left = network.run(manager.store.read(upload_names))
        self.assertEqual(left, {stored.name})
        self.assertEqual({each.name for each in manager.uploads.folder.iterdir()}, left)

    def test_names_that_another_manager_removed(self) -> None:
        """Their files go at the second look; one that gets its name in between stays."""
        deployment = Deployment(upload_seconds=3600).start()
        self.addCleanup(deployment.end)
        manager, network = deployment.manager, deployment.network
        folder = manager.uploads.folder
        late = f"upload-{int(network.wall())}-{'b' * 32}.zip"
        for name in ("upload-1-gone.zip", late, "0123.part"):
            (folder / name).write_bytes(b"abc")
        network.advance(PAUSE_SECONDS)
        self.assertEqual(len(list(folder.iterdir())), 3)
        now = int(network.wall() - PAUSE_SECONDS)
        network.run(manager.store.write(add_upload, "b" * 32, "c" * 64, 3, now))
        (folder / "upload-2-new.zip").write_bytes(b"abc")
        network.advance(PAUSE_SECONDS)
        left = {late, "upload-2-new.zip", "0123.part"}
        self.assertEqual({each.name for each in folder.iterdir()}, left)
