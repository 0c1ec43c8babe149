"""A table from 16-byte digests to whole numbers, for runs of many millions of rows.

A batch needs two of them: custom_id -> row number (a second row of one name is an error), and coalescing key -> where
the finished line stands in OUT (equal rows of a whole run share one call, long after the first was answered). A dict
of bytes to int takes about 200 bytes an entry; this takes 36 to 72, and with a `folder` nearly all of them lie in a file
without a name there, which is gone when the process is, however it ends. The operating system keeps of it in memory what
it has room for; the process itself stays as large as it was.

    digest -> shard (its last byte) -> slot (its first bytes), else the next free one: linear probing
    a slot is three words of 8 bytes: the digest's two halves, and value + 1 (0: the slot is free)

All shards lie in one map. A shard that is two thirds full moves to twice the room at the end of the map, so no caller ever
waits for a whole table to be rehashed; the room it leaves is given back. Nothing is ever removed.
"""

import contextlib
import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["DigestTable", "digest_of"]

_SHARDS = 256
_SMALLEST = 16  # slots of a shard
_WORDS = 3  # of a slot
_SPILL = 4 << 20
"""Bytes of a table that stay in memory: those of a job of 50,000 rows or so."""
_STEP = 1 << 20
"""A file grows by an eighth of its length, and by at least this."""
_LET_GO = 32768
"""After so many new entries the process forgets which pages of its file it has seen. They stay in the system's cache; to see
them all again costs some 0.4 us an entry (at 4,096 it would be 2.4)."""
_halves: Callable[[bytes], tuple[int, int]] = struct.Struct("<QQ").unpack_from


def digest_of(text: str) -> bytes:
    """16 bytes that stand for a custom_id. At a billion ids the odds of one false match are below 1 in 10^20."""
    return hashlib.blake2b(text.encode(), digest_size=16, usedforsecurity=False).digest()


