"""The lease book alone, and a whole fleet of books against one ledger in simulated time."""

from bisect import bisect_right
from collections.abc import Iterator

import pytest

from actors.budget.exchange import AccountGrant, BudgetRefusal, Exchange, Exchanged, Totals
from actors.budget.lease import LeaseBook, Refused, Reserved, Short
from actors.budget.ledger import Ledger
from actors.budget.limits import LimitKey
from actors.errors import BudgetExceeded
from actors.messages import Account, Amount
from tests.fleet import ACCOUNT, Fleet, new_book

OTHER = Account("economy", "job", "")


@pytest.fixture
def book() -> Iterator[LeaseBook]:
    """A book whose incarnations are called 1, 2, 3; checked at the end of every test."""
    book = new_book("router")
    yield book
    book.check()


def grant(
    book: LeaseBook, amount: Amount, now: float, *, unlimited: bool = False, refusal: BudgetRefusal | None = None
) -> Exchange:
    """Let the book ask, and answer with `amount` as the running total of what ACCOUNT was granted."""
    message = book.draw_up(now)
    assert message is not None
    answer = AccountGrant(ACCOUNT, amount, unlimited, refusal)
    book.apply(Exchanged(message.sequence, True, 10.0, (answer,)), now, now)
    return message


def drawn(book: LeaseBook, now: float, *, closing: bool = False) -> Exchange:
    message = book.draw_up(now, closing=closing)
    assert message is not None
    return message


def reserved(outcome: Reserved | Short | Refused) -> Reserved:
    assert isinstance(outcome, Reserved)
    return outcome


def test_nothing_is_reserved_before_the_first_answer(book: LeaseBook) -> None:
    """A new book holds nothing, so the first attempt waits and its need is in the first message."""
    assert book.reserve(ACCOUNT, Amount(100, 5), 0.0) == Short()
    assert book.draw_up(0.0) is None
    book.wait_for(ACCOUNT, Amount(100, 5))
    message = book.draw_up(0.0)
    assert message is not None
    assert [(r.account, r.totals, r.want, r.least) for r in message.accounts] == [
        (ACCOUNT, Totals(), Amount(100, 5), Amount(100, 5))
    ]


def test_reserving_and_settling_keeps_count(book: LeaseBook) -> None:
    """A settled reservation gives back what it did not spend, and the report states the running totals."""
    book.wait_for(ACCOUNT, Amount(100, 50))
    grant(book, Amount(100, 50), 0.0)
    book.stop_waiting(ACCOUNT, Amount(100, 50))
    first = reserved(book.reserve(ACCOUNT, Amount(80, 40), 0.1))
    assert book.reserve(ACCOUNT, Amount(80, 40), 0.1) == Short()
    book.settle(first, Amount(30, 10), Amount(20, 0))
    second = reserved(book.reserve(ACCOUNT, Amount(50, 40), 0.1))
    message = book.draw_up(0.6)
    assert message is not None
    assert message.accounts[0].totals == Totals(spent=Amount(30, 10), unknown=Amount(20, 0))
    book.settle(second, Amount(50, 40))


