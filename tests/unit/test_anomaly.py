"""The spend watch: what is an anomaly, what it learns from, and what is told of it."""

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from actors.budget.actor import BudgetActor
from actors.budget.anomaly import Anomaly, HaltRow, PaceRow, PaceRules, Watch, in_words, shown, spend, utc
from actors.budget.exchange import AccountReport, BudgetRefusal, Exchange, Totals
from actors.budget.rows import Rows
from actors.budget.store import SqliteStore
from actors.budget.webhook import Webhook, event
from actors.errors import ConfigError, StoreError
from actors.messages import Account, Amount
from actors.settings import BudgetSettings
from runtime.config import load_config

FLOOR = Amount(1_000, 10_000)
RULES = PaceRules(5.0, FLOOR, min_minutes=3)
NIGHT = 600


def minutes(*spent: Amount, rules: PaceRules = RULES, pace: PaceRow | None = None, first: int = 1) -> PaceRow:
    """The pace after so many minutes; none of them may be an anomaly."""
    pace = pace or PaceRow("tier:premium")
    for minute, amount in enumerate(spent, first):
        pace, anomaly = spend(pace, minute, amount, rules)
        assert anomaly is None
    return pace


def usual_day() -> PaceRow:
    """Ten minutes at 2,000 tokens and 2 cents, so that an anomaly begins above 10,000 tokens or 10 cents."""
    return minutes(*[Amount(2_000, 20_000)] * 11)


# -- what is an anomaly --------------------------------------------------------------------------------------------


def test_a_tenfold_minute_is_an_anomaly_within_the_minute() -> None:
    """The report that passes the threshold raises it, with the numbers; there is no waiting for the minute's end."""
    pace, anomaly = spend(usual_day(), 12, Amount(5_000, 50_000), RULES)
    assert anomaly is None
    pace, anomaly = spend(pace, 12, Amount(5_000, 50_001), RULES)
    assert anomaly == Anomaly("tier:premium", "usd", 100_001, 20_000, 100_000, 12, False)


def test_tokens_are_watched_where_they_cost_nothing() -> None:
    """A tier of one's own with a price of zero can run away too."""
    pace = minutes(*[Amount(2_000)] * 5)
    _, anomaly = spend(pace, 6, Amount(20_000), RULES)
    assert anomaly is not None
    assert (anomaly.unit, anomaly.spent, anomaly.threshold) == ("tokens", 20_000, 10_000)


def test_one_alarm_a_minute() -> None:
    """The rest of the minute is silent, the next one that is out of bounds is told again."""
    pace, first = spend(usual_day(), 12, Amount(0, 500_000), RULES)
    pace, second = spend(pace, 12, Amount(0, 500_000), RULES)
    pace, third = spend(pace, 13, Amount(0, 500_000), RULES)
    assert (first is not None, second, third is not None) == (True, None, True)


def test_a_batch_that_starts_after_a_night_is_no_anomaly() -> None:
    """Minutes without spend teach nothing, so ten hours of them change nothing."""
    before = usual_day()
    after = minutes(Amount(2_000, 20_000), Amount(9_000, 90_000), pace=before, first=12 + NIGHT)
    assert after.minutes == before.minutes + 2


def test_there_is_no_verdict_before_there_is_history() -> None:
    """The first `min_minutes` minutes of a scope are taken as they come."""
    pace = minutes(Amount(0, 1_000_000), Amount(0, 9_000_000), Amount(0, 90_000_000))
    assert pace.minutes == 2
    assert round(pace.usual_usd_micros) == 5_000_000


def test_without_a_minimum_the_floor_alone_judges() -> None:
    """`min_minutes: 0` watches a scope from its first report on."""
    rules = RULES._replace(min_minutes=0)
    minutes(Amount(0, 50_000), rules=rules)
    assert spend(PaceRow("key:k"), 1, Amount(0, 50_001), rules)[1] is not None


def test_a_trickle_may_grow_up_to_the_floor() -> None:
    """Five times nearly nothing is nearly nothing."""
    minutes(*[Amount(1, 10)] * 6, Amount(5_000, 50_000))


