"""Hypothesis strategies for agents' messages: canonical, merely valid, and damaged ones."""

from hypothesis import strategies as st


def put_varint(value: int, size: int = 0) -> bytes:
    """Encode a varint, with padding up to ``size`` bytes."""
    value %= 2**64
    groups = []
    while value or not groups:
        groups.append(value % 128)
        value //= 128
    groups += [0] * (size - len(groups))
    return bytes(g | 128 for g in groups[:-1]) + bytes(groups[-1:])


def put(number: int, value: bytes | int, tag_size: int = 0, size: int = 0) -> bytes:
    """Encode one field; sizes above the need make varints longer than they must be."""
    if isinstance(value, int):
        return put_varint(number * 8, tag_size) + put_varint(value, size)
    return put_varint(number * 8 + 2, tag_size) + put_varint(len(value), size) + value


def plain_record(data_type: int, time: int, body: bytes) -> bytes:
    """Encode a record as agents do."""
    return b"".join(put(n, v) for n, v in ((1, data_type), (2, time), (3, body)) if v)


DATA_TYPES = st.sampled_from(
    [59, 42, 601, 605, 1000, 1001, 1010, 1011, 2001, 5100, 5101, 6000, 8010, 0, 1, 127, 128]
) | st.integers(-(2**31), 2**31 - 1)
TIMES = st.sampled_from([1_764_000_000, 1_764_000_001, 0, 26]) | st.integers(-(2**63), 2**63 - 1)
BODIES = st.binary(max_size=40) | st.sampled_from([b"", b"x" * 127, b"y" * 128, b"z" * 16_400])
RECORDS = st.builds(plain_record, DATA_TYPES, TIMES, BODIES)

SIZES = st.sampled_from([0, 0, 0, 1, 2, 3, 5, 10])
UNKNOWN = st.one_of(
    st.builds(put, st.integers(10, 2**29 - 1), st.binary(max_size=6), SIZES, SIZES),
    st.builds(put, st.integers(16, 900), st.integers(0, 2**64 - 1), SIZES, SIZES),
    st.builds(
        lambda n, v: put_varint(n * 8 + 1) + v,
        st.integers(10, 99),
        st.binary(min_size=8, max_size=8),
    ),
    st.builds(
        lambda n, v: put_varint(n * 8 + 5) + v,
        st.integers(10, 99),
        st.binary(min_size=4, max_size=4),
    ),
    st.builds(
        lambda n, v: put_varint(n * 8 + 3) + v + put_varint(n * 8 + 4),
        st.integers(10, 99),
        st.builds(put, st.integers(1, 99), st.binary(max_size=5)),
    ),
)
ODD_RECORDS = st.lists(
    st.one_of(
        st.builds(put, st.just(1), DATA_TYPES, SIZES, SIZES),
        st.builds(put, st.just(2), TIMES, SIZES, SIZES),
        st.builds(put, st.just(3), BODIES, SIZES, SIZES),
        st.builds(put, st.integers(4, 15), st.binary(max_size=6)),
        UNKNOWN,
    ),
    max_size=6,
).map(b"".join)

TEXTS = st.binary(max_size=20)
HEADERS = st.builds(
    lambda values: b"".join(put(number, value) for number, value in sorted(values)),
    st.lists(st.tuples(st.integers(2, 9), TEXTS), max_size=8),
)
CANONICAL = st.builds(
    lambda records, header: b"".join(put(1, r) for r in records) + header,
    st.lists(RECORDS, max_size=8),
    HEADERS,
)
VALID = st.lists(
    st.one_of(
        st.builds(put, st.just(1), RECORDS, SIZES, SIZES),
        st.builds(put, st.just(1), ODD_RECORDS, SIZES, SIZES),
        st.builds(put, st.integers(2, 9), TEXTS, SIZES, SIZES),
        UNKNOWN,
    ),
    max_size=10,
).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> bytes:
    """A message with a few bytes changed, taken out or put in, or cut short."""
    data = bytearray(draw(messages))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "remove", "flip"]))
        if kind == "change" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=3))
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 4))]
    return bytes(data)


ITEMS = st.lists(
    st.one_of(
        st.builds(
            lambda key, value: put(1, put(1, key) + put(2, value)),
            st.binary(max_size=140),
            st.binary(max_size=140) | st.just(b"v" * 16_500),
        ),
        st.builds(
            lambda parts: put(1, b"".join(parts)),
            st.lists(
                st.builds(put, st.integers(1, 2), st.binary(max_size=9), SIZES, SIZES) | UNKNOWN,
                max_size=4,
            ),
        ),
        UNKNOWN,
    ),
    max_size=6,
).map(b"".join)
