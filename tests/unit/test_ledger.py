"""The ledger: limits from the configuration, grants near them, leases that end, windows that turn."""

from collections.abc import Iterator

import pytest

from actors.budget.anomaly import HaltRow, PaceRules
from actors.budget.exchange import AccountReport, BudgetRefusal, Exchange, Exchanged, Totals
from actors.budget.lease import LeaseBook, Refused, Reserved
from actors.budget.ledger import Ledger
from actors.budget.limits import (
    HIGHEST,
    LimitKey,
    RequestLimits,
    pace_rules,
    request_limits,
    scopes_of,
    whole_units,
    window_limits,
)
from actors.budget.rows import LimitStatus, Rows
from actors.errors import ConfigError
from actors.messages import Account, Amount
from actors.settings import BudgetSettings

ACCOUNT = Account("premium", "job", "")
HOUR = LimitKey("all", "hour", "tokens")
DAY = LimitKey("all", "day", "tokens")
NOON = 19_700 * 86_400.0 + 12 * 3600


class Holder:
    """A router reduced to the messages it sends, each with the totals of one account."""

    def __init__(self, ledger: Ledger, name: str = "router", incarnation: str = "1") -> None:
        self.ledger, self.name, self.incarnation = ledger, name, incarnation
        self.sequence = 0
        self.totals = Totals()

    def message(
        self, want: int = 0, least: int = 0, *, account: Account = ACCOUNT, closing: bool = False, **totals: int
    ) -> Exchange:
        changed = {name: getattr(self.totals, name).plus(Amount(tokens)) for name, tokens in totals.items()}
        self.totals = self.totals._replace(**changed)
        self.sequence += 1
        report = AccountReport(account, self.totals, Amount(want), Amount(least))
        return Exchange(
            self.name, self.incarnation, self.sequence, (report,), opening=self.sequence == 1, closing=closing
        )

    def say(self, now: float, want: int = 0, least: int = 0, **rest: int | bool) -> Exchanged:
        return self.ledger.exchange(self.message(want, least, **rest), now)  # type: ignore[arg-type]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A ledger with 1,000 tokens an hour and 10,000 a day; checked at the end of every test."""
    ledger = Ledger({HOUR: 1000, DAY: 10_000})
    yield ledger
    ledger.check()


def granted(answer: Exchanged) -> int:
    return answer.accounts[0].granted_total.tokens


def status(ledger: Ledger, key: LimitKey, now: float) -> LimitStatus:
    return next(row for row in ledger.snapshot(now).limits if row[:3] == key)


# -- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.29, "usd", 290_000),
        (1.1, "usd", 1_100_000),
        (0.0000019, "usd", 1),
        (4000.9, "tokens", 4000),
        (1e300, "usd", HIGHEST),
    ],
)
def test_configured_numbers_become_whole_units_exactly(value: float, unit: str, expected: int) -> None:
    """Decimal as written and rounded down: 0.29 dollars is not 289,999 micro-dollars."""
    assert whole_units(value, unit) == expected


SETTINGS = BudgetSettings.model_validate(
    {
        "tokens": {"per_request": 4000, "per_hour": 100_000},
        "usd": {"per_day": 50},
        "tiers": {"premium": {"usd": {"per_day": 20, "per_request": 0.5}}},
        "keys": {"alice": {"tokens": {"per_request": 1000}}},
        "jobs": {"nightly": {"tokens": {"per_day": 5}}},
    }
)


def test_limits_of_all_scopes_are_read_from_the_settings() -> None:
    """Each configured window of each scope is one limit; nothing else is."""
    assert window_limits(SETTINGS) == {
        ("all", "hour", "tokens"): 100_000,
        ("all", "day", "usd"): 50_000_000,
        ("tier:premium", "day", "usd"): 20_000_000,
        ("job:nightly", "day", "tokens"): 5,
    }


def test_an_account_is_charged_to_every_scope_it_belongs_to() -> None:
    """A batch has no key, so no key scope."""
    assert scopes_of(Account("premium", "job", "alice")) == ("all", "tier:premium", "job:job", "key:alice")
    assert scopes_of(Account("premium", "job")) == ("all", "tier:premium", "job:job")


