"""From bytes to a reply: framing, bounds and decompression, without any I/O. One reader serves a connection's replies in turn.

httptools (llhttp, strict) finds where things begin and end, and refuses ambiguous framing: a length beside chunks, two
lengths, folded headers, stray bytes. What this adds: interim replies are passed over, upgrades and codings that were not
asked for are refused, everything is bounded, and bytes behind a whole reply make the connection unfit for another.

A reply that is streamed to its caller leaves from `on_body`, into a `StreamBody`.
"""

import zlib
from typing import Any

import httptools

from actors.tier.stream_body import NOT_PACKED, StreamBody, too_large, unpacker
from actors.tier.transport import Reply, TransportError

__all__ = ["MAX_HEAD_BYTES", "ReplyReader"]

MAX_HEAD_BYTES = 64 * 1024
"""Of the headers; and of whatever else comes without a byte of the body (interim replies, trailers, chunk extensions)."""
MANY_PARTS = 1_000

_NOT_HTTP = "the reply is not valid HTTP"


class ReplyReader:
    """`begin`, then `feed` until it is `whole` or has an `error`. It is the parser's listener too: the `on_` methods."""

    def __init__(self, max_reply_bytes: int) -> None:
        self._limit = max_reply_bytes
        self._parser: Any = httptools.HttpResponseParser(self)
        self.begin()

    def begin(self, stream_bytes: int = 0) -> None:
        """`stream_bytes` bounds a reply that is streamed; 0: it is kept until it is whole."""
        self._stream_bytes = stream_bytes
        self.body: StreamBody | None = None
        """Of a streamed reply, once its headers are complete."""
        self.whole = False
        self.error: TransportError | None = None
        self.reusable = False
        """Whether the connection may carry another request."""
        self._status = 0
        """Of the final reply, once its headers are complete."""
        self._headers: dict[str, str] = {}
        self._repeated = self._until_close = False
        self._parts: list[bytes] = []
        self._gathered = bytearray()
        self._packed_bytes = 0
        self._room = stream_bytes or self._limit
        self._unpack: zlib._Decompress | None = None
        self._bodyless_bytes = 0

    def feed(self, data: bytes) -> None:
        rest = b""
        self._bodyless_bytes += len(data)
        if not self._status and self._bodyless_bytes > MAX_HEAD_BYTES:
            # The headers have to end within the bound, however much came with them.
            cut = len(data) - (self._bodyless_bytes - MAX_HEAD_BYTES)
            data, rest = data[:cut], data[cut:]
        try:
            self._parser.feed_data(data)
            if rest and self._status:
                self._parser.feed_data(rest)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.reusable = False
            if not self.whole:
                self._fail(_NOT_HTTP)
        if self._bodyless_bytes > MAX_HEAD_BYTES and not self.whole:
            self._fail(_NOT_HTTP)

    def ends_with_connection(self) -> bool:
        """The connection has ended in good order: is that the end of the reply, or of a part?"""
        if self._until_close and self.error is None:
            self.on_message_complete()
        return self.whole

    @property
    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the final reply, once they are complete."""
        return self._status, self._headers

    @property
    def refuses(self) -> bool:
        """The reply says no: it may have come before the request was read."""
        return self._status >= 400

    def begun(self) -> bool:
        return self._status > 0 or self._bodyless_bytes > 0

    def reply(self) -> Reply:
        # An idle connection should hold on to nothing of it.
        parts, self._parts, self._unpack, self.body = self._parts, [], None, None
        if self._gathered:
            parts.insert(0, bytes(self._gathered))
            self._gathered = bytearray()
        return Reply(self._status, self._headers, parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        """The parser holds this object's methods: without this, only the garbage collector would part them."""
        self._parser = self.body = None
        self._parts = []
        self._gathered = bytearray()

    def _fail(self, message: str) -> None:
        # The first error is the one that counts; what the parser still finds in the same bytes follows from it.
        self.error = self.error or _malformed(message)

    # ---- the parser

    def on_message_begin(self) -> None:
        if self.whole:
            # A second reply to one request.
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here too, and so does a second reply.
        if self._status:
            return
        key = name.lower().decode("latin-1")
        if key not in self._headers:
            self._headers[key] = value.strip().decode("latin-1")
        elif key == "transfer-encoding":
            self._repeated = True

    def on_headers_complete(self) -> None:
        if self._status or self.error is not None:
            return
        status: int = self._parser.get_status_code()
        headers = self._headers
        if 100 <= status < 200 and status != 101:
            self._headers, self._repeated = {}, False
            return
        coding = headers.get("transfer-encoding")
        if status < 200 or self._repeated or (coding is not None and coding.lower() != "chunked"):
            self._fail(_NOT_HTTP)
            return
        self._status = status
        self.reusable = self._parser.should_keep_alive()
        self._bodyless_bytes = 0
        bodyless = status in (204, 304)
        encoding = "" if bodyless else headers.get("content-encoding", "").lower()
        try:
            if self._stream_bytes:
                self.body = StreamBody(encoding, self._stream_bytes)
            else:
                self._unpack = unpacker(encoding)
        except zlib.error:
            self._fail(NOT_PACKED)
        if bodyless:
            return
        length = headers.get("content-length")
        self._until_close = coding is None and length is None
        if length is not None and int(length) > self._room:
            self.error = too_large(self._room)

    def on_body(self, body: bytes) -> None:
        if self.whole or self.error is not None:
            return
        self._bodyless_bytes = 0
        if self.body is not None:
            if not self.body.put(body):
                self.error = too_large(self._stream_bytes)
            return
        unpack = self._unpack
        if unpack is not None:
            self._packed_bytes += len(body)
            try:
                # One byte more than there is room for tells "too large" from "just fits".
                body = unpack.decompress(body, self._room + 1)
            except zlib.error:
                self._fail(NOT_PACKED)
                return
        self._room -= len(body)
        if self._room < 0 or self._packed_bytes > self._limit:
            self.error = too_large(self._limit)
        elif unpack is not None and unpack.unused_data:
            # A second stream behind the first would be lost, and would gather in memory.
            self._fail(NOT_PACKED)
        elif body:
            self._parts.append(body)
            if len(self._parts) > MANY_PARTS:  # a small chunk's object is twenty times what it holds
                self._gathered += b"".join(self._parts)
                self._parts.clear()

    def on_message_complete(self) -> None:
        if not self._status or self.whole or self.error is not None:
            return
        # Errors without a body often name an encoding all the same.
        if self._unpack is not None and not self._unpack.eof and self._packed_bytes:
            self._fail(NOT_PACKED)
        else:
            self.whole = True


def _malformed(message: str) -> TransportError:
    return TransportError("malformed", message, sent=True)
