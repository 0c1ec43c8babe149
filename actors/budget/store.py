"""The ledger's store: written before anything is granted, and shared by any number of budget actors.

Two jobs on one `state_dir`, `raycade budget set` beside them, an actor that Ray has replaced and that wakes up again,
several clusters on one PostgreSQL: none of them has to know of the others. The store has a version; a commit checks, in its own
transaction, that the version is still the one that was loaded, and raises it. Whoever was overtaken gets
StoreConflict, loads again and applies its act to what is true now. So every grant is made on the newest state, and
the version is the fencing token of every single commit.

An actor that was overtaken loads with `lock`: the store then waits for its commit, so the second try cannot be overtaken again.

`SqliteStore` is the embedded default; `PostgresStore` (postgres.py) keeps the same tables (tables.py).
"""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

from actors.budget.rows import Rows
from actors.budget.tables import MIGRATIONS, TABLES, statements
from actors.errors import StoreError

__all__ = ["FILE_NAME", "LedgerStore", "SqlStore", "SqliteStore", "StoreConflict", "open_store"]

FILE_NAME = "ledger.sqlite3"
BUSY_S = 5.0


class StoreConflict(Exception):
    """Somebody else has written since the last load, or the fate of a commit is not known: load again, then apply again."""


class LedgerStore(Protocol):
    """Every method raises StoreError, with nothing half done. Used by one thread."""

    def load(self, *, lock: bool = False) -> Rows:
        """All rows. With `lock` nobody else can write until `write` or `close`."""
        ...

    def write(self, rows: Rows) -> None:
        """Commit all rows or none; they are durable when this returns. Without rows it only checks the version.

        Raises StoreConflict when the version is not the one that was last loaded or written here.
        """

    def close(self) -> None: ...


def open_store(place: str | Path) -> LedgerStore:
    """The store at `place`: a folder, or a postgresql:// address. Raises StoreError, or ConfigError without psycopg."""
    if str(place).startswith(("postgresql://", "postgres://")):
        from actors.budget.postgres import PostgresStore  # psycopg is an extra, and takes a moment to import

        return PostgresStore(str(place))
    return SqliteStore(place)


class Cursor(Protocol):
    """What the cursors of both databases have in common."""

    @property
    def rowcount(self) -> int: ...
    def execute(self, sql: str, values: Sequence[Any] = ..., /) -> Any: ...
    def executemany(self, sql: str, values: Iterable[Sequence[Any]], /) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> Any: ...


