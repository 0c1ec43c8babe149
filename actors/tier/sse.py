"""Server-sent events: from bytes, cut anywhere, to the `data` of each event. Pure.

After WHATWG HTML 9.2: lines end in LF, CRLF or CR; an empty line ends an event; several `data` lines are one data with LF
between; comments and the fields event, id and retry are passed over; a byte order mark at the start is none of the data.
One leniency: what stands complete behind the last empty line when the stream ends in good order is given too, since
some servers leave out the last empty line.

Data stays bytes: it is JSON, and whoever parses it decodes it.
"""

from actors.tier.transport import TransportError

__all__ = ["MAX_EVENT_BYTES", "EventParser", "frame"]

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""The largest event: audio and images come as one. Larger than any with log probabilities of twenty alternatives."""

_BOM = b"\xef\xbb\xbf"


class EventParser:
    """`feed` what comes; each call gives the data of the events that ended with it. Holds one unfinished event at most."""

    __slots__ = ("_begun", "_held", "_max_event_bytes", "_size", "_was_cr")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._held: list[bytes] = []
        """The unfinished event, in parts: joined once, so that a large one costs no more than its size."""
        self._size = 0
        self._begun = False
        self._was_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises TransportError when an event has no end within the bound; then this parser is of no more use."""
        if self._was_cr or b"\r" in piece:
            piece = self._with_lf(piece)
        if not piece:
            return []
        held = self._held
        if held:
            held.append(piece)
            if self._begun and b"\n\n" not in piece and not (piece[:1] == b"\n" and held[-2][-1:] == b"\n"):
                self._grow(len(piece))
                return []
            piece = b"".join(held)
            held.clear()
            self._size = 0
        if not self._begun:
            if len(piece) < len(_BOM) and _BOM.startswith(piece):
                self._hold(piece)
                return []
            self._begun = True
            piece = piece.removeprefix(_BOM)
        blocks = piece.split(b"\n\n")
        self._hold(blocks.pop())
        found: list[bytes] = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                found.append(block[6:])
            else:
                _read(block, found)
        return found

    def end(self) -> list[bytes]:
        """The stream has ended in good order."""
        found: list[bytes] = []
        _read(b"".join(self._held), found)
        self._held.clear()
        return found

    def _with_lf(self, piece: bytes) -> bytes:
        if self._was_cr and piece.startswith(b"\n"):  # the second half of a CRLF, whose CR has ended the line
            piece = piece[1:]
            self._was_cr = False
        if piece:
            self._was_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _hold(self, rest: bytes) -> None:
        if rest:
            self._held.append(rest)
            self._grow(len(rest))

    def _grow(self, count: int) -> None:
        self._size += count
        if self._size > self._max_event_bytes:
            self._held.clear()
            limit = f"{self._max_event_bytes:,} bytes"
            raise TransportError("malformed", f"an event of the stream is larger than {limit}", sent=True)


def _read(block: bytes, found: list[bytes]) -> None:
    """A block without an empty line within it; it may begin with one, which ends nothing."""
    data = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in block.split(b"\n")
        if line.startswith(b"data:") or line == b"data"
    ]
    if data:
        found.append(data[0] if len(data) == 1 else b"\n".join(data))


def frame(data: bytes) -> bytes:
    """An event of this data, as a stream sends it."""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    return b"data: %b\n\n" % data
