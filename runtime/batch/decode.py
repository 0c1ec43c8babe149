"""From the bytes of a file to its lines: plain, gzip or zstandard, in pieces of bounded size.

Lines are separated by the byte `\\n` and nothing else: a text-mode reader would also split at U+2028, U+0085 or a lone
carriage return, all of which may stand inside a prompt.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import zstandard

__all__ = ["BLOCK", "DAMAGE", "Line", "in_one_line", "is_packed", "lines", "text", "wrong_start"]

Line = tuple[bytes, bool]
"""A line without its end, and whether it was too long: then only its first bytes are kept."""
DAMAGE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What reading a file can raise: it cannot be read further."""
BLOCK = 256 << 10
_KEPT = 4 << 10  # how much of an oversized row is kept: enough for a custom_id that comes first


def text(blocks: Iterator[bytes], path: str, at_least: int = BLOCK) -> Iterator[bytes]:
    """The text in the blocks of a file. Compressed files are told by name, or by their first bytes (a pipe has no name).

    What is unpacked is handed on in pieces of `at_least` so many bytes.
    """
    first = next(blocks, b"")
    while len(first) < 4 and (more := next(blocks, b"")):
        first += more
    if not first:
        return
    if wrong := wrong_start(first):
        raise EOFError(wrong)
    unpacked: Iterable[bytes]
    if _is_gzip(path, first):
        unpacked = _gunzip(first, blocks)
    elif _is_zstd(path, first):
        unpacked = _unzstd(first, blocks)
    else:
        yield first.removeprefix(b"\xef\xbb\xbf")
        yield from blocks
        return
    yield from _without_bom(_gathered(unpacked, at_least))


def is_packed(path: str, start: bytes) -> bool:
    """Whether a file is compressed, by its name or its first four bytes."""
    return _is_gzip(path, start) or _is_zstd(path, start)


def _is_gzip(path: str, start: bytes) -> bool:
    return path.endswith(".gz") or start.startswith(b"\x1f\x8b")


def _is_zstd(path: str, start: bytes) -> bool:
    return path.endswith(".zst") or start.startswith(b"\x28\xb5\x2f\xfd")


def in_one_line(text: str, error: BaseException) -> str:
    """What an error says; its kind where that is nothing."""
    return " ".join(text.split())[:300] or type(error).__name__


def wrong_start(start: bytes) -> str:
    """What a file is instead of text, by its first four bytes; "" when nothing speaks against it."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "this is UTF-16; save the input as UTF-8"
    if start.startswith(b"PAR1"):
        return "this is Parquet; give it a name that ends in .parquet"
    return ""


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
    except DAMAGE:
        yield b"".join(held)
        raise
    yield b"".join(held)


def _without_bom(blocks: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    while len(start) < 3 and (block := next(blocks, b"")):
        start += block
    yield start.removeprefix(b"\xef\xbb\xbf")
    yield from blocks


def lines(blocks: Iterator[bytes], limit: int) -> Iterator[list[Line]]:
    """Per block the lines that end in it, each with whether it was longer than `limit` (then only its head is kept)."""
    open_line: list[bytes] = []
    size = 0
    for block in blocks:
        found = block.split(b"\n")
        rest = found.pop()
        if found:
            if size:
                size += len(found[0])
                found[0] = b"".join(open_line) + found[0]
            ended = [(data, False) if len(data) <= limit else (data[:_KEPT], True) for data in found]
            if size > limit:  # the line has been cut down already, so its length says nothing
                ended[0] = (found[0][:_KEPT], True)
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