class SqlStore(ABC):
    """What both stores do alike; a database's own dialect is in the class variables and the abstract methods."""

    mark: str
    for_update: str
    """Ends a SELECT that is to lock its row."""
    place: str
    """As errors name it."""

    def __init__(self) -> None:
        self._version = -1
        self._locked = False

    @abstractmethod
    def _cursor(self) -> Cursor: ...

    @abstractmethod
    def _begin(self, cursor: Cursor, *, writing: bool) -> None: ...

    @abstractmethod
    def _failed(self, error: Exception, what: str) -> NoReturn:
        """Raise what the database's error means."""

    @abstractmethod
    def _schema(self, cursor: Cursor) -> int: ...

    @abstractmethod
    def _set_schema(self, cursor: Cursor, version: int) -> None: ...

    def load(self, *, lock: bool = False) -> Rows:
        with self._clear_errors("read"), self._transaction(writing=lock) as cursor:
            self._check_schema(self._schema(cursor))
            cursor.execute(f"SELECT version FROM version {self.for_update if lock else ''}")
            self._version = int(cursor.fetchone()[0])
            tables: dict[str, Any] = {}
            for table in TABLES:
                cursor.execute(table.select)
                tables[table.name] = tuple(map(table.row._make, cursor.fetchall()))
            self._locked = lock
        return Rows(**tables)

    def write(self, rows: Rows) -> None:
        if not any(rows):
            self._confirm()
            return
        with self._clear_errors("written"), self._transaction(writing=True) as cursor:
            # this row is the lock too: whoever comes second waits here, and then finds another version
            cursor.execute(
                f"UPDATE version SET version = version + 1 WHERE version = {self.mark}",
                (self._version,),
            )
            if cursor.rowcount != 1:
                raise StoreConflict(f"{self.place}: written by another budget actor")
            for sql, values in statements(rows, self.mark):
                cursor.executemany(sql, values)
            self._locked = False
        self._version += 1

    def _confirm(self) -> None:
        with self._clear_errors("read"), self._transaction(writing=False) as cursor:
            self._locked = False
            cursor.execute("SELECT version FROM version")
            if cursor.fetchone()[0] != self._version:
                raise StoreConflict(f"{self.place}: written by another budget actor")

    def _prepare(self) -> None:
        """Create or lift the tables; whoever does it, it is done once."""
        cursor = self._cursor()
        if self._check_schema(self._schema(cursor)) == len(MIGRATIONS):
            return
        with self._transaction(writing=True) as cursor:
            self._begin_lifting(cursor)
            for schema in range(self._check_schema(self._schema(cursor)), len(MIGRATIONS)):
                for statement in MIGRATIONS[schema]:
                    cursor.execute(statement)
                self._set_schema(cursor, schema + 1)
            # whoever has loaded under the old schema must look again, and is refused then if it is too old for this one
            cursor.execute("UPDATE version SET version = version + 1")

    @abstractmethod
    def _begin_lifting(self, cursor: Cursor) -> None:
        """What the database needs before its first tables."""

    def _check_schema(self, schema: int) -> int:
        if schema > len(MIGRATIONS):
            raise ValueError(
                f"it has schema version {schema}, written by a newer Raycade; this one knows {len(MIGRATIONS)}"
            )
        return schema

    @contextmanager
    def _transaction(self, *, writing: bool) -> Iterator[Cursor]:
        """Commits when it was for writing, unless `load` has left the store locked; goes on in a locked one."""
        cursor = self._cursor()
        if not self._locked:
            self._begin(cursor, writing=writing)
        try:
            yield cursor
            if not self._locked:
                cursor.execute("COMMIT")
        except BaseException:
            self._locked = False
            self._roll_back(cursor)
            raise

    @abstractmethod
    def _roll_back(self, cursor: Cursor) -> None: ...

    @contextmanager
    def _clear_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (StoreConflict, StoreError):
            raise
        except Exception as error:
            self._failed(error, what)

    def _error(self, error: Exception, what: str) -> StoreError:
        reason = " ".join(str(error).split())
        return StoreError(f"{self.place}: the ledger's store cannot be {what}: {reason}")


class SqliteStore(SqlStore):
    """A file under `state_dir`, for all processes of one machine (its locks do not hold over network file systems)."""

    mark = "?"
    for_update = ""

    def __init__(self, state_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(state_dir) / FILE_NAME
        self.place = str(self.path)
        with self._clear_errors("opened"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # autocommit: transactions begin where this file says so, not where the module guesses
            self._connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            with self._clear_errors("opened"):
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = FULL")
                damage = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if damage != "ok":
                    raise sqlite3.DatabaseError(str(damage))
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def _cursor(self) -> Cursor:
        return self._connection.cursor()

    def _begin(self, cursor: Cursor, *, writing: bool) -> None:
        # IMMEDIATE takes the write lock first: nobody can write between the check and the commit
        cursor.execute("BEGIN IMMEDIATE" if writing else "BEGIN")

    def _roll_back(self, cursor: Cursor) -> None:
        if self._connection.in_transaction:
            cursor.execute("ROLLBACK")

    def _schema(self, cursor: Cursor) -> int:
        cursor.execute("PRAGMA user_version")
        return int(cursor.fetchone()[0])

    def _begin_lifting(self, cursor: Cursor) -> None:
        """A new file needs nothing."""

    def _set_schema(self, cursor: Cursor, version: int) -> None:
        cursor.execute(f"PRAGMA user_version = {version}")

    def _failed(self, error: Exception, what: str) -> NoReturn:
        if not isinstance(error, OSError | ValueError | OverflowError | sqlite3.Error):
            raise error
        raise self._error(error, what) from None