def test_a_reservation_settles_once(book: LeaseBook) -> None:
    """A second settle of the same reservation changes nothing, so a doubled `finally` cannot create budget."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(100), 0.0)
    book.stop_waiting(ACCOUNT, Amount(100))
    taken = reserved(book.reserve(ACCOUNT, Amount(100), 0.1))
    book.settle(taken, Amount(10))
    book.settle(taken, Amount(10))
    assert book.reserve(ACCOUNT, Amount(91), 0.1) == Short()
    assert isinstance(book.reserve(ACCOUNT, Amount(90), 0.1), Reserved)


def test_usage_above_its_reservation_is_charged_beyond(book: LeaseBook) -> None:
    """An overrun does not eat into other reservations: it is reported as beyond."""
    book.wait_for(ACCOUNT, Amount(200, 20))
    grant(book, Amount(200, 20), 0.0)
    book.stop_waiting(ACCOUNT, Amount(200, 20))
    taken = reserved(book.reserve(ACCOUNT, Amount(100, 10), 0.1))
    book.settle(taken, Amount(130, 4))
    assert isinstance(book.reserve(ACCOUNT, Amount(100, 16), 0.1), Reserved)
    message = book.draw_up(0.6)
    assert message is not None
    assert message.accounts[0].totals == Totals(spent=Amount(130, 4), beyond=Amount(30, 0))


def test_nothing_is_reserved_from_a_lease_that_has_ended(book: LeaseBook) -> None:
    """The lease counts from the moment the question was sent, not from the answer."""
    book.wait_for(ACCOUNT, Amount(100))
    message = book.draw_up(0.0)
    assert message is not None
    book.apply(Exchanged(1, True, 10.0, (AccountGrant(ACCOUNT, Amount(1000), False, None),)), 0.0, 8.0)
    assert isinstance(book.reserve(ACCOUNT, Amount(1), 9.99), Reserved)
    assert book.reserve(ACCOUNT, Amount(1), 10.0) == Short()


def test_an_unlimited_account_reserves_freely_until_the_lease_ends(book: LeaseBook) -> None:
    """Without a limit there is no grant to wait for, but spend is reported and silence still ends it."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(), 0.0, unlimited=True)
    book.stop_waiting(ACCOUNT, Amount(100))
    taken = reserved(book.reserve(ACCOUNT, Amount(10**12, 10**12), 9.0))
    book.settle(taken, Amount(70, 7))
    assert book.reserve(ACCOUNT, Amount(1), 10.0) == Short()
    message = book.draw_up(10.0)
    assert message is not None
    assert message.accounts[0].totals == Totals(spent=Amount(70, 7), beyond=Amount(70, 7))


def test_late_doubled_and_reordered_answers_change_nothing(book: LeaseBook) -> None:
    """Answers carry totals, so an older one can neither add to nor take from what is held."""
    book.wait_for(ACCOUNT, Amount(100))
    first, second = book.draw_up(0.0), book.draw_up(1.0)
    assert first is not None
    assert second is not None
    newer = Exchanged(second.sequence, True, 10.0, (AccountGrant(ACCOUNT, Amount(150), False, None),))
    older = Exchanged(first.sequence, True, 10.0, (AccountGrant(ACCOUNT, Amount(100), True, None),))
    for answer in (newer, older, newer, older):
        book.apply(answer, 0.0, 1.0)
    assert isinstance(book.reserve(ACCOUNT, Amount(150), 1.0), Reserved)
    assert book.reserve(ACCOUNT, Amount(1), 1.0) == Short()


def test_what_an_answer_did_not_confirm_is_said_again(book: LeaseBook) -> None:
    """A report whose answer is lost is repeated until one comes; a confirmed one is not."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(100), 0.0)
    book.stop_waiting(ACCOUNT, Amount(100))
    book.settle(reserved(book.reserve(ACCOUNT, Amount(100), 0.1)), Amount(100))
    for now in (0.6, 1.2):
        message = book.draw_up(now)
        assert message is not None
        assert message.accounts[0].totals.spent == Amount(100)
    grant(book, Amount(100), 1.8)
    assert book.draw_up(2.4) is None


def test_a_closed_incarnation_is_forgotten_whole(book: LeaseBook) -> None:
    """After an invalid answer the book starts from zero, and old reservations settle without effect."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(300), 0.0)
    old = reserved(book.reserve(ACCOUNT, Amount(100), 0.1))
    message = book.draw_up(0.6)
    assert message is not None
    book.apply(Exchanged(message.sequence, False, 0.0, ()), 0.6, 0.7)
    assert book.incarnation == "router-2"
    assert book.reserve(ACCOUNT, Amount(1), 0.7) == Short()
    book.settle(old, Amount(80))
    book.apply(Exchanged(message.sequence, True, 10.0, (AccountGrant(ACCOUNT, Amount(300), False, None),)), 0.6, 0.8)
    assert book.reserve(ACCOUNT, Amount(1), 0.8) == Short()
    again = grant(book, Amount(100), 1.2)
    assert (again.incarnation, again.accounts[0].totals, again.opening) == ("router-2", Totals(), True)
    later = book.draw_up(1.8)
    assert later is not None
    assert (later.incarnation, later.opening) == ("router-2", False)


