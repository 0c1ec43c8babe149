"""What a batch job remembers, so that it can be resumed after any death with every row exactly once.

OUT and the errors file are themselves the log of done rows: the id of every line names the run and the row
(`{"id":"batch_req_ab12cd34_17",...`), so a row counts as done exactly when its whole line can be read. Beside them,
in `OUT.journal/`:

    meta.json    written once: the run's id, the input's fingerprint, the config's digest. Another job is refused.
    checkpoint   which rows were done when OUT and ERRORS had which length. Only saves reading: a lost, damaged or
                 contradicted checkpoint means that both files are scanned from the start, nothing else.
    intent       the highest row handed out, written before its call. Rows up to it without a line are in doubt:
                 they may have been called, and paid, by a run that died.
    prompt.json  with --prompt: the release that the job began with (runtime/prompts_job.py).
    lock         held (flock) for as long as the job runs, by the kernel's word and not by the file's presence.

A kill leaves at most one torn line at the end of each file, since lines are written in order: it is cut off and its
row done again. Everything before it is kept byte for byte.
"""

import fcntl
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from actors.errors import ConfigError, RaycadeError
from runtime.batch.done import DoneRows
from runtime.batch.intent import Intent
from runtime.batch.meta import (
    check_names,
    journal_folder,
    refuse_foreign,
    replace_file,
    sync_folder,
    take_up,
    write_meta,
)

__all__ = [
    "DoneRows",
    "Journal",
    "OutputError",
    "Snapshot",
    "id_prefix",
    "journal_folder",
    "replace_file",
    "scan",
    "sync_folder",
]

_FORMAT = 1
_BLOCK = 4 << 20
_TAIL = 4096  # bytes at the end of a checkpointed length whose checksum tells that the file is still the same
_MAX_DIGITS = 10
_FILES = ("meta.json", "checkpoint", "intent", "prompt.json", "replaced.jsonl")


class OutputError(RaycadeError):
    """Something could not be written in mid-run. What was whole before is kept, and the job can be resumed."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"{self.file}: cannot write: {self.reason}; rows without a line are not done, the job can be resumed"


class Snapshot(NamedTuple):
    """All that a checkpoint holds, at one moment."""

    out_bytes: int
    errors_bytes: int
    succeeded: int
    failed: int
    mark: int
    bits: bytes


def id_prefix(run: str) -> bytes:
    """What every line of a run begins with; the row's number follows."""
    return b'{"id":"batch_req_%s_' % run.encode()


def scan(path: str, run: str, start: int = 0, first_line: int = 1) -> Iterator[tuple[int, int, int]]:
    """(row, offset, length) of every whole line from the byte `start` on, in the order of the file.

    Torn or damaged bytes at the very end are passed over in silence (a crash leaves them); a line that this run did not
    write is a ConfigError that names it.
    """
    prefix, line = id_prefix(run), first_line
    skip = len(prefix)
    suspect = False
    held = b""
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(_BLOCK):
            buffer = held + block
            base, at = start - len(held), 0
            start += len(block)
            nul = buffer.find(b"\0")  # what a file system leaves of a page that never reached the disk
            while (end := buffer.find(b"\n", at)) >= 0:
                digits = buffer.find(b'"', at + skip, at + skip + _MAX_DIGITS + 1)
                number = buffer[at + skip : digits]
                damaged = buffer[end - 1] != 0x7D or 0 <= nul < end
                ours = buffer.startswith(prefix, at) and digits > 0 and number.isdigit()
                if suspect or not (ours or 0 <= nul < end):
                    raise ConfigError(
                        "this line was not written by this job, or is damaged; remove it, or start over with --fresh",
                        file=path,
                        line=line - suspect,
                    )
                if damaged:
                    suspect = True  # fine if nothing follows
                else:
                    yield int(number), base + at, end + 1 - at
                at, line = end + 1, line + 1
            held = buffer[at:]