class _Room:
    """Words of 8 bytes, all 0 at first, of which more can be had: in memory, and in a file when they have become many."""

    def __init__(self, folder: Path | None) -> None:
        self.used = 0
        self._folder = folder
        self._file: BinaryIO | None = None
        self._map = _memory(mmap.ALLOCATIONGRANULARITY)
        self.words = memoryview(self._map).cast("Q")

    @property
    def in_file(self) -> bool:
        return self._file is not None

    def take(self, count: int) -> int:
        """Where `count` words begin that nobody has had. `self.words` may be another view from then on."""
        begin = self.used
        self.used += count
        if self.used > len(self.words):
            self._grow(8 * self.used)
        return begin

    def give_back(self, begin: int, count: int) -> None:
        """Nobody will look at these again: what of them are whole pages is freed, on disk too."""
        page = mmap.PAGESIZE
        first, end = -(-8 * begin // page) * page, 8 * (begin + count) // page * page
        if first < end:
            with contextlib.suppress(OSError):  # a file system that cannot, keeps them
                self._map.madvise(mmap.MADV_REMOVE if self._file else mmap.MADV_DONTNEED, first, end - first)

    def let_go(self) -> None:
        """The file's pages count as the process's no more. Nothing is lost."""
        if self._file:
            self._map.madvise(mmap.MADV_DONTNEED)

    def _grow(self, least: int) -> None:
        have = len(self._map)
        size = max(least, have + max(_STEP, have // 8)) if self._file else max(least, 2 * have)
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.words.release()
        try:
            if self._file is None and self._folder is not None and size > _SPILL:
                self._move_to_file(self._folder, size)
            else:
                if self._file is not None:
                    _reserve(self._file, have, size)
                self._map.resize(size)
        except OSError:  # no room on the disk: a job that takes memory is better than one that ends
            self._folder = None
            self._move(_memory(size))
            if self._file is not None:
                self._file.close()
                self._file = None
        finally:
            self.words = memoryview(self._map).cast("Q")

    def _move_to_file(self, folder: Path, size: int) -> None:
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - open as long as the map is
        try:
            _reserve(file, 0, size)
            new = mmap.mmap(file.fileno(), size)
        except OSError:
            file.close()
            raise
        self._move(new)
        self._file = file

    def _move(self, new: mmap.mmap) -> None:
        with memoryview(self._map) as old:
            new[: len(old)] = old
        self._map.close()
        self._map = new


def _memory(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _reserve(file: BinaryIO, begin: int, end: int) -> None:
    """Make sure of the disk's room: a write to a map that finds none ends the process. Raises OSError."""
    os.posix_fallocate(file.fileno(), begin, end - begin)


class _Shard:
    __slots__ = ("begin", "mask", "room")

    def __init__(self, begin: int, slots: int, entries: int) -> None:
        self.begin = begin
        self.mask = slots - 1
        self.room = slots * 2 // 3 - entries
        """Entries that it takes before it moves."""


class DigestTable:
    """Digest -> value, with the verbs of a dict. Digests of more than 16 bytes (SHA-256) count by their first 16.

    `folder`: where the file of a large table may be; None keeps all in memory.
    """

    __slots__ = ("_length", "_room", "_shards")

    def __init__(self, folder: Path | None = None) -> None:
        self._room = _Room(folder)
        self._shards = [_Shard(self._room.take(_SMALLEST * _WORDS), _SMALLEST, 0) for _ in range(_SHARDS)]
        self._length = 0

    def get(self, digest: bytes) -> int | None:
        """The value put for this digest, or None."""
        first, second = _halves(digest)
        value = self._room.words[self._find(self._shards[second >> 56], first, second) + 2]
        return value - 1 if value else None

    def put(self, digest: bytes, value: int) -> None:
        """Set the digest's value (0 or more, below 2^64 - 1), whatever it was."""
        first, second = _halves(digest)
        shard = self._shards[second >> 56]
        at = self._find(shard, first, second)
        if self._room.words[at + 2]:
            self._room.words[at + 2] = value + 1
        else:
            self._insert(shard, at, first, second, value)

    def setdefault(self, digest: bytes, value: int) -> int:
        """The value the digest has already, else `value`, which it has from now on. One look-up finds a duplicate."""
        first, second = _halves(digest)
        shard = self._shards[second >> 56]
        at = self._find(shard, first, second)
        if earlier := self._room.words[at + 2]:
            return earlier - 1
        self._insert(shard, at, first, second, value)
        return value

    def __contains__(self, digest: bytes) -> bool:
        return self.get(digest) is not None

    def __len__(self) -> int:
        return self._length

    @property
    def memory_bytes(self) -> int:
        """What of the table is in memory and cannot be anywhere else, spare room included."""
        return 0 if self._room.in_file else 8 * self._room.used

    def _find(self, shard: _Shard, first: int, second: int) -> int:
        """Where the digest's slot begins, or the free one that it would take."""
        words, begin, mask = self._room.words, shard.begin, shard.mask
        slot = first & mask
        at = begin + _WORDS * slot
        while words[at + 2] and not (words[at] == first and words[at + 1] == second):
            slot = (slot + 1) & mask
            at = begin + _WORDS * slot
        return at

    def _insert(self, shard: _Shard, at: int, first: int, second: int, value: int) -> None:
        words = self._room.words
        words[at] = first
        words[at + 1] = second
        words[at + 2] = value + 1
        self._length += 1
        shard.room -= 1
        if not shard.room:
            self._move(shard)
        if not self._length % _LET_GO:
            self._room.let_go()

    def _move(self, shard: _Shard) -> None:
        """To twice the room."""
        slots = shard.mask + 1
        moved = _Shard(self._room.take(2 * slots * _WORDS), 2 * slots, 0)
        words = self._room.words
        old = words[shard.begin : shard.begin + slots * _WORDS].tolist()
        for at in range(0, len(old), _WORDS):
            if old[at + 2]:
                new = self._find(moved, old[at], old[at + 1])
                words[new], words[new + 1], words[new + 2] = old[at : at + _WORDS]
                moved.room -= 1
        self._room.give_back(shard.begin, slots * _WORDS)
        shard.begin, shard.mask, shard.room = moved.begin, moved.mask, moved.room
