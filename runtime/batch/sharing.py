"""Run-wide sharing: all equal rows of a run have one call (`--dedupe`).

A row whose key is under way waits for the row that leads; a row whose key is done reads the answer from OUT, where it
stands anyway, so nothing is kept but the key and where the line lies, in a table that leaves memory when it is large (digests.py).
"""

from collections import deque
from pathlib import Path

from actors.messages import Request
from runtime.batch.digests import DigestTable
from runtime.batch.reader import Row

__all__ = ["Sharing"]


class Sharing:
    """Keys are `Request.digest`; b"" is never shared. `folder`: where a large table may have its file."""

    def __init__(self, folder: Path | None = None) -> None:
        self._done = DigestTable(folder)
        self._under_way: dict[bytes, deque[tuple[Row, Request]]] = {}
        self._leads: dict[int, bytes] = {}

    def offset(self, key: bytes) -> int | None:
        """Where in OUT the line with this key's answer begins."""
        return self._done.get(key[:16]) if key else None

    def follow(self, row: Row, request: Request) -> bool:
        """True: an equal row is under way, and this one waits for it. False: this row leads."""
        key = request.digest
        if not key:
            return False
        line = self._under_way.get(key)
        if line is not None:
            line.append((row, request))
            return True
        self._under_way[key] = deque()
        self._leads[row.number] = key
        return False

    def end(self, row_number: int) -> deque[tuple[Row, Request]]:
        """The leading row has ended: the rows that waited for it, in order."""
        key = self._leads.pop(row_number, None)
        return self._under_way.pop(key) if key is not None else deque()

    def remember(self, key: bytes, offset: int) -> None:
        """The answer for `key` stands in OUT at `offset`."""
        if key:
            self._done.setdefault(key[:16], offset)
