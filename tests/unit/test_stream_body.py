"""A streamed body between what comes and what is taken."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.tier.stream_body import PIECE_BYTES, StreamBody
from actors.tier.transport import TransportError


def taken(body: StreamBody) -> bytes:
    pieces = []
    while body.ready:
        pieces.append(body.take())
        assert len(pieces[-1]) <= max(PIECE_BYTES, 1_000)
    return b"".join(pieces)


@given(st.binary(max_size=300), st.integers(1, 40), st.booleans(), st.sampled_from([1, 1_000]))
def test_all_that_is_put_is_taken(data: bytes, size: int, packed: bool, times: int) -> None:
    """In any pieces, compressed to almost nothing or not at all, and it ends in good order."""
    data *= times
    sent = gzip.compress(data) if packed else data[:1_000]
    body = StreamBody("gzip" if packed else "", 10_000_000)
    got = b""
    for at in range(0, len(sent), size):
        assert body.put(sent[at : at + size])
        if at % 3 == 0:
            got += taken(body)
    got += taken(body)
    assert got == (data if packed else data[:1_000])
    assert body.unfinished() is None
    assert body.held == 0


def test_what_is_held_counts_small_parts_at_their_true_size() -> None:
    """A sender that cuts its parts small cannot fill memory beside the count."""
    body = StreamBody("", 1_000_000)
    for _ in range(1_000):
        body.put(b"x")
    assert body.held > 50_000


def test_both_sides_of_a_compressed_body_are_bounded() -> None:
    """What comes, and what it becomes."""
    bomb = gzip.compress(bytes(1_000_000))
    body = StreamBody("gzip", 100_000)
    assert body.put(bomb)
    with pytest.raises(TransportError, match="100,000 bytes"):
        taken(body)
    assert not StreamBody("gzip", 10).put(bomb)


def test_an_end_that_is_missing_is_told() -> None:
    """Bytes that are all there but for the checksum are not all there."""
    body = StreamBody("gzip", 1_000)
    body.put(gzip.compress(b"hello")[:-8])
    assert taken(body) == b"hello"
    assert body.unfinished() is not None
    assert StreamBody("gzip", 1_000).unfinished() is None


def test_an_encoding_that_was_not_asked_for() -> None:
    with pytest.raises(zlib.error):
        StreamBody("br", 1_000)