def test_the_request_limit_is_the_least_of_its_scopes() -> None:
    """Per unit, and it says which scope it comes from."""
    assert request_limits(SETTINGS, Account("premium", "j", "alice")) == RequestLimits(
        1000, 500_000, "key:alice", "tier:premium"
    )
    assert request_limits(SETTINGS, Account("economy", "j")) == RequestLimits(4000, None, "all", "")
    assert request_limits(BudgetSettings(), Account("economy", "j")).refuse(Amount(10**9), Amount(10**9, 10**9)) is None


def test_the_request_limit_bounds_the_sum_of_attempts() -> None:
    """What earlier attempts spent counts; reaching the limit exactly is allowed."""
    limits = RequestLimits(1000, 500, "all", "tier:premium")
    assert limits.refuse(Amount(400, 0), Amount(600, 500)) is None
    assert limits.refuse(Amount(401, 0), Amount(600, 0)) == BudgetRefusal("all", "request", "tokens", 1000, 401, None)
    assert limits.refuse(Amount(0, 1), Amount(0, 500)) == BudgetRefusal("tier:premium", "request", "usd", 500, 1, None)


# -- grants --------------------------------------------------------------------------------------------------------


def test_a_single_holder_may_have_all_that_is_left(ledger: Ledger) -> None:
    """The want is granted as far as the tightest window reaches."""
    router = Holder(ledger)
    assert granted(router.say(NOON, want=600)) == 600
    assert granted(router.say(NOON, want=600)) == 1000
    assert granted(router.say(NOON, want=600)) == 1000
    assert status(ledger, HOUR, NOON)[3:8] == (1000, 0, 1000, 0, 0)


def test_near_the_limit_a_grant_shrinks_to_an_equal_share(ledger: Ledger) -> None:
    """So that whoever asks first does not shut the others out."""
    holders = [Holder(ledger, f"router-{number}") for number in range(4)]
    for holder in holders:
        holder.say(NOON)
    assert [granted(holder.say(NOON, want=5000)) for holder in holders] == [250, 187, 140, 105]


def test_a_grant_is_never_smaller_than_what_waits(ledger: Ledger) -> None:
    """A share below the smallest waiting reservation is lifted to it while it fits; after that nothing is granted."""
    holders = [Holder(ledger, f"router-{number}") for number in range(4)]
    for holder in holders:
        holder.say(NOON)
    answers = [holder.say(NOON, want=5000, least=400) for holder in holders]
    assert [granted(answer) for answer in answers] == [400, 400, 0, 0]
    assert [answer.accounts[0].refusal for answer in answers] == [None] * 4


def test_a_refusal_comes_only_when_nothing_reserved_could_help(ledger: Ledger) -> None:
    """While others hold what might come back the answer is to wait; when it is spent, the limit is named."""
    first, second = Holder(ledger, "first"), Holder(ledger, "second")
    first.say(NOON, want=1000)
    answer = second.say(NOON, want=100, least=100)
    assert (granted(answer), answer.accounts[0].refusal) == (0, None)
    first.say(NOON, spent=901)
    answer = second.say(NOON, want=100, least=100)
    assert answer.accounts[0].refusal == BudgetRefusal("all", "hour", "tokens", 1000, 901, 3600.0)
    first.say(NOON, returned=99)
    assert granted(second.say(NOON, want=99, least=99)) == 99


def test_the_refusal_names_the_window_that_turns_last() -> None:
    """Nothing will fit before that one has turned."""
    ledger = Ledger({HOUR: 100, DAY: 100, LimitKey("job:job", "hour", "tokens"): 100})
    router = Holder(ledger)
    router.say(NOON, want=100)
    answer = router.say(NOON, want=1, least=1, spent=100)
    assert answer.accounts[0].refusal == BudgetRefusal("all", "day", "tokens", 100, 100, 12 * 3600.0)


def test_a_grant_fits_every_scope_and_unit() -> None:
    """The tightest scope decides; a unit without a limit gets what is wanted; if one unit cannot serve, none is tied up."""
    ledger = Ledger({HOUR: 1000, LimitKey("tier:premium", "day", "usd"): 30})
    asked = AccountReport(ACCOUNT, Totals(), Amount(500, 40), Amount(100, 20))
    answer = ledger.exchange(Exchange("router", "1", 1, (asked,), opening=True), NOON)
    assert answer.accounts[0].granted_total == Amount(500, 30)
    answer = ledger.exchange(Exchange("router", "1", 2, (asked,)), NOON)
    assert answer.accounts[0].granted_total == Amount(500, 30)
    other = asked._replace(account=Account("economy", "job"))
    answer = ledger.exchange(Exchange("router", "1", 3, (other,)), NOON)
    assert answer.accounts[0].granted_total == Amount(500, 40)
    ledger.check()


