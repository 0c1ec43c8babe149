"""A fleet of lease books in simulated time: routers under load, without the routers."""

import heapq
import itertools
from bisect import bisect_right
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from actors.budget.exchange import Exchange, Exchanged
from actors.budget.lease import LeaseBook, Refused, Reserved, Short
from actors.messages import Account, Amount

__all__ = ["ACCOUNT", "RESERVATION", "Fleet", "new_book"]

ACCOUNT = Account("premium", "job", "")
RESERVATION = Amount(1500, 1500)


class AnyLedger(Protocol):
    def exchange(self, message: Exchange, now: float) -> Exchanged: ...
    def check(self) -> None: ...


def new_book(holder: str) -> LeaseBook:
    """A book whose incarnations are called 1, 2, 3."""
    numbers = itertools.count(1)
    return LeaseBook(holder, lambda: f"{holder}-{next(numbers)}")


class Fleet:
    """Routers with many attempts in flight against one ledger; a message takes 5 ms each way, an attempt 0.2 to 1.2 s."""

    def __init__(self, ledger: AnyLedger, routers: int, in_flight: int, seed: int, *, rows: int = 10**9) -> None:
        self.random = Random(seed)
        self.ledger = ledger
        self.now = 0.0
        self.rows = rows
        self.served = self.refused = self.done = 0
        self.calls: list[float] = []
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.books = [new_book(f"router-{number}") for number in range(routers)]
        self.waiting = dict.fromkeys(self.books, 0)
        self.idle = dict.fromkeys(self.books, in_flight // routers)
        for book in self.books:
            self.later(self.random.random() * 0.02, self.tick, book)

    def later(self, delay_s: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.events, (self.now + delay_s, next(self.order), act, arguments))

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, act, arguments = heapq.heappop(self.events)
            act(*arguments)

    def tick(self, book: LeaseBook) -> None:
        for _ in range(self.idle[book]):
            self.begin(book)
        self.idle[book] = 0
        message = book.draw_up(self.now)
        if message is None:
            self.later(0.02, self.tick, book)
        else:
            self.calls.append(self.now)
            self.later(0.005, self.arrive, book, message, self.now)

    def arrive(self, book: LeaseBook, message: Exchange, sent_at: float) -> None:
        answer = self.ledger.exchange(message, self.now)
        self.ledger.check()
        self.later(0.005, self.answered, book, answer, sent_at)

    def answered(self, book: LeaseBook, answer: Exchanged, sent_at: float) -> None:
        book.apply(answer, sent_at, self.now)
        self.retry(book)
        self.later(0.0, self.tick, book)

    def retry(self, book: LeaseBook) -> None:
        """All who wait want the same here, so the first that is still short ends the round."""
        while self.waiting[book] and self.attempt(book):
            self.waiting[book] -= 1
            book.stop_waiting(ACCOUNT, RESERVATION)

    def busiest_second(self) -> int:
        """The most calls in any one second."""
        return max(bisect_right(self.calls, call + 1.0) - number for number, call in enumerate(self.calls))

    def begin(self, book: LeaseBook) -> None:
        if self.rows:
            self.rows -= 1
            if not self.attempt(book):
                book.wait_for(ACCOUNT, RESERVATION)
                self.waiting[book] += 1

    def attempt(self, book: LeaseBook) -> bool:
        match book.reserve(ACCOUNT, RESERVATION, self.now):
            case Reserved() as taken:
                self.later(0.2 + self.random.random(), self.end, book, taken)
            case Short():
                return False
            case Refused():
                self.refused += 1
        return True

    def end(self, book: LeaseBook, taken: Reserved) -> None:
        spent = self.random.randint(150, 250)
        self.served += spent
        self.done += 1
        book.settle(taken, Amount(spent, spent))
        self.retry(book)
        self.begin(book)
