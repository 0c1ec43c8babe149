"""A form with one file in it, read as it arrives (`multipart/form-data`, as `client.files.create` sends it). No I/O.

The library `python-multipart` finds the parts; here is what a form may be: small fields, one file, and bounds on all but the
file's own bytes, which are handed on piece by piece and never gathered.
"""

from typing import TYPE_CHECKING, NamedTuple

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from runtime.gateway.errors import HttpError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["OVERHEAD_BYTES", "FileBegin", "FormReader"]

OVERHEAD_BYTES = 64 * 1024
"""What a form may hold beside the file's own bytes."""
MAX_FIELDS = 16
MAX_FIELD_BYTES = 1024
MAX_HEADER_BYTES = 4096


class FileBegin(NamedTuple):
    """The file's bytes come next."""

    filename: str


class FormReader:
    """`feed` what arrives and handle what it returns; `end` when all has arrived. Raises HttpError."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= 200:
            raise HttpError(400, "expected multipart/form-data with a file", code="invalid_content_type")
        self.fields: dict[str, str] = {}
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._ended,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError:
            raise _malformed() from None
        self._events: list[FileBegin | bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._header: tuple[bytes, bytes] = (b"", b"")
        self._header_bytes = 0
        self._name = ""
        self._value: bytearray | None = None
        """Of the field that is being read; None: it is the file."""
        self._parts = 0
        self._has_file = False
        self._whole = False

    def feed(self, data: bytes) -> list[FileBegin | bytes]:
        try:
            self._parser.write(data)
        except FormParserError:
            raise _malformed() from None
        events, self._events = self._events, []
        return events

    def end(self) -> None:
        if not self._whole:
            raise _malformed()
        if not self._has_file:
            raise HttpError(400, "file is missing", code="missing_field", param="file")

    # ------------------------------------------------------------------ what the parser tells

    def _part_begin(self) -> None:
        self._headers, self._header, self._header_bytes = {}, (b"", b""), 0
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise HttpError(400, f"a form may have {MAX_FIELDS} parts", code="invalid_form")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._grow(end - start)
        self._header = (self._header[0] + data[start:end], self._header[1])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._grow(end - start)
        self._header = (self._header[0], self._header[1] + data[start:end])

    def _grow(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise HttpError(400, "the headers of a part are too long", code="invalid_form")

    def _header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = (b"", b"")

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise _malformed()
        self._name = options[b"name"].decode(errors="replace")
        if self._name != "file":
            self._value = bytearray()
            return
        if self._has_file:
            raise HttpError(400, "expected one file", code="invalid_form", param="file")
        self._has_file, self._value = True, None
        self._events.append(FileBegin(_clean(options.get(b"filename", b"").decode(errors="replace"))))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self._events.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise HttpError(400, f"{self._name:.80}: too long", code="invalid_form", param=self._name[:80])

    def _part_end(self) -> None:
        if self._value is not None:
            self.fields[self._name] = self._value.decode(errors="replace")

    def _ended(self) -> None:
        self._whole = True


def _clean(filename: str) -> str:
    """A name to show: the last part of it, printable and not too long. No file here is called so."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:200] or "upload"


def _malformed() -> HttpError:
    return HttpError(400, "the form cannot be read: it is cut off or malformed", code="invalid_form")