def test_without_a_limit_an_account_is_unlimited_and_its_spend_is_kept() -> None:
    """Spend is booked for status even where nothing limits it, and is no overrun."""
    ledger = Ledger({LimitKey("tier:premium", "hour", "tokens"): 10})
    router = Holder(ledger)
    economy = Account("economy", "job", "alice")
    answer = router.say(NOON, want=100, account=economy)
    assert answer.accounts[0].unlimited
    router.say(NOON, account=economy, spent=70, beyond=70)
    for scope in ("all", "tier:economy", "job:job", "key:alice"):
        row = status(ledger, LimitKey(scope, "day", "tokens"), NOON)
        assert (row.limit, row.spent, row.reserved, row.overrun) == (None, 70, 0, 0)


def test_an_overrun_is_charged_and_counted(ledger: Ledger) -> None:
    """Usage above its reservation passes the limit if it must, and says by how much."""
    router = Holder(ledger)
    router.say(NOON, want=1000)
    router.say(NOON, spent=1050, beyond=50)
    row = status(ledger, HOUR, NOON)
    assert (row.spent, row.reserved, row.overrun) == (1050, 0, 50)


def test_a_holder_that_spends_what_it_was_not_given_is_charged(ledger: Ledger) -> None:
    """No book does so; if one did, the books would still add up."""
    router = Holder(ledger)
    router.say(NOON, want=100)
    router.say(NOON, spent=300)
    row = status(ledger, HOUR, NOON)
    assert (row.spent, row.reserved, row.overrun) == (300, 0, 200)


# -- messages that are lost, doubled, late -------------------------------------------------------------------------


def test_a_repeated_message_changes_nothing(ledger: Ledger) -> None:
    """It books nothing again and grants nothing again, but repeats the totals."""
    router = Holder(ledger)
    router.say(NOON, want=500)
    message = router.message(want=100, spent=200)
    first = ledger.exchange(message, NOON)
    assert ledger.exchange(message, NOON) == first
    assert status(ledger, HOUR, NOON)[4:6] == (200, 400)


def test_an_overtaken_message_changes_nothing(ledger: Ledger) -> None:
    """Totals only grow, so the older of two messages has nothing to add, and its want is out of date."""
    router = Holder(ledger)
    router.say(NOON, want=500)
    older, newer = router.message(want=100, spent=100), router.message(spent=50, returned=350)
    ledger.exchange(newer, NOON)
    answer = ledger.exchange(older, NOON)
    assert granted(answer) == 500
    assert status(ledger, HOUR, NOON)[4:6] == (150, 0)


# -- holders that go -----------------------------------------------------------------------------------------------


def test_a_silent_holder_has_spent_everything_it_held(ledger: Ledger) -> None:
    """At the end of its lease what it held is booked as unknown; it may speak again only as a new incarnation."""
    router = Holder(ledger)
    router.say(NOON, want=500)
    router.say(NOON + 5, spent=100)
    assert status(ledger, HOUR, NOON + 14.9)[4:7] == (100, 400, 0)
    assert status(ledger, HOUR, NOON + 15)[4:7] == (500, 0, 400)
    assert router.say(NOON + 16, spent=100).valid is False
    assert status(ledger, HOUR, NOON + 16)[4:7] == (500, 0, 400)


def test_a_new_incarnation_ends_the_old_one(ledger: Ledger) -> None:
    """A router that restarts has lost count, so what its predecessor held is spent; late words of that one are inert."""
    old, new = Holder(ledger), Holder(ledger, incarnation="2")
    opening = old.message(want=300)
    ledger.exchange(opening, NOON)
    assert granted(new.say(NOON, want=200)) == 200
    for late in (opening, old.message(spent=10), old.message(closing=True)):
        assert ledger.exchange(late, NOON).valid is False
    assert status(ledger, HOUR, NOON)[4:7] == (300, 200, 300)
    assert new.say(NOON).valid


