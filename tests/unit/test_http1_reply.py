"""Replies from bytes, without a connection."""

import gzip
import tracemalloc

from actors.tier.http1_reply import ReplyReader


def fed(reply: bytes, max_reply_bytes: int = 1_000_000) -> ReplyReader:
    reader = ReplyReader(max_reply_bytes)
    reader.begin()
    reader.feed(reply)
    return reader


def chunked(*chunks: bytes, headers: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + headers + b"\r\n" + body + b"0\r\n\r\n"


def test_an_error_without_a_body_keeps_its_status_though_it_names_an_encoding() -> None:
    """A 429 that says gzip and sends nothing is a 429, and its Retry-After counts."""
    head = b"HTTP/1.1 429 Too Many Requests\r\nContent-Encoding: gzip\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n"
    reader = fed(head)
    assert reader.whole
    reply = reader.reply()
    assert (reply.status, reply.headers["retry-after"], reply.body) == (429, "3", b"")


def test_tiny_chunks_take_little_more_room_than_what_they_hold() -> None:
    """200,000 chunks of two bytes: the same body, and no object for each of them."""
    reply = chunked(*[b"ab"] * 200_000)
    tracemalloc.start()
    reader = fed(reply)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reader.whole
    assert reader.reply().body == b"ab" * 200_000
    assert held < 4_000_000


def test_compressed_bytes_that_become_nothing_are_bounded_too() -> None:
    """Empty gzip blocks without end never fill the reply, and still are too many bytes."""
    start = gzip.compress(b"")[:10]
    reader = fed(chunked(start, *[b"\x00\x00\x00\xff\xff"] * 1_000, headers=b"Content-Encoding: gzip\r\n"), 1_000)
    assert reader.error is not None
    assert "larger than" in str(reader.error)
