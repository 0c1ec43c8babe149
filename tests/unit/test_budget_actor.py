"""The budget actor around a store that it may share: durable, never stale, and never done by half."""

import asyncio
import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.budget.actor import BudgetActor
from actors.budget.exchange import AccountReport, Exchange, Exchanged, Totals
from actors.budget.limits import LimitKey
from actors.budget.rows import LimitStatus, Rows
from actors.budget.store import LedgerStore, SqliteStore, StoreConflict, open_store
from actors.errors import ConfigError, StoreError
from actors.messages import Account, Amount
from actors.settings import BudgetSettings, ScopeSettings
from tests.postgres import Postgres

ACCOUNT = Account("premium", "job", "")
SETTINGS = BudgetSettings.model_validate({"tokens": {"per_day": 1000}})
DAY = LimitKey("all", "day", "tokens")
NOON = 1_700_000_000.0 // 86_400 * 86_400 + 43_200


def ask(sequence: int, want: int, *, spent: int = 0, holder: str = "router", closing: bool = False) -> Exchange:
    report = AccountReport(ACCOUNT, Totals(spent=Amount(spent)), Amount(want), Amount(want))
    return Exchange(holder, "1", sequence, (report,), opening=sequence == 1, closing=closing)


def granted(answer: Exchanged) -> int:
    return answer.accounts[0].granted_total.tokens


async def status(actor: BudgetActor, key: LimitKey = DAY) -> LimitStatus:
    return next(row for row in (await actor.show()).limits if row[:3] == key)


async def used(actor: BudgetActor) -> tuple[int, int]:
    """Spent and reserved today."""
    row = await status(actor)
    return row.spent, row.reserved


# -- one actor -----------------------------------------------------------------------------------------------------


async def test_an_actor_does_nothing_until_it_is_asked(tmp_path: Path) -> None:
    """A failing __init__ would be final in Ray, so a bad state_dir shows with the first call, every time."""
    (tmp_path / "file").write_text("")
    actor = BudgetActor(SETTINGS, str(tmp_path / "file" / "state"))
    for _ in range(2):
        with pytest.raises(StoreError):
            await actor.exchange(ask(1, 100))
    (tmp_path / "file").unlink()
    assert granted(await actor.exchange(ask(1, 100))) == 100


async def test_a_restarted_actor_carries_on_with_the_same_numbers(ledger_place: str) -> None:
    """Grants, spend and limits set at run time are all in the store, and the holder's incarnation lives on."""
    actor = BudgetActor(SETTINGS, ledger_place)
    await actor.exchange(ask(1, 600))
    await actor.exchange(ask(2, 0, spent=250))
    await actor.set_limit(*DAY, 2000)
    before = await status(actor)
    again = BudgetActor(SETTINGS, ledger_place)
    assert (await status(again))[:8] == before[:8] == (*DAY, 2000, 250, 350, 0, 0)
    assert granted(await again.exchange(ask(3, 100, spent=600))) == 700


async def test_a_failed_commit_changes_nothing(tmp_path: Path) -> None:
    """To the router it is as if the message had been lost; the next call works from what the store holds."""

    class Failing(SqliteStore):
        fail = False

        def write(self, rows: Rows) -> None:
            if Failing.fail and any(rows):
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
    assert (await status(actor))[3:6] == (1000, 0, 100)
    assert granted(await actor.exchange(ask(2, 500, spent=50))) == 600


async def test_a_commit_of_unknown_fate_counts_once(tmp_path: Path) -> None:
    """A connection that breaks after the commit: the act is applied again, and nothing is granted or spent twice."""

    class Breaking(SqliteStore):
        breaks = itertools.cycle([True, False])

        def write(self, rows: Rows) -> None:
            super().write(rows)
            if next(Breaking.breaks):
                self._roll_back(self._cursor())
                raise StoreConflict("the connection was lost")

    actor = BudgetActor(SETTINGS, str(tmp_path), open_store=Breaking)
    assert granted(await actor.exchange(ask(1, 100))) == 100
    assert granted(await actor.exchange(ask(2, 300, spent=60))) == 400
    await actor.set_limit(*DAY, 2000)
    assert (await status(actor))[3:6] == (2000, 60, 340)
    await actor.exchange(ask(3, 0, spent=90, closing=True))
    assert await used(BudgetActor(SETTINGS, str(tmp_path))) == (400, 0)