def test_an_unknown_incarnation_must_open(ledger: Ledger) -> None:
    """A holder the ledger has forgotten believes in grants that are gone; it is told so."""
    router = Holder(ledger)
    router.sequence = 7
    assert router.say(NOON, want=100).valid is False
    assert ledger.snapshot(NOON).holders == 0


def test_closing_releases_what_is_returned(ledger: Ledger) -> None:
    """The rest, of which nothing was said, is spent."""
    router = Holder(ledger)
    router.say(NOON, want=500)
    assert router.say(NOON, closing=True, spent=100, returned=300).valid
    assert status(ledger, HOUR, NOON)[4:7] == (200, 0, 100)
    assert ledger.snapshot(NOON).holders == 0


# -- windows and clocks --------------------------------------------------------------------------------------------


def test_a_window_that_turns_keeps_what_is_reserved(ledger: Ledger) -> None:
    """Spend starts from zero, grants roll over, and a late report is charged to the new window."""
    router = Holder(ledger)
    router.say(NOON + 3595, want=800)
    router.say(NOON + 3599, spent=300)
    assert status(ledger, HOUR, NOON + 3600)[4:6] == (0, 500)
    assert status(ledger, DAY, NOON + 3600)[4:6] == (300, 500)
    assert granted(router.say(NOON + 3601, want=900, spent=400)) == 800 + 500
    assert status(ledger, HOUR, NOON + 3601)[4:6] == (400, 600)


def test_a_clock_that_steps_back_reopens_no_window(ledger: Ledger) -> None:
    """Windows go by the latest time seen, also after a restart from the store."""
    router = Holder(ledger)
    router.say(NOON + 3600, want=1000)
    router.say(NOON + 3600, spent=1000)
    assert router.say(NOON, want=1, least=1).accounts[0].refusal is not None
    assert status(ledger, HOUR, NOON).turns_in_s == 7200.0
    again = Ledger.load(ledger.changes(), {HOUR: 1000, DAY: 10_000})
    assert status(again, HOUR, NOON).spent == 1000
    assert status(again, HOUR, NOON + 7200).spent == 0


def test_leases_end_although_the_clock_stepped_back(ledger: Ledger) -> None:
    """A step back of a day must not lock up a dead holder's grants for a day."""
    router = Holder(ledger)
    router.say(NOON, want=500)
    ledger.expire(NOON - 86_400)
    ledger.expire(NOON - 86_400 + 9)
    assert status(ledger, HOUR, NOON - 86_400 + 9).reserved == 500
    assert status(ledger, HOUR, NOON - 86_400 + 10).reserved == 0


# -- limits at run time --------------------------------------------------------------------------------------------


def test_a_limit_can_be_set_over_the_configured_one(ledger: Ledger) -> None:
    """Raised, lowered below what is used (which is no broken promise), and taken away."""
    router = Holder(ledger)
    router.say(NOON, want=1000)
    ledger.set_limit(*HOUR, 1500, NOON)
    assert granted(router.say(NOON, want=1000)) == 1500
    ledger.set_limit(*HOUR, 200, NOON)
    ledger.check()
    assert status(ledger, HOUR, NOON)[3:6] == (200, 0, 1500)
    assert granted(router.say(NOON, want=1, least=1, returned=1400)) == 1501
    ledger.set_limit(*HOUR, None, NOON)
    ledger.set_limit(*DAY, None, NOON)
    assert router.say(NOON, want=1).accounts[0].unlimited
    assert status(ledger, HOUR, NOON).set_at_run_time


def test_a_job_limit_over_all_its_life_never_turns(ledger: Ledger) -> None:
    """The window `total` is for --max-tokens and --max-usd: no hour or day gives it back."""
    total = LimitKey("job:job", "total", "tokens")
    ledger.set_limit(*total, 500, NOON)
    router = Holder(ledger)
    router.say(NOON, want=500)
    router.say(NOON, closing=True, spent=500)
    later = Holder(ledger, incarnation="2").say(NOON + 10 * 86_400, want=10, least=10)
    assert later.accounts[0].refusal == BudgetRefusal(*total, 500, 500, None)


