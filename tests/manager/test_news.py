"""Gateways are told of news, each until it has heard."""

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from elkeid.manager.news import CONFIG_PATH, IDS_LIMIT, TRIES, News
from elkeid.web.client import CallFailed, Reply, Unreachable


class At:
    """A gateway as ServiceDiscovery lists it."""

    def __init__(self, ip: str, port: int = 6752) -> None:
        self.ip, self.port = ip, port


class Gateways:
    """Stands where the HTTP client is."""

    def __init__(self) -> None:
        self.answers: dict[str, Reply | CallFailed | Deferred[Reply]] = {}
        self.told: list[str] = []
        self.bodies: list[object] = []

    async def post(self, url: str, body: object, *, seconds: float) -> Reply:
        assert url.endswith("/config/refresh")
        self.bodies.append(body)
        name = url.split("/")[2]
        self.told.append(name)
        answer = self.answers.get(name, Reply(200, b'{"code":0}', None))
        if isinstance(answer, CallFailed):
            raise answer
        return answer if isinstance(answer, Reply) else await answer


class NewsTests(SynchronousTestCase):
    """`News`."""

    def setUp(self) -> None:
        self.clock, self.gateways = Clock(), Gateways()
        self.news = News(self.clock, self.gateways, CONFIG_PATH)
        self.news.changed([At("10.0.0.1"), At("fd00::2")])

    def tearDown(self) -> None:
        self.news.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds * 2) + 1):
            self.clock.advance(0.5)

    def test_told(self) -> None:
        """Everyone that is listed is told, once."""
        self.news.announce()
        self.advance(100)
        self.assertEqual(sorted(self.gateways.told), ["10.0.0.1:6752", "[fd00::2]:6752"])

    def test_tried_again(self) -> None:
        """One that is not reached, or fails, is told later, and holds up nobody."""
        self.gateways.answers["10.0.0.1:6752"] = Unreachable("down")
        self.news.announce()
        self.advance(5)
        self.gateways.answers["10.0.0.1:6752"] = Reply(503, b"", None)
        self.advance(60)
        self.assertEqual(self.gateways.told.count("[fd00::2]:6752"), 1)
        self.assertGreater(self.gateways.told.count("10.0.0.1:6752"), 4)
        del self.gateways.answers["10.0.0.1:6752"]
        self.advance(31)
        count = len(self.gateways.told)
        self.advance(100)
        self.assertEqual(len(self.gateways.told), count)

    def test_listed_just_after(self) -> None:
        """A gateway that is listed soon after news is told it; later ones ask by themselves."""
        self.news.announce(["a1"])
        self.advance(20)
        self.news.announce(["a2"])
        self.advance(20)
        self.gateways.told.clear()
        self.gateways.bodies.clear()
        self.news.changed([At("10.0.0.1"), At("10.0.0.3")])
        self.advance(1)
        self.assertEqual(self.gateways.told, ["10.0.0.3:6752"])
        self.assertEqual(self.gateways.bodies, [{"agent_ids": ["a1", "a2"]}])
        self.advance(60)
        self.news.changed([At("10.0.0.1"), At("10.0.0.4")])
        self.advance(1)
        self.assertEqual(len(self.gateways.told), 1)

    def test_given_up(self) -> None:
        """One that leaves, or is never reached, is not told for ever."""
        self.gateways.answers["10.0.0.1:6752"] = Unreachable("down")
        self.gateways.answers["[fd00::2]:6752"] = Unreachable("down")
        self.news.announce()
        self.advance(10)
        self.news.changed([At("10.0.0.1")])
        self.advance(3_600)
        self.assertEqual(self.gateways.told.count("10.0.0.1:6752"), TRIES)
        self.assertLess(self.gateways.told.count("[fd00::2]:6752"), 6)

    def test_stock_gateway(self) -> None:
        """One without the route is told once."""
        self.gateways.answers["10.0.0.1:6752"] = Reply(404, b"404 page not found", None)
        self.news.announce()
        self.advance(100)
        self.assertEqual(self.gateways.told.count("10.0.0.1:6752"), 1)

    def test_changed_meanwhile(self) -> None:
        """What changes while one is being told is told after it; many changes are one."""
        slow: Deferred[Reply] = Deferred()
        self.gateways.answers["10.0.0.1:6752"] = slow
        self.news.announce()
        self.advance(1)
        for _ in range(5):
            self.news.announce()
        slow.callback(Reply(200, b"", None))
        self.gateways.answers.clear()
        self.advance(10)
        self.assertEqual(self.gateways.told.count("10.0.0.1:6752"), 2)

    def test_named_hosts(self) -> None:
        """Few hosts are named, those that wait together; many are everybody."""
        self.news.changed([At("10.0.0.1")])
        self.gateways.answers["10.0.0.1:6752"] = Unreachable("down")
        self.news.announce(["b"])
        self.advance(0.5)
        self.gateways.answers.clear()
        self.news.announce(["a", "b"])
        self.advance(5)
        self.news.announce([str(number) for number in range(IDS_LIMIT + 1)])
        self.advance(5)
        self.assertEqual(
            self.gateways.bodies,
            [{"agent_ids": ["b"]}, {"agent_ids": ["a", "b"]}, {"agent_ids": None}],
        )

    def test_stop(self) -> None:
        """A stop ends what is under way."""
        self.gateways.answers["10.0.0.1:6752"] = Deferred()
        self.gateways.answers["[fd00::2]:6752"] = Unreachable("down")
        self.news.announce()
        self.advance(1)
        self.news.stop()