# -- what it learns ------------------------------------------------------------------------------------------------


def test_one_runaway_minute_does_not_teach_that_runaways_are_usual() -> None:
    """It counts as a minute at the threshold, so the same again is an anomaly again."""
    pace, _ = spend(usual_day(), 12, Amount(0, 50_000_000), RULES)
    pace, again = spend(pace, 13, Amount(0, 50_000_000), RULES)
    assert again is not None
    assert again.usual == 28_000


def test_a_new_normal_is_accepted_after_some_alarms() -> None:
    """Ten times the spend for good: alarms for some minutes, then silence."""
    pace, alarms = usual_day(), []
    for minute in range(12, 42):
        pace, anomaly = spend(pace, minute, Amount(20_000, 200_000), RULES)
        alarms.append(anomaly is not None)
    assert 1 <= sum(alarms) <= 5
    assert not any(alarms[5:])


def test_a_clock_that_steps_cuts_no_minute_short_and_freezes_none() -> None:
    """A minute back belongs to the running one; an hour back, or forth, begins a new one."""
    pace, _ = spend(usual_day(), 12, Amount(0, 60_000), RULES)
    assert spend(pace, 11, Amount(0, 60_000), RULES)[1] is not None
    assert spend(pace, 12 - 60, Amount(0, 60_000), RULES)[1] is None
    assert spend(pace, 12 + 60, Amount(0, 60_000), RULES)[1] is None


@given(
    reports=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5_000), st.integers(0, 50_000)), max_size=60),
    min_minutes=st.integers(0, 5),
    steps=st.lists(st.integers(-2, 3), max_size=60),
)
def test_no_alarm_while_a_minute_stays_below_factor_times_floor(
    reports: list[tuple[int, int, int]], min_minutes: int, steps: list[int]
) -> None:
    """Whatever the history, the pauses and the clock: below factor x floor nothing is ever an anomaly."""
    rules = RULES._replace(min_minutes=min_minutes)
    pace, minute = PaceRow("tier:a"), 100
    for (after, tokens, usd_micros), step in zip(reports, [*steps, *[0] * len(reports)], strict=False):
        minute += after + step
        runs = pace.minute if pace.minute - 1 <= minute <= pace.minute else None
        room = Amount(5_000 - pace.tokens, 50_000 - pace.usd_micros) if runs is not None else Amount(5_000, 50_000)
        amount = Amount(min(tokens, room.tokens), min(usd_micros, room.usd_micros))
        pace, anomaly = spend(pace, minute, amount, rules)
        assert anomaly is None


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=40), st.floats(1.1, 50))
def test_what_is_usual_lies_within_what_was_seen(spent: Iterable[int], factor: float) -> None:
    """The mean cannot run off: it stays between the smallest and the largest minute."""
    rules, pace, spent = RULES._replace(factor=factor, floor=Amount(1, 1)), PaceRow("tier:a"), list(spent)
    for minute, usd_micros in enumerate(spent, 1):
        pace, _ = spend(pace, minute, Amount(1, usd_micros), rules)
    pace, _ = spend(pace, len(spent) + 1, Amount(1, 1), rules)
    assert min(spent) * 0.999 <= pace.usual_usd_micros <= max(spent) * 1.001


# -- the watch -----------------------------------------------------------------------------------------------------


def test_a_watch_carries_its_history_through_its_rows() -> None:
    """A budget actor that starts anew judges as the old one would have: embedded jobs start one each time."""
    watch = Watch(RULES)
    for minute in range(1, 6):
        watch.spend("tier:premium", Amount(2_000, 20_000), minute * 60.0)
    paces, _, _ = watch.changes()
    later = Watch(RULES)
    later.load(paces, ())
    later.spend("tier:premium", Amount(0, 200_000), 6 * 60.0)
    assert [anomaly.spent for anomaly in later.found()] == [200_000]
    assert later.found() == ()