class Journal:
    """The memory of one job. `open` locks it and recovers; `close` unlocks it; nothing in it needs a clean end."""

    def __init__(self, out: str, errors: str, lock: int, meta: dict[str, Any], removed: tuple[str, ...]) -> None:
        self.out, self.errors = out, errors
        self.folder = journal_folder(out)
        self.run: str = meta["run"]
        self.removed = removed
        """Files of an earlier job that `fresh` has removed."""
        self.done = DoneRows()
        self.succeeded = self.failed = 0
        self.out_bytes = self.errors_bytes = 0
        """Length of both files after recovery: where the writer goes on."""
        self.cut_bytes = 0
        """Torn bytes that were cut off their ends."""
        self.mark = -1
        """The highest row that was ever handed out."""
        self._meta = meta
        self._lock = lock
        self._intent = Intent(self.folder / "intent")

    @classmethod
    def open(
        cls,
        out: str,
        errors: str,
        fingerprint: str,
        config_digest: str,
        fresh: bool = False,
        attach: Callable[[Path], None] | None = None,
        shards: Sequence[str] = (),
    ) -> Self:
        """Start a job or take one up again. Raises ConfigError, one line, and leaves every whole line where it is.

        `fresh` removes OUT, ERRORS and the journal first (`removed` says which there were). `attach` gets the journal's
        folder, for what else is the job's own: the lock is held, and no line is counted yet. `shards` are the fingerprints
        of the input's files, so that the one that has changed can be named.
        """
        check_names(out, errors)
        folder = journal_folder(out)
        existed = folder.is_dir()
        if not existed and not fresh:
            refuse_foreign(out, errors)
        try:
            folder.mkdir(exist_ok=True)
            lock = _locked(folder / "lock", out)
        except OSError as error:
            raise ConfigError(f"cannot keep a journal: {error.strerror}", file=str(folder)) from None
        journal: Self | None = None
        try:
            removed = _remove(out, errors, folder) if fresh else ()
            meta = take_up(out, errors, folder, fingerprint, config_digest, shards)
            journal = cls(out, errors, lock, meta, removed)
            if attach is not None:
                attach(folder)
            journal._recover()
        except OSError as error:
            raise ConfigError(
                f"cannot be opened for writing: {error.strerror}", file=str(error.filename or out)
            ) from None
        finally:
            if journal is None or not journal._intent.open:
                os.close(lock)
        return journal

    @property
    def in_doubt(self) -> int:
        """Rows that were handed out and have no line: they may have been called. Right after `open`: by earlier runs."""
        return self.mark + 1 - self.done.count_upto(self.mark)

    @property
    def expected(self) -> tuple[int, str]:
        """A row and what its bytes hash to, where a damaged file of the input was read up to; (-1, "") otherwise."""
        damage = self._meta.get("damaged") or {}
        return damage.get("row", -1), damage.get("last", "")

    def damaged(self, shard: int, row: int, last: str) -> None:
        """A file of the input cannot be read behind this row: it may come back repaired, and only it."""
        self._meta["damaged"] = {"shard": shard, "row": row, "last": last}
        try:
            write_meta(self.folder, self._meta)
        except OSError as error:
            raise OutputError(str(self.folder), error.strerror or str(error)) from None

    def intend(self, upto_row: int) -> None:
        """Say that every row up to this one, itself included, may be called from now on."""
        if upto_row > self.mark:
            try:
                self._intent.write(upto_row)
            except OSError as error:
                raise OutputError(str(self.folder), error.strerror or str(error)) from None
            self.mark = upto_row

    def snapshot(self, out_bytes: int, errors_bytes: int) -> Snapshot:
        """What a checkpoint would say now; cheap. The lengths must be those that `done` stands for."""
        return Snapshot(out_bytes, errors_bytes, self.succeeded, self.failed, self.mark, self.done.to_bytes())

    def store(self, snapshot: Snapshot) -> None:
        """Make the snapshot the checkpoint, once the files are on disk up to its lengths. Any thread, one at a time."""
        head = snapshot._asdict()
        head["bits"] = len(snapshot.bits)
        try:
            head["out_sum"] = _tail_sum(self.out, snapshot.out_bytes)
            head["errors_sum"] = _tail_sum(self.errors, snapshot.errors_bytes)
            text = orjson.dumps({"format": _FORMAT, **head}) + b"\n" + zlib.compress(snapshot.bits, 1)
            replace_file(self.folder / "checkpoint", text + hashlib.sha256(text).digest())
        except OSError as error:
            raise OutputError(str(self.folder), error.strerror or str(error)) from None

    def close(self) -> None:
        self._intent.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- recovery --------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find out which rows are done: from the checkpoint, and from the lines written after it."""
        known = self._checkpoint()
        self.done = DoneRows(known.bits)
        self.succeeded, self.out_bytes = self._recovered(self.out, known.out_bytes, known.succeeded)
        self.failed, self.errors_bytes = self._recovered(self.errors, known.errors_bytes, known.failed)
        self.mark = max(known.mark, self._intent.start())

    def _checkpoint(self) -> Snapshot:
        """The checkpoint, or an empty one when there is none that OUT and ERRORS bear out."""
        nothing = Snapshot(0, 0, 0, 0, -1, b"")
        try:
            text = (self.folder / "checkpoint").read_bytes()
        except FileNotFoundError:
            return nothing
        text, digest = text[:-32], text[-32:]
        if hashlib.sha256(text).digest() != digest:
            return nothing
        head, _, bits = text.partition(b"\n")
        value = orjson.loads(head)
        if value["format"] != _FORMAT:
            return nothing
        known = Snapshot(**{name: value[name] for name in Snapshot._fields} | {"bits": zlib.decompress(bits)})
        if _tail_sum(self.out, known.out_bytes) != value["out_sum"]:
            return nothing
        if _tail_sum(self.errors, known.errors_bytes) != value["errors_sum"]:
            return nothing
        return known

    def _recovered(self, path: str, start: int, count: int) -> tuple[int, int]:
        """Lines and bytes that are whole in this file; what is torn at its end is cut off."""
        end, last = start, None
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:
            return 0, 0
        for row, offset, length in scan(path, self.run, start, count + 1):
            count += 1
            if not self.done.add(row):
                raise ConfigError(
                    f"row {row} has a second line here; it must have one in this file and the other "
                    f"({os.path.basename(self.errors if path == self.out else self.out)}) together: "
                    "remove one of the two, or start over with --fresh",
                    file=path,
                    line=count,
                )
            end, last = offset + length, row
        with open(path, "r+b") as file:
            if last is not None:
                file.seek(offset)
                if not _is_json(file.read(length)):
                    self.done.discard(last)
                    count, end = count - 1, offset
            if end < size:
                file.seek(end)
                self._refuse_foreign_tail(path, file.read(64), count + 1)
                file.truncate(end)
                self.cut_bytes += size - end
        return count, end

    def _refuse_foreign_tail(self, path: str, tail: bytes, line: int) -> None:
        """Torn bytes are the beginning of a line of ours (a lost page reads as zeros); anything else is not ours to cut."""
        prefix = id_prefix(self.run)
        if not prefix.startswith(tail[: len(prefix)].rstrip(b"\0")):
            raise ConfigError(
                "the bytes from here on were not written by this job; remove them, or start over with --fresh",
                file=path,
                line=line,
            )


# -- files ---------------------------------------------------------------------------------------------------------


def _locked(path: Path, out: str) -> int:
    """The open lock file, with our process id in it for whoever comes second."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise ConfigError(f"another job (process {holder or 'unknown'}) is writing it", file=out) from None
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove(out: str, errors: str, folder: Path) -> tuple[str, ...]:
    """meta.json first: a crash in between leaves an output without a journal, which is refused, not misread."""
    removed = []
    for path in (*(str(folder / name) for name in _FILES), out, errors):
        if os.path.lexists(path):
            os.remove(path)
            removed.append(path)
    return tuple(removed)


def _tail_sum(path: str, length: int) -> int:
    """Checksum of the last bytes before `length`; -1 when the file is shorter than that."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, length - _TAIL))
            tail = file.read(min(length, _TAIL))
    except FileNotFoundError:
        tail = b""
    return zlib.crc32(tail) if len(tail) == min(length, _TAIL) else -1


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
