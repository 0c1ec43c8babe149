"""The input of a batch: from files to rows, in bounded memory.

    open_input(spec) -> InputSet.chunks() -> lists of RawRow -> parse_row(raw) -> Row | RowError
    (files: sources.py; bytes to lines: decode.py and parquet.py; lines to rows: parse.py)

Reading and parsing are apart so that reading can run in a thread and a resumed job can skip its done rows at the cost
of a split. A row that cannot be used is a value (`RowError`), since one bad row must not end a job of a million; a file
that cannot be read further is an exception, since nobody knows what it would have held.
"""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from actors.errors import ConfigError, InputError
from runtime.batch.decode import DAMAGE
from runtime.batch.parse import MAX_CUSTOM_ID, PATHS, RawRow, Row, RowError, body_error, parse_row
from runtime.batch.sources import AT_ONCE, Source, find, reason

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


class Damage(NamedTuple):
    """Where reading has ended before its time."""

    file: int
    """Which of the files."""
    row: int
    """The last row before it, -1 if there is none."""
    last: str
    """What that row's bytes hash to."""


class InputSet:
    """The rows of one input, in order. Iterate `chunks` once; `fingerprint` may be asked before that."""

    def __init__(self, sources: Sequence[Source], max_row_bytes: int = MAX_ROW_BYTES) -> None:
        self._sources, self._max_row_bytes = sources, max_row_bytes
        self.files = tuple(source.name for source in sources)
        sizes = [source.size for source in sources]
        self.size_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        """Size of all files as they lie on disk, None when a stream is among them."""
        self.read_bytes = 0
        """How much of `size_bytes` has been read: for a progress bar. Runs ahead of the rows by up to a block."""
        self.starts: list[int] = []
        """The number of each file's first row, as far as they have been read."""
        self.rows: int | None = None
        """Rows of all files, once they have been read."""
        self.damage: Damage | None = None
        self._expected = (-1, "")
        self._printed: tuple[str, list[str]] | None = None

    def fingerprint(self) -> str:
        """What tells this input from another, as a short line that a person can compare.

        Base names, sizes and the SHA-256 of both ends (64 KiB) of every file: no full read, and the same after the
        files have moved. An edit that keeps the size and lies in the middle of a large file goes unseen. A stream counts
        by its first line, so that a job on a pipe can be resumed by piping the same bytes in again.
        """
        first, count = os.path.basename(self.files[0]), len(self.files)
        size = "" if self.size_bytes is None else f"{self.size_bytes:,} bytes, "
        return f"{first}{f' and {count - 1} more' if count > 1 else ''} ({size}sha256 {self._prints()[0]})"

    def shards(self) -> list[str]:
        """The fingerprint of each file, so that a change can be told by the file's name."""
        return self._prints()[1]

    def _prints(self) -> tuple[str, list[str]]:
        """SHA-256 over all files, and what tells each file from another."""
        if self._printed is None:
            sha, each = hashlib.sha256(), []
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for source, ends in zip(self._sources, pool.map(_ends, self._sources), strict=True):
                    name, size = os.path.basename(source.name), source.size or 0
                    sha.update(repr((name, size, len(ends))).encode() + ends)
                    each.append(f"{name} ({size:,} bytes, sha256 {hashlib.sha256(ends).hexdigest()[:16]})")
            self._printed = sha.hexdigest()[:16], each
        return self._printed

    def expect(self, row: int, hashed: str) -> None:
        """Have this row checked: rows before it were done when it hashed to that (`Damage.last`). -1: no row."""
        self._expected = row, hashed

    def place(self, number: int) -> str:
        """Where a row that has been read stands, in words."""
        if len(self.files) == 1:
            return f"row {number + 1} of the input"
        file = bisect_right(self.starts, number) - 1
        return f"row {number + 1 - self.starts[file]} of {self.files[file]}"

    def chunks(self, rows: int = 256, max_bytes: int = 1 << 20) -> Iterator[list[RawRow]]:
        """Lists of at most `rows` rows; one is closed early when it passes `max_bytes`, or when a stream pauses.

        A damaged or vanished file raises InputError (`unreadable_input`) after the rows before the damage.
        """
        number, expected, last = 0, self._expected[0], b""
        self.starts = []
        for index, source in enumerate(self._sources):
            self.starts.append(number)
            line = 0
            chunk: list[RawRow] = []
            size, failure = 0, None
            try:
                for lines in source.lines(self._max_row_bytes, self._count):
                    for data, oversized in lines:
                        line += 1
                        if data.endswith(b"\r"):
                            data = data[:-1]
                        if not data or data.isspace():
                            continue
                        if number == expected and _hash(data) != self._expected[1]:
                            raise _Changed(
                                "is not what it was when the rows before it were done; put the old rows back"
                            )
                        last = data
                        chunk.append(RawRow(number, source.name, line, data, oversized))
                        number += 1
                        size += len(data)
                        if len(chunk) >= rows or size >= max_bytes:
                            yield chunk
                            chunk, size = [], 0
                    if chunk and source.size is None:
                        yield chunk
                        chunk, size = [], 0
            except _Changed as error:
                failure, chunk = InputError("changed_input", str(error), source.name, line), []
            except DAMAGE as error:
                told = f"cannot be read from here on: {reason(error)}"
                failure = InputError("unreadable_input", told, source.name, line + 1)
                self.damage = Damage(index, number - 1, _hash(last))
            if chunk:
                yield chunk
            if failure:
                raise failure
        self.rows = number

    def _count(self, stored_bytes: int) -> None:
        self.read_bytes += stored_bytes


class _Changed(Exception):
    """A row that was expected is another."""


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def open_input(spec: str, exclude: Sequence[str] = (), max_row_bytes: int = MAX_ROW_BYTES, name: str = "") -> InputSet:
    """A file, `-` (standard input), a folder (its JSONL and Parquet, sorted by name), a glob, or a URL of one of these.

    `exclude` are the job's own outputs: left out of a folder or a glob, so that a resumed job does not read its own
    answers. `name` is what messages call a single file instead. Raises ConfigError when there is nothing to read.
    """
    return InputSet(find(spec, exclude, name), max_row_bytes)


def _ends(source: Source) -> bytes:
    try:
        return source.ends()
    except OSError as error:
        raise ConfigError(f"cannot read the input: {reason(error)}", file=source.name) from None