@pytest.mark.parametrize(
    ("scope", "window", "unit", "limit"),
    [
        ("nobody", "hour", "tokens", 1),
        ("tier:", "hour", "tokens", 1),
        ("all", "week", "usd", 1),
        ("all", "day", "eur", 1),
        ("all", "day", "usd", -1),
    ],
)
def test_a_limit_that_cannot_be_is_a_configuration_error(
    ledger: Ledger, scope: str, window: str, unit: str, limit: int
) -> None:
    """One clear line, and nothing changed."""
    with pytest.raises(ConfigError, match=r"no such|negative"):
        ledger.set_limit(scope, window, unit, limit, NOON)
    assert not any(ledger.changes())


# -- rows ----------------------------------------------------------------------------------------------------------


def test_only_what_changed_is_written(ledger: Ledger) -> None:
    """A message without news writes its holder's sequence and nothing else."""
    router = Holder(ledger)
    router.say(NOON, want=500)
    router.say(NOON, spent=10)
    rows = ledger.changes()
    assert len(rows.counters) == 3 * 3
    assert (len(rows.holders), len(rows.held)) == (1, 1)
    assert not any(ledger.changes())
    ledger.exchange(Exchange("router", "1", 9, ()), NOON)
    rows = ledger.changes()
    assert (len(rows.counters), len(rows.holders), len(rows.held)) == (0, 1, 0)


def test_closed_incarnations_are_remembered_for_an_hour(ledger: Ledger) -> None:
    """Long enough for any late message, and then the store is told to forget them."""
    router = Holder(ledger)
    router.say(NOON, closing=True)
    assert ledger.changes().holders[0].closed_at == NOON
    ledger.expire(NOON + 3601)
    assert ledger.changes().forgotten == (("router", "1"),)


# -- anomalies and halts -------------------------------------------------------------------------------------------

STOPPING = PaceRules(5.0, Amount(100, 100), min_minutes=0, stop=True)


def test_the_rules_for_anomalies_are_whole_units() -> None:
    """Floors as configured, dollars as micro-dollars."""
    settings = BudgetSettings.model_validate({"anomaly": {"factor": 3, "floor_usd_per_minute": 0.29, "stop": True}})
    assert pace_rules(settings) == PaceRules(3.0, Amount(200_000, 290_000), 5, True)


def test_an_anomaly_stops_its_tier_in_the_answer_that_brought_it() -> None:
    """Without any limit: what was unlimited is refused at once, another tier goes on, and all of it is in the store."""
    ledger = Ledger({}, rules=STOPPING)
    router = Holder(ledger)
    assert router.say(NOON, spent=500).accounts[0].unlimited
    grant = router.say(NOON + 1, spent=1).accounts[0]
    assert not grant.unlimited
    assert grant.refusal is not None
    assert str(grant.refusal.error()) == (
        "spending of tier:premium was stopped at 12:00 UTC: 501 tokens this minute, usually 0 tokens; "
        '"raycade budget resume tier:premium" lets it go on'
    )
    assert [anomaly.spent for anomaly in ledger.anomalies()] == [501]
    assert Holder(ledger, "other").say(NOON + 2, account=Account("economy", "job")).accounts[0].unlimited
    rows = ledger.changes()
    assert [halt.scope for halt in rows.halts] == ["tier:premium"]
    again = Ledger.load(rows, {}, rules=STOPPING)
    assert again.snapshot(NOON + 3).halts == rows.halts
    assert again.resume("tier:premium", NOON + 3)
    assert again.changes().resumed == ("tier:premium",)


def test_usage_under_a_halt_alone_is_no_overrun() -> None:
    """Calls that were under way without any limit end after the halt: they are charged, and pass no limit."""
    ledger = Ledger({})
    router = Holder(ledger)
    router.say(NOON)
    ledger.halt("all", "by hand", NOON)
    router.say(NOON + 1, spent=50, beyond=50)
    shown = status(ledger, HOUR, NOON + 1)
    assert (shown.spent, shown.overrun, shown.limit) == (50, 0, None)
    ledger.check()


def test_what_a_dead_router_held_is_no_anomaly() -> None:
    """It is booked as spent in one piece, which says nothing about the pace of anybody."""
    ledger = Ledger({HOUR: 10_000}, rules=STOPPING)
    router = Holder(ledger)
    router.say(NOON, want=5_000)
    ledger.expire(NOON + 11)
    assert status(ledger, HOUR, NOON + 11).unknown == 5_000
    assert (ledger.anomalies(), ledger.snapshot(NOON + 11).halts) == ((), ())