def test_spend_beyond_grants_survives_the_end_of_an_incarnation(book: LeaseBook) -> None:
    """What no grant covered was not booked when the lease ended, so the next incarnation reports it."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(), 0.0, unlimited=True)
    early, late = (reserved(book.reserve(ACCOUNT, Amount(100), 0.1)) for _ in range(2))
    book.settle(early, Amount(40))
    message = book.draw_up(0.6)
    assert message is not None
    book.apply(Exchanged(message.sequence, False, 0.0, ()), 0.6, 0.7)
    book.settle(late, Amount(), Amount(100))
    assert grant(book, Amount(), 1.2, unlimited=True).accounts[0].totals == Totals()
    assert grant(book, Amount(), 1.8, unlimited=True).accounts[0].totals == Totals(
        Amount(40), Amount(100), Amount(), Amount(140)
    )


def test_a_refusal_holds_for_what_is_too_large_and_not_for_ever(book: LeaseBook) -> None:
    """A smaller reservation may still fit, and after a second the ledger is asked again."""
    refusal = BudgetRefusal("all", "day", "tokens", 1000, 950, 7200.0)
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(), 0.0, refusal=refusal)
    book.stop_waiting(ACCOUNT, Amount(100))
    assert book.reserve(ACCOUNT, Amount(51), 0.5) == Refused(refusal)
    assert book.reserve(ACCOUNT, Amount(50), 0.5) == Short()
    assert book.reserve(ACCOUNT, Amount(51), 1.0) == Short()


def test_a_refusal_becomes_the_error_that_users_see() -> None:
    """The refusal carries everything that BudgetExceeded names."""
    error = BudgetRefusal("tier:premium", "hour", "usd", 5_000_000, 4_990_000, 61.0).error()
    assert isinstance(error, BudgetExceeded)
    assert str(error) == (
        "budget of scope 'tier:premium' per hour: $4.99 of $5.00 spent or booked, not enough left; "
        "the window turns in 1 min 1 s"
    )


def test_idle_holdings_go_back(book: LeaseBook) -> None:
    """After a second without a reservation everything free is returned."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(500), 0.0)
    book.stop_waiting(ACCOUNT, Amount(100))
    message = book.draw_up(1.5)
    assert message is not None
    assert message.accounts[0].totals.returned == Amount(500)
    assert message.accounts[0].want == Amount()
    assert book.reserve(ACCOUNT, Amount(1), 1.5) == Short()


def test_a_remainder_too_small_for_those_who_wait_goes_back_with_the_question(book: LeaseBook) -> None:
    """Otherwise the remainders of several routers could lock each other out for ever."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(99), 0.0)
    message = book.draw_up(0.2)
    assert message is not None
    report = message.accounts[0]
    assert (report.totals.returned, report.want, report.least) == (Amount(99), Amount(100), Amount(100))


def test_a_book_asks_ahead_by_its_recent_rate(book: LeaseBook) -> None:
    """Under steady use the book asks before it runs dry, for about a second's worth."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(100_000), 0.0)
    book.stop_waiting(ACCOUNT, Amount(100))
    wants = []
    for tick in range(1, 400):
        now = tick * 0.05
        for _ in range(5):  # 100 reservations of 100 tokens a second
            taken = book.reserve(ACCOUNT, Amount(100), now)
            if isinstance(taken, Reserved):
                book.settle(taken, Amount(100))
        message = book.draw_up(now)
        if message is not None:
            held = next(iter(message.accounts), None)
            wants.append(held.want.tokens if held else 0)
            total = sum(wants) + 100_000
            book.apply(
                Exchanged(message.sequence, True, 10.0, (AccountGrant(ACCOUNT, Amount(total), False, None),)), now, now
            )
    assert book.reserve(ACCOUNT, Amount(100), 20.0) != Short()
    assert 2_000 < max(wants) < 12_000
    assert len(wants) < 60