async def test_a_store_that_never_settles_is_an_error(tmp_path: Path) -> None:
    """The tries are bounded."""

    class Hopeless(SqliteStore):
        def write(self, rows: Rows) -> None:
            raise StoreConflict("the connection was lost")

    with pytest.raises(StoreError, match="the connection was lost, 4 times in a row"):
        await BudgetActor(SETTINGS, str(tmp_path), open_store=Hopeless).show()


async def test_a_connection_that_breaks_again_while_loading_is_another_try(tmp_path: Path) -> None:
    """A commit of unknown fate, and then a load that breaks as well: the third try answers."""
    broken = {"write": 1, "load": 1}

    class Shaky(SqliteStore):
        def write(self, rows: Rows) -> None:
            self.breaks("write")
            super().write(rows)

        def load(self, *, lock: bool = False) -> Rows:
            if lock:
                self.breaks("load")
            return super().load(lock=lock)

        def breaks(self, what: str) -> None:
            if broken[what]:
                broken[what] -= 1
                raise StoreConflict("the connection was lost")

    actor = BudgetActor(SETTINGS, str(tmp_path), open_store=Shaky)
    assert (await actor.exchange(ask(1, 100))).valid
    assert broken == {"write": 0, "load": 0}


async def test_a_server_that_crashes_costs_nothing(postgres_server: Postgres) -> None:
    """While PostgreSQL is away each call fails with a reason; afterwards the numbers are the same."""
    place = postgres_server.new_database()
    actor = BudgetActor(SETTINGS, place)
    await actor.exchange(ask(1, 100))
    postgres_server.stop()
    try:
        for _ in range(2):
            with pytest.raises(StoreError, match="refused"):
                await actor.exchange(ask(2, 100, spent=50))
    finally:
        postgres_server.start()
    assert granted(await actor.exchange(ask(2, 100, spent=50))) == 200
    postgres_server.stop()
    postgres_server.start()  # between two calls: nobody notices
    assert await used(actor) == (50, 150)


async def test_a_question_writes_nothing(ledger_place: str) -> None:
    """Looking, however often, does not overtake those who work."""
    actor, store = BudgetActor(SETTINGS, ledger_place, clock=lambda: NOON), open_store(ledger_place)
    await actor.exchange(ask(1, 100))
    store.load()
    await actor.show()
    await BudgetActor(SETTINGS, ledger_place, clock=lambda: NOON).show()
    store.write(Rows())  # would raise StoreConflict


async def test_what_a_dead_router_held_is_booked_when_its_set_ends(ledger_place: str) -> None:
    """Not when its lease has: whoever looks after a job would see it as reserved."""
    actor = BudgetActor(SETTINGS, ledger_place)
    await actor.exchange(ask(1, 100, holder="cluster/job/router/0"))
    await actor.exchange(ask(1, 50, holder="cluster/another job/router/0"))
    await actor.close("cluster/job/")
    assert await used(actor) == (100, 50)
    late = await actor.exchange(ask(2, 100, holder="cluster/job/router/0", spent=80))
    assert not late.valid
    assert await used(actor) == (100, 50)


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


async def test_a_refused_change_leaves_nothing_behind(ledger_place: str) -> None:
    """A job with one good and one impossible limit is not opened halfway."""
    actor = BudgetActor(SETTINGS, ledger_place)
    with pytest.raises(ConfigError):
        await actor.open_job("job", ScopeSettings(), max_tokens=5, max_usd=-1)
    assert (await status(actor)).limit == 1000
    assert "job:job" not in {row.scope for row in (await actor.show()).limits}


