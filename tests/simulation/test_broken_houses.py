"""The simulation can fail: with one rule broken on purpose it finds out within a few hundred histories.

Each of these breaks what one promise rests on. A simulation that did not notice would prove nothing.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from actors.budget.actor import BudgetActor
from actors.budget.lease import LeaseBook, Reserved
from actors.budget.ledger import Ledger
from actors.budget.store import StoreConflict
from actors.coalescer.table import Table
from actors.errors import StoreError
from actors.messages import Account, Amount
from actors.router.attempts import Attempts
from actors.router.purse import Purse
from tests.simulation.histories import run_seeds
from tests.simulation.store import MemoryStore

AT_MOST = 400
BLOCK = 20
NOTHING = Amount()

Patch = contextlib.AbstractContextManager[Any]


def a_purse_that_does_not_reserve() -> Patch:
    async def reserve(self: Purse, account: Account, amount: Amount, timeout_s: float) -> Reserved:
        return Reserved(0, account, amount, 0)

    return mock.patch.object(Purse, "reserve", reserve)


def a_ledger_that_forgets_what_the_dead_held() -> Patch:
    close = Ledger._close

    def forget(self: Ledger, name: str) -> None:
        for account, held in self._holders[name].accounts.items():
            self._reserve(account, NOTHING.minus(held.outstanding))
            held.totals = held.totals._replace(returned=held.totals.returned.plus(held.outstanding))
        close(self, name)

    return mock.patch.object(Ledger, "_close", forget)


def a_book_that_takes_the_unknown_for_nothing() -> Patch:
    settle = LeaseBook.settle

    def hope(self: LeaseBook, reserved: Reserved, spent: Amount, unknown: Amount = NOTHING) -> None:
        settle(self, reserved, spent, NOTHING)

    return mock.patch.object(LeaseBook, "settle", hope)


def a_ledger_that_grants_a_little_too_much() -> Patch:
    room = Ledger._room

    def wide(self: Ledger, *where: Any) -> int | None:
        left = room(self, *where)
        return None if left is None else left + left // 10 + 1

    return mock.patch.object(Ledger, "_room", wide)


def a_store_that_lets_the_overtaken_write() -> Patch:
    write = MemoryStore.write

    def blind(self: MemoryStore, rows: Any) -> None:
        self._version = self._disk.version
        write(self, rows)

    return mock.patch.object(MemoryStore, "write", blind)


def a_budget_actor_that_answers_what_it_could_not_commit() -> Patch:
    committed = BudgetActor._committed

    def hasty(self: BudgetActor, act: Callable[[Ledger, float], Any]) -> Any:
        answer = None

        def remembered(ledger: Ledger, now: float) -> Any:
            nonlocal answer
            answer = act(ledger, now)
            return answer

        try:
            return committed(self, remembered)
        except (StoreError, StoreConflict):
            if answer is None:
                raise
            return answer

    return mock.patch.object(BudgetActor, "_committed", hasty)


def a_router_that_sends_each_attempt_under_the_first_reservation() -> Patch:
    attempt = Attempts.make

    async def reuse(self: Attempts, request: Any, tier: Any, index: int, past: Any, *rest: Any) -> Any:
        if not past.attempts:
            return await attempt(self, request, tier, index, past, *rest)
        with mock.patch.object(self._purse, "reserve", _free), mock.patch.object(self._purse, "settle", _ignored):
            return await attempt(self, request, tier, index, past, *rest)

    return mock.patch.object(Attempts, "make", reuse)


async def _free(account: Account, amount: Amount, timeout_s: float) -> Reserved:
    return Reserved(0, account, amount, 0)


def _ignored(reserved: Reserved, spent: Amount, unknown: Amount) -> None:
    pass


def a_table_that_promotes_nobody() -> Patch:
    def drop(self: Table[Any], key: bytes, entry: Any, *rest: Any) -> list[Any]:
        del self._keys[entry.lead]
        for ticket in entry.followers:
            del self._keys[ticket]
        del self._entries[key]
        return []

    return mock.patch.object(Table, "_promote", drop)


def a_purse_that_forgets_nobody_who_waited() -> Patch:
    async def stand(self: Purse, account: Account, amount: Amount, line: deque[Any], timeout_s: float) -> Reserved:
        future: asyncio.Future[Reserved] = asyncio.get_running_loop().create_future()
        line.append((amount, future))
        self._book.wait_for(account, amount)
        self._nudge.set()
        async with asyncio.timeout(timeout_s):
            reserved = await future
        self._book.stop_waiting(account, amount)
        return reserved

    return mock.patch.object(Purse, "_stand_in_line", stand)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (a_purse_that_does_not_reserve, "overspend"),
        (a_ledger_that_forgets_what_the_dead_held, "overspend"),
        (a_book_that_takes_the_unknown_for_nothing, "overspend"),
        (a_ledger_that_grants_a_little_too_much, "overspend"),
        (a_router_that_sends_each_attempt_under_the_first_reservation, "overspend"),
        (a_store_that_lets_the_overtaken_write, "books"),
        (a_budget_actor_that_answers_what_it_could_not_commit, "books"),
        (a_table_that_promotes_nobody, "coalescing"),
        (a_purse_that_forgets_nobody_who_waited, "leak"),
    ],
)
def test_a_broken_rule_is_found(broken: Callable[[], Patch], promise: str) -> None:
    """One rule broken, one promise not kept: the simulation sees it."""
    with broken():
        for first in range(0, AT_MOST, BLOCK):
            if run_seeds(range(first, first + BLOCK)).broken_by_kind()[promise]:
                return
    pytest.fail(f"{AT_MOST} histories, and no {promise} was found")
