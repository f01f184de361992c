"""AK/SK signatures of HTTP requests."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkeid.wire.signature import Reason, SignatureRefused, sign, verify

AK, SK, TIME = "demoaccesskey01", "demo-secret-key-0123456789abcdef", 1_700_000_000
KEYS = {AK: SK, "other-key": "another-secret-key"}
REGISTER = b'{"name":"hids_svr_grpc","ip":"10.0.0.5","port":6751,"weight":0,"extra":null}'
VECTORS = [
    (
        "POST",
        "/command/",
        "",
        b'{"agent_id":"a1","command":{"agent_ctrl":0}}',
        "7d7014b2bc1b4e4940306bfb383922c815ca921aa075fa2814126f06d1d6cf6b",
    ),
    (
        "GET",
        "/conn/stat",
        "",
        b"",
        "1beecae996f07a3b0df27b85ae7abd3796e84933a1b80292d06bdcae9e17828b",
    ),
    (
        "GET",
        "/conn/list",
        "b=2&a=1%20z",
        b"",
        "4cf938f4e99f0b0efa321cba32f4d80c06d305765795789045edd3b931cb8208",
    ),
    (
        "POST",
        "/registry/register",
        "",
        REGISTER,
        "2e7aad050bb19b1079f8885fc5c114c00a6b319936b695b77684caae9c95df0f",
    ),
]


def check(**changes: Any) -> str:
    """Verify a sound request to register an instance, with these things changed."""
    request: dict[str, Any] = {
        "ak": AK,
        "timestamp": str(TIME),
        "signature": VECTORS[3][4],
        "method": "POST",
        "path": "/registry/register",
        "query": "",
        "body": REGISTER,
        "now": TIME + 0.5,
        "keys": KEYS,
    }
    return verify(**request | changes)


def refusal(**changes: Any) -> SignatureRefused:
    """Verify as `check`, and give the refusal."""
    with pytest.raises(SignatureRefused) as caught:
        check(**changes)
    return caught.value


@pytest.mark.parametrize(("method", "path", "query", "body", "expected"), VECTORS)
def test_the_golden_signatures(
    method: str, path: str, query: str, body: bytes, expected: str
) -> None:
    """Signatures that a live upstream gateway and registry accepted."""
    assert sign(method, path, query, AK, SK, TIME, body) == expected
    accepted = check(method=method, path=path, query=query, body=body, signature=expected)
    assert accepted == AK


def test_one_slash_at_the_end_of_the_path_is_left_out() -> None:
    """``/command`` and ``/command/`` have one signature, ``/command//`` another."""
    made = [
        sign("GET", path, "", AK, SK, TIME, b"")
        for path in ("/command", "/command/", " /command ", "/command//", "/", "")
    ]
    assert made[0] == made[1] == made[2] != made[3]
    assert made[4] == made[5]


def test_a_path_that_is_not_utf_8_can_be_signed() -> None:
    """Percent-encoded bytes that are no text are signed as bytes."""
    text = b"/a\xff".decode("utf-8", "surrogateescape")
    assert sign("GET", text, "", AK, SK, TIME, b"") != sign("GET", "/a", "", AK, SK, TIME, b"")


@pytest.mark.parametrize("missing", ["ak", "timestamp", "signature"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_header_is_named_first(missing: str, value: str | None) -> None:
    """Without one of the headers nothing else is looked at."""
    refused = refusal(**{"body": b"wrong", missing: value})
    assert refused.reason is Reason.HEADER_MISSED
    assert str(refused) == "header missed: AccessKey|Signature|TimeStamp"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("abc", 'strconv.ParseInt: parsing "abc": invalid syntax'),
        ("1_700", 'strconv.ParseInt: parsing "1_700": invalid syntax'),
        (" 1700000000", 'strconv.ParseInt: parsing " 1700000000": invalid syntax'),
        ("1700000000.5", 'strconv.ParseInt: parsing "1700000000.5": invalid syntax'),
        ("\u0661\u0667", 'strconv.ParseInt: parsing "\u0661\u0667": invalid syntax'),
        ("-", 'strconv.ParseInt: parsing "-": invalid syntax'),
        (
            "9223372036854775808",
            'strconv.ParseInt: parsing "9223372036854775808": value out of range',
        ),
        (
            "9" * 65,
            f'strconv.ParseInt: parsing "{"9" * 64}": value out of range',
        ),
    ],
)
def test_an_unreadable_time_stamp_is_told_in_the_words_of_go(text: str, words: str) -> None:
    """Clients' logs show the same reason as before; long values are cut."""
    refused = refusal(timestamp=text, ak="unknown")
    assert refused.reason is Reason.TIME_UNREADABLE
    assert refused.detail == words


@pytest.mark.parametrize("offset", [60, -60, 61, 10**9, -(10**9)])
def test_a_time_stamp_too_far_off_names_both_times(offset: int) -> None:
    """Exactly 60 s is too far; the clocks can be compared from the refusal alone."""
    refused = refusal(now=TIME + offset, ak="unknown")
    assert refused.reason is Reason.TIME_OFF
    assert str(TIME) in refused.detail
    assert str(TIME + offset) in refused.detail


@pytest.mark.parametrize("offset", [0, 59, 59.9, -59])
def test_a_time_stamp_within_the_window_is_accepted(offset: float) -> None:
    """Whole seconds count, as upstream's clock reads them."""
    assert check(now=TIME + offset) == AK


def test_an_unknown_key_and_a_wrong_signature_are_told_apart() -> None:
    """The key is looked up first."""
    assert refusal(ak="unknown", signature="x").reason is Reason.UNKNOWN_KEY
    assert refusal(signature="x").reason is Reason.WRONG_SIGNATURE
    assert refusal(signature=VECTORS[3][4].upper()).reason is Reason.WRONG_SIGNATURE
    assert refusal(signature="\udcff").reason is Reason.WRONG_SIGNATURE
    assert refusal(ak="other-key").reason is Reason.WRONG_SIGNATURE


@pytest.mark.parametrize(
    "change",
    [{"method": "PUT"}, {"path": "/registry/evict"}, {"query": "a"}, {"body": b""}, {"body": b"x"}],
)
def test_every_part_of_the_request_is_covered(change: dict[str, Any]) -> None:
    """Another method, path, query or body does not pass under the same signature."""
    assert refusal(**change).reason is Reason.WRONG_SIGNATURE


def test_the_case_of_an_access_key() -> None:
    """A key sent in another case is the same; it may be signed as sent or in lower case."""
    upper = sign("POST", "/registry/register", "", AK.upper(), SK, TIME, REGISTER)
    assert check(ak=AK.upper()) == AK
    assert check(ak=AK.upper(), signature=upper) == AK
    assert refusal(signature=upper).reason is Reason.WRONG_SIGNATURE
    title = AK.title()
    assert refusal(ak=title, signature=upper).reason is Reason.WRONG_SIGNATURE


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_strange_headers_raise_nothing_else(ak: str, stamp: str, signed: str, path: str) -> None:
    """Whatever the headers hold, the request is refused and nothing breaks."""
    with pytest.raises(SignatureRefused):
        verify(
            ak=ak,
            timestamp=stamp,
            signature=signed,
            method="GET",
            path=path,
            query="",
            body=b"",
            now=TIME,
            keys=KEYS,
        )
