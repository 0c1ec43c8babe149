"""The input of a batch: from files to rows, in bounded memory.

    open_input(spec) -> InputSet.chunks() -> lists of RawRow -> parse_row(raw) -> Row | RowError

Reading and parsing are apart so that reading can run in a thread and a resumed job can skip its done rows at the cost
of a split. Rows are separated by the byte `\\n` and nothing else: a text-mode reader would also split at U+2028, U+0085
or a lone carriage return, all of which may stand inside a prompt. A row that cannot be used is a value (`RowError`),
since one bad row must not end a job of a million; a file that cannot be read further is an exception, since nobody
knows what it would have held.
"""

import glob
import hashlib
import os
import re
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import orjson
import zstandard

from actors.errors import ConfigError, InputError

__all__ = [
    "MAX_CUSTOM_ID",
    "MAX_ROW_BYTES",
    "PATHS",
    "InputSet",
    "RawRow",
    "Row",
    "RowError",
    "body_error",
    "open_input",
    "parse_row",
]

MAX_ROW_BYTES = 16 << 20
MAX_CUSTOM_ID = 512
PATHS = {f"/v1{path}": path for path in ("/chat/completions", "/embeddings", "/completions", "/responses")}
"""The urls a row may name -> the path below a tier's base_url."""

_BLOCK = 256 << 10
_ENDS = 64 << 10  # how much of each end of a file counts for its fingerprint
_KEPT = 4 << 10  # how much of an oversized row is kept: enough for a custom_id that comes first
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class RawRow(NamedTuple):
    """A line of the input that is not blank."""

    number: int
    """Running number over all files, from 0: the row's name in the journal."""
    file: str
    line: int
    data: bytes
    """The line without its end. Only its first bytes when `oversized`."""
    oversized: bool = False


class Row(NamedTuple):
    """A row that can be sent, as far as its own shape can tell."""

    number: int
    file: str
    line: int
    custom_id: str
    path: str
    """Path below a tier's base_url: `/chat/completions`."""
    body: dict[str, Any]
    """Empty for a row that brings `variables`."""
    variables: dict[str, Any] | None


class RowError(InputError):
    """One row that cannot be used. Its error line carries `code`, `str(self)` and, where it could be read, `custom_id`."""

    def __init__(
        self, number: int, code: str, message: str, file: str, line: int, field: str = "", custom_id: str | None = None
    ) -> None:
        super().__init__(code, message, file, line, field)
        self.args = (number, code, message, file, line, field, custom_id)  # what pickle calls __init__ with
        self.number, self.custom_id = number, custom_id


# -- files ---------------------------------------------------------------------------------------------------------


class _Source:
    """One file, or a stream (standard input, a named pipe) that can be read only once."""

    def __init__(self, name: str, path: str = "", stream: BinaryIO | None = None) -> None:
        self.name, self.path, self.stream, self.size = name, path, stream, 0
        self._head: bytes | None = None
        if path:
            try:
                info = os.stat(path)
                if stat.S_ISREG(info.st_mode):
                    self.size = info.st_size
                    with open(path, "rb") as file:
                        start = file.read(4)
                else:  # a pipe must be opened once only: its writer would not survive a reader that comes and goes
                    self.stream, start = _unbuffered(path), b""
            except OSError as error:
                raise ConfigError(f"cannot read the input: {_reason(error)}", file=name) from None
            if start.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ConfigError("this is UTF-16; save the input as UTF-8", file=name)

    def head(self) -> bytes:
        """The first bytes of a stream, at least a line of it if it is not very long; they are kept for `read`.

        No more than a line: a pipe that trickles must not hold the job up.
        """
        if self._head is None:
            assert self.stream is not None
            blocks, head = _blocks(self.stream, _ENDS), b""
            while b"\n" not in head and len(head) < _ENDS and (more := next(blocks, b"")):
                head += more
            self._head = head
        return self._head

    def ends(self) -> Iterator[bytes]:
        """What the fingerprint is made of."""
        if self.stream:
            yield self.head().partition(b"\n")[0][:_ENDS]
            return
        with open(self.path, "rb") as file:
            yield file.read(_ENDS)
            file.seek(max(0, self.size - _ENDS))
            yield file.read(_ENDS)

    def read(self) -> Iterator[bytes]:
        """The bytes as they lie in the file."""
        if self.stream:
            if self._head:
                yield self._head
            self._head = b""
            yield from _blocks(self.stream)
            if self.path:
                self.stream.close()
        else:
            with open(self.path, "rb") as file:
                yield from _blocks(file)


