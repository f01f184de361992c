"""``elkeid user`` and ``elkeid audit``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from click.testing import CliRunner, Result
from sqlalchemy import update

from elkeid.cli import main
from elkeid.cli import user as user_module
from elkeid.manager.store import users
from elkeid.manager.store.audit import entries
from elkeid.manager.store.logins import failures_of, note_failure
from elkeid.manager.store.schema import audit
from elkeid.manager.store.sqlite import SqliteDatabase
from elkeid.manager.store.tokens import add_token, find_session
from elkeid.manager.store.users import begin_otp, confirm_otp, find_user
from elkeid.manager.throttle import counted

from .deployment import HASHER, PASSWORD


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; hashing takes no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_module, "HASHER", HASHER)
    return tmp_path


def run(*arguments: str, typed: str = "") -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["user", "add", *arguments], input=typed)


def command(*arguments: str, typed: str = "") -> Result:
    """Run any command."""
    return CliRunner().invoke(main, arguments, input=typed)


def changed(folder: Path, query: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Something done to the database."""
    database = SqliteDatabase(f"sqlite:///{folder / 'data' / 'manager.db'}")
    database.open()
    try:
        with database.writing() as connection:
            return query(connection, *args, **kwargs)
    finally:
        database.close()


def stored(folder: Path, name: str) -> Any:
    """What the database has."""
    database = SqliteDatabase(f"sqlite:///{folder / 'data' / 'manager.db'}")
    database.open()
    try:
        with database.reading() as connection:
            return find_user(connection, name)
    finally:
        database.close()


def test_add_before_the_first_start(folder: Path) -> None:
    """The command makes the database if there is none; the level follows the role."""
    for name, role, level in [("a", "admin", 0), ("b", "alarm-risk", 8), ("c", "3", 3)]:
        result = run(name, "--role", role, "--password-stdin", typed=f"{PASSWORD}\n")
        assert result.exit_code == 0, result.output
        assert result.output == f"user {name} added, level {level}\n"
        assert stored(folder, name).level == level
    assert PasswordHasher().verify(stored(folder, "a").password, PASSWORD)


def test_password_is_asked_twice(folder: Path) -> None:
    """Typed at a terminal, the password is not shown."""
    result = run("a", "--role", "admin", typed=f"{PASSWORD}\n{PASSWORD}\n")
    assert result.exit_code == 0, result.output
    assert PASSWORD not in result.output
    assert stored(folder, "a") is not None


@pytest.mark.parametrize(
    ("name", "role", "password", "reason"),
    [
        ("a", "boss", PASSWORD, "no role: use one of admin"),
        ("a", "9", PASSWORD, "no role"),
        ("a b", "admin", PASSWORD, "a user name has"),
        ("", "admin", PASSWORD, "a user name has"),
        ("a\r\nb", "admin", PASSWORD, "a user name has"),
        ("a", "admin", "short", "at least 12 characters"),
        ("a", "admin", "", "at least 12 characters"),
    ],
)
def test_refusals(folder: Path, name: str, role: str, password: str, reason: str) -> None:
    """One sentence says what to change; nothing was made."""
    result = run(name, "--role", role, "--password-stdin", typed=f"{password}\n")
    assert result.exit_code == 1
    assert reason in result.output
    assert not (folder / "data").exists()


def test_name_that_is_taken(folder: Path) -> None:
    """An existing user is not changed."""
    run("a", "--role", "admin", "--password-stdin", typed=f"{PASSWORD}\n")
    result = run("a", "--role", "3", "--password-stdin", typed=f"{PASSWORD}\n")
    assert (result.exit_code, "exists already" in result.output) == (1, True)
    assert stored(folder, "a").level == 0


