"""The ledger's store, in SQLite and in PostgreSQL: durable, shared, and never half done."""

import os
import sqlite3
import sys
from pathlib import Path

import psycopg
import pytest

from actors.budget.anomaly import HaltRow, PaceRow
from actors.budget.rows import CounterRow, HeldRow, HolderRow, LimitRow, Rows
from actors.budget.store import FILE_NAME, LedgerStore, SqliteStore, StoreConflict, open_store
from actors.budget.tables import MIGRATIONS
from actors.errors import ConfigError, StoreError
from tests.postgres import Postgres

ROWS = Rows(
    (CounterRow("all", "hour", 472_800, 1, 2, 3, 4, 5, 6), CounterRow("all", "day", 19_700, 7, 8, 0, 0, 0, 0)),
    (HolderRow("router", "1", 0, 99.5), HolderRow("router", "2", 17, None)),
    (HeldRow("router", "2", "premium", "job", "", 100, 200, 1, 2, 3, 4, 5, 6, 7, 8),),
    (LimitRow("all", "day", "usd", 2**62), LimitRow("job:j", "total", "tokens", None)),
    paces=(PaceRow("tier:a", 28_368_000, 5, 6, 0.1, 1e17 / 3, 12, 1),),
    halts=(HaltRow("tier:a", 1_700_000_000.123456, "it spent 9 % too much ?"),),
)
OLD_ROWS = ROWS._replace(paces=(), halts=())
"""What the first schema could hold."""


def counter(spent: int) -> Rows:
    return Rows(counters=(CounterRow("all", "hour", 472_800, spent, 0, 0, 0, 0, 0),))


def spent(store: LedgerStore) -> int:
    return sum(row.spent_tokens for row in store.load().counters)


def as_sets(rows: Rows) -> list[set[object]]:
    return [set(table) for table in rows]


def execute(place: str, *statements: str) -> None:
    """Past the store, into its database."""
    if place.startswith("postgresql:"):
        with psycopg.connect(place) as server:
            server.execute("CREATE SCHEMA IF NOT EXISTS raycade")
            server.execute("SET search_path = raycade")
            for statement in statements:
                server.execute(statement)
        return
    Path(place).mkdir(exist_ok=True)
    with sqlite3.connect(Path(place) / FILE_NAME) as file:
        for statement in statements:
            file.execute(statement)
    file.close()


