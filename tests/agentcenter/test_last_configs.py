"""What hosts were sent last: kept on disk, told to peers, and the newest found among them."""

import json
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.config_store import (
    FLUSH_SECONDS,
    KEEP_SECONDS,
    PURGE_SECONDS,
    RETRY_SECONDS,
    ConfigStore,
    Delivered,
)
from elkeid.agentcenter.configs import Config, Entry, config_of
from elkeid.agentcenter.last_configs import (
    BATCH,
    GATHER_SECONDS,
    PEER_SECONDS,
    REST_SECONDS,
    SEARCH_SECONDS,
    LastConfigRoutes,
    LastConfigs,
    Peers,
)
from elkeid.agentcenter.refresh_api import RefreshRoutes
from elkeid.errors import OperatorError
from elkeid.web.client import CallFailed, Reply, Unreachable
from tests.agentcenter.face import Face

NOW = 1_700_000_000.0


def plugins(**versions: str) -> Config:
    return config_of([Entry(name=name, version=version) for name, version in versions.items()])


def folder(test: SynchronousTestCase) -> Path:
    """A folder that goes with the test."""
    path = Path(mkdtemp())
    test.addCleanup(rmtree, path)
    return path


class Shelf:
    """A store on a real file, its thread being this one."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path
        self.present: list[str] = []
        self.broken = False
        self.store = ConfigStore(path, self.clock, self.in_thread, self.wall, lambda: self.present)

    def wall(self) -> float:
        return NOW + self.clock.seconds()

    def in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        if self.broken:
            function = self.full
        return maybeDeferred(function, *args)

    def full(self, *args: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")


class StoreTests(SynchronousTestCase):
    """`ConfigStore`."""

    def setUp(self) -> None:
        self.path = folder(self) / "last-configs.db"
        self.shelf = self.open()

    def open(self) -> Shelf:
        shelf = Shelf(self.path)
        self.successResultOf(Deferred.fromCoroutine(shelf.store.open()))
        return shelf

    def reopen(self) -> None:
        self.close()
        self.shelf = self.open()

    def close(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.shelf.store.close()))
        self.assertEqual(self.shelf.clock.getDelayedCalls(), [])

    def save(self, agent_id: str, config: Config, at: float = NOW) -> None:
        self.shelf.store.save(agent_id, Delivered(config, at))

    def get(self, *agent_ids: str) -> dict[str, tuple[dict[str, str], float]]:
        found = self.successResultOf(Deferred.fromCoroutine(self.shelf.store.get(agent_ids)))
        return {agent_id: (each.config.versions, each.at) for agent_id, each in found.items()}

    def test_kept(self) -> None:
        """What was delivered is known at once, after it was written, and after a restart."""
        self.save("a1", plugins(driver="1"))
        self.save("a2", plugins(driver="2"))
        known = {"a1": ({"driver": "1"}, NOW), "a2": ({"driver": "2"}, NOW)}
        self.assertEqual(self.get("a1", "a2", "a3"), known)
        self.shelf.clock.advance(FLUSH_SECONDS)
        self.assertEqual(self.get("a1", "a2", "a3"), known)
        self.reopen()
        self.assertEqual(self.get("a1", "a2", "a3"), known)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.close()

    def test_killed(self) -> None:
        """What was written survives the end of the process without a goodbye."""
        self.save("a1", plugins(driver="1"))
        self.shelf.clock.advance(FLUSH_SECONDS)
        self.shelf = self.open()
        self.assertEqual(self.get("a1"), {"a1": ({"driver": "1"}, NOW)})
        self.close()

    def test_written_when_closed(self) -> None:
        """A stop writes what waits."""
        self.save("a1", plugins(driver="1"))
        self.reopen()
        self.assertEqual(self.get("a1"), {"a1": ({"driver": "1"}, NOW)})
        self.close()

    def test_never_older(self) -> None:
        """An older delivery replaces no newer one, neither waiting nor written."""
        self.save("a1", plugins(driver="2"), NOW)
        self.save("a1", plugins(driver="1"), NOW - 1)
        self.assertEqual(self.get("a1"), {"a1": ({"driver": "2"}, NOW)})
        self.shelf.clock.advance(FLUSH_SECONDS)
        self.save("a1", plugins(driver="1"), NOW - 1)
        self.assertEqual(self.get("a1"), {"a1": ({"driver": "2"}, NOW)})
        self.shelf.clock.advance(FLUSH_SECONDS)
        self.assertEqual(self.get("a1"), {"a1": ({"driver": "2"}, NOW)})
        self.save("a1", plugins(driver="3"), NOW + 1)
        self.reopen()
        self.assertEqual(self.get("a1"), {"a1": ({"driver": "3"}, NOW + 1)})
        self.close()

    def test_equal_configs_once(self) -> None:
        """A config that thousands of hosts have is kept once, and goes with the last of them."""
        for number in range(1_000):
            self.save(f"a{number}", plugins(driver="1"))
        self.shelf.clock.advance(FLUSH_SECONDS)
        for number in range(1_000):
            self.save(f"a{number}", plugins(driver="2"))
        self.shelf.clock.advance(FLUSH_SECONDS)
        self.shelf.clock.advance(PURGE_SECONDS)
        self.close()
        with sqlite3.connect(self.path) as database:
            self.assertEqual(database.execute("SELECT count(*) FROM config").fetchone(), (1,))
            self.assertEqual(database.execute("SELECT count(*) FROM delivered").fetchone(), (1000,))
        database.close()

    def test_age(self) -> None:
        """Hosts that were away for long are forgotten; those that are here never."""
        self.save("here", plugins(driver="1"))
        self.save("gone", plugins(driver="1"))
        self.shelf.present = ["here"]
        for _ in range(int(KEEP_SECONDS / PURGE_SECONDS) + 2):
            self.shelf.clock.advance(PURGE_SECONDS)
        self.assertEqual(list(self.get("here", "gone")), ["here"])
        self.close()

    def test_disk_full(self) -> None:
        """What could not be written stays known, and is written later; it is said once."""
        self.shelf.clock.advance(0)  # the first look at what is too old
        self.shelf.broken = True
        self.save("a1", plugins(driver="1"))
        self.shelf.clock.advance(FLUSH_SECONDS)
        self.save("a1", plugins(driver="2"), NOW + 1)
        self.shelf.clock.advance(RETRY_SECONDS)
        self.assertEqual(self.get("a1"), {"a1": ({"driver": "2"}, NOW + 1)})
        self.assertEqual(self.shelf.store.failures, 2)
        self.shelf.broken = False
        self.shelf.clock.advance(RETRY_SECONDS)
        self.assertEqual(self.shelf.store.failures, 2)
        self.reopen()
        self.assertEqual(self.get("a1"), {"a1": ({"driver": "2"}, NOW + 1)})
        self.close()

    def test_damaged(self) -> None:
        """A damaged file is moved aside, and the gateway starts without it."""
        self.close()
        self.path.write_bytes(b"no database at all" * 1_000)
        self.shelf = self.open()
        self.assertEqual(self.get("a1"), {})
        self.assertTrue(self.path.with_name("last-configs.db.damaged").exists())
        self.save("a1", plugins(driver="1"))
        self.reopen()
        self.assertEqual(list(self.get("a1")), ["a1"])
        self.close()

    def test_no_place(self) -> None:
        """A place that cannot be written is told in one sentence."""
        self.close()
        place = self.path.parent / "file"
        place.write_bytes(b"")
        shelf = Shelf(place / "last-configs.db")
        failure = self.failureResultOf(Deferred.fromCoroutine(shelf.store.open()), OperatorError)
        self.assertIn("server.data_dir", str(failure.value))


class OtherCenters:
    """Stands where the HTTP client is; each AgentCenter answers as it is told."""

    def __init__(self) -> None:
        self.answers: dict[str, Reply | CallFailed | None] = {}  # None: silent
        self.asked: list[str] = []
        self.silent: list[tuple[Deferred[Reply], float]] = []

    async def get(self, url: str, *, seconds: float, limit: int) -> Reply:
        self.asked.append(url)
        answer = self.answers[url.split("/")[2]]
        if answer is None:
            waiting: Deferred[Reply] = Deferred()
            self.silent.append((waiting, seconds))
            return await waiting
        if isinstance(answer, CallFailed):
            raise answer
        return answer

    def time_out(self) -> None:
        """The deadline of those that are silent is over."""
        for waiting, seconds in self.silent:
            assert seconds == PEER_SECONDS
            waiting.errback(Unreachable("no answer"))
        self.silent.clear()


class At:
    """An instance as ServiceDiscovery lists it."""

    def __init__(self, ip: str, port: int = 6752) -> None:
        self.ip, self.port = ip, port


class LastConfigsTests(SynchronousTestCase):
    """`LastConfigs`: the store and its peers together."""

    def setUp(self) -> None:
        self.shelf = Shelf(folder(self) / "last-configs.db")
        self.successResultOf(Deferred.fromCoroutine(self.shelf.store.open()))
        self.others = OtherCenters()
        http: Any = self.others
        clock, wall = self.shelf.clock, self.shelf.wall
        self.peers = Peers(clock, http, "10.0.0.1:6752", wall)
        self.peers.changed([At("10.0.0.1"), At("10.0.0.2"), At("fd00::3")])
        self.last = LastConfigs(self.shelf.store, self.peers, clock, wall)
        self.face = Face([LastConfigRoutes(self.shelf.store)], clock)

    def tearDown(self) -> None:
        self.last.stop()
        self.successResultOf(Deferred.fromCoroutine(self.shelf.store.close()))
        self.assertEqual(self.shelf.clock.getDelayedCalls(), [])

    def tells(self, *configs: tuple[str, float, Config], skew: float | None = 0.0) -> Reply:
        """What a real peer with these deliveries answers."""
        shelf = Shelf(folder(self) / "peer.db")
        for agent_id, at, config in configs:
            shelf.store.save(agent_id, Delivered(config, at))
        ids = "&".join(f"agent_id={each[0]}" for each in configs) or "agent_id=x"
        face = Face([LastConfigRoutes(shelf.store)], Clock())
        status, body = face.ask("GET", "/config/last", query=ids)

        return Reply(status, json.dumps(body).encode(), skew)

    def newest(self, agent_id: str = "a1") -> list[dict[str, str] | None]:
        told: list[dict[str, str] | None] = []
        self.last.newest(agent_id).addCallback(
            lambda config: told.append(None if config is None else config.versions)
        )
        self.shelf.clock.advance(GATHER_SECONDS)
        return told

    def test_newest_of_all(self) -> None:
        """Own and peers' deliveries are compared by time; the newest is kept here too."""
        for own, second, third, best in (
            (NOW - 1, NOW - 2, NOW - 3, "own"),
            (NOW - 3, NOW - 1, NOW - 2, "second"),
            (NOW - 3, NOW - 2, NOW - 1, "third"),
            (NOW - 1, NOW - 1, NOW - 1, "own"),
        ):
            agent_id = f"{best}{own}"
            self.shelf.store.save(agent_id, Delivered(plugins(driver="own"), own))
            self.others.answers = {
                "10.0.0.2:6752": self.tells((agent_id, second, plugins(driver="second"))),
                "[fd00::3]:6752": self.tells((agent_id, third, plugins(driver="third"))),
            }
            self.assertEqual(self.newest(agent_id), [{"driver": best}])
            (kept,) = self.successResultOf(
                Deferred.fromCoroutine(self.shelf.store.get([agent_id]))
            ).values()
            self.assertEqual(kept.config.versions, {"driver": best})
            self.assertEqual(kept.at, max(own, second, third))

    def test_only_a_peer_knows(self) -> None:
        """A host that ServiceDiscovery sent here gets what it ran at the peer."""
        self.others.answers = {
            "10.0.0.2:6752": self.tells(),
            "[fd00::3]:6752": self.tells(("a1", NOW - 9, plugins(driver="1"))),
        }
        self.assertEqual(self.newest(), [{"driver": "1"}])
        self.assertEqual(self.others.asked[0], "https://10.0.0.2:6752/config/last?agent_id=a1")
        self.assertEqual(len(self.others.asked), 2)  # and not itself

    def test_nobody_knows(self) -> None:
        """Then there is nothing to send."""
        self.others.answers = {"10.0.0.2:6752": self.tells(), "[fd00::3]:6752": self.tells()}
        self.assertEqual(self.newest(), [None])

    def test_bad_peers(self) -> None:
        """Peers that are down, of upstream's make, or talk nonsense cost nobody anything."""
        self.shelf.store.save("a1", Delivered(plugins(driver="own"), NOW))
        bad: Sequence[Reply | CallFailed] = [
            Unreachable("refused"),
            Reply(404, b"404 page not found", None),
            Reply(200, b"[]", None),
            Reply(200, b'{"code":3,"data":"x"}', None),
            Reply(200, b'{"code":0,"data":null}', None),
            Reply(
                200,
                b'{"code":0,"data":[{"agent_id":"a1","delivered_at":9e9,"config":[{}]}]}',
                None,
            ),
            self.tells(("other", NOW + 5, plugins(driver="other"))),
        ]
        for answer in bad:
            self.others.answers = dict.fromkeys(("10.0.0.2:6752", "[fd00::3]:6752"), answer)
            self.assertEqual(self.newest(), [{"driver": "own"}], answer)
            self.shelf.clock.advance(REST_SECONDS)
        self.assertEqual(self.peers.failures, 2 * 4)

    def test_empty_config_of_a_peer(self) -> None:
        """It takes the place of what is known here only where the peer says that it is meant."""
        self.shelf.store.save("a1", Delivered(plugins(driver="own"), NOW - 60))
        entry = {"agent_id": "a1", "delivered_at": NOW, "config": []}
        for more, expected in (({}, {"driver": "own"}), ({"allow_empty": True}, {})):
            answer = Reply(200, json.dumps({"code": 0, "data": [entry | more]}).encode(), None)
            self.others.answers = {"10.0.0.2:6752": answer, "[fd00::3]:6752": self.tells()}
            self.assertEqual(self.newest(), [expected])

    def test_silent_peer(self) -> None:
        """One that does not answer costs 2 s once; then it is left alone for a while."""
        self.shelf.store.save("a1", Delivered(plugins(driver="own"), NOW))
        self.others.answers = {"10.0.0.2:6752": None, "[fd00::3]:6752": self.tells()}
        told = self.newest()
        self.assertEqual(told, [])
        self.others.time_out()
        self.assertEqual(told, [{"driver": "own"}])
        self.assertEqual(self.newest(), [{"driver": "own"}])
        self.shelf.clock.advance(REST_SECONDS)
        self.assertEqual(self.newest(), [])
        self.others.time_out()

    def test_clocks(self) -> None:
        """A peer whose clock is ahead does not make an old config newer than ours."""
        self.shelf.store.save("a1", Delivered(plugins(driver="own"), NOW - 60))
        ahead = self.tells(("a1", NOW + 3_500, plugins(driver="old")), skew=3_600.0)
        self.others.answers = {"10.0.0.2:6752": ahead, "[fd00::3]:6752": self.tells()}
        self.assertEqual(self.newest(), [{"driver": "own"}])

    def test_asked_for_together(self) -> None:
        """A fleet that comes back at once costs a few questions, not one for each host."""
        self.others.answers = {"10.0.0.2:6752": self.tells(), "[fd00::3]:6752": self.tells()}
        told: list[object] = []
        for number in range(10 * BATCH):
            self.last.newest(f"a{number}").addCallback(told.append)
        for _ in range(3):
            self.shelf.clock.advance(GATHER_SECONDS)
        self.assertEqual(told, [None] * 10 * BATCH)
        self.assertEqual(len(self.others.asked), 2 * 10)

    def test_delivered(self) -> None:
        """What was delivered is the newest, and peers are told so."""
        self.last.delivered("a1", plugins(driver="1"))
        self.last.delivered("a2", config_of([]))
        status, body = self.face.ask(
            "GET", "/config/last", query="agent_id=a1&agent_id=a2&agent_id=a3"
        )
        self.assertEqual((status, body["code"]), (200, 0))
        told = {each["agent_id"]: each for each in body["data"]}
        self.assertEqual(set(told), {"a1", "a2"})
        self.assertEqual(told["a1"]["delivered_at"], NOW)
        self.assertEqual(told["a1"]["config"][0]["name"], "driver")
        self.assertEqual(told["a2"]["config"], [])
        self.assertEqual([told[name]["allow_empty"] for name in ("a1", "a2")], [False, True])

    def test_large_configs(self) -> None:
        """Configs that have no room in one answer are asked for again, until all are told."""
        shelf = Shelf(folder(self) / "peer.db")
        ids = [f"a{number}" for number in range(7)]
        for agent_id in ids:
            config = config_of([Entry(name=agent_id, version="1", detail="x" * (3 << 20))])
            shelf.store.save(agent_id, Delivered(config, NOW))
        face = Face([LastConfigRoutes(shelf.store)], Clock())
        sizes = []

        async def get(url: str, *, seconds: float, limit: int) -> Reply:
            status, body = face.ask("GET", "/config/last", query=url.partition("?")[2])
            sizes.append(len(body["data"]))
            return Reply(status, json.dumps(body).encode(), None)

        self.others.get = get  # type: ignore[method-assign]
        self.peers.changed([At("10.0.0.2")])
        found = self.successResultOf(Deferred.fromCoroutine(self.peers.ask(ids)))
        self.assertEqual(sorted(found), ids)
        self.assertEqual(sizes, [3, 3, 1])

    def test_peer_that_tells_little_in_much_time(self) -> None:
        """Hosts wait no longer than for a search; what came by then is theirs."""
        ids = [f"a{number}" for number in range(BATCH)]

        async def get(url: str, *, seconds: float, limit: int) -> Reply:
            asked = [each.partition("=")[2] for each in url.partition("?")[2].split("&")]
            self.shelf.clock.advance(seconds * 0.9)
            entry = {"agent_id": asked[0], "delivered_at": NOW, "config": [{"name": "driver"}]}
            answer = {"code": 0, "data": [entry, entry | {"agent_id": "b"}], "more": asked}
            return Reply(200, json.dumps(answer).encode(), None)

        self.others.get = get  # type: ignore[method-assign]
        self.peers.changed([At("10.0.0.2")])
        found = self.successResultOf(Deferred.fromCoroutine(self.peers.ask(ids)))
        self.assertLessEqual(self.shelf.clock.seconds(), SEARCH_SECONDS)
        self.assertTrue(2 <= len(found) < BATCH, len(found))
        self.assertLessEqual(set(found), set(ids))

    def test_refusals(self) -> None:
        """Peers are told nothing without a signature, an id, or about too many."""
        asked = {"agent_id=a1": 403, "": 400, "agent_id=a&" * (BATCH + 1) + "agent_id=b": 200}
        for query, expected in asked.items():
            status, _ = self.face.ask("GET", "/config/last", query=query, signed=expected != 403)
            self.assertEqual(status, expected)
        many = "&".join(f"agent_id=a{n}" for n in range(BATCH + 1))
        status, body = self.face.ask("GET", "/config/last", query=many)
        self.assertEqual((status, body["code"]), (400, 2))