def test_too_many_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit that is the reason, not the name; nobody is added, and nothing noted."""
    run("a", "--role", "admin", "--password-stdin", typed=f"{PASSWORD}\n")
    monkeypatch.setattr(users, "USERS_LIMIT", 1)
    result = run("b", "--role", "3", "--password-stdin", typed=f"{PASSWORD}\n")
    assert result.exit_code == 1
    assert "users already: delete some first" in result.output
    assert "exists" not in result.output
    assert command("user", "list").output == "a\tadmin\t0\t-\tanywhere\n"


@pytest.fixture
def alice(folder: Path) -> Path:
    """A folder whose database has the user alice, and an administrator."""
    for name, role in (("alice", "agent-ro"), ("boss", "admin")):
        assert run(name, "--role", role, "--password-stdin", typed=f"{PASSWORD}\n").exit_code == 0
    return folder


def test_list(alice: Path) -> None:
    """A line for each user."""
    result = command("user", "list")
    assert result.output == ("alice\tagent-ro\t3\t-\tanywhere\nboss\tadmin\t0\t-\tanywhere\n")


def test_del(alice: Path) -> None:
    """The user is gone, with the tokens; the last administrator stays."""
    changed(alice, add_token, "hash", stored(alice, "alice").id, 0, 1e12)
    assert command("user", "del", "alice").output == "user alice deleted\n"
    assert stored(alice, "alice") is None
    assert changed(alice, find_session, "hash") is None
    for name, reason in (("alice", "there is no user alice"), ("boss", "last administrator")):
        result = command("user", "del", name)
        assert (result.exit_code, reason in result.output) == (1, True), result.output


def test_reset(alice: Path) -> None:
    """Another password, no tokens, no waits; the second factor only goes if that is said."""
    user, keys = stored(alice, "alice"), counted("alice", "10.0.0.1")
    changed(alice, add_token, "hash", user.id, 0, 1e12)
    changed(alice, note_failure, keys.all(), 0, -1)
    changed(alice, begin_otp, user.id, "SECRET")
    changed(
        alice,
        confirm_otp,
        user.id,
        secret="SECRET",
        step=1,
        recovery_hashes=["a"],
        keep_token="hash",
    )
    new = "another good phrase"
    result = command("user", "reset", "alice", "--password-stdin", typed=f"{new}\n")
    assert result.output == "password of user alice set, all sessions ended\n"
    after = stored(alice, "alice")
    assert PasswordHasher().verify(after.password, new)
    assert after.otp_confirmed
    assert changed(alice, find_session, "hash") is None
    assert list(changed(alice, failures_of, list(keys.all()))) == [keys.address]
    more = ("--password-stdin", "--otp-off")
    assert command("user", "reset", "alice", *more, typed=f"{PASSWORD}\n").exit_code == 0
    assert not stored(alice, "alice").otp_confirmed


def test_reset_refused(alice: Path) -> None:
    """Weak passwords and unknown users are refused, and nothing changes."""
    for name, password, reason in (
        ("alice", "short", "at least 12 characters"),
        ("nobody", PASSWORD, "there is no user nobody"),
    ):
        result = command("user", "reset", name, "--password-stdin", typed=f"{password}\n")
        assert (result.exit_code, reason in result.output) == (1, True), result.output


def test_unlock(alice: Path) -> None:
    """Nobody waits for that user any more."""
    keys = counted("alice", "10.0.0.1")
    changed(alice, note_failure, keys.all(), 0, -1)
    assert command("user", "unlock", "alice").output == (
        "user alice: 2 counts of failed logins forgotten\n"
    )
    assert list(changed(alice, failures_of, list(keys.all()))) == [keys.address]


@pytest.mark.parametrize("name", ["del", "reset", "unlock"])
def test_names_that_are_no_text(folder: Path, name: str) -> None:
    """A sentence, before the database is touched."""
    result = command("user", name, "\udcff")
    assert (result.exit_code, "not UTF-8" in result.output) == (2, True)
    assert not list(folder.iterdir())


def test_all_of_it_is_audited(alice: Path) -> None:
    """Who at this machine did what to whom; what was refused was not done, and is not in it."""
    command("user", "unlock", "alice")
    command("user", "del", "boss")
    command("user", "del", "alice")
    shown = changed(alice, entries, before=None, limit=10)
    assert [(each.link.entry.path, each.objects) for each in shown] == [
        ("elkeid user del", ("alice",)),
        ("elkeid user unlock", ("alice",)),
        ("elkeid user add", ("boss",)),
        ("elkeid user add", ("alice",)),
    ]
    assert all(each.link.entry.username.startswith("os:") for each in shown)


def test_audit_verify(alice: Path) -> None:
    """Status 0 and the head for a log that is whole; 1 and the first broken entry else."""
    result = command("audit", "verify")
    assert result.exit_code == 0, result.output
    assert "2 entries from 1 to 2 are whole, head 2:" in result.output
    head = result.output.split()[-1]
    command("user", "unlock", "alice")
    assert command("audit", "verify", "--head", head).exit_code == 0
    for bad in ("x", "1:2", f"0:{'0' * 64}", head + "0"):
        result = command("audit", "verify", "--head", bad)
        assert (result.exit_code, "must be SEQ:HASH" in result.output) == (1, True), bad
    assert command("audit", "verify", "--head", f"2:{'0' * 64}").exit_code == 1
    changed(
        alice,
        lambda connection: connection.execute(
            update(audit).where(audit.c.seq == 2).values(username="nobody")
        ),
    )
    result = command("audit", "verify")
    assert (result.exit_code, "entry 2 was changed" in result.output) == (1, True)
