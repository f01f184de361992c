"""An AgentCenter's HTTP API and agents behind it that answer, as a process of its own.

    python -m tests.integration.standin_gateway FOLDER PORT DISCOVERY AGENTS SEED MANAGER...

FOLDER is that of the settings, with the keys; DISCOVERY and MANAGER are ports of loopback. Every
command that it takes is a line in FOLDER/commands before it is answered: unix seconds, agent,
token. Results go to any Manager that takes them: some late, some twice.
"""

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater

from elkeid import config
from elkeid.discovery.client import DiscoveryClient
from elkeid.keys import load_keys
from elkeid.tls import api_server_options
from elkeid.web.answers import Answer, CodeEnvelope, Enveloped
from elkeid.web.api import Api
from elkeid.web.client import CallFailed, Credentials, JsonClient, http_agent
from elkeid.web.refusals import AuthenticationFailed
from elkeid.web.routes import AuthKind, Call, Routes
from elkeid.web.signed import SignatureCheck
from elkeid.web.site import FaceSite, listen

reactor: Any = global_reactor
PART = 1_000  # agents in one answer
BEAT_SECONDS = 240.0  # agents report anew
SEND_SECONDS = 0.04  # at most, before a command is taken, and again before it is answered
FLUSH_SECONDS = 0.1  # results of so long go together
BATCH = 500  # results of one call


def absent_at_first(number: int) -> bool:
    """Whether an agent's first command finds it away."""
    return number % 50 == 3


def fails(number: int) -> bool:
    """Whether an agent answers that it failed."""
    return number % 20 == 7


class Since(msgspec.Struct):
    """Query of ``/conn/stat``."""

    since: str = ""


class Command(msgspec.Struct):
    """Body of ``/command/``."""

    agent_id: str
    command: dict[str, Any]


class Gateway:
    """Its routes.

    Args:
        log: where commands are written down.
        agents: how many it has.
        managers: ports.
        http: signs.
        chance: decides what happens.
    """

    routes = Routes(auth=AuthKind.SIGNED)

    def __init__(
        self,
        log: Path,
        agents: int,
        managers: Sequence[int],
        http: JsonClient,
        chance: random.Random,
    ) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._agents, self._managers, self._http = agents, managers, http
        self._chance, self._began = chance, time.time()
        self._refused: set[str] = set()  # who was away once
        self._results: list[dict[str, str]] = []
        self._flushing = LoopingCall(lambda: Deferred.fromCoroutine(self._flush()))

    def start(self) -> None:
        """Bring results from now on."""
        self._flushing.start(FLUSH_SECONDS)

    @routes.get("/conn/stat", query=Since, summary="as told")
    async def stat(self, call: Call[Since]) -> object:
        """The next agents that were not told since the cursor; now and then all anew."""
        now = time.time()
        round_ = str(int((now - self._began) // BEAT_SECONDS))
        known, _, place = call.query.since.partition("-")
        first = int(place) if known == round_ else 0
        upto = min(first + PART, self._agents)
        return Enveloped(
            [self._status(number, now) for number in range(first, upto)],
            {
                "cursor": f"{round_}-{upto}",
                "gone": [],
                "complete": not call.query.since,
                "more": upto < self._agents,
            },
        )

    def _status(self, number: int, now: float) -> dict[str, Any]:
        info = {
            "agent_id": f"agent-{number:06}",
            "hostname": f"host-{number:06}",
            "agent_addr": f"127.0.0.1:{1024 + number}",
            "create_at": int(self._began),
            "state": "running",
            "last_heartbeat_time": int(now),
        }
        return {"agent_info": info, "plugins_info": []}

    @routes.post("/command/", body=Command, summary="as told")
    async def command(self, call: Call[None, Command]) -> object:
        """Write it down, and let the agent answer some time."""
        agent_id, token = call.body.agent_id, call.body.command["task"]["token"]
        number = int(agent_id.removeprefix("agent-"))
        if absent_at_first(number) and agent_id not in self._refused:
            self._refused.add(agent_id)
            away = {"code": 3, "msg": "some errors occurred", "data": "agentID not found"}
            return Answer(200, away | {"outcome": "not_connected"})
        await self._moment()
        os.write(self._log, f"{time.time():.3f} {agent_id} {token}\n".encode())
        status = "failed" if fails(number) else "succeed"
        result = {"token": token, "data_type": "5100", "status": status, "msg": agent_id}
        late = self._chance.random() < 0.1
        self._later(self._chance.uniform(1, 4) if late else self._chance.uniform(0, 0.3), result)
        if self._chance.random() < 0.1:
            self._later(self._chance.uniform(0, 4), result)
        await self._moment()
        return Answer(200, {"code": 0, "msg": "success", "data": None})

    async def _moment(self) -> None:
        await deferLater(reactor, self._chance.uniform(0, SEND_SECONDS))

    def _later(self, seconds: float, result: dict[str, str]) -> None:
        reactor.callLater(seconds, self._results.append, result)

    async def _flush(self) -> None:
        while self._results:
            some = self._results[:BATCH]
            port = self._chance.choice(self._managers)
            url = f"http://127.0.0.1:{port}/api/v1/agent/updateSubTask"
            try:
                answer = (await self._http.post(url, some)).decode(dict[str, Any])
            except CallFailed:
                return  # kept, for any of them
            if answer["code"]:
                return
            assert "refused" not in answer, answer
            del self._results[: len(some)]


def main() -> None:
    """Serve until killed."""
    folder, port, discovery = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    agents, seed, *managers = map(int, sys.argv[4:])
    keys = load_keys(config.parse({}, folder), ["ac"])
    http = JsonClient(reactor, http_agent(reactor), time.time, Credentials(*keys.signing_pair))
    gateway = Gateway(folder / "commands", agents, managers, http, random.Random(seed))
    api = Api(
        CodeEnvelope({0: "success"}, {AuthenticationFailed: 1}, 3),
        [gateway],
        {AuthKind.SIGNED: SignatureCheck(keys.aksk, time.time)},
    )
    options = api_server_options(keys)
    listen(reactor, FaceSite(api, reactor), "127.0.0.1", port, setting="PORT", tls=options)
    client = DiscoveryClient(reactor, http, [f"127.0.0.1:{discovery}"])
    client.register("hids_svr_http", "127.0.0.1", port, lambda: (agents, None))
    gateway.start()
    print("ready: stand-in gateway", flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
