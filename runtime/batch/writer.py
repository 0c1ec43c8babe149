"""The output of a batch: results to OUT, failures to the errors file, as OpenAI Batch output lines.

Lines are gathered and written together, and only a line that the kernel has taken whole makes its row done
(`Journal.done`). So a row can be called twice after a crash, but never be lost or stand twice. When a disk fills, the
half line is cut off again and everything before it counts.

An upstream body is spliced in as the bytes it came in. The one key that is added, `raycade`, goes last, before the
final brace; a parse and re-encode would cost more than the rest of the row and could change its numbers.
"""

import fcntl
import os
from typing import Any, NamedTuple, Self

import orjson

from actors.errors import ConfigError
from runtime.batch.journal import Journal, OutputError, Snapshot, id_prefix, sync_folder
from runtime.batch.reader import Row

__all__ = ["OutputError", "OutputWriter", "Written"]

_LINE_BREAKS = b"\r\n"
_RAYCADE = b'"raycade":'


class Written(NamedTuple):
    """A line that stands in its file now, whole; its row is done."""

    number: int
    offset: int
    length: int
    ok: bool
    """True: in OUT. False: in the errors file."""


class OutputWriter:
    """Appends lines to OUT and ERRORS. Nothing here blocks but the disk: `flush` writes, `checkpoint` waits for fsync."""

    def __init__(self, out: str, errors: str, journal: Journal) -> None:
        self.journal = journal
        self._start = id_prefix(journal.run)
        self._pending: set[int] = set()
        self._out = _Sink(out, journal.out_bytes, ok=True)
        try:
            self._errors = _Sink(errors, journal.errors_bytes, ok=False)
        except ConfigError:
            self._out.close()
            raise

    @property
    def pending_rows(self) -> int:
        """Lines that wait for `flush`."""
        return len(self._pending)

    @property
    def pending_bytes(self) -> int:
        return self._out.pending_bytes + self._errors.pending_bytes

    def add_result(self, row: Row, body: bytes, status: int, request_id: str, extra: dict[str, Any]) -> bool:
        """Queue a succeeded row. `body` is upstream's, a JSON object; `extra` becomes its key `raycade`.

        False when the row has its line already: the second answer is dropped, since a row has one line.
        """
        number = row.number
        if number in self._pending or number in self.journal.done:
            return False
        head = b'%s%d","custom_id":%s,"response":{"status_code":%d,"request_id":%s,"body":' % (
            self._start,
            number,
            orjson.dumps(row.custom_id),
            status,
            orjson.dumps(request_id),
        )
        line = b"".join((head, *_spliced(body, extra), b'},"error":null}\n'))
        self._pending.add(number)
        self._out.add(number, line)
        return True

    def add_error(
        self,
        row_number: int,
        custom_id: str | None,
        code: str,
        message: str,
        status: int | None = None,
        body: bytes | None = None,
        extra: dict[str, Any] | None = None,
        request_id: str = "",
        file: str = "",
        line: int = 0,
    ) -> bool:
        """Queue a failed row. With a `status` and a `body` the last response stands in the line, else null. `extra` becomes
        the key `raycade` in the response's body or, where that is no object, of the line itself.

        `file` and `line` go in front of the message, for a message that does not name the row's place itself.
        False as in `add_result`.
        """
        if row_number in self._pending or row_number in self.journal.done:
            return False
        response, beside = b"null", extra
        if status is not None and body:
            if _is_object(body):
                content, beside = b"".join(_spliced(body, extra or {})), None
            else:
                content = _text(body.decode(errors="replace"))
            response = b'{"status_code":%d,"request_id":%s,"body":%s}' % (status, _text(request_id), content)
        place = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        text = b'%s%d","custom_id":%s,"response":%s,"error":{"code":%s,"message":%s}%s}\n' % (
            self._start,
            row_number,
            b"null" if custom_id is None else _text(custom_id),
            response,
            _text(code),
            _text(place + message),
            b',"raycade":' + orjson.dumps(beside) if beside else b"",
        )
        self._pending.add(row_number)
        self._errors.add(row_number, text)
        return True

    def flush(self) -> list[Written]:
        """Write what is queued; the rows whose lines stand in the files now, which makes them done.

        Raises OutputError when a file takes no more. Lines that fitted are kept and their rows done; the others stay
        queued, so that `flush` may be called again once there is room.
        """
        if not self._pending:
            return []
        written: list[Written] = []
        failure: OutputError | None = None
        for sink in (self._out, self._errors):
            try:
                sink.write()
            except OSError as error:
                failure = failure or OutputError(sink.path, error.strerror or str(error))
            written += sink.taken()
        journal, done = self.journal, self.journal.done
        for number, _, _, ok in written:
            done.add(number)
            self._pending.discard(number)
            if ok:
                journal.succeeded += 1
            else:
                journal.failed += 1
        if failure:
            raise failure
        return written

    def snapshot(self) -> Snapshot:
        """What `store` is to make durable: cheap, to be taken where `flush` is called (the event loop)."""
        return self.journal.snapshot(self._out.end, self._errors.end)

    def store(self, snapshot: Snapshot) -> None:
        """Bring both files to disk and make `snapshot` the checkpoint. Slow (fsync); may run in a thread."""
        for sink in (self._out, self._errors):
            try:
                os.fsync(sink.fd)
            except OSError as error:
                raise OutputError(sink.path, error.strerror or str(error)) from None
        self.journal.store(snapshot)

    def checkpoint(self) -> None:
        """`store(snapshot())`: for callers who may wait for the disk."""
        self.store(self.snapshot())

    def read_line(self, offset: int, length: int = 0) -> bytes:
        """The upstream body of an earlier result, without `raycade`: for a row that shares its call.

        `offset` (and `length`, if it was kept) are those of `Written` or of `scan`.
        """
        return _unspliced(self._line(offset, length))

    def read_prompt(self, offset: int) -> str:
        """The prompt version that made an earlier result; "" when it was none."""
        ref: str = orjson.loads(self._line(offset))["response"]["body"].get("raycade", {}).get("prompt", "")
        return ref

    def _line(self, offset: int, length: int = 0) -> bytes:
        size = length or 8192
        line = os.pread(self._out.fd, size, offset)
        while not length and b"\n" not in line and len(line) == size:
            size *= 4
            line = os.pread(self._out.fd, size, offset)
        return line.partition(b"\n")[0]

    def close(self) -> None:
        """Flush, checkpoint and let go of the files. An errors file that we made and never needed is removed."""
        try:
            self.flush()
            self.checkpoint()
        finally:
            self._out.close()
            self._errors.close(remove_if_empty=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Sink:
    """One file that grows by whole lines."""

    def __init__(self, path: str, end: int, ok: bool) -> None:
        self.path, self.end, self.ok = path, end, ok
        self.pending_bytes = 0
        self._numbers: list[int] = []
        self._lines: list[bytes] = []
        self._taken: list[Written] = []
        self._made = not os.path.exists(path)
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigError(f"cannot be opened for writing: {error.strerror}", file=path) from None
        try:
            # Two jobs have two journals, but may have been given one --errors file.
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self.fd).st_size != end:
                raise ConfigError("has changed since the journal was read; is another program writing it?", file=path)
            sync_folder(os.path.dirname(path) or ".")
        except BlockingIOError:
            os.close(self.fd)
            raise ConfigError("another job is writing it", file=path) from None
        except OSError as error:
            os.close(self.fd)
            raise ConfigError(f"cannot be locked: {error.strerror}", file=path) from None
        except ConfigError:
            os.close(self.fd)
            raise

    def add(self, number: int, line: bytes) -> None:
        self._numbers.append(number)
        self._lines.append(line)
        self.pending_bytes += len(line)

    def write(self) -> None:
        """Write the queued lines behind the last whole one. Raises OSError when only some fitted; `taken` says which."""
        if not self._lines:
            return
        data = memoryview(b"".join(self._lines))
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self.fd, data[written:], self.end + written)
        finally:
            whole = self._take(written)
            if written > whole:
                try:
                    os.ftruncate(self.fd, self.end)
                except OSError:
                    pass  # the next write or the next recovery deals with the half line

    def _take(self, written: int) -> int:
        """Move the lines that lie whole within the first `written` bytes over to `taken`; their size."""
        whole = count = 0
        for number, line in zip(self._numbers, self._lines, strict=True):
            length = len(line)
            if whole + length > written:
                break
            self._taken.append(Written(number, self.end + whole, length, self.ok))
            whole += length
            count += 1
        del self._numbers[:count], self._lines[:count]
        self.end += whole
        self.pending_bytes -= whole
        return whole

    def taken(self) -> list[Written]:
        taken, self._taken = self._taken, []
        return taken

    def close(self, remove_if_empty: bool = False) -> None:
        if remove_if_empty and self._made and not self.end:
            try:
                os.remove(self.path)
            except OSError:
                pass
        os.close(self.fd)


