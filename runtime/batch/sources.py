"""Where the bytes of an input lie: a local file, a stream that can be read only once, an object behind a URL.

    find(spec) -> sources, in order -> Source.lines() -> the lines of each (runtime/batch/reader.py makes rows of them)

What is wrong with a source is a ConfigError when it is found, before anything is called, and one of `decode.DAMAGE`
while it is read. Parquet is told by its name (runtime/batch/parquet.py).
"""

import glob
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import BinaryIO, Protocol, cast

from actors.errors import ConfigError
from runtime.batch import parquet, remote
from runtime.batch.decode import BLOCK, Line, in_one_line, lines, text, wrong_start

__all__ = ["AT_ONCE", "Source", "find", "reason"]

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
ENDS = 64 << 10
"""How much of each end of a file counts for its fingerprint."""
AT_ONCE = 16
"""Sources that are looked at together: the ends of a thousand objects take their time one by one."""
Opener = Callable[[int], BinaryIO]
"""Opens for reading; what is asked for is likely read in pieces of so many bytes."""


class Source(Protocol):
    """One file of an input."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes as they are stored; None: it can be read only once, and ends when it ends."""
        ...

    def check(self) -> None:
        """Raises ConfigError when it is plain that this can be no input."""
        ...

    def ends(self) -> bytes:
        """What its fingerprint is made of. Raises OSError."""
        ...

    def lines(self, limit: int, count: Callable[[int], None]) -> Iterator[list[Line]]:
        """Its lines, in lists as they come. `count` is told of stored bytes that have been read."""
        ...


class _File:
    """JSONL that can be read again: a local file, or an object behind a URL."""

    def __init__(self, name: str, path: str, size: int, opener: Opener) -> None:
        """`path` says by its ending what the file is, `name` what it is called: an upload may be called anything."""
        self.name: str = name
        self.size: int | None = size
        self._path, self._open = path, opener

    def check(self) -> None:
        with self._open(ENDS) as file:
            if wrong := wrong_start(file.read(4)):
                raise ConfigError(wrong, file=self.name)

    def ends(self) -> bytes:
        with self._open(ENDS) as file:
            start = file.read(ENDS)
            file.seek(max(0, (self.size or 0) - ENDS))
            return start + file.read(ENDS)

    def blocks(self, count: Callable[[int], None]) -> Iterator[bytes]:
        with self._open(remote.BLOCK) as file:
            yield from _blocks(file, count)

    def lines(self, limit: int, count: Callable[[int], None]) -> Iterator[list[Line]]:
        return lines(text(self.blocks(count), self._path), limit)


class _Table(_File):
    """A Parquet file."""

    def check(self) -> None:
        with self._open(ENDS) as file:
            parquet.check(file, self.name)

    def lines(self, limit: int, count: Callable[[int], None]) -> Iterator[list[Line]]:
        told = 0
        with self._open(remote.BLOCK) as file:
            for share, rows in parquet.lines(file, self.name):
                yield [(data, False) if len(data) <= limit else (data, True) for data in rows]
                count(round(share * (self.size or 0)) - told)
                told = round(share * (self.size or 0))


class _Stream:
    """Standard input, or a named pipe. A pipe is opened once only: its writer would not survive a reader that comes and goes."""

    def __init__(self, name: str, stream: BinaryIO, close: bool) -> None:
        self.name: str = name
        self.size: int | None = None
        self._stream, self._close = stream, close
        self._head: bytes | None = None

    def check(self) -> None:
        """What it holds is not waited for."""

    def ends(self) -> bytes:
        """Its first line, so that a job on a pipe can be resumed by piping the same bytes in again.

        No more than a line: a pipe that trickles must not hold the job up.
        """
        if self._head is None:
            blocks, head = _blocks(self._stream, None, ENDS), b""
            while b"\n" not in head and len(head) < ENDS and (more := next(blocks, b"")):
                head += more
            self._head = head
        return self._head.partition(b"\n")[0][:ENDS]

    def lines(self, limit: int, count: Callable[[int], None]) -> Iterator[list[Line]]:
        return lines(text(self._blocks(count), self.name, at_least=1), limit)

    def _blocks(self, count: Callable[[int], None]) -> Iterator[bytes]:
        if self._head:
            yield self._head
        self._head = b""
        yield from _blocks(self._stream, count)
        if self._close:
            self._stream.close()


def _blocks(file: BinaryIO, count: Callable[[int], None] | None, size: int = BLOCK) -> Iterator[bytes]:
    while block := file.read(size):
        if count is not None:
            count(len(block))
        yield block


# -- what an input names -------------------------------------------------------------------------------------------


def find(spec: str, exclude: Sequence[str] = (), name: str = "") -> list[Source]:
    """The sources that `spec` names, in the order of their names: a file, a folder, a glob, a URL of these, or `-`.

    `exclude`: files and folders that are left out. `name` is what messages call a single file instead. Raises
    ConfigError when there is nothing to read, or something that cannot be read.
    """
    if spec == "-":
        return [_Stream("<stdin>", _unbuffered(sys.stdin.fileno()), close=False)]
    if remote.is_url(spec):
        sources = [_source(each.name, each.name, each.size, each.open) for each in remote.find(spec, SUFFIXES)]
    else:
        own = {os.path.realpath(path) for path in exclude if not remote.is_url(path)}
        sources = [_local(path, name or path) for path in _paths(spec, own)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(_checked, sources))
    return sources


def _paths(spec: str, own: set[str]) -> list[str]:
    if os.path.isdir(spec):
        paths = [os.path.join(spec, name) for name in sorted(os.listdir(spec)) if name.endswith(SUFFIXES)]
        nothing = f"the folder holds no {', '.join(f'*{suffix}' for suffix in SUFFIXES)}"
    elif glob.has_magic(spec) and not os.path.lexists(spec):
        paths = sorted(glob.glob(spec, recursive=True))
        nothing = "no file matches"
    elif os.path.realpath(spec) in own:
        raise ConfigError("input and output are the same file", file=spec)
    else:
        return [spec]
    paths = [path for path in paths if not os.path.isdir(path) and os.path.realpath(path) not in own]
    if not paths:
        raise ConfigError(nothing, file=spec)
    return paths


def _local(path: str, name: str) -> Source:
    try:
        info = os.stat(path)
        if stat.S_ISREG(info.st_mode):
            return _source(name, path, info.st_size, partial(_opened, path))
        return _Stream(name, _unbuffered(path), close=True)
    except OSError as error:
        raise ConfigError(f"cannot read the input: {reason(error)}", file=name) from None


def _source(name: str, path: str, size: int, opener: Opener) -> Source:
    kind = _Table if path.endswith(".parquet") else _File
    return kind(name, path, size, opener)


def _checked(source: Source) -> None:
    try:
        source.check()
    except OSError as error:
        raise ConfigError(f"cannot read the input: {reason(error)}", file=source.name) from None


def _opened(path: str, block: int) -> BinaryIO:
    return open(path, "rb")


def _unbuffered(file: int | str) -> BinaryIO:
    """A stream without a buffer, whose lock a thread that is stuck in a read would hold when the program ends."""
    return cast("BinaryIO", open(file, "rb", buffering=0, closefd=isinstance(file, str)))


def reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    return in_one_line((error.strerror if isinstance(error, OSError) else None) or str(error), error)
