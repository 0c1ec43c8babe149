"""The ledger's store and the budget actor around it: durable, fenced, and never half done."""

import asyncio
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from actors.budget.actor import BudgetActor
from actors.budget.lease import AccountReport, Exchange, Exchanged, Totals
from actors.budget.ledger import CounterRow, HeldRow, HolderRow, LimitKey, LimitRow, LimitStatus, Rows
from actors.budget.store import FILE_NAME, MIGRATIONS, SqliteStore
from actors.errors import ConfigError, StoreError, StoreFenced
from actors.messages import Account, Amount
from actors.settings import BudgetSettings, ScopeSettings

ACCOUNT = Account("premium", "job", "")
SETTINGS = BudgetSettings.model_validate({"tokens": {"per_day": 1000}})
ROWS = Rows(
    (CounterRow("all", "hour", 472_800, 1, 2, 3, 4, 5, 6), CounterRow("all", "day", 19_700, 7, 8, 0, 0, 0, 0)),
    (HolderRow("router", "1", 0, 99.5), HolderRow("router", "2", 17, None)),
    (HeldRow("router", "2", "premium", "job", "", 100, 200, 1, 2, 3, 4, 5, 6, 7, 8),),
    (LimitRow("all", "day", "usd", 2**62), LimitRow("job:j", "total", "tokens", None)),
)


def ask(sequence: int, want: int, *, spent: int = 0, holder: str = "router") -> Exchange:
    report = AccountReport(ACCOUNT, Totals(spent=Amount(spent)), Amount(want), Amount(want))
    return Exchange(holder, "1", sequence, (report,), opening=sequence == 1)


def granted(answer: Exchanged) -> int:
    return answer.accounts[0].granted_total.tokens


async def status(actor: BudgetActor, key: LimitKey) -> LimitStatus:
    return next(row for row in (await actor.show()).limits if row[:3] == key)


DAY = LimitKey("all", "day", "tokens")


# -- the store -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Every table, over a close and an open, with the extremes that limits may have."""
    store = SqliteStore(tmp_path / "new" / "folder")
    assert store.load() == Rows()
    store.write(ROWS)
    store.close()
    loaded = SqliteStore(tmp_path / "new" / "folder").load()
    assert [sorted(table) for table in loaded] == [sorted(table) for table in ROWS]


def test_rows_replace_rows_and_closed_incarnations_go(tmp_path: Path) -> None:
    """A closed incarnation takes its held rows with it; a forgotten one leaves nothing."""
    store = SqliteStore(tmp_path)
    store.write(ROWS)
    store.write(
        Rows(
            counters=(CounterRow("all", "hour", 472_801, 0, 0, 0, 0, 0, 0),),
            holders=(HolderRow("router", "2", 0, 5.0),),
        )
    )
    loaded = store.load()
    assert loaded.held == ()
    assert {row.period for row in loaded.counters} == {472_801, 19_700}
    store.write(Rows(forgotten=(("router", "1"), ("router", "2"))))
    assert store.load().holders == ()


def test_an_older_owner_can_never_write_again(tmp_path: Path) -> None:
    """Opening the store fences whoever had it, and a fenced write leaves no trace."""
    old, new = SqliteStore(tmp_path), SqliteStore(tmp_path)
    with pytest.raises(StoreFenced, match=r"epoch 2, this one has 1"):
        old.write(ROWS)
    assert new.load() == Rows()
    new.write(ROWS)
    with pytest.raises(StoreFenced):
        SqliteStore(tmp_path, held_epoch=1)
    new.write(ROWS)
    assert SqliteStore(tmp_path, held_epoch=2).epoch == 3


def test_a_write_is_all_or_nothing(tmp_path: Path) -> None:
    """A row that cannot be stored takes the whole transaction back."""
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreError, match=r"ledger\.sqlite3: the ledger's store cannot be written"):
        store.write(ROWS._replace(limits=(LimitRow("all", "day", "usd", 2**64),)))
    assert store.load() == Rows()


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """Nothing of the failed write stays, and the store works again once there is room."""
    store = SqliteStore(tmp_path)
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


