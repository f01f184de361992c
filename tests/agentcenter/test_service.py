"""The composed role, on a reactor in memory: what its parts share."""

import datetime
import shutil
import tempfile
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.test import iosim
from twisted.trial.unittest import SynchronousTestCase

from elkeid.agentcenter.api import ENVELOPE
from elkeid.agentcenter.service import AgentCenterRole
from elkeid.config import parse
from elkeid.key_making import make_keys
from elkeid.keys import Keys, check_keys
from elkeid.tls import api_server_options
from elkeid.web.api import Api
from elkeid.web.client import TIMEOUT, Unreachable
from elkeid.web.plain import Liveness
from elkeid.web.site import FaceSite


def fresh_keys() -> Keys:
    """Keys of an authority of their own."""
    return check_keys(Path("keys"), make_keys([], datetime.datetime.now(datetime.UTC)))


class RenewalTests(SynchronousTestCase):
    """Another gateway shows a certificate of a new authority."""

    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        self.reactor: Any = MemoryReactorClock()
        self.before, self.after = fresh_keys(), fresh_keys()
        settings = parse({}, folder)
        self.role = AgentCenterRole(settings, self.before, self.reactor)

    def ask(self) -> "Deferred[Any]":
        """Make a call as for an upload's token; the other gateway has the new keys."""
        url = "https://10.0.0.2:6752/ping"
        asked = Deferred.fromCoroutine(self.role._peer_http.get(url))
        *_, (_host, port, factory, _timeout, _bind) = self.reactor.tcpClients
        self.assertEqual(port, 6752)
        site = FaceSite(Api(ENVELOPE, [Liveness(list)], {}), self.reactor)
        server_factory = TLSMemoryBIOFactory(api_server_options(self.after), False, site)
        server, client = server_factory.buildProtocol(None), factory.buildProtocol(None)
        pump = iosim.connect(
            server,
            iosim.FakeTransport(server, isServer=True),
            client,
            iosim.FakeTransport(client, isServer=False),
        )
        pump.flush()
        self.reactor.advance(TIMEOUT)  # requests are written by a timer of the real reactor
        return asked

    def test_peers_are_asked_by_the_keys_of_now(self) -> None:
        """After a renewal the client that asks about upload tokens trusts the new authority."""
        failure = self.failureResultOf(self.ask(), Unreachable)
        self.assertIn("certificate verify failed", str(failure.value))
        self.role.renew_keys(evolve(self.after, aksk=self.before.aksk))
        failure = self.failureResultOf(self.ask(), Unreachable)
        self.assertIn("no answer within", str(failure.value))  # but shaken hands with
