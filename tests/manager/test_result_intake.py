"""Results on their way into the database: written together, each batch answered for itself."""

from typing import Any

import pytest
from sqlalchemy import Connection
from twisted.internet.defer import CancelledError, Deferred

from elkeid.manager import result_intake
from elkeid.manager.result_intake import ResultIntake
from elkeid.manager.store import results
from elkeid.manager.store.results import Outcome, issue_tokens
from elkeid.manager.store.store import StoreBusy, StoreFailed
from tests.integration.postgres import needs_postgres

from .stored_results import results_of
from .stores import HeldStoreCase

NOW = 1_700_000_000


class ResultIntakeTests(HeldStoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.intake = ResultIntake(self.store, lambda: NOW)
        self.tokens: list[str] = self.done(self.store.write(issue_tokens, ["a", "b", "c"], NOW))

    def bring(self, *items: Any, size: int = 100) -> Deferred[Outcome]:
        """Begin to bring a batch."""
        return Deferred.fromCoroutine(self.intake.bring(items, size))

    def item(self, number: int, text: str = "") -> dict[str, str]:
        """A result of one of the tokens."""
        return {"token": self.tokens[number], "status": "succeed", "msg": text}

    def stored(self, number: int) -> int:
        """How many results of one of the tokens there are."""
        return len(self.done(self.store.read(results_of, self.tokens[number])))

    def test_what_comes_meanwhile_goes_together(self) -> None:
        """The first batch goes at once; all others that came meanwhile are one transaction."""
        first = self.bring(self.item(0))
        others = [self.bring(self.item(1)), self.bring(self.item(2), {"token": "x"}, 5)]
        self.assertEqual(len(self.threads.waiting), 1)
        self.threads.go()
        self.assertEqual(self.successResultOf(first), Outcome(stored=1))
        self.assertNoResult(others[0])
        self.assertEqual(len(self.threads.waiting), 1)
        self.threads.go()
        self.assertEqual(self.successResultOf(others[0]), Outcome(stored=1))
        self.assertEqual(
            self.successResultOf(others[1]), Outcome(stored=1, unknown_token=1, malformed=1)
        )
        self.assertEqual(self.threads.waiting, [])
        self.assertEqual([self.stored(n) for n in range(3)], [1, 1, 1])

    def test_the_same_result_by_two_calls(self) -> None:
        """Of two batches of one transaction that bring the same, the first one brings it."""
        first = self.bring()
        twins = [self.bring(self.item(0)), self.bring(self.item(0), self.item(0, "more"))]
        self.threads.go()
        self.threads.go()
        self.successResultOf(first)
        self.assertEqual(self.successResultOf(twins[0]), Outcome(stored=1))
        self.assertEqual(self.successResultOf(twins[1]), Outcome(stored=1, repeated=1))
        self.assertEqual(self.stored(0), 2)

    def test_limits_of_a_transaction(self) -> None:
        """Batches go together up to a number of results and of bytes; a larger one goes alone."""
        self.patch(result_intake, "TOGETHER", 3)
        for sizes, turns in (
            ([(1, 1), (1, 1), (1, 1), (1, 1)], 2),
            ([(5, 1), (1, 1)], 2),
            ([(1, result_intake.TOGETHER_BYTES), (1, 1)], 2),
            ([(1, result_intake.TOGETHER_BYTES * 9)], 1),
        ):
            begun = [self.bring()]
            begun += [
                self.bring(*[self.item(0, str(n)) for n in range(count)], size=size)
                for count, size in sizes
            ]
            self.threads.go()
            for _ in range(turns):
                self.assertEqual(len(self.threads.waiting), 1)
                self.threads.go()
            self.assertEqual(self.threads.waiting, [])
            for each in begun:
                self.successResultOf(each)

    def test_one_that_fails_alone(self) -> None:
        """A batch that the database refuses costs the others of its transaction nothing."""
        real = results._settle

        def settle(connection: Connection, rows: Any, now: int) -> None:
            if any("poison" in row["content"] for row in rows):
                raise RuntimeError("a fault of ours")
            real(connection, rows, now)

        self.patch(results, "_settle", settle)
        first = self.bring()
        good, bad, late = (
            self.bring(self.item(0)),
            self.bring(self.item(1, "poison")),
            self.bring(self.item(2)),
        )
        for _ in range(5):
            self.threads.go()
        for each in (first, good, late):
            self.successResultOf(each)
        self.failureResultOf(bad, RuntimeError)
        self.assertEqual([self.stored(n) for n in range(3)], [1, 0, 1])
        again = self.bring(self.item(1))
        self.threads.go()
        self.assertEqual(self.successResultOf(again), Outcome(stored=1))

    def test_the_database_fails(self) -> None:
        """Each caller is told so, and what comes later is written."""
        self.patch(result_intake, "apply_results", _broken)
        begun = [self.bring(self.item(0)), self.bring(self.item(1)), self.bring(self.item(2))]
        for _ in range(4):
            self.threads.go()
        for each in begun:
            self.failureResultOf(each, StoreFailed)
        self.flushLoggedErrors()
        self.patch(result_intake, "apply_results", results.apply_results)
        later = self.bring(self.item(0))
        self.threads.go()
        self.assertEqual(self.successResultOf(later), Outcome(stored=1))

    def test_caller_that_gives_up(self) -> None:
        """What a gateway brought before it hung up is stored."""
        first, second = self.bring(self.item(0)), self.bring(self.item(1))
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.threads.go()
        self.threads.go()
        self.successResultOf(first)
        self.assertEqual(self.stored(1), 1)

    def test_too_many(self) -> None:
        """Beyond the limit batches are refused instead of piling up, and so on a closed store."""
        self.patch(result_intake, "WAITING_LIMIT", 2)
        begun = [self.bring(self.item(n)) for n in range(3)]
        self.failureResultOf(self.bring(self.item(0)), StoreBusy)
        closed = Deferred.fromCoroutine(self.store.close())
        self.threads.go()
        self.successResultOf(begun[0])
        for each in begun[1:]:
            self.failureResultOf(each, StoreBusy)
        self.threads.go()
        self.successResultOf(closed)


def _broken(connection: Connection, batches: Any, now: int) -> None:
    connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")


@pytest.mark.integration
@needs_postgres
class PostgresResultIntakeTests(ResultIntakeTests):
    kind = "postgresql"
