"""The purse against a real budget actor over an unreliable connection, in simulated time."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from actors.budget.actor import BudgetActor
from actors.budget.exchange import Exchange, Exchanged
from actors.budget.lease import LeaseBook
from actors.errors import BudgetExceeded
from actors.messages import Account, Amount
from actors.router import purse as purse_module
from actors.router.purse import Purse
from actors.settings import BudgetSettings
from tests.simulated import simulated

ACCOUNT = Account("premium", "job", "")
CHEAP = Account("economy", "job", "")
NOON = 19_700 * 86_400.0 + 12 * 3600


class Connection:
    """To a budget actor: fast and sound, until it is told to be otherwise."""

    def __init__(self, state_dir: Path, limits: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        self.budget = BudgetActor(
            BudgetSettings.model_validate(limits), str(state_dir), clock=lambda: NOON + loop.time() - started
        )
        self.chance = Random(1)
        self.away = False
        """Calls raise, as when the actor is dead."""
        self.hangs = False
        self.loses = 0.0
        """How often a call is executed and its answer lost, or not executed at all."""
        self.asked = 0

    async def exchange(self, message: Exchange) -> Exchanged:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(1e9)
        await asyncio.sleep(0.002)
        if self.away or self.chance.random() < self.loses:
            raise ConnectionError("the budget actor is away")
        answer = await self.budget.exchange(message)
        await asyncio.sleep(0.002)
        if self.chance.random() < self.loses:
            raise ConnectionError("the answer was lost")
        return answer

    async def rows(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        """Spent and reserved by scope, window and unit."""
        return {row[:3]: (row.spent, row.reserved) for row in (await self.budget.show()).limits}


class Purses:
    """Routers' purses over one budget actor."""

    def __init__(self, state_dir: Path, limits: dict[str, Any], count: int = 1) -> None:
        ids = itertools.count()
        self.connection = Connection(state_dir, limits)
        self.books = [LeaseBook(f"router-{index}", lambda: f"incarnation-{next(ids)}") for index in range(count)]
        self.purses = [Purse(book, self.connection.exchange) for book in self.books]

    async def spend(
        self, purse: Purse, amount: Amount, used: Amount, took_s: float = 0.1, account: Account = ACCOUNT
    ) -> None:
        """One attempt: reserve, work, settle."""
        reserved = await purse.reserve(account, amount, 60.0)
        await asyncio.sleep(took_s)
        purse.settle(reserved, used, Amount())


@asynccontextmanager
async def opened(state_dir: Path, limits: dict[str, Any], count: int = 1) -> AsyncIterator[Purses]:
    purses = Purses(state_dir, limits, count)
    for purse in purses.purses:
        purse.open()
    yield purses
    for book, purse in zip(purses.books, purses.purses, strict=True):
        await purse.close()
        await purse.close()
        book.check()


timed = simulated(purse_module)
LIMITED: dict[str, Any] = {"tokens": {"per_day": 1000}}
DAY = ("all", "day", "tokens")


@timed
async def test_closing_gives_everything_back(tmp_path: Path) -> None:
    """What was spent is booked to the token, and nothing stays reserved."""
    async with opened(tmp_path, LIMITED) as world:
        (purse,) = world.purses
        await asyncio.gather(*(world.spend(purse, Amount(30, 50), Amount(7, 11)) for _ in range(20)))
    rows = await world.connection.rows()
    assert rows[DAY] == (140, 0)
    assert all(reserved == 0 for _, reserved in rows.values())
    assert (await world.connection.budget.show()).holders == 0


@timed
async def test_without_limits_nobody_waits_and_all_is_booked(tmp_path: Path) -> None:
    """The usual case: one question, then each reservation is at once."""
    async with opened(tmp_path, {}) as world:
        (purse,) = world.purses
        await world.spend(purse, Amount(10), Amount(10))
        asked = world.connection.asked
        for _ in range(1000):
            purse.settle(await purse.reserve(ACCOUNT, Amount(10), 0.0), Amount(10), Amount())
        assert world.connection.asked == asked
    assert (await world.connection.rows())["all", "total", "tokens"] == (10_010, 0)


