"""Bringing a database to the newest schema.

Revision 0001 is the first release's. What has been released is never edited; a new revision only
adds (tables, columns with defaults, indices), so that the release before it works beside.
"""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DBAPIError

from elkeid.errors import StoreError
from elkeid.manager.store.engine import Database
from elkeid.manager.store.schema import HEAD_REVISION

SCRIPTS = Path(__file__).parent.parent / "migrations"


def migrate(database: Database) -> bool:
    """Apply the migrations that a database lacks, in one transaction.

    Of several processes that start at once one migrates, and the others wait for it.

    Returns:
        Whether there was anything to do.

    Raises:
        StoreError: the database is of another version, no database of ours, or a step failed;
            it was left as it was.
    """
    with database.reading() as connection:
        revision = _revision(connection, database.name)
    if revision == HEAD_REVISION:
        return False
    if revision is not None and not is_known(revision):
        raise StoreError(
            f"{database.name} was made by another version (schema {revision}, this one knows up to "
            f"{HEAD_REVISION}): install that version, or restore a backup into a new database, or "
            "start with a new one (manager.database)"
        )
    # Loaded only when there is something to do: it takes a third of a second.
    from alembic import command  # noqa: PLC0415

    config = _config()
    try:
        with database.migrating() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise StoreError(
            f"{database.name}: migration to schema {HEAD_REVISION} failed "
            f"({' '.join(str(error.orig).split())}); "
            "it was left as it was"
        ) from error
    return True


def is_known(revision: str) -> bool:
    """Say whether databases of a revision can be brought to the newest one."""
    if revision == HEAD_REVISION:
        return True
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    scripts = ScriptDirectory.from_config(_config())
    return any(each.revision == revision for each in scripts.walk_revisions())


def _config() -> Any:
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return config


def _revision(connection: Connection, name: str) -> str | None:
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" not in tables:
        if tables:
            raise StoreError(
                f"{name} is a database of another program: set manager.database to a new one"
            )
        return None
    row: Any = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return None if row is None else str(row[0])
