"""``elkeid user add``."""

from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from click.testing import CliRunner, Result

from elkeid.cli import main
from elkeid.cli import user as user_module
from elkeid.manager.store.sqlite import SqliteDatabase
from elkeid.manager.store.users import find_user

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