@timed
async def test_those_who_wait_are_served_when_others_settle(tmp_path: Path) -> None:
    """The bound of each is a third of the limit, its usage is small: all get through, three at a time."""
    async with opened(tmp_path, LIMITED) as world:
        (purse,) = world.purses
        running = [asyncio.create_task(world.spend(purse, Amount(300), Amount(10))) for _ in range(60)]
        await asyncio.sleep(0.05)
        assert purse.waiting >= 57
        await asyncio.gather(*running)
        assert purse.waiting == 0
    assert (await world.connection.rows())[DAY] == (600, 0)


@timed
async def test_a_budget_that_is_spent_refuses_with_its_scope_and_window(tmp_path: Path) -> None:
    """The caller learns which limit it was and when it turns; what is spent stays within it."""
    async with opened(tmp_path, LIMITED) as world:
        (purse,) = world.purses
        ends = await asyncio.gather(
            *(world.spend(purse, Amount(100), Amount(100)) for _ in range(30)), return_exceptions=True
        )
        refused = [end for end in ends if isinstance(end, BudgetExceeded)]
        assert ends.count(None) == 10
        assert len(refused) == 20
        error = refused[0]
        assert (error.scope, error.window, error.unit, error.limit) == ("all", "day", "tokens", 1000)
        assert error.turns_in_s is not None
        assert 11 * 3600 < error.turns_in_s <= 12 * 3600
    assert (await world.connection.rows())[DAY] == (1000, 0)


@timed
async def test_one_that_can_never_fit_is_refused_and_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """A reservation above the whole limit ends at once; smaller ones behind it pass."""
    async with opened(tmp_path, LIMITED) as world:
        (purse,) = world.purses
        huge = [asyncio.create_task(purse.reserve(ACCOUNT, Amount(5000), 60.0)) for _ in range(3)]
        small = [asyncio.create_task(world.spend(purse, Amount(100), Amount(10))) for _ in range(20)]
        await asyncio.gather(*small)
        for task in huge:
            with pytest.raises(BudgetExceeded):
                await task


@timed
async def test_waiting_ends_in_time(tmp_path: Path) -> None:
    """While the budget actor is away nothing is reserved beyond what was granted, and nobody waits for ever."""
    async with opened(tmp_path, LIMITED) as world:
        (purse,) = world.purses
        world.connection.away = True
        with pytest.raises(TimeoutError):
            await purse.reserve(ACCOUNT, Amount(10), 5.0)
        assert purse.trouble == "ConnectionError: the budget actor is away"
        assert purse.waiting == 0
        world.connection.away = False
        await world.spend(purse, Amount(10), Amount(10))
        assert purse.trouble == ""
    assert (await world.connection.rows())[DAY] == (10, 0)


@pytest.mark.parametrize("trouble", ["away", "hangs"])
def test_who_waits_through_an_outage_is_served_after_it(tmp_path: Path, trouble: str) -> None:
    """An outage of the budget actor delays rows, it fails none; the message that hangs is given up in time."""

    @timed
    async def test() -> None:
        async with opened(tmp_path, LIMITED) as world:
            (purse,) = world.purses
            setattr(world.connection, trouble, True)
            running = [asyncio.create_task(world.spend(purse, Amount(100), Amount(10))) for _ in range(30)]
            await asyncio.sleep(8.0)
            assert not any(task.done() for task in running)
            setattr(world.connection, trouble, False)
            await asyncio.gather(*running)
        assert (await world.connection.rows())[DAY] == (300, 0)

    test()


@timed
async def test_cancelled_waits_leave_nothing_behind(tmp_path: Path) -> None:
    """A caller that goes away while it waits, or at the moment it is served, keeps nothing reserved."""
    async with opened(tmp_path, LIMITED) as world:
        (purse,) = world.purses
        chance = Random(2)
        for _ in range(40):
            tasks = [asyncio.create_task(purse.reserve(ACCOUNT, Amount(400), 60.0)) for _ in range(4)]
            await asyncio.sleep(chance.random() * 0.06)
            for task in tasks:
                task.cancel()
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(end, BaseException):
                    purse.settle(end, Amount(1), Amount())
        assert purse.waiting == 0
        await world.spend(purse, Amount(900), Amount(1))