def _spliced(body: bytes, extra: dict[str, Any]) -> tuple[bytes, ...]:
    """The parts of `body` with one last key `raycade`, on one line.

    Line breaks are taken out as bytes: in JSON they can only be white space, and endpoints that indent their answers
    are common. A key `raycade` of upstream's own stays where it is; ours comes after it, so it is the one readers see.
    """
    if b"\n" in body:
        body = body.translate(None, _LINE_BREAKS)
    body = body.strip()
    if not (body.startswith(b"{") and body.endswith(b"}")):
        body = _as_object(body)
    if not extra:
        return (body,)
    added = orjson.dumps(extra)
    if b"\n" in added:  # from a fragment, which orjson takes over as it is
        added = added.translate(None, _LINE_BREAKS)
    inner = body[:-1].rstrip()
    return inner, b"" if inner == b"{" else b",", _RAYCADE, added, b"}"


def _as_object(body: bytes) -> bytes:
    """`{"value": ...}`: a body must be an object to take one more key, and OUT must stay readable whatever came."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = body.decode(errors="replace")
    return orjson.dumps({"value": value})


def _unspliced(line: bytes) -> bytes:
    """The upstream body in an output line: what `_spliced` was given, line breaks apart."""
    body = line[line.index(b',"body":{') + 8 : line.rindex(b'},"error":')]
    at = len(body)
    # The value of `parsed` may hold a key of this name too, but only the value of the outermost one is whole here.
    while (at := body.rfind(_RAYCADE, 0, at)) > 0:
        try:
            orjson.loads(body[at + len(_RAYCADE) : -1])
        except orjson.JSONDecodeError:
            continue
        return body[:at].removesuffix(b",") + b"}"
    return body


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        return False


def _text(text: str) -> bytes:
    """A JSON string. File names may hold bytes that are no UTF-8 (surrogates), which orjson refuses."""
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError:
        return orjson.dumps(text.encode(errors="backslashreplace").decode())
