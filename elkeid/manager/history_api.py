"""What hosts did and measured: their events, and the figures that consoles draw.

Source: docs/protocol.md, "Manager API", "History".
"""

import math
from typing import Annotated, Any

import msgspec

from elkeid.manager.codes import DATABASE_ERROR
from elkeid.manager.documents import AGENT_ID_CHARACTERS, TIME_LIMIT
from elkeid.manager.figures import NAMES, Rollup
from elkeid.manager.history import History
from elkeid.manager.pages import ModelPage, PageQuery, model_page
from elkeid.manager.roles import AGENT_READERS, EVERY_USER
from elkeid.manager.store.hosts import HostEvent
from elkeid.web.refusals import CodedRefusal
from elkeid.web.routes import AuthKind, Call, Routes

Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_LIMIT)]

CPU = {"cpu": "cpu"}
MEMORY = {"memory": "rss"}
DISK = {"read": "read_speed", "write": "write_speed"}
DISK_USAGE = {"disk": "du"}
NET = {"upload": "tx_speed", "download": "rx_speed"}


class FigureQuery(msgspec.Struct):
    """Which host, and when."""

    AgentID: Annotated[str, msgspec.Meta(min_length=1, max_length=AGENT_ID_CHARACTERS)]
    StartTime: Time  # unix seconds
    EndTime: Time
    Period: Annotated[int, msgspec.Meta(ge=1, le=TIME_LIMIT)]  # seconds of one point


class DataPoint(msgspec.Struct):
    """The mean of a stretch of time, and between what it lay."""

    Timestamp: int  # when it began
    Value: float
    Min: float
    Max: float


class DataResult(msgspec.Struct):
    """One curve."""

    Name: str
    DataPoints: list[DataPoint]


class FigureAnswer(msgspec.Struct):
    """Curves of a host."""

    StartTime: int
    EndTime: int
    Period: int
    MetricDataResults: list[DataResult]


def _curve(name: str, field: str, rollups: list[Rollup]) -> DataResult:
    place = NAMES.index(field)
    return DataResult(
        name,
        [
            DataPoint(each.began, each.mean[place], each.least[place], each.greatest[place])
            for each in rollups
            if not math.isnan(each.mean[place])
        ],
    )


class MonitorRoutes:
    """Curves of single agents.

    Args:
        history: where the figures are.
    """

    routes = Routes("/api/v6/monitor", auth=AuthKind.TOKEN)

    def __init__(self, history: History) -> None:
        self._history = history

    async def _show(self, asked: FigureQuery, curves: dict[str, str]) -> FigureAnswer:
        found = await self._history.figures(
            asked.AgentID, asked.StartTime, asked.EndTime, asked.Period
        )
        return FigureAnswer(
            asked.StartTime,
            asked.EndTime,
            asked.Period,
            [_curve(name, field, found) for name, field in curves.items()],
        )

    @routes.get(
        "/AgentCpuMetrics",
        query=FigureQuery,
        levels=EVERY_USER,
        answer=FigureAnswer,
        summary="Show what of its host's processors an agent took",
    )
    async def cpu(self, call: Call[FigureQuery]) -> object:
        """A fraction of one machine."""
        return await self._show(call.query, CPU)

    @routes.get(
        "/AgentMemoryMetrics",
        query=FigureQuery,
        levels=EVERY_USER,
        answer=FigureAnswer,
        summary="Show what memory an agent took",
    )
    async def memory(self, call: Call[FigureQuery]) -> object:
        """Bytes."""
        return await self._show(call.query, MEMORY)

    @routes.get(
        "/AgentDiskMetrics",
        query=FigureQuery,
        levels=EVERY_USER,
        answer=FigureAnswer,
        summary="Show what an agent read from disks and wrote to them",
    )
    async def disk(self, call: Call[FigureQuery]) -> object:
        """Bytes a second."""
        return await self._show(call.query, DISK)

    @routes.get(
        "/AgentDiskUsageMetrics",
        query=FigureQuery,
        levels=EVERY_USER,
        answer=FigureAnswer,
        summary="Show what an agent's files take",
    )
    async def disk_usage(self, call: Call[FigureQuery]) -> object:
        """Bytes."""
        return await self._show(call.query, DISK_USAGE)

    @routes.get(
        "/AgentNetMetrics",
        query=FigureQuery,
        levels=EVERY_USER,
        answer=FigureAnswer,
        summary="Show what an agent sent and received",
    )
    async def net(self, call: Call[FigureQuery]) -> object:
        """Bytes a second."""
        return await self._show(call.query, NET)


class HistoryRoutes:
    """Events of single hosts.

    Args:
        history: where they are.
    """

    routes = Routes("/api/v1/agent", auth=AuthKind.TOKEN)

    def __init__(self, history: History) -> None:
        self._history = history

    @routes.get(
        "/getHistory/<string:agent_id>",
        query=PageQuery,
        levels=AGENT_READERS,
        answer=ModelPage,
        summary="List what happened to a host, the latest first",
    )
    async def events(self, call: Call[PageQuery]) -> object:
        """Code 3 for a host never heard of."""
        asked = call.query
        found = await self._history.events(call.parts["agent_id"], asked.offset, asked.page_size)
        if found is None:
            raise CodedRefusal(DATABASE_ERROR, "no host with this id has ever been reported")
        total, events = found
        return model_page(asked, total, [_shown(event) for event in events])


def _shown(event: HostEvent) -> dict[str, Any]:
    return {**event.detail, "number": event.number, "at": event.at, "kind": event.kind}