@timed
async def test_one_cancelled_as_it_is_served_lets_the_next_have_it(tmp_path: Path) -> None:
    """What it was given goes to who waits behind it at once, not at the next report."""
    async with opened(tmp_path, LIMITED) as world:
        (purse,) = world.purses
        holder = await purse.reserve(ACCOUNT, Amount(900), 60.0)
        first, second = (asyncio.create_task(purse.reserve(ACCOUNT, Amount(900), 60.0)) for _ in range(2))
        await asyncio.sleep(0.01)
        world.connection.away = True
        purse.settle(holder, Amount(), Amount())
        first.cancel()
        async with asyncio.timeout(0.2):
            reserved = await second
        purse.settle(reserved, Amount(), Amount())
        world.connection.away = False


@timed
async def test_a_flaky_connection_neither_loses_nor_doubles_spend(tmp_path: Path) -> None:
    """Calls that fail, before or after they were executed: the sums are right all the same, and the limit holds."""
    async with opened(tmp_path, {"tokens": {"per_day": 100_000}, "usd": {"per_day": 1}}, count=3) as world:
        world.connection.loses = 0.3
        chance = Random(3)
        await asyncio.gather(
            *(
                world.spend(chance.choice(world.purses), Amount(500, 1000), Amount(90, 70), chance.random())
                for _ in range(600)
            )
        )
        world.connection.loses = 0.0
    rows = await world.connection.rows()
    assert rows[DAY] == (600 * 90, 0)
    assert rows["all", "day", "usd"] == (600 * 70, 0)


@timed
async def test_several_routers_share_a_limit_and_use_nearly_all_of_it(tmp_path: Path) -> None:
    """No remainder stays stuck in a purse while another one refuses."""
    async with opened(tmp_path, {"tokens": {"per_day": 10_000}}, count=4) as world:
        ends = await asyncio.gather(
            *(world.spend(world.purses[index % 4], Amount(200), Amount(50)) for index in range(400)),
            return_exceptions=True,
        )
        assert all(end is None or isinstance(end, BudgetExceeded) for end in ends)
    spent, reserved = (await world.connection.rows())[DAY]
    assert reserved == 0
    assert 9700 <= spent <= 10_000


@timed
async def test_an_unknown_outcome_is_booked_whole(tmp_path: Path) -> None:
    """What nobody saw may have been billed."""
    async with opened(tmp_path, LIMITED) as world:
        (purse,) = world.purses
        reserved = await purse.reserve(ACCOUNT, Amount(300), 5.0)
        purse.settle(reserved, Amount(), reserved.amount)
        purse.settle(reserved, Amount(), reserved.amount)
    assert (await world.connection.rows())[DAY] == (300, 0)


@timed
async def test_tiers_have_their_own_lines(tmp_path: Path) -> None:
    """A tier whose budget is spent does not hold up the other."""
    async with opened(tmp_path, {"tiers": {"premium": {"tokens": {"per_day": 100}}}}) as world:
        (purse,) = world.purses
        await world.spend(purse, Amount(100), Amount(100))
        with pytest.raises(BudgetExceeded) as caught:
            await purse.reserve(ACCOUNT, Amount(50), 60.0)
        assert caught.value.scope == "tier:premium"
        await asyncio.gather(*(world.spend(purse, Amount(500), Amount(500), account=CHEAP) for _ in range(20)))


@timed
async def test_closing_does_not_hang_when_the_budget_actor_is_gone(tmp_path: Path) -> None:
    """What is not given back counts as spent: safe, and the program ends."""
    async with opened(tmp_path, LIMITED) as world:
        await world.spend(world.purses[0], Amount(100), Amount(10))
        world.connection.hangs = True


@timed
async def test_many_who_wait_are_served_in_order_and_at_once(tmp_path: Path) -> None:
    """Thousands of rows may wait for the first grant."""
    async with opened(tmp_path, {"tokens": {"per_day": 10**9}}) as world:
        (purse,) = world.purses
        served: list[int] = []

        async def one(number: int) -> None:
            reserved = await purse.reserve(ACCOUNT, Amount(100), 60.0)
            served.append(number)
            purse.settle(reserved, Amount(100), Amount())

        await asyncio.gather(*(one(number) for number in range(3000)))
        assert served == list(range(3000))
