"""``elkeid backup`` and ``elkeid restore``: what comes back, and what is refused."""

import gzip
import stat
from hashlib import sha256
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from click.testing import CliRunner, Result
from sqlalchemy import insert, select

from elkeid.cli import main
from elkeid.cli import user as user_module
from elkeid.config import load
from elkeid.manager import backup
from elkeid.manager.backup import MAGIC
from elkeid.manager.documents import Source
from elkeid.manager.store.agents import apply_reports, find_agent
from elkeid.manager.store.backends import database_of, make_database
from elkeid.manager.store.engine import Database
from elkeid.manager.store.schema import task_result, task_token
from elkeid.manager.store.users import find_user
from tests.integration.postgres import needs_postgres, shared_postgres

from .deployment import HASHER, PASSWORD
from .stores import report

CURSOR = Path("data", "eventlog", "telemetry", "kafka.cursor")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's folder, with a user, an agent, keys and a cursor."""
    monkeypatch.setattr(user_module, "HASHER", HASHER)
    here = tmp_path / "old"
    here.mkdir()
    monkeypatch.chdir(here)
    for argv in (["keys", "init"], ["user", "add", "alice", "--role", "admin", "--password-stdin"]):
        done = CliRunner().invoke(main, argv, input=f"{PASSWORD}\n")
        assert done.exit_code == 0, done.output
    database = database_of(load(None))
    database.open()
    with database.writing() as connection:
        apply_reports(connection, Source("10.0.0.1", 6752), [report("a", cpu=1, tags=["é"])])
        connection.execute(insert(task_token).values(token="t", agent_id="a", issued_at=1))
        add_result(database, "one", connection)
    database.close()
    (here / CURSOR).parent.mkdir(parents=True)
    (here / CURSOR).write_bytes(b"\0\1cursor")
    return tmp_path


def add_result(database: Database, content: str, connection: object) -> int:
    """Store a result; its number."""
    values = {"token": "t", "content_hash": content, "content": content, "received_at": 1}
    made = connection.execute(insert(task_result).values(values))  # type: ignore[attr-defined]
    number: int = made.inserted_primary_key[0]
    return number


def run(*argv: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, list(argv))


def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: str = "") -> Path:
    """An empty folder to restore into."""
    new = folder / "new"
    new.mkdir()
    if settings:
        (new / "elkeid.toml").write_text(settings)
    monkeypatch.chdir(new)
    return new


def check(database: Database) -> None:
    """See that a database holds what the fixture stored."""
    database.open()
    with database.reading() as connection:
        user = find_user(connection, "alice")
        assert user is not None
        assert PasswordHasher().verify(user.password, PASSWORD)
        assert find_agent(connection, "a") is not None
        assert connection.execute(select(task_result.c.content)).scalars().all() == ["one"]
    with database.writing() as connection:
        assert add_result(database, "two", connection) == 2
    database.close()


def test_backup_comes_back_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh folder the same users log in with the same keys, and readers go on."""
    path = folder / "saved"
    done = run("backup", str(path))
    assert done.exit_code == 0, done.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    new = fresh(folder, monkeypatch)
    done = run("restore", str(path))
    assert done.exit_code == 0, done.output
    check(database_of(load(None)))
    for each in (*(folder / "old" / "keys").iterdir(), folder / "old" / CURSOR):
        copy = new / each.relative_to(folder / "old")
        assert copy.read_bytes() == each.read_bytes()
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_backup_of_an_unknown_schema(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything is restored, with the version that can do it."""
    path = folder / "saved"
    with monkeypatch.context() as patched:
        patched.setattr(backup, "HEAD_REVISION", "0099")
        patched.setattr(backup, "__version__", "9.9")
        assert run("backup", str(path)).exit_code == 0
    new = fresh(folder, monkeypatch)
    done = run("restore", str(path))
    assert done.exit_code == 1
    assert "written by version 9.9 with schema 0099" in done.output
    assert "restore it with that version" in done.output
    assert list(new.iterdir()) == []


@pytest.mark.integration
@needs_postgres
def test_backup_moves_to_the_other_kind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQLite held PostgreSQL takes, and numbers go on after it; and back."""
    server = shared_postgres()
    name = server.new_database()
    path, again = folder / "saved", folder / "again"
    assert run("backup", str(path)).exit_code == 0
    new = fresh(folder, monkeypatch, f'[manager]\ndatabase = "{server.url(name)}"\n')
    done = run("restore", str(path))
    assert done.exit_code == 0, done.output
    done = run("backup", str(again))
    assert done.exit_code == 0, done.output
    check(make_database(server.url(name)))
    server.drop_database(name)
    (new / "elkeid.toml").unlink()
    third = folder / "third"
    third.mkdir()
    monkeypatch.chdir(third)
    assert run("restore", str(again)).exit_code == 0
    check(database_of(load(None)))


def test_what_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is overwritten, and no damaged file is taken; each in a sentence."""
    path = folder / "saved"
    assert run("backup", str(path)).exit_code == 0
    for argv, reason in [
        (("backup", str(path)), "is there already: name a new file"),
        (("backup", str(folder / "nowhere" / "x")), "cannot be written"),
        (("restore", str(path)), "is there already: a backup is restored into empty places"),
        (("restore", str(folder / "nothing")), "No such file"),
        (("restore", str(folder / "old" / CURSOR)), "is no backup"),
    ]:
        done = run(*argv)
        assert done.exit_code == 1, argv
        assert reason in done.output, done.output
    whole = path.read_bytes()
    new = fresh(folder, monkeypatch)
    for damaged in (whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        path.write_bytes(damaged)
        assert "is damaged" in run("restore", str(path)).output
    begin = len(MAGIC) + 32
    for payload in (b"", whole[begin:-1], whole[begin:-200], gzip.compress(b"x" * 512)):
        path.write_bytes(MAGIC + sha256(payload).digest() + payload)  # by a faulty writer
        done = run("restore", str(path))
        assert (done.exit_code, "is damaged" in done.output) == (1, True), done.output
    assert list(new.iterdir()) == []
    path.write_bytes(whole)
    done = CliRunner().invoke(
        main, ["user", "add", "bob", "--role", "3", "--password-stdin"], input=f"{PASSWORD}\n"
    )
    assert done.exit_code == 0
    assert "is not empty" in run("restore", str(path)).output
    assert not (new / "keys").exists()
