"""The router's purse: reservations at once from what the budget actor has granted, and the exchange that refills it.

The rules are LeaseBook's; here are the waiting and the calls. Most reservations are one dictionary look-up. The budget
actor is asked at most 50 times a second by all routers together, whatever the rate of rows: the book knows how long to
wait, and has nothing to say before. While the actor is away, what was granted is spent on, and whoever finds nothing left
waits until it is back.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import assert_never

from actors.budget.exchange import Exchange, Exchanged
from actors.budget.lease import LeaseBook, Refused, Reserved, Short
from actors.messages import Account, Amount

__all__ = ["Purse"]

TICK_S = 0.25
GAP_S = 0.025
"""How often the book is looked at while somebody waits; that is no call."""
PATIENCE_S = 0.4
"""After so long without an answer the next message is sent, though the last may still be answered. Calls to an actor that has
just died hang for over a second, and one that dies again and again would never be asked while it lives."""
CALL_TIMEOUT_S = 3.0
"""Well below the lease: a hung call must not cost all of it. A lost exchange does no harm."""
CLOSE_TIMEOUT_S = 5.0


class Purse:
    """One a router. `exchange` is the budget actor's method."""

    def __init__(self, book: LeaseBook, exchange: Callable[[Exchange], Awaitable[Exchanged]]) -> None:
        self._book = book
        self._exchange = exchange
        self._waiting: dict[Account, deque[tuple[Amount, asyncio.Future[Reserved]]]] = {}
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[bool]] = set()
        self.trouble = ""
        """Why the budget actor did not answer last time; empty when it did."""

    @property
    def waiting(self) -> int:
        """Requests that wait for budget now."""
        return sum(len(line) for line in self._waiting.values())

    def open(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Report everything and give back what is left. Call it when nothing is in flight."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task, *self._calls}, timeout=PATIENCE_S)
        for call in self._calls:
            call.cancel()
        self._task = None
        with contextlib.suppress(TimeoutError):  # what is not given back counts as spent: safe
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while (message := self._book.draw_up(time.monotonic(), closing=True)) is not None:
                    if not await self._call(message):
                        await asyncio.sleep(TICK_S)

    def reserve_now(self, account: Account, amount: Amount) -> Reserved | None:
        """Set `amount` aside; None when it has to be waited for. Raises BudgetExceeded when the ledger refuses."""
        if self._waiting.get(account):
            return None  # those who wait go first
        answer = self._book.reserve(account, amount, time.monotonic())
        match answer:
            case Reserved():
                return answer
            case Refused():
                raise answer.refusal.error()
            case Short():
                return None
            case _:
                assert_never(answer)

    async def reserve(self, account: Account, amount: Amount, timeout_s: float) -> Reserved:
        """Set `amount` aside, waiting for it if need be. Raises also TimeoutError, after `timeout_s` seconds."""
        reserved = self.reserve_now(account, amount)
        if reserved is not None:
            return reserved
        line = self._waiting.setdefault(account, deque())
        return await self._stand_in_line(account, amount, line, timeout_s)

    def settle(self, reserved: Reserved, spent: Amount, unknown: Amount) -> None:
        """End a reservation; what it leaves goes to those who wait."""
        self._book.settle(reserved, spent, unknown)
        line = self._waiting.get(reserved.account)
        if line:
            # Rows of one job are much alike: if many do not fit, the rest would not either. The next answer of the
            # budget actor tries them all.
            self._serve(reserved.account, line, give_up_after=16)

    # ------------------------------------------------------------------ inside

    async def _stand_in_line(
        self, account: Account, amount: Amount, line: deque[tuple[Amount, "asyncio.Future[Reserved]"]], timeout_s: float
    ) -> Reserved:
        future: asyncio.Future[Reserved] = asyncio.get_running_loop().create_future()
        place = (amount, future)
        line.append(place)
        self._book.wait_for(account, amount)
        self._nudge.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.settle(future.result(), Amount(), Amount())  # it came while the wait was being ended
            raise
        finally:
            self._book.stop_waiting(account, amount)
            if future.cancelled() or not future.done():  # else it was served, and has left the line already
                with contextlib.suppress(ValueError):
                    line.remove(place)

    def _serve(
        self, account: Account, line: deque[tuple[Amount, "asyncio.Future[Reserved]"]], give_up_after: int
    ) -> None:
        """Let those in line try, in order: a smaller one may fit where the first does not."""
        now = time.monotonic()
        short = 0
        for place in list(line):
            amount, future = place
            if future.done():
                line.remove(place)
                continue
            answer = self._book.reserve(account, amount, now)
            match answer:
                case Reserved():
                    future.set_result(answer)
                    line.remove(place)
                case Refused():
                    future.set_exception(answer.refusal.error())
                    line.remove(place)
                case Short():
                    short += 1
                    if short >= give_up_after:
                        return
                case _:
                    assert_never(answer)

    async def _keep(self) -> None:
        while True:
            self._nudge.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._nudge.wait()
            await self._say()
            await asyncio.sleep(GAP_S)
            if self.waiting:
                self._nudge.set()

    async def _say(self) -> None:
        """Send what there is to say. Answers may come late, twice and in any order: the book takes them as they come."""
        message = self._book.draw_up(time.monotonic())
        if message is None:
            return
        call = asyncio.create_task(self._call(message))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        done, _ = await asyncio.wait({call}, timeout=PATIENCE_S)
        if done and not call.result():
            await asyncio.sleep(TICK_S)

    async def _call(self, message: Exchange) -> bool:
        """One exchange; False when it came to nothing."""
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await self._exchange(message)
        except Exception as error:  # whatever it is: the totals are sent again with the next message
            self.trouble = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return False
        self.trouble = ""
        self._book.apply(answer, sent_at, time.monotonic())
        for account, line in list(self._waiting.items()):
            if line:
                # All of them: the ledger grants what its smallest waiter needs, wherever that one stands.
                self._serve(account, line, give_up_after=len(line))
            else:
                del self._waiting[account]
        return True