def test_with_stop_an_anomaly_halts_its_scope_and_resume_lets_it_go_on() -> None:
    """The halt and its end are rows; the new level is usual then, so the next minute does not halt it again."""
    watch = Watch(RULES._replace(min_minutes=0, stop=True))
    watch.spend("tier:premium", Amount(0, 60_000), 60.0)
    assert watch.changes()[1] == (HaltRow("tier:premium", 60.0, "$0.06 this minute, usually $0.00"),)
    assert watch.halt_of(("all", "tier:premium")) is not None
    assert watch.halt_of(("all", "tier:economy")) is None
    watch.spend("tier:premium", Amount(0, 5_000), 130.0)  # a call that was under way: the minute stays as it was
    assert watch.resume("tier:premium")
    assert not watch.resume("tier:premium")
    assert watch.changes()[1:] == ((), ("tier:premium",))
    watch.spend("tier:premium", Amount(0, 60_000), 190.0)
    assert watch.halts == ()
    watch.spend("tier:premium", Amount(0, 600_000), 190.0)
    assert [halt.scope for halt in watch.halts] == ["tier:premium"]


# -- in words ------------------------------------------------------------------------------------------------------

ALARM = Anomaly("tier:premium", "usd", 9_200_000, 800_000, 5_000_000, 29_000_000, True)


def test_an_anomaly_is_one_line_with_its_numbers() -> None:
    """Who, how much, how much usually, from when on it counts, and how to go on."""
    assert in_words(ALARM) == (
        "spend anomaly: tier premium spent $9.20 in the minute of 21:20 UTC, usually $0.80, alarm above $5.00; "
        'it was stopped, "raycade budget resume tier:premium" lets it go on'
    )


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (1_234_567, "tokens", "1,234,567 tokens"),
        (9_200_000, "usd", "$9.20"),
        (12_345, "usd", "$0.01"),
        (1_200, "usd", "$0.0012"),
        (0, "usd", "$0.00"),
    ],
)
def test_amounts_are_written_as_people_read_them(amount: int, unit: str, text: str) -> None:
    """Cents where there are cents, and as much more as tells less than a cent from nothing."""
    assert shown(amount, unit) == text


def test_a_time_of_another_day_has_its_date() -> None:
    """A halt of yesterday must not look like one of today."""
    assert utc(86_400.0 + 3600, 86_400.0 + 7200) == "01:00 UTC"
    assert utc(3600.0, 86_400.0) == "1970-01-01 01:00 UTC"


# -- the webhook ---------------------------------------------------------------------------------------------------


class Receiver:
    """A real HTTP server that keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[object] = []
        self.status = 200
        self.hangs = False
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.got.append(await request.json())
        if self.hangs:
            await asyncio.sleep(60)
        return web.Response(status=self.status, headers={"Location": "/elsewhere"})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    kept = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", kept.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    kept.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/T0PSECRET?token=t0psecret"
    yield kept
    await runner.cleanup()


async def test_a_webhook_gets_the_anomaly_as_json(receiver: Receiver) -> None:
    """Dollars as dollars, the minute as a time, and a sentence for chat services."""
    webhook = Webhook(receiver.url)
    webhook.tell(ALARM)
    await webhook.drain(5)
    assert receiver.got == [
        {
            "event": "spend_anomaly",
            "scope": "tier:premium",
            "unit": "usd",
            "spent": 9.2,
            "usual": 0.8,
            "threshold": 5.0,
            "minute": "2025-02-19T21:20Z",
            "stopped": True,
            "text": in_words(ALARM),
        }
    ]
    assert event(ALARM._replace(unit="tokens"))["spent"] == 9_200_000


@pytest.mark.parametrize("status", [500, 302])
async def test_a_webhook_that_fails_is_tried_twice_and_logged_without_its_secrets(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A redirect is not followed but counts as refused; path and query stay out of the log."""
    receiver.status = status
    webhook = Webhook(receiver.url)
    with caplog.at_level(logging.WARNING, "raycade.budget"):
        webhook.tell(ALARM)
        await webhook.drain(10)
    assert len(receiver.got) == 2
    assert f"127.0.0.1: tier:premium was not taken: status {status}" in caplog.text
    assert "t0psecret" not in caplog.text.lower()


