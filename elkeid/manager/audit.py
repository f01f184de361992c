"""The audit log as the Manager writes it: every call of a user that changes something.

A call is written down before it is carried out, and what became of it afterwards. What cannot be
written down is not carried out. Calls of AgentCenters are no acts of users: what they bring is
stored with the token of the task that it answers.

Source: docs/protocol.md, "Manager API", "Audit log".
"""

import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import parse_qsl

import msgspec
from attrs import evolve
from sqlalchemy import Connection
from twisted.logger import Logger

from elkeid.config import ManagerSettings
from elkeid.errors import StoreError
from elkeid.manager.store.audit import (
    CALL,
    CHECKPOINT,
    OUTCOME,
    REFUSED,
    Entry,
    Head,
    append,
    remove_before,
)
from elkeid.manager.store.store import Store, StoreBusy
from elkeid.manager.store.users import User
from elkeid.metrics import ManagerMetrics
from elkeid.web.answers import Answer
from elkeid.web.rates import AddressRates
from elkeid.web.refusals import ParameterInvalid
from elkeid.web.routes import AuthKind, Call

P = ParamSpec("P")
T = TypeVar("T")

BODY_CHARACTERS = 4_096
"""Of a request's body, as JSON without secrets; of a longer one the begin and a hash are kept."""

PARSED_BYTES = 256 << 10
"""A longer body is not taken apart for the log; its size and hash are kept."""

OBJECTS = 20
"""Ids of one entry; the body has more of them, or its hash covers them."""

OBJECT_CHARACTERS = 128
NOTE_CHARACTERS = 512
DEPTH = 20
"""Levels of a body that are looked through for secrets; what lies deeper is left out."""

REFUSED_RATE = 1.0
"""Refused calls a second and user that are written down; the others are counted."""

REFUSED_BURST = 60.0

PRUNE_SLICE = 2_000
"""Entries removed in one transaction, some 20 ms."""

SPARE_RATE = 1 / 60
"""Changes a second of a token whose user is at the limit: another token of the user may spend all,
and whoever notices must be able to end it."""

SPARE_BURST = 5.0

_SECRET = re.compile(r"passw|secret|token|otp|captcha|credential|private|kubeconfig", re.IGNORECASE)
_IDS = frozenset(
    {
        *("id", "ids", "id_list", "agent_id", "username", "userNameList", "name", "tag", "tags"),
        *("task_id", "taskID", "task_name", "job_id", "jobID", "component_id", "host"),
    }
)
_HIDDEN = "***"
_encode = msgspec.json.Encoder(order="sorted").encode


class AuditFailed(StoreError):
    """A call could not be written down, so it was not carried out."""