@pytest.mark.parametrize("scope", ["all", "tier:premium", "job:job"])
def test_a_scope_that_is_halted_by_hand_is_granted_nothing_until_it_is_resumed(ledger: Ledger, scope: str) -> None:
    """Whatever its limits leave; and afterwards as before."""
    router = Holder(ledger)
    ledger.halt(scope, "by hand", NOON)
    answer = router.say(NOON, want=600, least=5)
    assert granted(answer) == 0
    assert answer.accounts[0].refusal == BudgetRefusal(scope, "halted", "usd", 0, 0, None, "at 12:00 UTC: by hand")
    assert ledger.snapshot(NOON).halts == (HaltRow(scope, NOON, "by hand"),)
    assert ledger.resume(scope, NOON)
    assert not ledger.resume(scope, NOON)
    assert granted(router.say(NOON, want=600, least=5)) == 600


def test_nobody_can_halt_what_is_no_scope(ledger: Ledger) -> None:
    """A name that was mistyped must not look as if it were stopped."""
    with pytest.raises(ConfigError, match="no such scope"):
        ledger.halt("premium", "by hand", NOON)


@pytest.mark.parametrize("limits", [{}, {HOUR: 1000}])
def test_a_router_gives_back_what_it_held_of_a_halted_scope(limits: dict[LimitKey, int]) -> None:
    """At the next exchange it reserves nothing more, what is free and what comes free goes back, and then nothing is reserved."""
    ledger, book = Ledger(limits), LeaseBook("router", lambda: "1")

    def exchange(now: float) -> None:
        message = book.draw_up(now)
        if message is not None:
            book.apply(ledger.exchange(message, NOON + now), now, now)

    amount = Amount(50, 0)
    book.wait_for(ACCOUNT, amount)
    exchange(1.0)
    exchange(1.2)
    book.stop_waiting(ACCOUNT, amount)
    reserved = book.reserve(ACCOUNT, amount, 1.3)
    assert isinstance(reserved, Reserved)
    ledger.halt("tier:premium", "by hand", NOON + 1.4)
    for now in (2.0, 2.6, 3.2):
        exchange(now)
        assert not isinstance(book.reserve(ACCOUNT, amount, now), Reserved)
        book.check()
    book.settle(reserved, Amount(20))
    exchange(3.8)
    assert isinstance(book.reserve(ACCOUNT, amount, 3.8), Refused)
    exchange(4.4)
    row = status(ledger, HOUR, NOON + 4.4)
    assert (row.spent, row.reserved) == (20, 0)
    book.check()
    ledger.check()


def test_a_router_spends_again_once_its_scope_is_resumed() -> None:
    """The refusal holds for a second; whoever waits is granted with the next exchange."""
    ledger, book = Ledger({HOUR: 1000}), LeaseBook("router", lambda: "1")
    ledger.halt("all", "by hand", NOON)
    amount = Amount(50, 0)
    book.wait_for(ACCOUNT, amount)
    for now in (1.0, 1.5):
        message = book.draw_up(now)
        assert message is not None
        book.apply(ledger.exchange(message, NOON + now), now, now)
        assert isinstance(book.reserve(ACCOUNT, amount, now), Refused)
    ledger.resume("all", NOON + 2)
    message = book.draw_up(2.0)
    assert message is not None
    book.apply(ledger.exchange(message, NOON + 2), 2.0, 2.0)
    assert isinstance(book.reserve(ACCOUNT, amount, 2.1), Reserved)


def test_history_survives_a_restart_of_the_ledger() -> None:
    """What is usual is carried in rows: a new ledger finds the runaway that the old one would have found."""
    rules = STOPPING._replace(min_minutes=3, stop=False)
    ledger = Ledger({}, rules=rules)
    for minute in range(5):
        router = Holder(ledger, incarnation=str(minute))
        router.say(NOON + 60 * minute)
        router.say(NOON + 60 * minute + 1, spent=200)
    rows = ledger.changes()
    assert Rows(paces=rows.paces).paces[0].minutes == 4
    later = Ledger.load(Rows(paces=rows.paces), {}, rules=rules)
    fresh = Holder(later, incarnation="9")
    fresh.say(NOON + 400)
    fresh.say(NOON + 401, spent=1_001)
    assert [(anomaly.usual, anomaly.threshold) for anomaly in later.anomalies()] == [(200, 1_000)]