def test_a_file_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """An older Raycade would not understand it."""
    SqliteStore(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreError, match="written by a newer Raycade"):
        SqliteStore(tmp_path)


def test_an_older_file_is_lifted_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each migration runs once, in the transaction that takes ownership, and the rows stay."""
    store = SqliteStore(tmp_path)
    store.write(ROWS)
    store.close()
    monkeypatch.setattr("actors.budget.store.MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE added (x INTEGER)",)))
    for _ in range(2):
        store = SqliteStore(tmp_path)
        assert sorted(store.load().counters) == sorted(ROWS.counters)
        assert store._connection.execute("PRAGMA user_version").fetchone() == (2,)
        store.close()


# -- the actor -----------------------------------------------------------------------------------------------------


async def test_an_actor_does_nothing_until_it_is_asked(tmp_path: Path) -> None:
    """A failing __init__ would be final in Ray, so a bad state_dir shows with the first call, every time."""
    (tmp_path / "file").write_text("")
    actor = BudgetActor(SETTINGS, str(tmp_path / "file" / "state"))
    await actor.ping()
    for _ in range(2):
        with pytest.raises(StoreError):
            await actor.exchange(ask(1, 100))
    (tmp_path / "file").unlink()
    assert granted(await actor.exchange(ask(1, 100))) == 100


async def test_a_restarted_actor_carries_on_with_the_same_numbers(tmp_path: Path) -> None:
    """Grants, spend and limits set at run time are all in the store, and the holder's incarnation lives on."""
    actor = BudgetActor(SETTINGS, str(tmp_path))
    await actor.exchange(ask(1, 600))
    await actor.exchange(ask(2, 0, spent=250))
    await actor.set_limit(*DAY, 2000)
    before = await status(actor, DAY)
    again = BudgetActor(SETTINGS, str(tmp_path))
    assert (await status(again, DAY))[:8] == before[:8] == (*DAY, 2000, 250, 350, 0, 0)
    assert granted(await again.exchange(ask(3, 100, spent=600))) == 700


async def test_a_replaced_actor_refuses_everything(tmp_path: Path) -> None:
    """Ray can run a singleton twice: the one whose store was taken over never answers again."""
    old, new = BudgetActor(SETTINGS, str(tmp_path)), BudgetActor(SETTINGS, str(tmp_path))
    await old.exchange(ask(1, 100))
    await new.exchange(ask(2, 100))
    for call in (lambda: old.exchange(ask(3, 100)), old.show, old.ping, lambda: old.set_limit(*DAY, 1)):
        with pytest.raises(StoreFenced):
            await call()
    assert granted(await new.exchange(ask(3, 100))) == 300


async def test_a_failed_commit_changes_nothing(tmp_path: Path) -> None:
    """To the router it is as if the message had been lost; the next call works from what the store holds."""

    class Failing(SqliteStore):
        fail = False

        def write(self, rows: Rows) -> None:
            if Failing.fail:
                raise StoreError("no room")
            super().write(rows)

    actor = BudgetActor(SETTINGS, str(tmp_path), open_store=Failing)
    await actor.exchange(ask(1, 100))
    Failing.fail = True
    with pytest.raises(StoreError):
        await actor.exchange(ask(2, 500, spent=50))
    with pytest.raises(StoreError):
        await actor.set_limit(*DAY, 5)
    Failing.fail = False
    assert (await status(actor, DAY))[3:6] == (1000, 0, 100)
    assert granted(await actor.exchange(ask(2, 500, spent=50))) == 600


async def test_a_store_error_does_not_let_an_old_actor_fence_its_successor(tmp_path: Path) -> None:
    """An actor that opens its store again after an error must find its own epoch there."""

    class FailsOnce(SqliteStore):
        failures = itertools.count()

        def write(self, rows: Rows) -> None:
            if next(FailsOnce.failures) == 1:
                raise StoreError("busy")
            super().write(rows)

    old, new = BudgetActor(SETTINGS, str(tmp_path), open_store=FailsOnce), BudgetActor(SETTINGS, str(tmp_path))
    await old.exchange(ask(1, 100))
    await new.exchange(ask(2, 100))
    with pytest.raises(StoreError, match="busy"):
        await old.exchange(ask(3, 100))
    with pytest.raises(StoreFenced):
        await old.exchange(ask(3, 100))
    assert granted(await new.exchange(ask(3, 100))) == 300


