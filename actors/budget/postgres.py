"""The ledger's store in PostgreSQL: one budget for several clusters.

It keeps the tables of tables.py in a schema of its own, `raycade`, made when it is first opened. `version` has one row,
and every commit updates it first, so commits stand in line there.

A connection that breaks hides whether its last commit was made. It need not be known: the loss is told as a StoreConflict,
so all is loaded again and the act is applied again, which changes nothing if it was made before (actor.py).

No password ever stands in the address: libpq finds it in PGPASSWORD, ~/.pgpass or a service file.
"""

import re
from typing import Any, NoReturn

from actors.budget.store import Cursor, SqlStore, StoreConflict
from actors.errors import ConfigError

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise ConfigError(
        "a ledger in PostgreSQL needs the package psycopg; install it: "
        f'pip install "raycade[postgres]" ({" ".join(str(error).split())})'
    ) from None

__all__ = ["PostgresStore"]

SCHEMA = "raycade"
CONNECT_S = 3
STATEMENT_MS = 5000
"""Of every statement, and of every wait for a lock."""
ABANDONED_MS = 5000
"""Then the server ends a transaction: a budget actor that is stopped in the middle of a commit must not hold up the others."""
DEFAULTS: dict[str, Any] = {
    "connect_timeout": CONNECT_S,
    "application_name": "raycade",
    # a server that vanished must not hold a call for longer than a few seconds
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": STATEMENT_MS,
}
BEGIN_WRITING = "BEGIN ISOLATION LEVEL READ COMMITTED"
BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
"""One snapshot for all tables. For writing, the lock on `version` keeps others out, and what it waited for must be seen."""
MIGRATION_LOCK = 0x7261_7963  # any number nobody else takes: two that open a new database at once take turns


class PostgresStore(SqlStore):
    """`url` as libpq takes it. Not bound to one session, so that a pooler may stand in between."""

    mark = "%s"
    for_update = "FOR UPDATE"

    def __init__(self, url: str) -> None:
        super().__init__()
        self.place = _place(url)
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None
        self._settings = ""
        try:
            with self._clear_errors("opened"):
                self._connect()
                self._prepare()
        except StoreConflict as error:
            raise self._error(error, "opened") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._locked = False
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _connect(self) -> "psycopg.Connection[Any]":
        options = {**DEFAULTS, **conninfo_to_dict(self._url)}
        connection = psycopg.connect(**options, autocommit=True, prepare_threshold=None)
        self._connection = connection
        durable = connection.execute("SHOW synchronous_commit").fetchone()
        settings = {
            "search_path": SCHEMA,
            "statement_timeout": STATEMENT_MS,
            "lock_timeout": STATEMENT_MS,
            "idle_in_transaction_session_timeout": ABANDONED_MS,
        }
        if durable == ("off",):  # what is granted must not be forgotten
            settings["synchronous_commit"] = "on"
        self._settings = "".join(f"; SET LOCAL {name} = {value}" for name, value in settings.items())
        return connection

    def _cursor(self) -> Cursor:
        return (self._connection or self._connect()).cursor()

    def _begin(self, cursor: Cursor, *, writing: bool) -> None:
        cursor.execute((BEGIN_WRITING if writing else BEGIN_READING) + self._settings)

    def _roll_back(self, cursor: Cursor) -> None:
        if self._connection is not None and not self._connection.closed:
            cursor.execute("ROLLBACK")

    def _schema(self, cursor: Cursor) -> int:
        cursor.execute(f"SELECT to_regclass('{SCHEMA}.schema_version')")
        if cursor.fetchone()[0] is None:
            return 0
        cursor.execute(f"SELECT coalesce(max(version), 0) FROM {SCHEMA}.schema_version")
        return int(cursor.fetchone()[0])

    def _begin_lifting(self, cursor: Cursor) -> None:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        cursor.execute("SELECT to_regnamespace(%s)", (SCHEMA,))
        if cursor.fetchone()[0] is None:  # else somebody with more rights may have made it for us
            cursor.execute(f"CREATE SCHEMA {SCHEMA}")
        cursor.execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")

    def _set_schema(self, cursor: Cursor, version: int) -> None:
        cursor.execute("DELETE FROM schema_version")
        cursor.execute("INSERT INTO schema_version VALUES (%s)", (version,))

    def _failed(self, error: Exception, what: str) -> NoReturn:
        if self._connection is not None and self._connection.closed:
            self.close()
            raise StoreConflict(f"{self.place}: the connection was lost") from None
        if not isinstance(error, OSError | ValueError | OverflowError | psycopg.Error):
            raise error
        raise self._error(error, what) from None


def _place(url: str) -> str:
    """The address as errors show it: without user and options."""
    return re.sub("//[^/]*@", "//", url.partition("?")[0])
