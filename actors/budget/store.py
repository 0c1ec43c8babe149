"""The ledger's store: SQLite under `state_dir`, written before anything is granted.

A store is opened by one budget actor at a time. Ray can run a singleton twice (a raylet that hangs is replaced, and wakes up
again), so opening raises an epoch in the file, and every write checks it in its own transaction: a budget actor that has been
replaced can never commit again, and what it cannot commit it does not grant.

`LedgerStore` is all the actor needs; a store shared by several clusters (PostgreSQL) would be a second class like `SqliteStore`.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from actors.budget.ledger import CounterRow, HeldRow, HolderRow, LimitRow, Rows
from actors.errors import StoreError, StoreFenced

__all__ = ["FILE_NAME", "LedgerStore", "SqliteStore"]

FILE_NAME = "ledger.sqlite3"
BUSY_S = 5.0

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE owner (epoch INTEGER NOT NULL)",
        "INSERT INTO owner VALUES (0)",
        """CREATE TABLE counters (
            scope TEXT NOT NULL, period_kind TEXT NOT NULL, period INTEGER NOT NULL,
            spent_tokens INTEGER NOT NULL, spent_usd_micros INTEGER NOT NULL,
            unknown_tokens INTEGER NOT NULL, unknown_usd_micros INTEGER NOT NULL,
            overrun_tokens INTEGER NOT NULL, overrun_usd_micros INTEGER NOT NULL,
            PRIMARY KEY (scope, period_kind))""",
        """CREATE TABLE holders (
            holder TEXT NOT NULL, incarnation TEXT NOT NULL, sequence INTEGER NOT NULL, closed_at REAL,
            PRIMARY KEY (holder, incarnation))""",
        """CREATE TABLE held (
            holder TEXT NOT NULL, incarnation TEXT NOT NULL, tier TEXT NOT NULL, job TEXT NOT NULL, api_key TEXT NOT NULL,
            granted_tokens INTEGER NOT NULL, granted_usd_micros INTEGER NOT NULL,
            spent_tokens INTEGER NOT NULL, spent_usd_micros INTEGER NOT NULL,
            unknown_tokens INTEGER NOT NULL, unknown_usd_micros INTEGER NOT NULL,
            returned_tokens INTEGER NOT NULL, returned_usd_micros INTEGER NOT NULL,
            beyond_tokens INTEGER NOT NULL, beyond_usd_micros INTEGER NOT NULL,
            PRIMARY KEY (holder, incarnation, tier, job, api_key))""",
        """CREATE TABLE limits (
            scope TEXT NOT NULL, period_kind TEXT NOT NULL, unit TEXT NOT NULL, amount INTEGER,
            PRIMARY KEY (scope, period_kind, unit))""",
    ),
)
"""MIGRATIONS[n] lifts a file from version n (`PRAGMA user_version`) to n + 1. Only ever append."""


class LedgerStore(Protocol):
    """Every method raises StoreError, with nothing half done, or StoreFenced when a newer budget actor owns the store."""

    @property
    def epoch(self) -> int:
        """Which of the store's owners, counted from 1, this one is."""
        ...

    def load(self) -> Rows: ...

    def write(self, rows: Rows) -> None:
        """Commit all rows or none; they are durable when this returns."""

    def close(self) -> None: ...


class SqliteStore:
    """The embedded default. Opening it makes this process the owner, and fences whoever was it before.

    `held_epoch` is for an owner that opens again after an error: if another has taken over since, it is fenced,
    or an old owner could fence its own successor.
    """

    def __init__(self, state_dir: str | Path, held_epoch: int | None = None) -> None:
        self.path = Path(state_dir) / FILE_NAME
        self._epoch = 0
        self._held_epoch = held_epoch
        with self._clear_errors("opened"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # autocommit: transactions begin where this file says so, not where the module guesses
            self._connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            with self._clear_errors("opened"):
                self._prepare()
        except StoreError:
            self._connection.close()
            raise

    @property
    def epoch(self) -> int:
        return self._epoch

    def load(self) -> Rows:
        with self._clear_errors("read"):
            self._connection.execute("BEGIN")
            try:
                return Rows(
                    tuple(map(CounterRow._make, self._connection.execute("SELECT * FROM counters"))),
                    tuple(map(HolderRow._make, self._connection.execute("SELECT * FROM holders"))),
                    tuple(map(HeldRow._make, self._connection.execute("SELECT * FROM held"))),
                    tuple(map(LimitRow._make, self._connection.execute("SELECT * FROM limits"))),
                )
            finally:
                self._connection.execute("ROLLBACK")

    def write(self, rows: Rows) -> None:
        with self._clear_errors("written"):
            self._transaction(lambda: self._write(rows))

    def close(self) -> None:
        self._connection.close()

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        damage = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(str(damage))
        self._transaction(self._migrate_and_own)

    def _migrate_and_own(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise sqlite3.DatabaseError(
                f"it has schema version {version}, written by a newer Raycade; this one knows {len(MIGRATIONS)}"
            )
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        if self._held_epoch is not None:
            self._check_epoch(self._held_epoch)
        self._connection.execute("UPDATE owner SET epoch = epoch + 1")
        self._epoch = self._connection.execute("SELECT epoch FROM owner").fetchone()[0]

    def _check_epoch(self, mine: int) -> None:
        epoch = self._connection.execute("SELECT epoch FROM owner").fetchone()[0]
        if epoch != mine:
            raise StoreFenced(f"{self.path}: a newer budget actor owns the ledger (epoch {epoch}, this one has {mine})")

    def _write(self, rows: Rows) -> None:
        self._check_epoch(self._epoch)
        many = self._connection.executemany
        gone = [(row.holder, row.incarnation) for row in rows.holders if row.closed_at is not None]
        many("DELETE FROM held WHERE holder = ? AND incarnation = ?", gone + list(rows.forgotten))
        many("DELETE FROM holders WHERE holder = ? AND incarnation = ?", rows.forgotten)
        for table, changed in (
            ("counters", rows.counters),
            ("holders", rows.holders),
            ("held", rows.held),
            ("limits", rows.limits),
        ):
            if changed:
                marks = ", ".join("?" * len(changed[0]))
                many(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", changed)

    def _transaction(self, work: Callable[[], None]) -> None:
        # IMMEDIATE takes the write lock first: nobody can raise the epoch between the check and the commit
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            work()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _clear_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, OverflowError, sqlite3.Error) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.path}: the ledger's store cannot be {what}: {reason}") from None
