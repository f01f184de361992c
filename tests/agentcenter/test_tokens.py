"""Tokens of uploads: remembered for a while, good once."""

from twisted.internet.task import Clock

from elkeid.agentcenter.tokens import TOKEN_LIMIT, TOKEN_SECONDS, TokenBook


def test_a_token_is_known_until_it_is_used() -> None:
    """The agent it was sent to is known; once its file was delivered it is good no more."""
    book = TokenBook(Clock().seconds)
    book.sent("t1", "a1")
    assert book.agent_of("t1") == "a1"
    assert book.agent_of("t2") is None
    book.spend("t1")
    assert book.agent_of("t1") is None
    assert book.spent("t1")


def test_tokens_age() -> None:
    """An old token is neither known nor used up: it is forgotten."""
    clock = Clock()
    book = TokenBook(clock.seconds)
    book.sent("t1", "a1")
    book.spend("t2")
    clock.advance(TOKEN_SECONDS + 1)
    assert book.agent_of("t1") is None
    assert not book.spent("t2")


def test_tokens_are_bounded() -> None:
    """Of more tokens than the limit the oldest are forgotten."""
    book = TokenBook(Clock().seconds)
    for number in range(TOKEN_LIMIT + 1):
        book.sent(f"t{number}", "a1")
        book.spend(f"u{number}")
    assert book.agent_of("t0") is None
    assert not book.spent("u0")
    assert book.agent_of(f"t{TOKEN_LIMIT}") == "a1"
    assert book.spent(f"u{TOKEN_LIMIT}")
