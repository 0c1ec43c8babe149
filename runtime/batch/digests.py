"""A table from 16-byte digests to whole numbers, for runs of many millions of rows.

A batch needs two of them: custom_id -> row number (a second row of one name is an error), and coalescing key -> where
the finished line stands in OUT (equal rows of a whole run share one call, long after the first was answered). A dict
of bytes to int takes about 200 bytes an entry; this takes 30 to 40.

The layout is that of Python's own dict: a sparse index of entry numbers and, beside it, the entries packed in the
order of arrival. It is cut into 256 shards by the digest's last byte, so a shard that grows rebuilds its own small
index and no caller ever waits for a whole table to be rehashed. Nothing is ever removed.
"""

import hashlib
import struct
import sys
from array import array
from collections.abc import Callable

__all__ = ["DigestTable", "digest_of"]

_SHARDS = 256
_SMALLEST = 8
_STRIDE = 3  # an entry: the digest's two halves and the value
_halves: Callable[[bytes], tuple[int, int]] = struct.Struct("<QQ").unpack_from


def digest_of(text: str) -> bytes:
    """16 bytes that stand for a custom_id. At a billion ids the odds of one false match are below 1 in 10^20."""
    return hashlib.blake2b(text.encode(), digest_size=16, usedforsecurity=False).digest()


class _Shard:
    """Open addressing with linear probing; index slots hold entry number + 1, 0 means free."""

    __slots__ = ("entries", "index", "mask", "room")

    def __init__(self) -> None:
        self.entries: array[int] = array("Q")
        self._index_of(_SMALLEST)

    def _index_of(self, size: int) -> None:
        """Build an index of `size` slots (a power of two) over the entries. Two thirds may be filled."""
        index: array[int] = array("I", bytes(4 * size))
        entries, mask = self.entries, size - 1
        for number, first in enumerate(entries[::_STRIDE], 1):
            slot = first & mask
            while index[slot]:
                slot = (slot + 1) & mask
            index[slot] = number
        self.index, self.mask = index, mask
        self.room = size * 2 // 3 - len(entries) // _STRIDE

    def find(self, first: int, second: int) -> int:
        """Where the digest's value stands in `entries`, or minus the free slot it would take, minus 1."""
        index, entries, mask = self.index, self.entries, self.mask
        slot = first & mask
        while number := index[slot]:
            at = (number - 1) * _STRIDE
            if entries[at] == first and entries[at + 1] == second:
                return at + 2
            slot = (slot + 1) & mask
        return -slot - 1

    def insert(self, slot: int, first: int, second: int, value: int) -> None:
        entries = self.entries
        append = entries.append  # three appends are three times as fast as one extend
        append(first)
        append(second)
        append(value)
        self.index[slot] = len(entries) // _STRIDE
        self.room -= 1
        if not self.room:
            self._index_of(2 * len(self.index))


class DigestTable:
    """Digest -> value, with the verbs of a dict. Digests of more than 16 bytes (SHA-256) count by their first 16."""

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards = [_Shard() for _ in range(_SHARDS)]

    def get(self, digest: bytes) -> int | None:
        """The value put for this digest, or None."""
        first, second = _halves(digest)
        shard = self._shards[second >> 56]
        at = shard.find(first, second)
        return shard.entries[at] if at >= 0 else None

    def put(self, digest: bytes, value: int) -> None:
        """Set the digest's value (0 or more, below 2^64), whatever it was."""
        first, second = _halves(digest)
        shard = self._shards[second >> 56]
        at = shard.find(first, second)
        if at >= 0:
            shard.entries[at] = value
        else:
            shard.insert(-at - 1, first, second, value)

    def setdefault(self, digest: bytes, value: int) -> int:
        """The value the digest has already, else `value`, which it has from now on. One look-up finds a duplicate."""
        first, second = _halves(digest)
        shard = self._shards[second >> 56]
        at = shard.find(first, second)
        if at >= 0:
            return shard.entries[at]
        shard.insert(-at - 1, first, second, value)
        return value

    def __contains__(self, digest: bytes) -> bool:
        return self.get(digest) is not None

    def __len__(self) -> int:
        return sum(len(shard.entries) for shard in self._shards) // _STRIDE

    @property
    def memory_bytes(self) -> int:
        """What the table holds at present, spare room included."""
        return sum(sys.getsizeof(shard.entries) + sys.getsizeof(shard.index) for shard in self._shards)