def _unbuffered(file: int | str) -> BinaryIO:
    """A stream without a buffer, whose lock a thread that is stuck in a read would hold when the program ends."""
    return cast("BinaryIO", open(file, "rb", buffering=0, closefd=isinstance(file, str)))


def _blocks(file: BinaryIO, size: int = _BLOCK) -> Iterator[bytes]:
    while block := file.read(size):
        yield block


class InputSet:
    """The rows of one input, in order. Iterate `chunks` once; `fingerprint` may be asked before that."""

    def __init__(self, sources: Sequence[_Source], max_row_bytes: int = MAX_ROW_BYTES) -> None:
        self._sources, self._max_row_bytes = sources, max_row_bytes
        self.files = tuple(source.name for source in sources)
        self.size_bytes = None if any(source.stream for source in sources) else sum(source.size for source in sources)
        """Size of all files as they lie on disk, None when a stream is among them."""
        self.read_bytes = 0
        """How much of `size_bytes` has been read: for a progress bar. Runs ahead of the rows by up to a block."""

    def fingerprint(self) -> str:
        """What tells this input from another, as a short line that a person can compare.

        Base names, sizes and the SHA-256 of both ends (64 KiB) of every file: no full read, and the same after the
        files have moved. An edit that keeps the size and lies in the middle of a large file goes unseen. A stream counts
        by its first line, so that a job on a pipe can be resumed by piping the same bytes in again.
        """
        sha = hashlib.sha256()
        for source in self._sources:
            try:
                parts = b"".join(source.ends())
            except OSError as error:
                raise ConfigError(f"cannot read the input: {_reason(error)}", file=source.name) from None
            sha.update(repr((os.path.basename(source.name), source.size, len(parts))).encode() + parts)
        first, count = os.path.basename(self.files[0]), len(self.files)
        size = "" if self.size_bytes is None else f"{self.size_bytes:,} bytes, "
        return f"{first}{f' and {count - 1} more' if count > 1 else ''} ({size}sha256 {sha.hexdigest()[:16]})"

    def chunks(self, rows: int = 256, max_bytes: int = 1 << 20) -> Iterator[list[RawRow]]:
        """Lists of at most `rows` rows; one is closed early when it passes `max_bytes`, or when a stream pauses.

        A damaged or vanished file raises InputError (`unreadable_input`) after the rows before the damage.
        """
        number = 0
        for source in self._sources:
            line = 0
            chunk: list[RawRow] = []
            size, failure = 0, None
            try:
                for lines in _lines(self._decoded(source), self._max_row_bytes):
                    for data, oversized in lines:
                        line += 1
                        if data.endswith(b"\r"):
                            data = data[:-1]
                        if not data or data.isspace():
                            continue
                        chunk.append(RawRow(number, source.name, line, data, oversized))
                        number += 1
                        size += len(data)
                        if len(chunk) >= rows or size >= max_bytes:
                            yield chunk
                            chunk, size = [], 0
                    if chunk and source.stream:
                        yield chunk
                        chunk, size = [], 0
            except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
                reason = f"cannot be read from here on: {_reason(error)}"
                failure = InputError("unreadable_input", reason, source.name, line + 1)
            if chunk:
                yield chunk
            if failure:
                raise failure

    def _decoded(self, source: _Source) -> Iterator[bytes]:
        """The source's text. Compressed files are told by name, or by their first bytes (a pipe has no name)."""
        blocks = self._counted(source)
        first = next(blocks, b"")
        while len(first) < 4 and (more := next(blocks, b"")):
            first += more
        if not first:
            return
        text: Iterable[bytes]
        path = source.path or source.name
        if path.endswith(".gz") or first.startswith(b"\x1f\x8b"):
            text = _gunzip(first, blocks)
        elif path.endswith(".zst") or first.startswith(b"\x28\xb5\x2f\xfd"):
            text = _unzstd(first, blocks)
        else:
            yield first.removeprefix(b"\xef\xbb\xbf")
            yield from blocks
            return
        yield from _without_bom(_gathered(text, 1 if source.stream else _BLOCK))

    def _counted(self, source: _Source) -> Iterator[bytes]:
        for block in source.read():
            self.read_bytes += len(block)
            yield block