def set_schema(place: str, version: int) -> None:
    if place.startswith("postgresql:"):
        execute(place, "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
        execute(place, "DELETE FROM schema_version", f"INSERT INTO schema_version VALUES ({version})")
    else:
        execute(place, f"PRAGMA user_version = {version}")


# -- both stores ---------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(ledger_place: str) -> None:
    """Every table, over a close and an open, with the extremes that limits may have."""
    store = open_store(ledger_place)
    assert store.load() == Rows()
    store.write(ROWS)
    store.close()
    assert as_sets(open_store(ledger_place).load()) == as_sets(ROWS)


def test_rows_replace_rows_and_what_has_ended_goes(ledger_place: str) -> None:
    """A closed incarnation takes its held rows with it; a forgotten one, or a halt that was lifted, leaves nothing."""
    store = open_store(ledger_place)
    store.load()
    store.write(ROWS)
    store.write(counter(9)._replace(holders=(HolderRow("router", "2", 0, 5.0),)))
    loaded = store.load()
    assert loaded.held == ()
    assert {row[:4] for row in loaded.counters} == {("all", "hour", 472_800, 9), ("all", "day", 19_700, 7)}
    store.write(Rows(forgotten=(("router", "1"), ("router", "2")), resumed=("tier:a",)))
    assert store.load().holders == store.load().halts == ()
    assert store.load().paces == ROWS.paces


def test_whoever_was_overtaken_writes_nothing(ledger_place: str) -> None:
    """A commit on an old version is refused whole; after loading again it is made on the newest."""
    one, other = open_store(ledger_place), open_store(ledger_place)
    one.load()
    other.load()
    one.write(counter(1))
    one.write(counter(2))
    for rows in (ROWS, Rows()):
        with pytest.raises(StoreConflict):
            other.write(rows)
    assert one.load().holders == ()
    assert spent(other) == 2
    other.write(counter(3))
    with pytest.raises(StoreConflict):
        one.write(counter(4))
    assert spent(one) == 3


def test_without_rows_nothing_is_written(ledger_place: str) -> None:
    """A question that changes nothing overtakes nobody."""
    one, other = open_store(ledger_place), open_store(ledger_place)
    one.load()
    other.load()
    one.write(Rows())
    other.write(counter(1))
    assert spent(one) == 1


def test_a_store_that_was_never_loaded_cannot_be_written(ledger_place: str) -> None:
    """A commit must be made on something."""
    with pytest.raises(StoreConflict):
        open_store(ledger_place).write(counter(1))


def test_who_loads_with_the_lock_cannot_be_overtaken(ledger_place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for its commit, and are told of an old version then; without a commit the lock ends with the check."""
    monkeypatch.setattr("actors.budget.store.BUSY_S", 0.2)
    monkeypatch.setattr("actors.budget.postgres.STATEMENT_MS", 200)
    one, other = open_store(ledger_place), open_store(ledger_place)
    other.load()
    one.load(lock=True)
    with pytest.raises(StoreError, match=r"cannot be written: [^\n]+$"):
        other.write(counter(1))
    one.write(counter(2))
    with pytest.raises(StoreConflict):
        other.write(counter(1))
    one.load(lock=True)
    one.write(Rows())
    assert spent(other) == 2
    other.write(counter(3))
    assert spent(one) == 3


def test_a_lock_ends_with_its_store(ledger_place: str) -> None:
    """Closing while holding it lets the others go on."""
    one, other = open_store(ledger_place), open_store(ledger_place)
    one.load(lock=True)
    one.close()
    other.load()
    other.write(counter(1))
    assert spent(other) == 1


def test_a_write_is_all_or_nothing(ledger_place: str) -> None:
    """A row that cannot be stored takes the whole transaction back, and the store goes on."""
    store = open_store(ledger_place)
    store.load()
    with pytest.raises(StoreError, match=r"the ledger's store cannot be written: [^\n]+$"):
        store.write(ROWS._replace(limits=(LimitRow("all", "day", "usd", 2**64),)))
    store.write(Rows())
    assert store.load() == Rows()
    store.write(counter(1))
    assert spent(store) == 1


def test_a_newer_schema_is_refused(ledger_place: str) -> None:
    """An older Raycade would not understand it: neither when it opens, nor when it was open all the time."""
    store = open_store(ledger_place)
    set_schema(ledger_place, len(MIGRATIONS) + 1)
    with pytest.raises(StoreError, match="written by a newer Raycade"):
        open_store(ledger_place)
    with pytest.raises(StoreError, match="written by a newer Raycade"):
        store.load()


def test_an_older_schema_is_lifted_with_its_rows(ledger_place: str) -> None:
    """A ledger of the first schema, with money in it, is carried over once, and counts on from its epoch."""
    values = {
        "counters": OLD_ROWS.counters,
        "holders": OLD_ROWS.holders,
        "held": OLD_ROWS.held,
        "limits": OLD_ROWS.limits,
    }
    rows = [
        f"INSERT INTO {table} VALUES ({', '.join('NULL' if value is None else repr(value) for value in row)})"
        for table, of_table in values.items()
        for row in of_table
    ]
    execute(ledger_place, *MIGRATIONS[0], "UPDATE owner SET epoch = 41", *rows)
    set_schema(ledger_place, 1)
    for _ in range(2):
        store = open_store(ledger_place)
        assert as_sets(store.load()) == as_sets(OLD_ROWS)
        store.close()
    store = open_store(ledger_place)
    store.load()
    store.write(ROWS)
    assert as_sets(store.load()) == as_sets(ROWS)


def test_lifting_makes_those_look_again_who_had_loaded_before(
    ledger_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor of the release before cannot commit to tables it does not know."""
    old = open_store(ledger_place)
    old.load()
    with monkeypatch.context() as newer:
        newer.setattr("actors.budget.store.MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE added (x BIGINT)",)))
        open_store(ledger_place).close()
    with pytest.raises(StoreConflict):
        old.write(counter(1))
    with pytest.raises(StoreError, match="written by a newer Raycade"):
        old.load()


