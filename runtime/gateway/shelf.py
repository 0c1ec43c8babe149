"""The gateway's files and batches on disk: bytes in files, what is known of them in SQLite. Used by one thread.

    FOLDER/desk.sqlite3         files and batches; every change is one transaction
    FOLDER/files/ID             the bytes of a file
    FOLDER/uploads/ID           of one that is still arriving
    FOLDER/batches/ID/          a batch that is being carried out: in.jsonl, out.jsonl, out.errors.jsonl, the journal
    FOLDER/lock                 held by the gateway that carries batches out, when several share a state_dir

No path here is made of anything a client has said: ids are random, and one that a client names is looked up first, together
with its owner. What belongs to another key is not there.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from runtime.batch.journal import sync_folder
from runtime.gateway.batch_rules import ENDED, Batch, Fault, Page, StoredFile, ended
from runtime.gateway.errors import HttpError

__all__ = ["Shelf", "new_id"]

BUSY_S = 5.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, filename TEXT NOT NULL,
    purpose TEXT NOT NULL, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER);
CREATE INDEX IF NOT EXISTS files_of ON files (owner, seq);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, live INTEGER NOT NULL,
    created_at INTEGER NOT NULL, value BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS batches_of ON batches (owner, seq);
CREATE INDEX IF NOT EXISTS batches_live ON batches (live, seq);
"""
FILE_COLUMNS = ", ".join(StoredFile._fields)
LEFT_OVER_S = 3600.0


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return prefix + secrets.token_hex(16)