# -- several actors on one store -----------------------------------------------------------------------------------


async def test_two_actors_share_one_limit(ledger_place: str) -> None:
    """Each grants only what the other has left, and what one is told the other knows."""
    one, other = BudgetActor(SETTINGS, ledger_place), BudgetActor(SETTINGS, ledger_place)
    assert granted(await one.exchange(ask(1, 600, holder="a"))) == 600
    assert granted(await other.exchange(ask(1, 600, holder="b"))) == 0
    assert granted(await other.exchange(ask(2, 400, holder="b"))) == 400
    assert await used(one) == await used(other) == (0, 1000)
    await one.set_limit(*DAY, 1500)
    assert granted(await other.exchange(ask(3, 500, holder="b", spent=400))) == 900
    assert await used(one) == (400, 1100)


async def test_a_stopped_actor_that_wakes_up_beside_its_successor_does_no_harm(ledger_place: str) -> None:
    """Ray can run a singleton twice: the router may speak to either, and is granted everything once."""
    old, new = BudgetActor(SETTINGS, ledger_place), BudgetActor(SETTINGS, ledger_place)
    await old.exchange(ask(1, 100))
    await new.exchange(ask(2, 100))
    assert granted(await old.exchange(ask(2, 100))) == 200  # the message of before, again
    assert granted(await old.exchange(ask(3, 100, spent=80))) == 300
    assert granted(await new.exchange(ask(4, 800, spent=100))) == 300
    assert await used(new) == await used(old) == (100, 200)


async def test_an_incarnation_opened_at_one_actor_is_known_to_the_other(ledger_place: str) -> None:
    """An answer that changes nothing, such as a refusal to know somebody, must not come from an old state."""
    one, other = BudgetActor(SETTINGS, ledger_place), BudgetActor(SETTINGS, ledger_place)
    await other.show()
    await one.exchange(ask(1, 100))
    answer = await other.exchange(ask(1, 100)._replace(opening=False))
    assert answer.valid
    assert granted(answer) == 100


class Clocks:
    """One time for all, and an error for each actor."""

    def __init__(self) -> None:
        self.now = NOON
        self.ahead_s = {"one": 0.0, "other": 0.0}

    def actor(self, name: str, place: str, **options: Any) -> BudgetActor:
        return BudgetActor(SETTINGS, place, lease_s=10.0, clock=lambda: self.now + self.ahead_s[name], **options)


async def test_the_clock_is_the_actors(tmp_path: Path) -> None:
    """Leases and windows go by the clock it was given."""
    clocks = Clocks()
    actor = clocks.actor("one", str(tmp_path))
    assert (await actor.exchange(ask(1, 100))).expires_in_s == 10.0
    clocks.now += 10.0
    assert (await status(actor))[4:7] == (100, 0, 100)


@pytest.mark.parametrize("ahead_s", [-3000.0, 0.0, 3000.0])
async def test_a_holder_is_not_closed_by_an_actor_it_does_not_talk_to(ledger_place: str, ahead_s: float) -> None:
    """The other actor is asked so seldom that to its knowledge every lease has ended long ago."""
    clocks = Clocks()
    one, other = clocks.actor("one", ledger_place), clocks.actor("other", ledger_place)
    clocks.ahead_s["other"] = ahead_s
    for number in range(1, 60):
        clocks.now += 4.0
        answer = await one.exchange(ask(number, 10, spent=number))
        assert answer.valid
        assert answer.expires_in_s == 10.0
        if number % 6 == 0:
            await other.set_limit("job:x", "day", "tokens", number)
            assert (await status(other)).unknown == 0


