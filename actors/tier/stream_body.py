"""What has come of a streamed body and was not taken yet: joined, unpacked and bounded, without any I/O.

A compressed body is kept packed and unpacked as it is taken, a piece at a time: a few bytes may become millions, and the
reader's pace, not the sender's, decides when.
"""

import contextlib
import zlib

from actors.tier.transport import TransportError

__all__ = ["NOT_PACKED", "StreamBody", "too_large", "unpacker"]

PIECE_BYTES = 64 * 1024
"""The largest piece that a compressed body is unpacked into."""
OBJECT_BYTES = 64
"""What Python keeps beside the bytes of each part: counted, since a sender may cut its parts small."""

NOT_PACKED = "the reply is not compressed as its header says"


class StreamBody:
    """`put` what comes, `take` what there is while it is `ready`, and ask `unfinished` when nothing more will come."""

    __slots__ = ("_limit", "_more", "_packed", "_parts", "_room", "_unpack", "held")

    def __init__(self, encoding: str, limit: int) -> None:
        """`limit` bounds the bytes that come and the bytes that they become. zlib.error for an encoding not asked for."""
        self._unpack = unpacker(encoding)
        self._parts: list[bytes] = []
        self._limit = self._room = limit
        self._packed = 0
        self._more = False
        self.held = 0
        """Memory taken by what was put and not taken."""

    @property
    def ready(self) -> bool:
        return self._more or bool(self._parts)

    def put(self, data: bytes) -> bool:
        """False: more has come than may."""
        self._parts.append(data)
        self.held += len(data) + OBJECT_BYTES
        self._packed += len(data)
        return self._packed <= self._limit

    def take(self) -> bytes:
        """All that there is, or a piece of it if it is compressed; may be empty. Raises TransportError."""
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.held = 0
        if self._unpack is None:
            return data
        piece: bytes | None = None
        # Raised outside the handler, as all of ours, so that zlib's own error does not hang on to it.
        with contextlib.suppress(zlib.error):
            # One byte more than there is room for tells "too large" from "just fits".
            piece = self._unpack.decompress(data, min(PIECE_BYTES, self._room + 1))
        if piece is None:
            self._more = False
            raise TransportError("malformed", NOT_PACKED, sent=True)
        # At the bound zlib may hold more, whether or not it has read all that it was given.
        self._more = len(piece) >= PIECE_BYTES
        if rest := self._unpack.unconsumed_tail:
            parts.append(rest)
            self.held = len(rest) + OBJECT_BYTES
        self._room -= len(piece)
        if self._room < 0:
            raise too_large(self._limit)
        if self._unpack.unused_data:
            raise TransportError("malformed", NOT_PACKED, sent=True)
        return piece

    def drop(self) -> None:
        self._parts.clear()
        self._more = False
        self.held = 0

    def unfinished(self) -> TransportError | None:
        """All was put and taken: is the compressed stream at its end too?"""
        # Errors without a body often name an encoding all the same.
        if self._unpack is None or self._unpack.eof or not self._packed:
            return None
        return TransportError("malformed", NOT_PACKED, sent=True)


def unpacker(encoding: str) -> "zlib._Decompress | None":
    """What undoes a Content-Encoding; zlib.error for one that was not asked for."""
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(wbits=31)
    raise zlib.error("an encoding that was not asked for")


def too_large(limit: int) -> TransportError:
    return TransportError("malformed", f"the reply is larger than {limit:,} bytes", sent=True)
