"""Tags of hosts, as the two generations of the API change and show them.

Source: docs/protocol.md, "Manager API", "Tags".
"""

from typing import Annotated

import msgspec

from elkeid.manager.codes import EXCEED_LIMIT
from elkeid.manager.filter import EVERYTHING, VALUE_LIMIT, FilterBody, IsIn, Path, Some, Test, parse
from elkeid.manager.hosts import Hosts, adding, removing, replacing
from elkeid.manager.roles import AGENT_READERS, AGENT_WRITERS
from elkeid.manager.selection import NOT_RETIRED, AgentId, HostSelector, selected
from elkeid.manager.store.store import Store
from elkeid.manager.store.tags import TAGS_PER_HOST, Retagged, all_tags, tags_of
from elkeid.web.refusals import CodedRefusal, ParameterInvalid
from elkeid.web.routes import AuthKind, Call, MiB, Routes

LIST_BYTES = 4 * MiB
"""Body with three lists of 10,000 ids and addresses."""

TAG_BYTES = 100
"""Of one tag in UTF-8: all of a host's fit what a gateway writes into its records."""

Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=TAG_BYTES)]
Addresses = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=64)]],
    msgspec.Meta(max_length=VALUE_LIMIT),
]
AgentIds = Annotated[list[AgentId], msgspec.Meta(max_length=VALUE_LIMIT)]


class TagOfList(msgspec.Struct):
    """One tag, and the hosts: by addresses and by ids."""

    tag: Tag
    ipv4_list: Addresses | None = None
    ipv6_list: Addresses | None = None
    id_list: AgentIds | None = None


class TagQuery(msgspec.Struct):
    """Query of ``addTags/filter``; ``all`` says that a filter without rules is meant so: for every
    host that is not retired."""

    tag: Tag
    all: bool = False


class Counted(msgspec.Struct):
    """How many hosts changed."""

    count: int


class AgentIdList(msgspec.Struct):
    """Whose tags."""

    id_list: AgentIds


class TagsOfSelection(HostSelector):
    """Tags, and the hosts."""

    tags: Annotated[list[Tag], msgspec.Meta(max_length=TAGS_PER_HOST)]


def check_tags(tags: list[str], place: str) -> list[str]:
    """Give the tags back if they can be written into records, where commas part them.

    Raises:
        ParameterInvalid: with the place and the reason.
    """
    for tag in tags:
        if "," in tag or not tag.isprintable() or tag != tag.strip():
            raise ParameterInvalid(
                f"{place}: a tag has no comma, no control character, no space at its ends"
            )
        if len(tag.encode("utf-8", "surrogatepass")) > TAG_BYTES:
            raise ParameterInvalid(f"{place}: a tag has at most {TAG_BYTES} bytes")
    if len(set(tags)) < len(tags):
        raise ParameterInvalid(f"{place}: a tag stands there twice")
    return tags


def _listed(body: TagOfList) -> Test:
    """Hosts with one of these ids or addresses."""
    ids = IsIn(Path(("agent_id",)), tuple(body.id_list or ()))
    tests: list[Test] = [ids] if ids.values else []
    for version, addresses in (("ipv4", body.ipv4_list), ("ipv6", body.ipv6_list)):
        if addresses:
            tests += [
                IsIn(Path((f"{net}_{version}",)), tuple(addresses))
                for net in ("intranet", "extranet")
            ]
    return Some(tuple(tests))


def _told(done: Retagged) -> None:
    if done.full:
        raise CodedRefusal(
            EXCEED_LIMIT,
            f"{done.full} hosts would have more than {TAGS_PER_HOST} tags and stay as they are; "
            f"{done.changed} hosts were changed",
        )