def open_input(spec: str, exclude: Sequence[str] = (), max_row_bytes: int = MAX_ROW_BYTES, name: str = "") -> InputSet:
    """A file, `-` (standard input), a glob, or a folder (its *.jsonl, .jsonl.gz, .jsonl.zst, sorted by name).

    `exclude` are the job's own outputs: left out of a folder or a glob, so that a resumed job does not read its own
    answers. `name` is what messages call a single file instead. Raises ConfigError when there is nothing to read.
    """
    if spec == "-":
        return InputSet([_Source("<stdin>", stream=_unbuffered(sys.stdin.fileno()))], max_row_bytes)
    own = {os.path.realpath(path) for path in exclude}
    if os.path.isdir(spec):
        paths = [os.path.join(spec, name) for name in sorted(os.listdir(spec)) if name.endswith(_SUFFIXES)]
        nothing = "the folder holds no *.jsonl, *.jsonl.gz or *.jsonl.zst"
    elif glob.has_magic(spec) and not os.path.lexists(spec):
        paths = sorted(glob.glob(spec, recursive=True))
        nothing = "no file matches"
    else:
        if os.path.realpath(spec) in own:
            raise ConfigError("input and output are the same file", file=spec)
        return InputSet([_Source(name or spec, spec)], max_row_bytes)
    paths = [path for path in paths if not os.path.isdir(path) and os.path.realpath(path) not in own]
    if not paths:
        raise ConfigError(nothing, file=spec)
    return InputSet([_Source(path, path) for path in paths], max_row_bytes)


# -- bytes ---------------------------------------------------------------------------------------------------------


class _Decoder(Protocol):
    """What zlib's and zstandard's decompressors have in common: one object for one member or frame."""

    @property
    def eof(self) -> bool: ...