async def test_a_holder_that_died_is_closed_though_others_always_write(ledger_place: str) -> None:
    """Loading again and again, and failing to commit, must not give its lease new life."""
    clocks = Clocks()
    one, other = clocks.actor("one", ledger_place), clocks.actor("other", ledger_place)
    await one.exchange(ask(1, 300, holder="dead"))
    for number in range(1, 30):
        clocks.now += 0.5
        await one.exchange(ask(number, 1, holder="a", spent=number - 1))
        await other.exchange(ask(number, 1, holder="b", spent=number - 1))
        assert (await status(other)).unknown == (300 if number >= 20 else 0)


async def test_the_clock_that_is_ahead_turns_the_window_for_all(ledger_place: str) -> None:
    """Two actors of which one is ten minutes ahead count in one window, and a day is never opened again."""
    clocks = Clocks()
    one, other = clocks.actor("one", ledger_place), clocks.actor("other", ledger_place)
    clocks.ahead_s["one"] = 600.0
    clocks.now += 43_200 - 300
    await other.exchange(ask(1, 1000, holder="b"))
    await other.exchange(ask(2, 0, holder="b", spent=900))
    assert await used(other) == (900, 100)
    assert granted(await one.exchange(ask(1, 850, holder="a"))) == 850  # its day is a new one, with 100 still reserved
    assert await used(other) == (0, 950)
    assert granted(await other.exchange(ask(3, 60, holder="b", spent=900))) == 1000
    assert await used(one) == await used(BudgetActor(SETTINGS, ledger_place, clock=lambda: clocks.now)) == (0, 950)


# -- real processes ------------------------------------------------------------------------------------------------

SPENDS = """
import asyncio, sys
from actors.budget.actor import BudgetActor
from actors.budget.exchange import AccountReport, Exchange, Totals
from actors.messages import Account, Amount
from actors.settings import BudgetSettings

async def main(place, holder, rounds):
    actor = BudgetActor(BudgetSettings.model_validate({"tokens": {"per_day": 10**9}}), place)
    for n in range(1, rounds + 1):
        totals = Totals(spent=Amount(60 * (n - 1)), returned=Amount(20 * (n - 1)))
        report = AccountReport(Account("premium", "job"), totals, Amount(100), Amount(100))
        answer = await actor.exchange(Exchange(holder, "1", n, (report,), opening=n == 1))
        print(answer.accounts[0].granted_total.tokens, 60 * (n - 1), flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def spending(place: str, holder: str, rounds: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", SPENDS, place, holder, str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])


def test_processes_that_write_at_once_lose_nothing(ledger_place: str) -> None:
    """From the first moment, when the store does not exist, each makes all its commits, and they add up."""
    rounds = 80
    children = [spending(ledger_place, f"router-{number}", rounds) for number in range(3)]
    for child in children:
        said, errors = child.communicate(timeout=100)
        assert child.returncode == 0, errors.decode()
        assert said.splitlines()[-1] == b"%d %d" % (100 * rounds, 60 * (rounds - 1))
    assert asyncio.run(used(BudgetActor(SETTINGS, ledger_place))) == (
        3 * 60 * (rounds - 1),
        3 * (100 * rounds - 80 * (rounds - 1)),
    )


@pytest.mark.parametrize("lines", [1, 7, 40])
def test_what_was_granted_survives_sigkill(ledger_place: str, lines: int) -> None:
    """Whatever an answer said before the kill, the reopened store holds at least that."""
    child = spending(ledger_place, "router", 10**6)
    assert child.stdout is not None
    assert child.stderr is not None
    seen = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    seen += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    child.stderr.close()
    assert child.returncode == -signal.SIGKILL
    told_granted, told_spent = (
        int(word) for word in next(line for line in reversed(seen) if line.endswith(b"\n")).split()
    )
    store: LedgerStore = open_store(ledger_place)
    held = store.load().held[0]
    store.close()
    assert told_granted <= held.granted_tokens <= told_granted + 100
    assert held.spent_tokens >= told_spent
    outstanding = held.granted_tokens - held.spent_tokens - held.returned_tokens
    assert asyncio.run(used(BudgetActor(SETTINGS, ledger_place))) == (held.spent_tokens, outstanding)
