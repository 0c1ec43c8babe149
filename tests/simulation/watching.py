"""Where the simulation looks into actors while they run. It changes nothing of what they do."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from actors.budget.actor import BudgetActor
from actors.coalescer.actor import CoalescerActor
from actors.coalescer.table import Lead
from actors.router.flow import Router
from tests.simulation.endpoint import Ask
from tests.simulation.loop import Loop
from tests.simulation.store import Disk

__all__ = ["watch_promotions", "watch_reservations", "wrong_in_the_books"]


def watch_reservations(router: Router, loop: Loop, disk: Disk, asks: Sequence[Ask]) -> None:
    """Note in which of the ledger's windows each reservation is made: there, and nowhere else, its call counts."""
    purse = router._purse
    at_once, in_line = purse.reserve_now, purse._stand_in_line

    def note(account: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        # a second copy of a call runs in a task of nobody's, named after its request
        ask = loop.errands[task] if task in loop.errands else asks[int(task.get_name().rpartition("#")[2])]
        ask.periods.append((account.tier, disk.hour, disk.day))

    def noted_at_once(account: Any, amount: Any) -> Any:
        reserved = at_once(account, amount)
        if reserved is not None:
            note(account)
        return reserved

    async def noted_in_line(account: Any, *args: Any) -> Any:
        reserved = await in_line(account, *args)
        note(account)
        return reserved

    purse.reserve_now = noted_at_once  # type: ignore[method-assign]
    purse._stand_in_line = noted_in_line  # type: ignore[method-assign]


def watch_promotions(coalescer: CoalescerActor, promoted: Callable[[int], None], broken: Callable[[str], None]) -> None:
    """Count the followers that become leads; those whom nobody will ever tell anything are a broken promise."""
    table = coalescer._table
    promote = table._promote

    def counted(key: bytes, entry: Any, *args: Any) -> Any:
        gone = entry.lead
        told = promote(key, entry, *args)
        promoted(sum(isinstance(answer, Lead) for _, answer in told))
        forgotten = coalescer._waiting.keys() - table.tickets() - {gone} - {ticket for ticket, _ in told}
        if forgotten:
            broken(f"{len(forgotten)} wait for a call that nobody makes, {min(forgotten)} among them")
        return told

    table._promote = counted  # type: ignore[method-assign]


def wrong_in_the_books(budget: BudgetActor) -> Iterator[str]:
    """What the ledger finds wrong with itself, a passed limit above all."""
    if budget._ledger is not None:
        try:
            budget._ledger.check()
        except AssertionError as error:
            yield f"the ledger: {error}"
