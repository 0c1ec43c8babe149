"""One request and the answer it is owed: the response side of HTTP/1.1, with the ways to break it on purpose."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

__all__ = ["Exchange"]

_JSON = b"application/json"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_OK_JSON = _STATUS_LINES[200] + b"Content-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"
_ANY = b"%bContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n%b"
_OPEN = _STATUS_LINES[200] + b"Content-Type: application/json\r\n%b\r\n"
_STREAM = b"%bContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n%b%b\r\n"


class Turns(Protocol):
    """What an exchange needs of its connection: whose turn it is, and the way out."""

    turn: "Exchange | None"
    full: bool

    def send(self, data: bytes) -> None: ...

    def advance(self) -> None: ...


class Exchange:
    """One request and the answer it is owed. Answer with `reply`, with `start_stream`, `write`, `end`, or break it."""

    __slots__ = ("_chunked", "_connection", "_fate", "_held", "_keep", "finished", "head_only", "on_gone", "on_room")

    def __init__(self, connection: Turns, head_only: bool, keep: bool, chunked: bool) -> None:
        self._connection = connection
        self._keep, self._chunked = keep, chunked
        self._held: list[bytes] = []
        self._fate = ""
        self.head_only = head_only
        self.finished = False
        self.on_gone: Callable[[], None] | None = None
        """Called when the client leaves before the answer is finished."""
        self.on_room: Callable[[], None] | None = None
        """Called when there is room again for what is written."""

    def reply(self, status: int, body: bytes, headers: bytes = b"", content_type: bytes = _JSON) -> None:
        """The whole answer. `headers` are complete lines, each with its CRLF."""
        if not self._keep:
            headers += b"Connection: close\r\n"
        if status == 200 and content_type is _JSON and not self.head_only:
            self._send(_OK_JSON % (len(body), headers, body))
        else:
            self._send(_ANY % (_line(status), content_type, len(body), headers, b"" if self.head_only else body))
        self._finish()

    def start_stream(self, headers: bytes = b"") -> None:
        if not self._chunked:
            self._keep = False
        if not self._keep:
            headers += b"Connection: close\r\n"
        self._send(_STREAM % (_line(200), b"Transfer-Encoding: chunked\r\n" if self._chunked else b"", headers))

    def start_body(self, length: int | None, headers: bytes = b"") -> None:
        """An answer whose body follows in pieces, with `write` and `end`. Without a length it is chunked."""
        self._chunked = self._chunked and length is None
        self._keep = self._keep and (self._chunked or length is not None)
        if not self._keep:
            headers += b"Connection: close\r\n"
        if length is not None:
            headers += b"Content-Length: %d\r\n" % length
        elif self._chunked:
            headers += b"Transfer-Encoding: chunked\r\n"
        self._send(_OPEN % headers)

    @property
    def has_room(self) -> bool:
        """Whether what is written now goes out, rather than into memory."""
        return self._connection.turn is self and not self._connection.full

    def write(self, data: bytes) -> None:
        if data:
            self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        if self._chunked:
            self._send(b"0\r\n\r\n")
        self._finish()

    def reset(self) -> None:
        """Break the connection with a TCP reset once this exchange's turn has come."""
        self._fate = "reset"
        self._finish()

    def cut(self, body: bytes, headers: bytes = b"") -> None:
        """Announce the whole body, send half of it, then reset."""
        self._send(_ANY % (_line(200), _JSON, len(body), headers, body[: len(body) // 2]))
        self.cut_stream()

    def cut_stream(self) -> None:
        """Reset after what has been written so far."""
        self._fate = "cut"
        self._finish()

    def _send(self, data: bytes) -> None:
        if self._connection.turn is self:
            self._connection.send(data)
        else:
            self._held.append(data)

    def _finish(self) -> None:
        self.finished = True
        if self._connection.turn is self:
            self._connection.advance()

    def take_turn(self) -> None:
        """The exchange has become the first of the queue."""
        for data in self._held:
            self._connection.send(data)
        self._held.clear()
        if self.on_room is not None:
            self.on_room()

    @property
    def ending(self) -> str:
        """What is due after the answer: nothing, `close`, `reset` or `cut`."""
        return self._fate or ("" if self._keep else "close")


def _line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n".encode()