class Shelf:
    """One a desk. `open` before use; everything that it raises beside HttpError is OSError or sqlite3.Error."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._database: sqlite3.Connection | None = None
        self._lock = -1

    def open(self) -> None:
        if self._database is not None:
            return
        for name in ("", "files", "uploads", "batches"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        database = sqlite3.connect(
            self.folder / "desk.sqlite3", timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(SCHEMA)
        self._database = database

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def is_ours(self) -> bool:
        """Whether this gateway carries the batches out. False while another one with the same state_dir does."""
        if self._lock < 0:
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    # ------------------------------------------------------------------ files

    def upload_path(self, upload: str) -> Path:
        return self.folder / "uploads" / upload

    def path(self, file: StoredFile) -> Path:
        return self.folder / "files" / file.id

    def keep(self, upload: Path, file: StoredFile) -> None:
        """Make what was uploaded a file."""
        os.replace(upload, self.path(file))
        sync_folder(self.folder / "files")
        with self._transaction() as database:
            _insert_file(database, file)

    def file(self, owner: str, id: str) -> StoredFile:
        """Raises HttpError 404: there is no such file for this owner."""
        row = self._db.execute(
            f"SELECT {FILE_COLUMNS} FROM files WHERE id = ? AND owner = ?", (_plain(id), owner)
        ).fetchone()
        if row is None:
            raise HttpError(404, f"there is no file {id!r:.80}", code="file_not_found", param="id")
        return StoredFile._make(row)

    def files(self, owner: str, page: Page, purpose: str | None) -> tuple[list[StoredFile], bool]:
        """A page of an owner's files, and whether there are more."""
        where, values = self._from("files", owner, page)
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", [*values, _plain(purpose)]
        found = self._db.execute(f"SELECT {FILE_COLUMNS} FROM files {_ordered(where, page)}", values).fetchall()
        return [StoredFile._make(row) for row in found[: page.limit]], len(found) > page.limit

    def delete_file(self, owner: str, id: str) -> None:
        """Raises HttpError 404. A batch that reads it has a link of its own."""
        file = self.file(owner, id)
        self._db.execute("DELETE FROM files WHERE id = ?", (file.id,))
        self.path(file).unlink(missing_ok=True)

    def stored_bytes(self, owner: str) -> int:
        """What an owner's files take."""
        row = self._db.execute("SELECT COALESCE(SUM(bytes), 0) FROM files WHERE owner = ?", (owner,)).fetchone()
        return int(row[0])

    # ------------------------------------------------------------------ batches

    def add_batch(self, batch: Batch, input: StoredFile, most: int) -> None:
        """Take a batch on. Raises HttpError 429 when its owner has `most` under way."""
        folder = self.batch_folder(batch)
        with self._transaction() as database:
            live = database.execute("SELECT COUNT(*) FROM batches WHERE live = 1 AND owner = ?", (batch.owner,))
            if live.fetchone()[0] >= most:
                message = f"{most} batches are under way, as many as a key may have at a time"
                raise HttpError(429, message, "rate_limit_error", "too_many_batches", None, 30.0)
            folder.mkdir(mode=0o700)
            try:
                os.link(self.path(input), folder / "in.jsonl")
            except FileNotFoundError:
                folder.rmdir()
                raise HttpError(404, "the input file is gone", code="file_not_found", param="input_file_id") from None
            sync_folder(folder)
            database.execute(
                "INSERT INTO batches (id, owner, live, created_at, value) VALUES (?, ?, 1, ?, ?)",
                (batch.id, batch.owner, batch.created_at, _packed(batch)),
            )

    def batch_folder(self, batch: Batch) -> Path:
        return self.folder / "batches" / batch.id

    def batch(self, owner: str, id: str) -> Batch:
        """Raises HttpError 404."""
        row = self._db.execute("SELECT value FROM batches WHERE id = ? AND owner = ?", (_plain(id), owner)).fetchone()
        if row is None:
            raise HttpError(404, f"there is no batch {id!r:.80}", code="batch_not_found", param="id")
        return _unpacked(row[0])

    def batches(self, owner: str, page: Page) -> tuple[list[Batch], bool]:
        where, values = self._from("batches", owner, page)
        found = self._db.execute(f"SELECT value FROM batches {_ordered(where, page)}", values).fetchall()
        return [_unpacked(row[0]) for row in found[: page.limit]], len(found) > page.limit

    def live(self) -> list[Batch]:
        """All that have not ended, the oldest first."""
        return [_unpacked(row[0]) for row in self._db.execute("SELECT value FROM batches WHERE live = 1 ORDER BY seq")]

    def change(self, batch: Batch, rule: Callable[[Batch], Batch]) -> Batch:
        """What `rule` makes of the batch as it stands now, which others may have changed meanwhile."""
        with self._transaction() as database:
            row = database.execute("SELECT value FROM batches WHERE id = ?", (batch.id,)).fetchone()
            before = _unpacked(row[0])
            after = rule(before)
            if after != before:
                _update_batch(database, after)
        if after.status == "failed":
            shutil.rmtree(self.batch_folder(after), ignore_errors=True)
        return after

    def hand_over(self, batch: Batch, keep_s: float, now: float) -> Batch:
        """End a batch whose rows all have their lines: what it has made becomes files of its owner. May be done again."""
        folder = self.batch_folder(batch)
        made: list[StoredFile] = []
        for name, id, shown in (
            ("out.jsonl", batch.result_id, f"{batch.id}_output.jsonl"),
            ("out.errors.jsonl", batch.errors_id, f"{batch.id}_error.jsonl"),
        ):
            place = self.folder / "files" / id
            with contextlib.suppress(FileNotFoundError):
                if (folder / name).stat().st_size:
                    os.replace(folder / name, place)
            with contextlib.suppress(FileNotFoundError):
                expires_at = int(now + (batch.keep_s or keep_s))
                size = place.stat().st_size
                made.append(StoredFile(id, batch.owner, shown, "batch_output", size, int(now), expires_at))
        sync_folder(self.folder / "files")
        ids = [file.id for file in made]
        batch = ended(batch, batch.result_id in ids, batch.errors_id in ids, now)
        with self._transaction() as database:
            for file in made:
                _insert_file(database, file)
            _update_batch(database, batch)
        shutil.rmtree(folder, ignore_errors=True)
        return batch

    # ------------------------------------------------------------------ what is over

    def sweep(self, keep_s: float, now: float) -> None:
        """Remove files that have expired, batches that ended long ago, and uploads that nobody finished."""
        expired = self._db.execute(f"SELECT {FILE_COLUMNS} FROM files WHERE expires_at <= ?", (int(now),)).fetchall()
        for file in map(StoredFile._make, expired):
            self.delete_file(file.owner, file.id)
        self._db.execute("DELETE FROM batches WHERE live = 0 AND created_at < ?", (int(now - keep_s) - 86400,))
        live = {batch.id for batch in self.live()}
        for left in [*(self.folder / "uploads").iterdir(), *(self.folder / "batches").iterdir()]:
            with contextlib.suppress(OSError):
                if left.name in live or left.stat().st_mtime > now - LEFT_OVER_S:
                    continue
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()

    # ------------------------------------------------------------------ inside

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._database is not None, "the shelf is open"
        return self._database

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._db
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")

    def _from(self, table: str, owner: str, page: Page) -> tuple[str, list[Any]]:
        if page.after is None:
            return "owner = ?", [owner]
        row = self._db.execute(
            f"SELECT seq FROM {table} WHERE id = ? AND owner = ?", (_plain(page.after), owner)
        ).fetchone()
        if row is None:
            raise HttpError(400, f"after: there is no {page.after!r:.80} here", code="invalid_field", param="after")
        return f"owner = ? AND seq {'<' if page.newest_first else '>'} ?", [owner, row[0]]


def _ordered(where: str, page: Page) -> str:
    return f"WHERE {where} ORDER BY seq {'DESC' if page.newest_first else 'ASC'} LIMIT {page.limit + 1}"


def _plain(text: str) -> str:
    """SQLite takes no lone surrogates, which a client's escapes may hold."""
    return text.encode(errors="replace").decode()


def _insert_file(database: sqlite3.Connection, file: StoredFile) -> None:
    marks = ", ".join("?" * len(file))
    database.execute(f"INSERT OR IGNORE INTO files ({FILE_COLUMNS}) VALUES ({marks})", tuple(file))


def _update_batch(database: sqlite3.Connection, batch: Batch) -> None:
    live = int(batch.status not in ENDED)
    database.execute("UPDATE batches SET live = ?, value = ? WHERE id = ?", (live, _packed(batch), batch.id))


def _packed(batch: Batch) -> bytes:
    return orjson.dumps({**batch._asdict(), "faults": [fault._asdict() for fault in batch.faults]})


def _unpacked(value: bytes) -> Batch:
    plain = orjson.loads(value)
    plain["faults"] = tuple(Fault(**fault) for fault in plain["faults"])
    return Batch(**plain)
