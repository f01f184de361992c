"""How much one address may ask for."""

import pytest

from elkeid.web import rates as module
from elkeid.web.rates import AddressRates


class Clock:
    """Seconds, as set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_address_has_its_own() -> None:
    """A burst passes, then the rate; another address is not touched by it."""
    clock = Clock()
    rates = AddressRates(2, 3, clock)
    assert [rates.take("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert rates.take("b")
    clock.now = 1.0
    assert [rates.take("a") for _ in range(3)] == [True, True, False]
    clock.now = 100.0
    assert [rates.take("a") for _ in range(4)] == [True] * 3 + [False]
    assert rates.refused == 4


def test_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many addresses come, only so many are remembered."""
    monkeypatch.setattr(module, "ADDRESSES", 10)
    rates = AddressRates(1, 1, Clock())
    for number in range(100):
        assert rates.take(str(number))
    assert len(rates) == 10


def test_a_clock_that_is_set_back() -> None:
    """Nobody waits until it is as late again."""
    clock = Clock()
    clock.now = 1_000_000.0
    rates = AddressRates(1, 2, clock)
    assert [rates.take("a") for _ in range(3)] == [True, True, False]
    clock.now = 1_000.0
    assert not rates.take("a")
    clock.now = 1_002.0
    assert rates.take("a")
