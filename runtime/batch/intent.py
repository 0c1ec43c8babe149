"""How far rows have been handed out: written before their calls, read by the run after a crash (`journal.py`)."""

import os
import struct
import zlib
from pathlib import Path

__all__ = ["Intent"]


class Intent:
    """The high-water mark of rows handed out: checksummed records of 16 bytes, written in turn into a few slots.

    A ring and not a growing log: only the highest mark counts, and a record torn by a crash leaves the one before it.
    """

    _SLOTS = 32
    _record = struct.Struct("<QII")  # mark + 1, turn, checksum

    def __init__(self, path: Path) -> None:
        self._path, self._turn, self._fd = path, 0, -1

    @property
    def open(self) -> bool:
        return self._fd >= 0

    def start(self) -> int:
        """Open the file; the highest mark in it, or -1."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        size = self._SLOTS * self._record.size
        held = os.pread(self._fd, size, 0).ljust(size, b"\0")
        records = list(self._record.iter_unpack(held))
        marks = [(next_row - 1, turn) for next_row, turn, crc in records if crc == self._sum(next_row, turn)]
        mark, self._turn = max(marks, default=(-1, 0))
        os.pwrite(self._fd, held, 0)  # takes the disk space that later records need
        return mark

    def write(self, mark: int) -> None:
        self._turn += 1
        record = self._record.pack(mark + 1, self._turn, self._sum(mark + 1, self._turn))
        os.pwrite(self._fd, record, self._turn % self._SLOTS * self._record.size)

    def _sum(self, next_row: int, turn: int) -> int:
        return zlib.crc32(b"%d %d" % (next_row, turn))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