class AuditLog:
    """Writes the log.

    Args:
        store: open.
        wall: seconds since the epoch.
        metrics: counts.
        settings: of the Manager.
        tell: called with every new head.
    """

    log = Logger()

    def __init__(
        self,
        store: Store,
        wall: Callable[[], float],
        metrics: ManagerMetrics,
        *,
        settings: ManagerSettings,
        tell: Callable[[Head], None],
    ) -> None:
        self._store, self._wall, self._metrics = store, wall, metrics
        self._tell = tell
        self._refusals = AddressRates(REFUSED_RATE, REFUSED_BURST, wall)
        self._left_out = 0
        self._changes = AddressRates(settings.change_rate, settings.change_burst, wall)
        self._spare = AddressRates(SPARE_RATE, SPARE_BURST, wall)

    def entry(self, kind: str, **values: Any) -> Entry:
        """An entry of now; texts are made such that every database takes them."""
        values["note"] = clean(values.get("note", ""), NOTE_CHARACTERS)
        return Entry(
            at_ms=int(self._wall() * 1000),
            kind=kind,
            username=clean(values.pop("username", ""), 80),
            peer=clean(values.pop("peer", ""), 64),
            method=clean(values.pop("method", ""), 16),
            path=clean(values.pop("path", ""), 512),
            **values,
        )

    def call_entry(self, kind: str, call: Call, user: User | None, **values: Any) -> Entry:
        """An entry on a request."""
        if user is not None:
            values.update(username=user.username, level=user.level)
        return self.entry(kind, peer=call.peer, method=call.method, path=path_of(call), **values)

    async def write(self, entry: Entry) -> Head:
        """Append an entry; `AuditFailed` if the database does not take it."""
        head, _ = await self._append(entry, _nothing)
        return head

    async def with_effect(
        self,
        entry: Entry,
        query: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Append an entry and run a query in one transaction: both happen, or none.

        Raises:
            AuditFailed: the database does not take it.
        """

        def work(connection: Connection) -> T:
            return query(connection, *args, **kwargs)

        _, result = await self._append(entry, work)
        return result

    async def _append(self, entry: Entry, work: Callable[[Connection], T]) -> tuple[Head, T]:
        def both(connection: Connection) -> tuple[Head, T]:
            head = append(connection, entry)
            return head, work(connection)

        try:
            head, result = await self._store.write(both)
        except StoreError as error:
            self._metrics.audit.labels("failed").inc()
            raise AuditFailed("the audit log cannot be written, so nothing was done") from error
        self._metrics.audit.labels(entry.kind).inc()
        self._tell(head)
        return head, result

    async def before(self, call: Call) -> object:
        """Write down that a user's call is about to be carried out.

        Raises:
            AuditFailed: it must not be carried out.
            StoreBusy: nor may more than so many of one user.
        """
        if call.route is None or call.route.auth is not AuthKind.TOKEN:
            return None
        identity = call.identity
        if not (self._changes.take(str(identity.user.id)) or self._spare.take(identity.token_hash)):
            self._metrics.audit.labels("held_back").inc()
            raise StoreBusy("too many changes by one user (manager.change_rate); try again later")
        objects, body = described(call)
        entry = self.call_entry(CALL, call, call.identity.user, objects=objects, body=body)
        head = await self.write(entry)
        return head.seq, entry

    async def after(self, begun: object, answer: Answer | None) -> None:
        """Write down what became of a call.

        Args:
            begun: what `before` gave.
            answer: what is going to be sent; None if the client left before it was known.
        """
        if not isinstance(begun, tuple):
            return
        seq, entry = begun
        outcome = evolve(entry, at_ms=int(self._wall() * 1000), kind=OUTCOME, of=seq, body="")
        if answer is None:
            outcome = evolve(outcome, objects=(), note="the client left before the answer")
        else:
            body: Any = answer.body if isinstance(answer.body, Mapping) else {}
            code, data = body.get("code"), body.get("data")
            reason = data if code and isinstance(data, str) else ""
            outcome = evolve(
                outcome,
                status=answer.status,
                code=code,
                objects=objects_of(data),
                note=clean(reason, NOTE_CHARACTERS),
            )
        try:
            await self.write(outcome)
        except AuditFailed:
            self.log.error("what became of entry {seq} of the audit log is not in it", seq=seq)

    async def refused(self, call: Call, user: User, status: int, code: int, reason: str) -> None:
        """Write down that a known user was refused; beyond a rate they are only counted."""
        if not self._refusals.take(str(user.id)):
            self._left_out += 1
            self._metrics.audit.labels("left_out").inc()
            return
        if self._left_out:
            reason = f"{reason} (before it {self._left_out} refused calls were left out)"
        entry = self.call_entry(REFUSED, call, user, status=status, code=code, note=reason)
        try:
            await self.write(entry)
        except AuditFailed:
            self.log.error("a refused call of {user} is not in the audit log", user=user.username)
            return
        self._left_out = 0

    async def forget_some(self, before: float) -> bool:
        """Remove the oldest entries, made before a unix time; whether there may be more."""
        checkpoint = self.entry(CHECKPOINT, username="system", note="older entries were removed")
        oldest = int(before * 1000)
        return bool(await self._store.write(remove_before, oldest, PRUNE_SLICE, checkpoint))


def path_of(call: Call) -> str:
    """The path of the route that serves a call, in one spelling however it was sent.

    ``//api/v1/x`` and ``/api/v1/%78`` are found where ``/api/v1/x`` is looked for.
    """
    if call.route is None:
        return call.path.decode("latin-1")
    return call.route.path_with(lambda name: call.parts.get(name, ""))


def _nothing(connection: Connection) -> None:
    """Change nothing else."""


def clean(text: object, limit: int) -> str:
    """A text that every database and every JSON reader takes, of at most ``limit`` characters."""
    plain = str(text)[:limit].encode("utf-8", "replace").decode("utf-8")
    return plain.replace("\0", "\N{REPLACEMENT CHARACTER}")


def described(call: Call) -> tuple[tuple[str, ...], str]:
    """The ids that a request names, and its content without secrets.

    Of a query or a body there is what its schema knows: the rest was ignored, as was all of what
    does not fit the schema.
    """
    shown: dict[str, Any] = {}
    objects = [clean(part, OBJECT_CHARACTERS) for part in call.parts.values()]
    if call.raw_query:
        try:
            pairs = parse_qsl(call.raw_query[:BODY_CHARACTERS].decode("latin-1"), True)
        except ValueError:
            pairs = []
        schema = None if call.route is None else call.route.query
        known = () if schema is None else schema.struct.__struct_encode_fields__
        if query := {name: value for name, value in pairs if name in known}:
            shown["query"] = without_secrets(query)
            objects += objects_of(query)
    if call.spool is not None:
        shown["bytes"] = call.spool.tell()
    elif len(call.raw_body) > PARSED_BYTES:
        shown["bytes"], shown["sha256"] = len(call.raw_body), sha256(call.raw_body).hexdigest()
    elif call.raw_body:
        try:
            body = _known_body(call)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ParameterInvalid):
            shown["bytes"] = len(call.raw_body)
        else:
            shown["body"] = without_secrets(body)
            objects += objects_of(body)
    if not shown:
        return tuple(objects[:OBJECTS]), ""
    text = _encode(shown).decode()
    if len(text) > BODY_CHARACTERS:
        digest = sha256(text.encode()).hexdigest()
        text = f"{text[:BODY_CHARACTERS]}... {len(text)} characters, sha256 {digest}"
    return tuple(objects[:OBJECTS]), clean(text, BODY_CHARACTERS + 200)


def _known_body(call: Call) -> Any:
    schema = None if call.route is None else call.route.body
    if schema is None:
        raise ParameterInvalid("body: of no use")
    schema.decode(call.raw_body)
    return schema.known(msgspec.json.decode(call.raw_body))


def without_secrets(value: Any, depth: int = 0) -> Any:
    """A copy of a decoded JSON value with the values of secret keys hidden."""
    if depth > DEPTH:
        return "..."
    if isinstance(value, dict):
        return {
            key: _HIDDEN if _SECRET.search(key) else without_secrets(each, depth + 1)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(each, depth + 1) for each in value]
    return value


def objects_of(value: Any) -> tuple[str, ...]:
    """The ids at the top of a request or an answer."""
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if not isinstance(value, Mapping):
        return ()
    found: list[str] = []
    for each in _ids(value):
        if len(found) == OBJECTS:
            break
        found.append(clean(each, OBJECT_CHARACTERS))
    return tuple(found)


def _ids(value: Mapping[str, Any]) -> Iterator[object]:
    for key in sorted(_IDS & value.keys()):
        content = value[key]
        for each in content if isinstance(content, list) else [content]:
            if isinstance(each, str | int) and each != "":
                yield each
