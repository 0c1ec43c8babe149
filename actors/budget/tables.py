"""The ledger's tables, as both stores keep them: columns, statements, and how an older store is lifted.

The SQL is the common part of SQLite and PostgreSQL; the two differ in the mark that stands for a value. The table `version`
has one number, which every commit raises: a commit that does not find the number it began with was made on
something old, and is refused.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from actors.budget.anomaly import HaltRow, PaceRow
from actors.budget.rows import CounterRow, HeldRow, HolderRow, LimitRow, Rows

__all__ = ["MIGRATIONS", "TABLES", "Table", "statements"]

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE owner (epoch BIGINT NOT NULL)",
        "INSERT INTO owner VALUES (0)",
        """CREATE TABLE counters (
            scope TEXT NOT NULL, period_kind TEXT NOT NULL, period BIGINT NOT NULL,
            spent_tokens BIGINT NOT NULL, spent_usd_micros BIGINT NOT NULL,
            unknown_tokens BIGINT NOT NULL, unknown_usd_micros BIGINT NOT NULL,
            overrun_tokens BIGINT NOT NULL, overrun_usd_micros BIGINT NOT NULL,
            PRIMARY KEY (scope, period_kind))""",
        """CREATE TABLE holders (
            holder TEXT NOT NULL, incarnation TEXT NOT NULL, sequence BIGINT NOT NULL, closed_at DOUBLE PRECISION,
            PRIMARY KEY (holder, incarnation))""",
        """CREATE TABLE held (
            holder TEXT NOT NULL, incarnation TEXT NOT NULL, tier TEXT NOT NULL, job TEXT NOT NULL, api_key TEXT NOT NULL,
            granted_tokens BIGINT NOT NULL, granted_usd_micros BIGINT NOT NULL,
            spent_tokens BIGINT NOT NULL, spent_usd_micros BIGINT NOT NULL,
            unknown_tokens BIGINT NOT NULL, unknown_usd_micros BIGINT NOT NULL,
            returned_tokens BIGINT NOT NULL, returned_usd_micros BIGINT NOT NULL,
            beyond_tokens BIGINT NOT NULL, beyond_usd_micros BIGINT NOT NULL,
            PRIMARY KEY (holder, incarnation, tier, job, api_key))""",
        """CREATE TABLE limits (
            scope TEXT NOT NULL, period_kind TEXT NOT NULL, unit TEXT NOT NULL, amount BIGINT,
            PRIMARY KEY (scope, period_kind, unit))""",
    ),
    (
        "CREATE TABLE version (version BIGINT NOT NULL)",
        "INSERT INTO version SELECT epoch FROM owner",
        "DROP TABLE owner",  # an actor of the release before, which still has the file open, can write no more
        """CREATE TABLE paces (
            scope TEXT NOT NULL, minute BIGINT NOT NULL, tokens BIGINT NOT NULL, usd_micros BIGINT NOT NULL,
            usual_tokens DOUBLE PRECISION NOT NULL, usual_usd_micros DOUBLE PRECISION NOT NULL,
            minutes BIGINT NOT NULL, alarmed BIGINT NOT NULL,
            PRIMARY KEY (scope))""",
        "CREATE TABLE halts (scope TEXT NOT NULL, since DOUBLE PRECISION NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (scope))",
    ),
)
"""MIGRATIONS[n] lifts a store from schema version n to n + 1. Only ever append."""

RENAMED = {"window": "period_kind", "key": "api_key"}
"""Words that SQL keeps for itself."""


class Table(NamedTuple):
    name: str
    """Of the table, and of the field of Rows."""
    row: type[Any]
    key_columns: int
    """So many of the first columns tell a row from the others."""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(RENAMED.get(field, field) for field in self.row._fields)

    @property
    def select(self) -> str:
        return f"SELECT {', '.join(self.columns)} FROM {self.name}"

    def upsert(self, mark: str) -> str:
        columns, key = self.columns, self.columns[: self.key_columns]
        others = ", ".join(f"{column} = excluded.{column}" for column in columns[self.key_columns :])
        return (
            f"INSERT INTO {self.name} ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))}) "
            f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {others}"
        )


TABLES = (
    Table("counters", CounterRow, 2),
    Table("holders", HolderRow, 2),
    Table("held", HeldRow, 5),
    Table("limits", LimitRow, 3),
    Table("paces", PaceRow, 1),
    Table("halts", HaltRow, 1),
)


def statements(rows: Rows, mark: str) -> Iterator[tuple[str, Sequence[tuple[Any, ...]]]]:
    """What writes the rows, in order: each statement with the values of all its runs."""
    gone = [(row.holder, row.incarnation) for row in rows.holders if row.closed_at is not None]
    whose = f"WHERE holder = {mark} AND incarnation = {mark}"
    every = [
        (f"DELETE FROM held {whose}", [*gone, *rows.forgotten]),
        (f"DELETE FROM holders {whose}", rows.forgotten),
        (f"DELETE FROM halts WHERE scope = {mark}", [(scope,) for scope in rows.resumed]),
        *((table.upsert(mark), getattr(rows, table.name)) for table in TABLES),
    ]
    return ((sql, values) for sql, values in every if values)