class RefreshTests(SynchronousTestCase):
    """``POST /config/refresh`` and ``/tags/refresh``."""

    def test_asked(self) -> None:
        """Some or all; all must be said."""
        for what in ("config", "tags"):
            asked: dict[str, list[list[str] | None]] = {"config": [], "tags": []}

            def refresh(kind: str, ids: Any, asked: Any = asked) -> int:
                asked[kind].append(ids)
                return 7

            routes = RefreshRoutes(partial(refresh, "config"), partial(refresh, "tags"))
            face = Face([routes], Clock())
            path = f"/{what}/refresh"
            for body in ({"agent_ids": ["a1"]}, {"agent_ids": None}, {"agent_ids": []}):
                status, answer = face.ask("POST", path, body)
                self.assertEqual((status, answer["code"], answer["data"]), (200, 0, {"count": 7}))
            for bad in ({}, {"agent_ids": "a1"}, {"agent_ids": [1]}):
                status, answer = face.ask("POST", path, bad)
                self.assertEqual((status, answer["code"]), (400, 2))
            status, _ = face.ask("POST", path, {"agent_ids": None}, signed=False)
            self.assertEqual(status, 403)
            told = {"config": [], "tags": []} | {what: [["a1"], None, []]}
            self.assertEqual(asked, told)