def test_questions_keep_their_distance(book: LeaseBook) -> None:
    """Those who begin to wait are asked for together, and after a fruitless answer the book pauses longer."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(), 0.0)
    assert book.draw_up(0.05) is None
    grant(book, Amount(100), 0.11)
    book.wait_for(ACCOUNT, Amount(200))
    book.wait_for(OTHER, Amount(200))
    assert book.draw_up(0.12) is None
    message = book.draw_up(0.14)
    assert message is not None
    assert {report.account for report in message.accounts} == {ACCOUNT, OTHER}


def test_closing_returns_everything_in_one_message(book: LeaseBook) -> None:
    """When all is answered and settled, one message ends the lease; then there is nothing left to say."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(500), 0.0)
    book.stop_waiting(ACCOUNT, Amount(100))
    message = book.draw_up(0.1, closing=True)
    assert message is not None
    assert message.closing
    assert message.accounts[0].totals.returned == Amount(500)
    book.apply(Exchanged(message.sequence, True, 10.0, ()), 0.1, 0.1)
    assert book.draw_up(0.2, closing=True) is None


def test_closing_first_learns_of_grants_whose_answer_was_lost(book: LeaseBook) -> None:
    """A grant nobody knows of could not be returned and would count as spent."""
    ledger = Ledger({LimitKey("all", "day", "tokens"): 1000})
    book.wait_for(ACCOUNT, Amount(100))
    lost = book.draw_up(0.0)
    assert lost is not None
    ledger.exchange(lost, 0.0)
    book.stop_waiting(ACCOUNT, Amount(100))
    while (message := book.draw_up(0.1, closing=True)) is not None:
        book.apply(ledger.exchange(message, 0.1), 0.1, 0.1)
    status = next(row for row in ledger.snapshot(0.2).limits if row.limit)
    assert (status.spent, status.reserved, ledger.snapshot(0.2).holders) == (0, 0, 0)


def test_a_farewell_that_comes_late_takes_nothing_from_a_book_that_went_on(book: LeaseBook) -> None:
    """What was granted since is not counted as spent, and the book keeps it."""
    ledger = Ledger({LimitKey("all", "day", "tokens"): 1000})
    book.wait_for(ACCOUNT, Amount(100))
    book.apply(ledger.exchange(drawn(book, 0.0), 0.0), 0.0, 0.0)
    late = drawn(book, 0.1, closing=True)
    book.apply(ledger.exchange(drawn(book, 0.2), 0.2), 0.2, 0.2)
    book.apply(ledger.exchange(late, 0.3), 0.1, 0.3)
    assert isinstance(book.reserve(ACCOUNT, Amount(100), 0.4), Reserved)
    status = next(row for row in ledger.snapshot(0.4).limits if row.limit)
    assert (status.spent, status.reserved) == (0, 100)


def test_quiet_accounts_are_put_aside_and_come_back(book: LeaseBook) -> None:
    """An account at rest costs no look at every tick, and works as before when it is used again."""
    book.wait_for(ACCOUNT, Amount(100))
    grant(book, Amount(100), 0.0)
    book.stop_waiting(ACCOUNT, Amount(100))
    book.settle(reserved(book.reserve(ACCOUNT, Amount(100), 0.0)), Amount(100))
    grant(book, Amount(100), 2.0)
    assert book.draw_up(4.0) is None
    book.check()
    book.wait_for(ACCOUNT, Amount(100))
    assert grant(book, Amount(200), 5.0).accounts[0].totals.spent == Amount(100)
    assert isinstance(book.reserve(ACCOUNT, Amount(100), 5.0), Reserved)


# -- a fleet in simulated time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_four_routers_use_up_a_budget_and_never_pass_it(seed: int) -> None:
    """2,000 in flight, 200 spent of 1,500 reserved: between 98% and 100% is served, then everybody is refused."""
    ledger = Ledger({LimitKey("all", "day", "tokens"): 300_000})
    fleet = Fleet(ledger, routers=4, in_flight=2000, seed=seed)
    fleet.run(until=300.0)
    assert fleet.refused == 2000
    assert not any(fleet.waiting.values())
    assert 0.98 * 300_000 <= fleet.served <= 300_000
    status = next(row for row in ledger.snapshot(fleet.now).limits if row.limit)
    assert (status.spent, status.reserved, status.unknown) == (fleet.served, 0, 0)


