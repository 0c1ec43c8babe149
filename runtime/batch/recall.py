"""What a resumed run must know of the rows that are done: their custom_ids, and where equal rows find their answers.

    chunks of the input -> those that are done are remembered here, in the reader's thread -> the rest goes to the run

It may start before Ray does (`start`): a job of which a million rows are done spends seconds here. Until the first chunk
with an open row is handed on nobody else touches the tables, and from then on this thread does not.
"""

from array import array
from collections.abc import Iterator
from typing import Protocol

from actors.messages import Request
from runtime.batch.ahead import ReadAhead
from runtime.batch.digests import DigestTable, digest_of
from runtime.batch.journal import Journal, scan
from runtime.batch.reader import InputSet, RawRow, Row, RowError, parse_row
from runtime.batch.sharing import Sharing

__all__ = ["Recall", "RowEncoder"]


class RowEncoder(Protocol):
    """What a run needs of an encoder (runtime/batch/rows.py)."""

    def encode(self, row: Row) -> Request:
        """The request of a row. Raises RowError."""
        ...

    def key(self, row: Row) -> bytes:
        """The digest of a row's request. Raises RowError."""
        ...

    def first_tier(self, request: Request) -> str:
        """Name of the tier that the request should have, were all tiers well."""
        ...


class Recall:
    """The tables of one run, and its rows."""

    def __init__(
        self, inputs: InputSet, encoder: RowEncoder, journal: Journal, *, share: bool, limit: int | None
    ) -> None:
        self.ids = DigestTable(journal.folder)
        self.sharing = Sharing(journal.folder) if share else None
        self.skipped = 0
        """Rows that were done by earlier runs, as far as they have been passed."""
        self._inputs, self._encoder, self._journal, self._limit = inputs, encoder, journal, limit
        self._offsets: array[int] | None = None
        self._ahead: ReadAhead[list[RawRow]] | None = None

    def start(self) -> ReadAhead[list[RawRow]]:
        """Begin to read, if that has not begun: what is not wholly done, in order. Needs a running loop."""
        if self._ahead is None:
            self._ahead = ReadAhead(self._chunks())
        return self._ahead

    def _chunks(self) -> Iterator[list[RawRow]]:
        self._offsets = self._earlier_offsets()
        done, remembering = self._journal.done, len(self._journal.done) > 0
        for chunk in self._inputs.chunks():
            if remembering:
                last = chunk[-1].number
                within = self._limit is None or last < self._limit
                remembering = within and (last < done.first_open or all(raw.number in done for raw in chunk))
            if remembering:
                for raw in chunk:
                    self.row(raw)
            else:
                yield chunk

    def row(self, raw: RawRow) -> tuple[Row, Request] | RowError | None:
        """The row and its request, or why it has none; None for a row that is done, which is remembered."""
        row = parse_row(raw)
        earlier = raw.number in self._journal.done
        if earlier:
            self.skipped += 1
        if isinstance(row, RowError):
            return None if earlier else row
        first = self.ids.setdefault(digest_of(row.custom_id), row.number)
        try:
            if first != row.number:
                place = self._inputs.place(first)
                message = f"expected a custom_id of its own; {row.custom_id[:80]!r} is that of {place}"
                raise RowError(
                    row.number, "duplicate_custom_id", message, row.file, row.line, "custom_id", row.custom_id
                )
            if not earlier:
                return row, self._encoder.encode(row)
            offset = self._offset(row.number)
            if self.sharing is not None and offset >= 0:
                self.sharing.remember(self._encoder.key(row), offset)
        except RowError as error:
            return None if earlier else error
        return None

    def _offset(self, number: int) -> int:
        """Where the answer of a row that is done stands in OUT; -1 when it has none, or nobody wants to know."""
        offsets = self._offsets
        return offsets[number] if offsets is not None and number < len(offsets) else -1

    def _earlier_offsets(self) -> "array[int] | None":
        """Where the lines of earlier runs lie, by row number, so that later equal rows share them too."""
        if self.sharing is None or not self._journal.succeeded:
            return None
        offsets = array("q", b"")
        for number, offset, _ in scan(self._journal.out, self._journal.run):
            if number >= len(offsets):
                offsets.extend([-1] * (number + 1 - len(offsets)))
            offsets[number] = offset
        return offsets
