"""Run by Alembic for every upgrade, on the connection and transaction it is given."""

from alembic import context

from elkeid.manager.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
)
context.run_migrations()
