"""Which database the settings ask for."""

from pathlib import Path

from elkeid.config import Settings
from elkeid.manager.store.engine import Database
from elkeid.manager.store.postgres import PostgresDatabase
from elkeid.manager.store.sqlite import SqliteDatabase


def default_url(data_dir: Path) -> str:
    """Where the database is when no setting says."""
    return f"sqlite:///{data_dir / 'manager.db'}"


def make_database(url: str, password_file: Path | None = None) -> Database:
    """The database behind a URL that the settings have checked; not open yet."""
    if url.startswith("postgresql:"):
        return PostgresDatabase(url, password_file)
    return SqliteDatabase(url)


def database_of(settings: Settings) -> Database:
    """The Manager's database, not open yet."""
    manager = settings.manager
    url = manager.database or default_url(settings.server.data_dir)
    return make_database(url, manager.database_password_file)
