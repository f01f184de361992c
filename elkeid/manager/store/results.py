"""Queries on task tokens and the results that come back. They take a connection and block.

Results arrive at least once; what is stored is each content of each token once. The subtask that
a result ends does so in the same transaction.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Self

import msgspec
from attrs import define
from sqlalchemy import Connection, func, insert, select

from elkeid.manager.documents import MalformedItem, canonical, text_of
from elkeid.manager.store.bulk import by_keys, is_among, matching, sliced
from elkeid.manager.store.schema import subtask, task_result, task_token
from elkeid.manager.store.task_rows import (
    CREATED,
    RESULT_FAILED,
    RESULT_SUCCEED,
    RUNNING,
    SUCCEED,
    LockedTask,
    lock_task,
)

TOKEN_CHARACTERS = 20
"""As many as the tokens that AgentCenters and agents of upstream know."""

TOKEN_LIMIT = 64
"""Characters of a token that is looked up; a longer one is none of ours."""

RESULTS_PER_TOKEN = 10_000
"""Different results of one token; a scan that reports each finding has hundreds."""

ENDING_TYPES = frozenset({"5100", "6000", "8010"})
"""Data types of results that end a subtask even if they have no status; upstream's own choice."""

_ALPHABET = "0123456789abcdefghijklmnopqrstuv"
"""Five bits a character: 100 random bits in a token, which nobody guesses."""


@define
class Outcome:
    """What became of a batch of results."""

    stored: int = 0
    repeated: int = 0  # known already, by token and content
    unknown_token: int = 0
    without_token: int = 0
    surplus: int = 0  # beyond `RESULTS_PER_TOKEN`
    malformed: int = 0  # no JSON object

    def __iadd__(self, other: Self) -> Self:
        """Sum up."""
        self.stored += other.stored
        self.repeated += other.repeated
        self.unknown_token += other.unknown_token
        self.without_token += other.without_token
        self.surplus += other.surplus
        self.malformed += other.malformed
        return self


def new_token() -> str:
    """A token that nobody can guess, in the form that every AgentCenter takes."""
    # One letter from the low bits of each byte: 32 letters, so that each is as likely.
    return "".join([_ALPHABET[byte & 31] for byte in secrets.token_bytes(TOKEN_CHARACTERS)])


def issue_tokens(connection: Connection, agent_ids: Sequence[str], now: int) -> list[str]:
    """Make a token for each of these agents, in their order.

    Args:
        connection: within a transaction.
        agent_ids: whose tasks they are for.
        now: unix seconds.
    """
    rows = [
        {"token": new_token(), "agent_id": agent_id, "issued_at": now} for agent_id in agent_ids
    ]
    if rows:
        connection.execute(insert(task_token), rows)
    return [str(row["token"]) for row in rows]


def is_issued(connection: Connection, token: str) -> bool:
    """Say whether a token is of this Manager."""
    return bool(_issued(connection, [token]))


def _issued(connection: Connection, tokens: Iterable[str]) -> set[str]:
    found: set[str] = set()
    wanted = [token for token in dict.fromkeys(tokens) if len(token) <= TOKEN_LIMIT]
    for some in sliced(wanted):
        found.update(
            connection.execute(
                select(task_token.c.token).where(is_among(connection, task_token.c.token, some))
            ).scalars()
        )
    return found


def apply_results(
    connection: Connection, batches: Sequence[Sequence[Any]], now: int
) -> list[Outcome]:
    """Store batches of results; one that is known by token and content changes nothing.

    Args:
        connection: within a transaction.
        batches: of items as decoded; what is no object, or has no token of ours, is counted and
            left out.
        now: unix seconds.

    Returns:
        What became of each batch.
    """
    by_keys(connection)
    outcomes = [Outcome() for _ in batches]
    wanted: dict[tuple[str, str], tuple[str, Outcome]] = {}  # (token, hash) -> content, whose
    for items, done in zip(batches, outcomes, strict=True):
        for item in items:
            _sort_in(item, wanted, done)
    issued = _issued(connection, [token for token, _ in wanted])
    held, counts = _held(connection, [key for key in wanted if key[0] in issued])
    rows: list[dict[str, Any]] = []
    for key, (content, done) in wanted.items():
        token, digest = key
        if token not in issued:
            done.unknown_token += 1
        elif key in held:
            done.repeated += 1
        elif counts.get(token, 0) >= RESULTS_PER_TOKEN:
            done.surplus += 1
        else:
            done.stored += 1
            counts[token] = counts.get(token, 0) + 1
            rows.append(
                {"token": token, "content_hash": digest, "content": content, "received_at": now}
            )
    if rows:
        connection.execute(insert(task_result), rows)
        _settle(connection, rows, now)
    return outcomes