@pytest.mark.parametrize("routers", [1, 4, 16])
def test_with_plenty_left_the_budget_actor_is_asked_at_most_50_times_a_second(routers: int) -> None:
    """At about 5,000 attempts a second, from the first second on; and nobody waits for the ledger after that."""
    fleet = Fleet(Ledger({LimitKey("all", "day", "tokens"): 10**12}), routers=routers, in_flight=3500, seed=1)
    fleet.run(until=4.0)
    begun = fleet.done
    while fleet.now < 10.0:
        fleet.run(until=fleet.now + 0.1)
        assert not any(fleet.waiting.values())
    assert fleet.done - begun > 28_000
    assert fleet.busiest_second() <= 50


@pytest.mark.parametrize("routers", [4, 16])
@pytest.mark.parametrize("limit", [1_000_000, 6_000_000])
def test_at_its_end_a_budget_is_used_up_with_at_most_50_calls_a_second(routers: int, limit: int) -> None:
    """3,500 in flight reserve 5,250,000 at once: from the start, or from the fifth second on, there is not enough for all."""
    ledger = Ledger({LimitKey("all", "day", "tokens"): limit})
    fleet = Fleet(ledger, routers=routers, in_flight=3500, seed=3)
    fleet.run(until=600.0)
    assert fleet.refused == 3500 // routers * routers
    assert 0.98 * limit <= fleet.served <= limit
    assert fleet.busiest_second() <= 50


class Stepped:
    """A ledger whose wall clock has been set: `steps` says from which time on it shows how much more than that time."""

    def __init__(self, ledger: Ledger, steps: list[tuple[float, float]]) -> None:
        self.ledger, self.steps = ledger, steps

    def exchange(self, message: Exchange, now: float) -> Exchanged:
        return self.ledger.exchange(message, now + [ahead for since, ahead in self.steps if since <= now][-1])

    def check(self) -> None:
        self.ledger.check()


@pytest.mark.parametrize(
    ("steps", "least"), [([], 0.98), ([(4.0, 2596.0), (5.0, 4596.0)], 0.5)], ids=["steady", "back and forth"]
)
@pytest.mark.parametrize("seed", range(3))
def test_an_hour_that_turns_under_load_gives_its_budget_once(
    seed: int, steps: list[tuple[float, float]], least: float
) -> None:
    """With 2,000 in flight the hour turns after four seconds; then the clock is set back 1,000 s and ahead 2,000 s.

    The leap ahead ends all leases, and what was in flight counts as spent: that wastes budget and never overspends it.
    """
    limit = 3_000_000
    ledger = Ledger({LimitKey("all", "hour", "tokens"): limit})
    fleet = Fleet(Stepped(ledger, [(0.0, 3596.0), *steps]), routers=4, in_flight=2000, seed=seed)
    fleet.run(until=4.0)
    before = fleet.served
    assert 0.3 * limit < before <= limit
    fleet.run(until=300.0)
    assert fleet.refused == 2000
    assert least * limit <= fleet.served - before <= limit


def test_many_routers_keep_their_distance_and_their_leases() -> None:
    """100 routers speak about every three seconds each. They hold enough for two such gaps, and a lease of four, of 2 s otherwise."""
    fleet = Fleet(Ledger({LimitKey("all", "day", "tokens"): 10**12}, 2.0), routers=100, in_flight=1000, seed=4)
    fleet.run(until=15.0)
    del fleet.calls[: bisect_right(fleet.calls, 10.0)]  # without what is said when all of them begin at once
    begun = fleet.done
    while fleet.now < 25.0:
        fleet.run(until=fleet.now + 0.5)
        assert not any(fleet.waiting.values())
    assert fleet.done - begun > 13_000
    assert fleet.busiest_second() <= 50
    assert next(row for row in fleet.ledger.snapshot(fleet.now).limits if row.limit).unknown == 0


def test_a_job_that_ends_leaves_nothing_reserved() -> None:
    """When the rows are done, idle holdings come back by themselves within two seconds, without closing."""
    ledger = Ledger({LimitKey("all", "day", "tokens"): 10**7})
    fleet = Fleet(ledger, routers=4, in_flight=400, seed=2, rows=3000)
    fleet.run(until=12.0)
    assert fleet.done == 3000
    status = next(row for row in ledger.snapshot(fleet.now).limits if row.limit)
    assert (status.spent, status.reserved) == (fleet.served, 0)