class TagRoutes:
    """What operators do with tags.

    Args:
        hosts: whose.
        store: open.
    """

    routes = Routes("/api", auth=AuthKind.TOKEN)

    def __init__(self, hosts: Hosts, store: Store) -> None:
        self._hosts, self._store = hosts, store

    @routes.post(
        "/v1/agent/addTags",
        body=TagOfList,
        limit=LIST_BYTES,
        levels=AGENT_WRITERS,
        answer=None,
        summary="Give a tag to hosts, by addresses and ids",
    )
    async def add(self, call: Call[None, TagOfList]) -> None:
        """Hosts never reported are passed over."""
        tags = check_tags([call.body.tag], "tag")
        _told(await self._hosts.retag(_listed(call.body), adding(tags)))

    @routes.post(
        "/v1/agent/delTags",
        body=TagOfList,
        limit=LIST_BYTES,
        levels=AGENT_WRITERS,
        answer=None,
        summary="Take a tag from hosts, by addresses and ids",
    )
    async def remove(self, call: Call[None, TagOfList]) -> None:
        """Hosts without it are passed over."""
        await self._hosts.retag(_listed(call.body), removing([call.body.tag]))

    @routes.post(
        "/v1/agent/addTags/filter",
        query=TagQuery,
        body=FilterBody | None,
        levels=AGENT_WRITERS,
        answer=Counted,
        summary="Give a tag to the hosts that satisfy a filter",
    )
    async def add_to_filtered(self, call: Call[TagQuery, FilterBody | None]) -> object:
        """How many did not have it before."""
        tags, test = check_tags([call.query.tag], "tag"), parse(call.body)
        if test == EVERYTHING:
            if not call.query.all:
                raise ParameterInvalid(
                    "filter: without rules it means every host; then say all=true"
                )
            test = NOT_RETIRED
        done = await self._hosts.retag(test, adding(tags))
        _told(done)
        return Counted(done.changed)

    @routes.get(
        "/v1/agent/getTags", levels=AGENT_READERS, answer=list[str], summary="List all tags"
    )
    async def list_v1(self, call: Call) -> object:
        """Those that some host has."""
        return await self._store.read(all_tags)

    @routes.post(
        "/v1/agent/getTags",
        body=AgentIdList,
        limit=LIST_BYTES,
        reads=True,
        levels=AGENT_READERS,
        answer=dict[str, str],
        summary="Show the tags of hosts",
    )
    async def show(self, call: Call[None, AgentIdList]) -> object:
        """Joined by commas; hosts never reported are left out."""
        found = await self._store.read(tags_of, call.body.id_list)
        return {agent_id: ",".join(tags) for agent_id, tags in found.items()}

    @routes.get(
        "/v6/asset-center/DescribeTags",
        levels=AGENT_READERS,
        answer=list[str],
        summary="List all tags",
    )
    async def list_v6(self, call: Call) -> object:
        """Those that some host has."""
        return await self._store.read(all_tags)

    @routes.post(
        "/v6/asset-center/AddTags",
        body=TagsOfSelection,
        limit=LIST_BYTES,
        levels=AGENT_WRITERS,
        answer=None,
        summary="Give tags to hosts",
    )
    async def add_selected(self, call: Call[None, TagsOfSelection]) -> None:
        """Beside those that they have."""
        tags = check_tags(call.body.tags, "tags")
        _told(await self._hosts.retag(selected(call.body), adding(tags)))

    @routes.post(
        "/v6/asset-center/UpdateTags",
        body=TagsOfSelection,
        limit=LIST_BYTES,
        levels=AGENT_WRITERS,
        answer=None,
        summary="Set the tags of hosts",
    )
    async def replace_selected(self, call: Call[None, TagsOfSelection]) -> None:
        """Those that they have go; an empty list leaves none."""
        tags = check_tags(call.body.tags, "tags")
        await self._hosts.retag(selected(call.body), replacing(tags))

    @routes.post(
        "/v6/asset-center/DeleteTags",
        body=TagsOfSelection,
        limit=LIST_BYTES,
        levels=AGENT_WRITERS,
        answer=None,
        summary="Take tags from hosts",
    )
    async def remove_selected(self, call: Call[None, TagsOfSelection]) -> None:
        """The others stay."""
        await self._hosts.retag(selected(call.body), removing(call.body.tags))