# -- SQLite --------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """Nothing of the failed write stays, and the store works again once there is room."""
    store = SqliteStore(tmp_path)
    store.load()
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    many = Rows(counters=tuple(CounterRow(f"job:{n}", "day", 1, n, 0, 0, 0, 0, 0) for n in range(5000)))
    with pytest.raises(StoreError, match=r"ledger\.sqlite3: .* cannot be written: database or disk is full$"):
        store.write(many)
    assert store.load() == Rows()
    store._connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    store.write(many)
    assert len(store.load().counters) == 5000


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A state_dir below a file, as an example that also fails for root."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/state/ledger\.sqlite3: the ledger's store cannot be opened"):
        SqliteStore(tmp_path / "file" / "state")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    """As above, for the common case."""
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"ledger\.sqlite3: the ledger's store cannot be opened"):
        SqliteStore(tmp_path)


@pytest.mark.parametrize("damage", ["not a database", "torn"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    """A budget that cannot be read must not start again from zero."""
    path = tmp_path / FILE_NAME
    if damage == "torn":
        store = SqliteStore(tmp_path)
        store.load()
        store.write(Rows(counters=tuple(CounterRow(f"job:{n}", "day", 1, n, 0, 0, 0, 0, 0) for n in range(5000))))
        store.close()
        content = bytearray(path.read_bytes())
        content[8192:-4096] = os.urandom(len(content) - 12_288)
    else:
        content = bytearray(b"this is not a ledger\n" * 1000)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"ledger\.sqlite3: the ledger's store cannot be opened: [^\n]+$"):
        SqliteStore(tmp_path)
    assert path.read_bytes()[8192:] == content[8192:]


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


def test_a_server_that_crashes_and_comes_back_is_used_again(postgres_server: Postgres) -> None:
    """A commit without an answer tells to look again; while the server is away each try says so in one line."""
    url = postgres_server.new_database()
    store = open_store(url)
    store.load()
    store.write(counter(1))
    postgres_server.stop()
    try:
        with pytest.raises(StoreConflict):
            store.write(counter(2))
        for attempt in (store.load, lambda: open_store(url)):
            with pytest.raises(StoreError, match=r"^postgresql://127\.0\.0\.1:\d+/test_\d+: [^\n]*refused[^\n]*$"):
                attempt()
    finally:
        postgres_server.start()
    assert spent(store) == 1
    store.write(counter(3))
    assert spent(open_store(url)) == 3


def test_a_stopped_actor_does_not_keep_the_lock(postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends a transaction that its client has left standing; that one must then load again."""
    url = postgres_server.new_database()
    monkeypatch.setattr("actors.budget.postgres.ABANDONED_MS", 300)
    stopped = open_store(url)
    stopped.load(lock=True)
    monkeypatch.undo()
    other = open_store(url)
    other.load()
    other.write(counter(1))
    with pytest.raises(StoreConflict):
        stopped.write(counter(2))
    assert spent(stopped) == 1


def test_the_tables_stay_in_their_own_schema(postgres_server: Postgres) -> None:
    """A database that holds other things can hold a ledger too."""
    url = postgres_server.new_database()
    with psycopg.connect(url) as server:
        server.execute("CREATE TABLE version (mine TEXT)")
    store = open_store(url)
    store.load()
    store.write(ROWS)
    with psycopg.connect(url) as server:
        assert server.execute("SELECT count(*) FROM public.version").fetchone() == (0,)
        schemas = server.execute("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename = 'held'").fetchall()
    assert schemas == [("raycade",)]


def test_errors_show_no_secret(postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the password that libpq found nor what else stands in the address."""
    monkeypatch.setenv("PGPASSWORD", "CANARY-password")
    url = f"postgresql://CANARY-user@127.0.0.1:{postgres_server.port}/nowhere?application_name=CANARY-name"
    with pytest.raises(StoreError, match=r"^postgresql://127\.0\.0\.1:\d+/nowhere: ") as caught:
        open_store(url)
    assert "CANARY" not in str(caught.value).replace('role "CANARY-user" does not exist', "")


def test_without_psycopg_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra, since most ledgers are files."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "actors.budget.postgres", raising=False)
    with pytest.raises(ConfigError, match=r'pip install "raycade\[postgres\]"'):
        open_store("postgresql://somebody@nowhere/x")
