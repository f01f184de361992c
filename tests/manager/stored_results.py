"""Results as they lie in the database."""

from sqlalchemy import Connection, func, select

from elkeid.manager.store.schema import task_result


def results_of(connection: Connection, token: str) -> list[str]:
    """The stored results of a token, JSON objects, in the order of their arrival."""
    of = task_result.c
    found = select(of.content).where(of.token == token).order_by(of.id)
    return list(connection.execute(found).scalars())


def count_results(connection: Connection) -> int:
    """How many results are stored."""
    return connection.execute(select(func.count()).select_from(task_result)).scalar_one()
