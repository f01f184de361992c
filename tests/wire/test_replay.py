"""Requests are taken once, however often they are sent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.wire.replay import NONCE_BYTES, SEEN_SECONDS, SeenRequests, nonce_of
from elkeid.wire.signature import WINDOW_SECONDS, Reason, SignatureRefused

NOW = 1_700_000_000.0


def taken(
    seen: SeenRequests,
    query: str = "",
    *,
    method: str = "POST",
    ak: str = "ak",
    signature: str = "0",
    now: float = NOW,
    repeats: bool = False,
) -> Reason | None:
    """Show a request; None if it is taken, else why not."""
    try:
        seen.accept(method, query, ak, signature, now, repeats=repeats)
    except SignatureRefused as refused:
        return refused.reason
    return None


@pytest.mark.parametrize(
    ("query", "nonce"),
    [
        ("", ""),
        ("nonce=a", "a"),
        ("a=1&nonce=b&nonce=c", "b"),
        ("nonce", ""),
        ("nonce=", ""),
        ("xnonce=a&Nonce=b", ""),
        ("nonce=a=%20", "a=%20"),
    ],
)
def test_the_nonce_of_a_query(query: str, nonce: str) -> None:
    """The first one counts, as it stands there."""
    assert nonce_of(query) == nonce


def test_a_nonce_is_good_once() -> None:
    """Whatever else is in the request, a read too, and on routes whose requests may repeat."""
    seen = SeenRequests()
    assert taken(seen, "nonce=a") is None
    for method, repeats in (("POST", False), ("GET", False), ("POST", True)):
        again = taken(seen, "x=1&nonce=a", method=method, signature="1", repeats=repeats)
        assert again is Reason.NONCE_SEEN
    assert taken(seen, "nonce=a", ak="another") is None
    assert taken(seen, "nonce=b") is None
    assert seen.figures() == (3, 3, 0)


def test_without_a_nonce_the_signature_is_good_once() -> None:
    """Of requests that change something; reads and routes made for it may be repeated."""
    seen = SeenRequests()
    assert taken(seen) is None
    assert taken(seen) is Reason.REPEATED
    assert taken(seen, method="DELETE") is Reason.REPEATED
    assert taken(seen, signature="1") is None
    for _ in range(2):
        assert taken(seen, method="GET", signature="2") is None
        assert taken(seen, method="HEAD", signature="2") is None
        assert taken(seen, signature="3", repeats=True) is None
    assert len(seen) == 2


def test_a_long_nonce_is_refused() -> None:
    """What is remembered has a bound."""
    seen = SeenRequests()
    assert taken(seen, "nonce=" + "a" * NONCE_BYTES) is None
    assert taken(seen, "nonce=" + "b" * (NONCE_BYTES + 1)) is Reason.NONCE_UNFIT
    assert len(seen) == 1


def test_they_are_remembered_for_as_long_as_a_signature_can_pass() -> None:
    """A time stamp from the future is the longest: twice the window."""
    assert SEEN_SECONDS >= 2 * WINDOW_SECONDS - 1
    seen = SeenRequests()
    assert taken(seen, "nonce=a") is None
    assert taken(seen, "nonce=a", now=NOW + SEEN_SECONDS - 1) is Reason.NONCE_SEEN
    assert taken(seen, "nonce=a", now=NOW + SEEN_SECONDS) is None
    assert taken(seen, "nonce=b", now=NOW + 3 * SEEN_SECONDS) is None
    assert len(seen) == 1


def test_a_clock_set_back_forgets_nothing() -> None:
    """Time stamps go back with it, so what was seen must stay."""
    seen = SeenRequests()
    assert taken(seen, "nonce=a") is None
    assert taken(seen, "nonce=b", now=NOW - 1000) is None
    assert taken(seen, "nonce=a", now=NOW - 1000) is Reason.NONCE_SEEN
    assert taken(seen, "nonce=a", now=NOW) is Reason.NONCE_SEEN


def test_beyond_the_limit_the_oldest_is_forgotten() -> None:
    """And that is counted."""
    seen = SeenRequests(limit=2)
    for nonce in "abc":
        assert taken(seen, f"nonce={nonce}") is None
    assert taken(seen, "nonce=c") is Reason.NONCE_SEEN
    assert taken(seen, "nonce=b") is Reason.NONCE_SEEN
    assert taken(seen, "nonce=a") is None
    assert seen.figures() == (2, 2, 2)


requests = st.tuples(
    st.sampled_from(["GET", "POST", "PUT"]),
    st.sampled_from(["", "nonce=1", "nonce=2", "x=1"]),
    st.sampled_from(["s1", "s2"]),
    st.booleans(),
    st.floats(0, 50),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(requests, max_size=60))
def test_against_a_list_of_everything(asked: list[tuple[str, str, str, bool, float]]) -> None:
    """A request is taken exactly if nothing alike was taken within `SEEN_SECONDS`."""
    seen, history, now = SeenRequests(), list[tuple[str, float]](), NOW
    for method, query, signature, repeats, pause in asked:
        now += pause
        nonce = nonce_of(query)
        key = f"nonce {nonce}" if nonce else f"signature {signature}"
        once = bool(nonce) or (method != "GET" and not repeats)
        known = any(each == key and now - at < SEEN_SECONDS for each, at in history)
        reason = taken(seen, query, method=method, signature=signature, repeats=repeats, now=now)
        assert (reason is not None) == (once and known)
        if once and not known:
            history.append((key, now))
        assert len(seen) <= len(history)