def _gunzip(first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Members one after the other, in pieces of bounded size, so that a bomb cannot fill the memory."""
    decoder = zlib.decompressobj(31)
    for data in _with(first, blocks):
        while data:
            if decoder.eof:
                data = data.lstrip(b"\0")  # tapes and some tools pad with zeros
                if not data:
                    break
                decoder = zlib.decompressobj(31)
            yield decoder.decompress(data, 64 << 10)
            data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    yield decoder.flush()
    _complete(decoder)


def _unzstd(first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Frames one after the other. Input goes in by 512 bytes, which bounds what one step can yield (16 MiB at worst).

    Not `stream_reader`: it takes the end of a truncated file for the end of the data.
    """
    whole = zstandard.ZstdDecompressor()
    decoder = whole.decompressobj()
    for block in _with(first, blocks):
        for start in range(0, len(block), 512):
            data = block[start : start + 512]
            while data:
                if decoder.eof:
                    decoder = whole.decompressobj()
                yield decoder.decompress(data)
                data = decoder.unused_data if decoder.eof else b""
    _complete(decoder)


def _complete(decoder: _Decoder) -> None:
    if not decoder.eof:
        raise EOFError("the compressed data ends early")


def _with(first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from blocks


def _gathered(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Pieces joined to at least `size`. What had been gathered before an error is handed on before the error."""
    held: list[bytes] = []
    total = 0
    try:
        for piece in pieces:
            held.append(piece)
            total += len(piece)
            if total >= size:
                yield b"".join(held)
                held, total = [], 0
    except (OSError, EOFError, zlib.error, zstandard.ZstdError):
        yield b"".join(held)
        raise
    yield b"".join(held)


def _without_bom(blocks: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    while len(start) < 3 and (block := next(blocks, b"")):
        start += block
    yield start.removeprefix(b"\xef\xbb\xbf")
    yield from blocks


def _lines(blocks: Iterator[bytes], limit: int) -> Iterator[list[tuple[bytes, bool]]]:
    """Per block the lines that end in it, each with whether it was longer than `limit` (then only its head is kept)."""
    open_line: list[bytes] = []
    size = 0
    for block in blocks:
        lines = block.split(b"\n")
        rest = lines.pop()
        if lines:
            if size:
                size += len(lines[0])
                lines[0] = b"".join(open_line) + lines[0]
            ended = [(data, False) if len(data) <= limit else (data[:_KEPT], True) for data in lines]
            if size > limit:  # the line has been cut down already, so its length says nothing
                ended[0] = (lines[0][:_KEPT], True)
            yield ended
            open_line, size = [], 0
        if rest:
            open_line.append(rest)
            size += len(rest)
            if size > limit:
                open_line = [b"".join(open_line)[:_KEPT]]
    # Only here when the data ended in good order: half a line before a damage is not a row.
    if size:
        last = b"".join(open_line)
        yield [(last[:_KEPT], True) if size > limit else (last, False)]


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# -- rows ----------------------------------------------------------------------------------------------------------

_COUNTS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n")
_FIRST_KEY_ID = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*("(?:[^"\\]|\\.){1,4096}")')
_Wrong = tuple[str, str, object]
"""Field, what was expected there, what was found."""


class _Absent:
    """Stands for a key that is not there."""


def parse_row(raw: RawRow) -> Row | RowError:
    """The row, or what is wrong with it: one line that names file, line, field, what was expected and what was found."""
    if raw.oversized:
        return _refused(raw, "row_too_large", "the row is too large to be read", custom_id=_first_key_id(raw.data))
    try:
        value = orjson.loads(raw.data)
    except orjson.JSONDecodeError as error:
        return _not_json(raw, error)
    if type(value) is not dict:
        return _refused(raw, "invalid_json", f"expected one JSON object, found {_show(value)}")
    get = value.get
    custom_id = get("custom_id", _Absent)
    if type(custom_id) is not str or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        expected = f"expected a text of 1 to {MAX_CUSTOM_ID} characters, found {_show(custom_id)}"
        return _refused(raw, "missing_custom_id", expected, "custom_id")
    if get("method", "POST") != "POST":
        message = f"expected POST or nothing, found {_show(get('method'))}"
        return _refused(raw, "invalid_method", message, "method", custom_id)
    if "variables" in value:
        return _prompt_row(raw, value, custom_id)
    url = get("url", _Absent)
    path = PATHS.get(url) if type(url) is str else None
    if path is None:
        message = f"expected one of {', '.join(PATHS)}, found {_show(url)}"
        return _refused(raw, "unknown_url", message, "url", custom_id)
    body = get("body", _Absent)
    if type(body) is not dict:
        return _refused(raw, "invalid_body", f"expected an object, found {_show(body)}", "body", custom_id)
    wrong = _wrong_body(path, body)
    if wrong:
        field, expected, found = wrong
        return _refused(raw, "invalid_body", f"expected {expected}, found {_show(found)}", f"body.{field}", custom_id)
    return Row(raw.number, raw.file, raw.line, custom_id, path, body, None)


def body_error(path: str, body: dict[str, Any]) -> InputError | None:
    """What is wrong with a body that stands in no file."""
    wrong = _wrong_body(path, body)
    if wrong is None:
        return None
    field, expected, found = wrong
    return InputError("invalid_body", f"expected {expected}, found {_show(found)}", field=field)


def _wrong_body(path: str, body: dict[str, Any]) -> _Wrong | None:
    """The first thing that no endpoint of this kind would take. Null counts as absent where the API says so."""
    get = body.get
    if path == "/chat/completions":
        messages = get("messages", _Absent)
        if type(messages) is not list or not messages:
            return "messages", "a list of at least one message", messages
        for index, message in enumerate(messages):
            if type(message) is not dict:
                return f"messages[{index}]", "an object", message
            if type(message.get("role")) is not str:
                return f"messages[{index}].role", "a text", message.get("role", _Absent)
    else:
        field = "prompt" if path == "/completions" else "input"
        content = get(field, _Absent)
        if type(content) is not str and type(content) is not list:
            return field, "a text or a list", content
    if type(get("model", "")) is not str:
        return "model", "a text or nothing", body["model"]
    if get("stream"):
        return "stream", "false or nothing (a batch does not stream)", body["stream"]
    for field in _COUNTS:
        count = get(field)
        if count is not None and (type(count) is not int or count <= 0):
            return field, "a whole number above 0", count
    return None


def _prompt_row(raw: RawRow, value: dict[str, Any], custom_id: str) -> Row | RowError:
    """A row that brings the values of a registered prompt's fields instead of a body."""
    if "body" in value:
        return _refused(raw, "invalid_body", "expected either body or variables, found both", "variables", custom_id)
    url = value.get("url", "/v1/chat/completions")
    if url != "/v1/chat/completions":
        message = f"expected /v1/chat/completions or nothing in a row with variables, found {_show(url)}"
        return _refused(raw, "unknown_url", message, "url", custom_id)
    variables = value["variables"]
    if type(variables) is not dict:
        message = f"expected an object, found {_show(variables)}"
        return _refused(raw, "invalid_body", message, "variables", custom_id)
    for name, scalar in variables.items():
        if type(scalar) not in (str, int, float, bool):
            message = f"expected a text, a number or a boolean, found {_show(scalar)}"
            return _refused(raw, "invalid_body", message, f"variables.{_printable(name)}", custom_id)
    return Row(raw.number, raw.file, raw.line, custom_id, "/chat/completions", {}, variables)


def _not_json(raw: RawRow, error: orjson.JSONDecodeError) -> RowError:
    data, custom_id = raw.data, _first_key_id(raw.data)
    try:
        text = data.decode()
    except UnicodeDecodeError as undecodable:
        near = _show(data[max(0, undecodable.start - 20) : undecodable.start + 20].decode(errors="backslashreplace"))
        message = f"expected UTF-8, found {undecodable.reason} at byte {undecodable.start}: {near}"
        return _refused(raw, "invalid_utf8", message, custom_id=custom_id)
    near = _show(text[max(0, error.pos - 20) : error.pos + 20])
    message = f"expected one JSON object, found an error at character {error.pos} ({error.msg}): {near}"
    return _refused(raw, "invalid_json", message, custom_id=custom_id)


def _first_key_id(data: bytes) -> str | None:
    """The custom_id of a row that is no JSON, when it comes first, as it mostly does. Further in, it could be anyone's."""
    found = _FIRST_KEY_ID.match(data)
    try:
        custom_id = orjson.loads(found[1]) if found else None
    except orjson.JSONDecodeError:
        return None
    return custom_id if custom_id is None or len(custom_id) <= MAX_CUSTOM_ID else None


def _refused(raw: RawRow, code: str, message: str, field: str = "", custom_id: str | None = None) -> RowError:
    return RowError(raw.number, code, message, raw.file, raw.line, field, custom_id)


def _show(value: object) -> str:
    """What was found, on one line and never more than 80 characters."""
    match value:
        case str():
            return repr(value) if len(value) <= 60 and len(repr(value)) <= 78 else f"{repr(value[:60])[:75]}..."
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case dict():
            return f"an object with {len(value)} keys" if value else "an empty object"
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case type():
            return "nothing"
        case _:
            return repr(value)[:80]


def _printable(name: str) -> str:
    return name if name.isprintable() and len(name) <= 60 else _show(name)
