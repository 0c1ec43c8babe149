"""The set of rows that are done: what a batch's journal is about, in one bit a row."""

__all__ = ["DoneRows"]


class DoneRows:
    """The set of finished rows, one bit each."""

    __slots__ = ("_bits", "_count", "_first_open")

    def __init__(self, bits: bytes = b"") -> None:
        self._bits = bytearray(bits)
        self._count = int.from_bytes(bits, "little").bit_count()
        self._first_open = 0

    def __contains__(self, row: int) -> bool:
        byte = row >> 3
        return byte < len(self._bits) and bool(self._bits[byte] >> (row & 7) & 1)

    def add(self, row: int) -> bool:
        """False when the row was done already."""
        bits, byte, bit = self._bits, row >> 3, 1 << (row & 7)
        if byte >= len(bits):
            bits.extend(bytes(byte + 1 - len(bits)))
        elif bits[byte] & bit:
            return False
        bits[byte] |= bit
        self._count += 1
        return True

    def discard(self, row: int) -> None:
        if row in self:
            self._bits[row >> 3] ^= 1 << (row & 7)
            self._count -= 1
            self._first_open = min(self._first_open, row)

    def __len__(self) -> int:
        return self._count

    def count_upto(self, row: int) -> int:
        """How many of the rows 0 to `row`, itself included, are done."""
        whole, rest = divmod(row + 1, 8)
        count = int.from_bytes(self._bits[:whole], "little").bit_count()
        return count + ((self._bits[whole] & (1 << rest) - 1).bit_count() if rest and whole < len(self._bits) else 0)

    @property
    def first_open(self) -> int:
        """The lowest row that is not done. Moves forward only, so asking often costs little."""
        bits, row = self._bits, self._first_open
        while row >> 3 < len(bits):
            byte = bits[row >> 3] >> (row & 7)
            if byte == 0xFF >> (row & 7):  # all done up to the byte's end
                row = (row | 7) + 1
                continue
            while byte & 1:
                byte, row = byte >> 1, row + 1
            break
        self._first_open = row
        return row

    def to_bytes(self) -> bytes:
        return bytes(self._bits)