def _sort_in(item: Any, wanted: dict[tuple[str, str], tuple[str, Outcome]], done: Outcome) -> None:
    """Put a result with what is to be stored, or count why it is not."""
    if not isinstance(item, dict):
        done.malformed += 1
        return
    token = item.get("token")
    if not isinstance(token, str) or not token:
        done.without_token += 1
        return
    try:
        content = text_of(canonical(item))
    except MalformedItem:
        done.malformed += 1
        return
    key = token, sha256(content.encode()).hexdigest()
    if key in wanted:
        done.repeated += 1
    else:
        wanted[key] = content, done


def _settle(connection: Connection, rows: Sequence[dict[str, Any]], now: int) -> None:
    """Let the subtasks that wait for these results end; the first result that decides counts."""
    endings: dict[str, tuple[str, str]] = {}  # token -> state, message
    for row in rows:
        ending = _ending(msgspec.json.decode(row["content"]))
        if ending is not None:
            endings.setdefault(row["token"], ending)
    tokens = list(endings)
    numbers: set[int] = set()
    for some in sliced(tokens):
        found = select(subtask.c.task).where(is_among(connection, subtask.c.token, some)).distinct()
        numbers.update(connection.execute(found).scalars())
    for number in sorted(numbers):
        locked = lock_task(connection, number, now)
        if locked is not None and locked.row.awaits_result:
            _end(connection, locked, endings)
            locked.save(connection)


def _ending(content: Any) -> tuple[str, str] | None:
    """What a result makes of its subtask; None if it says nothing of an end."""
    status, message = content.get("status"), content.get("msg")
    if not status and str(content.get("data_type")) not in ENDING_TYPES:
        return None
    state = RESULT_SUCCEED if status == "succeed" else RESULT_FAILED
    return state, message if isinstance(message, str) else ""


def _end(connection: Connection, locked: LockedTask, endings: dict[str, tuple[str, str]]) -> None:
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for some in sliced(list(endings)):
        waiting = connection.execute(
            # By the token alone: else all subtasks of a task might be looked through for it.
            select(subtask.c.agent_id, subtask.c.token, subtask.c.status, subtask.c.task).where(
                is_among(connection, subtask.c.token, some)
            )
        )
        for row in waiting:
            if row.task == locked.number and row.status in (CREATED, RUNNING, SUCCEED):
                groups[(row.status, *endings[row.token])].append(row.agent_id)
    for (before, after, message), ids in groups.items():
        locked.set_subtasks(
            connection,
            ids,
            status=after,
            due=None,
            slice=None,
            status_msg=message,
            update_time=int(locked.now),
        )
        locked.move(before, after, len(ids))


def _held(
    connection: Connection, keys: Sequence[tuple[str, str]]
) -> tuple[set[tuple[str, str]], dict[str, int]]:
    """Which of these results are stored, and how many each of their tokens has in all."""
    held: set[tuple[str, str]] = set()
    counts: dict[str, int] = {}
    of = task_result.c
    for some in sliced(keys):
        pairs = [{"token": token, "content_hash": digest} for token, digest in some]
        these, arrays = matching(connection, task_result, ["token", "content_hash"], pairs)
        rows = connection.execute(select(of.token, of.content_hash).where(*these), arrays)
        held.update((row.token, row.content_hash) for row in rows)
        counted = connection.execute(
            select(of.token, func.count().label("n"))
            .where(is_among(connection, of.token, list({token for token, _ in some})))
            .group_by(of.token)
        )
        counts |= {row.token: row.n for row in counted}
    return held, counts
