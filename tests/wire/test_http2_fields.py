"""What a request may contain, and how answers are encoded."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elkeid.wire.http2_fields import MalformedFields, check_trailers, encode, read_request

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"h")]


def test_request_is_sorted() -> None:
    """Method and path are read, other fields are kept, of repeated ones the first."""
    request = read_request([*GET, (b"a", b"1"), (b"a", b"2"), (b"content-length", b"7")])

    assert (request.method, request.path, request.content_length) == (b"GET", b"/a", 7)
    assert request.fields == {b"a": b"1", b"content-length": b"7"}


def _without(name: bytes) -> list[tuple[bytes, bytes]]:
    return [pair for pair in GET if pair[0] != name]


@pytest.mark.parametrize(
    "fields",
    [
        _without(b":method"),
        _without(b":scheme"),
        _without(b":path"),
        [*_without(b":path"), (b":path", b"")],
        [*_without(b":path"), (b":path", b"a")],
        [*_without(b":path"), (b":path", b"*")],
        [*GET, (b":path", b"/b")],
        [*GET, (b":status", b"200")],
        [*GET, (b":unknown", b"x")],
        [(b"a", b"b"), *GET],
        [*GET, (b"Upper", b"x")],
        [*GET, (b"", b"x")],
        [*GET, (b"a b", b"x")],
        [*GET, (b"a", b" x")],
        [*GET, (b"a", b"x\t")],
        [*GET, (b"a", b"x\0y")],
        [*GET, (b"a", b"x\r\ny")],
        [*_without(b":path"), (b":path", b"/a\n")],
        [*GET, (b"connection", b"close")],
        [*GET, (b"transfer-encoding", b"chunked")],
        [*GET, (b"te", b"gzip")],
        [*GET, (b"content-length", b"-1")],
        [*GET, (b"content-length", b"1" * 19)],
        [*GET, (b"content-length", b"1"), (b"content-length", b"2")],
        [*GET, (b"host", b"other")],
        [(b":method", b"CONNECT"), (b":scheme", b"http"), (b":authority", b"h")],
        [(b":method", b"CONNECT"), (b":authority", b"")],
    ],
)
def test_malformed_requests(fields: list[tuple[bytes, bytes]]) -> None:
    """A request that HTTP/2 forbids is refused."""
    with pytest.raises(MalformedFields):
        read_request(fields)


@pytest.mark.parametrize(
    "fields",
    [
        GET,
        _without(b":authority"),
        [*GET, (b"host", b"h")],
        [*GET, (b"te", b"trailers")],
        [*GET, (b"a", b"")],
        [*GET, (b"a", b"x y\xff")],
        [*GET, (b"content-length", b"3"), (b"content-length", b"3")],
        [(b":method", b"CONNECT"), (b":authority", b"h")],
        [(b":method", b"OPTIONS"), (b":scheme", b"http"), (b":path", b"*")],
    ],
)
def test_wellformed_requests(fields: list[tuple[bytes, bytes]]) -> None:
    """A request that HTTP/2 allows is taken."""
    assert read_request(fields).method


def test_trailers() -> None:
    """Trailers have no pseudo-header fields, and the same rules else."""
    check_trailers([(b"grpc-status", b"0")])
    for bad in ((b":path", b"/"), (b"Upper", b"x"), (b"connection", b"x")):
        with pytest.raises(MalformedFields):
            check_trailers([bad])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b":status", b"content-type", b"content-length", b"grpc-message"]),
            st.binary(max_size=300) | st.sampled_from([b"200", b"404", b"x" * 5000]),
        )
    )
)
def test_encoding_is_read_by_others(fields: list[tuple[bytes, bytes]]) -> None:
    """Any peer decodes our answers, whatever it decoded before."""
    decoder = hpack.Decoder(max_header_list_size=1 << 20)

    assert list(decoder.decode(encode(fields), raw=True)) == fields
    assert not decoder.header_table.dynamic_entries