async def test_a_webhook_that_hangs_is_given_up(receiver: Receiver) -> None:
    """The end of a job does not wait for a dead receiver."""
    receiver.hangs = True
    webhook = Webhook(receiver.url)
    webhook.tell(ALARM)
    await webhook.drain(0.2)
    await asyncio.sleep(0)
    assert not webhook._tasks


async def test_a_webhook_nobody_answers_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A refused connection is a line in the log, and nothing else."""
    webhook = Webhook("http://127.0.0.1:9/t0psecret")
    with caplog.at_level(logging.WARNING, "raycade.budget"):
        webhook.tell(ALARM)
        await webhook.drain(10)
    assert "ClientConnectorError" in caplog.text
    assert "t0psecret" not in caplog.text


# -- the actor -----------------------------------------------------------------------------------------------------


class FullOnce(SqliteStore):
    """A disk that is full when the first spend is to be written."""

    failed = False

    def write(self, rows: Rows) -> None:
        if rows.paces and not FullOnce.failed:
            FullOnce.failed = True
            raise StoreError("disk full")
        super().write(rows)


async def test_an_anomaly_is_told_once_it_is_committed(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A report whose commit fails is repeated by its router; log, webhook and status tell of it once, not twice."""
    anomaly = {"min_minutes": 0, "floor_tokens_per_minute": 100, "webhook": receiver.url}
    settings = BudgetSettings.model_validate({"anomaly": anomaly})
    budget = BudgetActor(settings, str(tmp_path), open_store=FullOnce)
    spent = Totals(spent=Amount(501), beyond=Amount(501))
    first, second = (
        Exchange(
            "router", "1", sequence, (AccountReport(Account("premium", "j"), totals, Amount(), Amount()),), opening
        )
        for sequence, totals, opening in ((1, Totals(), True), (2, spent, False))
    )
    with caplog.at_level(logging.WARNING, "raycade.budget"):
        await budget.exchange(first)
        with pytest.raises(StoreError):
            await budget.exchange(second)
        assert (caplog.records, (await budget.show()).anomalies) == ([], ())
        await budget.exchange(second)
        await budget.exchange(second)
    assert [(found.scope, found.spent) for found in (await budget.show()).anomalies] == [("tier:premium", 501)]
    assert len(caplog.records) == 1
    assert "tier premium spent 501 tokens" in caplog.text
    await budget.close()
    assert len(receiver.got) == 1


def test_a_halt_reads_well_wherever_it_arrives() -> None:
    """Its error crosses processes as it is."""
    refusal = BudgetRefusal(
        "tier:premium", "halted", "usd", 0, 0, None, "at 14:03 UTC: $9.20 this minute, usually $0.80"
    )
    error = pickle.loads(pickle.dumps(refusal.error()))
    assert error.halted
    assert str(error) == (
        "spending of tier:premium was stopped at 14:03 UTC: $9.20 this minute, usually $0.80; "
        '"raycade budget resume tier:premium" lets it go on'
    )


# -- the settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{factor: 1}", "budget.anomaly.factor"),
        ("{webhook: ftp://x}", "http:// or https://"),
        ("{webhook: 'https://me:secret@x/y'}", "an address must not carry a name or password"),
        ("{floor_tokens_per_minute: -1}", "budget.anomaly.floor_tokens_per_minute"),
        ("{treshold: 3}", "treshold"),
    ],
)
def test_settings_that_cannot_be_are_one_line_with_their_place(tmp_path: Path, settings: str, expected: str) -> None:
    """Before anything runs, and without the secret."""
    file = tmp_path / "raycade.yaml"
    tier: dict[str, Any] = {"name": "a", "model": "m", "base_url": "http://x", "price": {"prompt": 0, "completion": 0}}
    file.write_text(f"tiers: [{tier}]\nbudget:\n  anomaly: {settings}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(file), {})
    assert expected in str(caught.value)
    assert f"{file}:3: " in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