async def test_a_job_is_opened_with_its_own_maxima(tmp_path: Path) -> None:
    """--max-tokens and --max-usd bound all of a job's life; opening it again replaces them and keeps its spend."""
    actor = BudgetActor(BudgetSettings(), str(tmp_path))
    limits = ScopeSettings.model_validate({"tokens": {"per_hour": 900}})
    await actor.open_job("job", limits, max_tokens=300, max_usd=0.29)
    answer = await actor.exchange(ask(1, 500))
    refusal = answer.accounts[0].refusal
    assert refusal is not None
    assert refusal[:4] == ("job:job", "total", "tokens", 300)
    shown = {row[:3]: row.limit for row in (await actor.show()).limits if row.limit is not None}
    assert shown == {
        ("job:job", "total", "tokens"): 300,
        ("job:job", "total", "usd"): 290_000,
        ("job:job", "hour", "tokens"): 900,
    }
    await actor.open_job("job", ScopeSettings())
    assert granted(await actor.exchange(ask(2, 500))) == 500


async def test_a_refused_change_leaves_nothing_behind(tmp_path: Path) -> None:
    """A job with one good and one impossible limit is not opened halfway."""
    actor = BudgetActor(SETTINGS, str(tmp_path))
    with pytest.raises(ConfigError):
        await actor.open_job("job", ScopeSettings(), max_tokens=5, max_usd=-1)
    assert (await status(actor, DAY)).limit == 1000
    assert "job:job" not in {row.scope for row in (await actor.show()).limits}


async def test_the_clock_is_the_actors(tmp_path: Path) -> None:
    """Leases and windows go by the clock it was given."""
    now = 1_700_000_000.0
    actor = BudgetActor(SETTINGS, str(tmp_path), lease_s=3.0, clock=lambda: now)
    assert (await actor.exchange(ask(1, 100))).expires_in_s == 3.0
    now += 3.0
    assert (await status(actor, DAY))[4:7] == (100, 0, 100)


GRANTS_UNTIL_KILLED = """
import asyncio, sys
from actors.budget.actor import BudgetActor
from actors.budget.lease import AccountReport, Exchange, Totals
from actors.messages import Account, Amount
from actors.settings import BudgetSettings

async def main():
    actor = BudgetActor(BudgetSettings.model_validate({"tokens": {"per_day": 10**9}}), sys.argv[1])
    for n in range(1, 10**6):
        totals = Totals(spent=Amount(60 * (n - 1)), returned=Amount(20 * (n - 1)))
        report = AccountReport(Account("premium", "job"), totals, Amount(100), Amount(100))
        answer = await actor.exchange(Exchange("router", "1", n, (report,), opening=n == 1))
        print(answer.accounts[0].granted_total.tokens, 60 * (n - 1), flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 7, 40])
def test_what_was_granted_survives_sigkill(tmp_path: Path, lines: int) -> None:
    """Whatever an answer said before the kill, the reopened store holds at least that."""
    child = subprocess.Popen(
        [sys.executable, "-c", GRANTS_UNTIL_KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    seen = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    seen += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    told_granted, told_spent = (
        int(word) for word in next(line for line in reversed(seen) if line.endswith(b"\n")).split()
    )
    store = SqliteStore(tmp_path)
    held = store.load().held[0]
    store.close()
    assert told_granted <= held.granted_tokens <= told_granted + 100
    assert held.spent_tokens >= told_spent
    counted = asyncio.run(status(BudgetActor(SETTINGS, str(tmp_path)), DAY))
    assert counted.spent == held.spent_tokens
    assert counted.reserved == held.granted_tokens - held.spent_tokens - held.returned_tokens
