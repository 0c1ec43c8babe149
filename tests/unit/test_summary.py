"""The closing summary: what a stranger reads after a run, and the same as plain data."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from actors.messages import Amount, Attempt, Failure, Health, Result, Usage
from actors.router.notes import RouterNote, TierNote
from runtime.batch.journal import Journal
from runtime.batch.run import Ending
from runtime.batch.summary import counted, dollars, kinds_in_words, print_summary, rows, short, span, summary_dict
from runtime.batch.tally import Tally
from runtime.config import Config

CONFIG = Config.model_validate(
    {
        "tiers": [
            {"name": "premium", "model": "gpt-4o", "base_url": "http://127.0.0.1:1"},
            {"name": "standard", "model": "gpt-4o-mini", "base_url": "http://127.0.0.1:1"},
        ]
    }
)
DONE = Ending("", "")


class Job:
    """A finished run: a real tally and a real journal; of the run itself only what the summary looks at."""

    def __init__(self, folder: Path) -> None:
        self.out, self.errors = str(folder / "out.jsonl"), str(folder / "out.errors.jsonl")
        self.journal = Journal.open(self.out, self.errors, "input", "config")
        self.tally = Tally()
        self.run: Any = SimpleNamespace(tally=self.tally, in_flight=0, skipped=0)

    def succeed(self, count: int, *kinds: str) -> None:
        """Rows whose attempts ended so: `premium server`, then the last one `standard ok`."""
        attempts = tuple(Attempt(*kind.split()[:1], 0, kind.split()[1], 0, 0.1) for kind in kinds)
        tier = attempts[-1].tier
        for _ in range(count):
            self.tally.result(Result(b"{}", 200, tier, attempts, Usage(100, 20), Amount(120, 70)), attempts[0].tier)
            self._line(True)

    def share(self, count: int) -> None:
        for _ in range(count):
            self.tally.shared(120)
            self._line(True)

    def fail(self, count: int, code: str) -> None:
        for _ in range(count):
            self.tally.failure(code, Failure("internal", ""))
            self._line(False)

    def earlier(self, count: int) -> None:
        for _ in range(count):
            self._line(True)

    def _line(self, ok: bool) -> None:
        """What the writer does to the journal."""
        self.journal.done.add(len(self.journal.done))
        self.journal.succeeded += ok
        self.journal.failed += not ok

    def open_breaker(self, times: int) -> None:
        tier = TierNote("premium", (Health(opened=times),), (True,), 0, {})
        self.tally.note("router", RouterNote((tier,), 0, ""))

    def told(self, ending: Ending = DONE, width: int = 120, total_rows: int | None = None) -> str:
        console = Console(width=width, record=True, file=io.StringIO())
        print_summary(
            CONFIG, self.journal, self.run, ending, 13.2, self.out, self.errors, console, total_rows=total_rows
        )
        return console.export_text()

    def words(self, *args: Any, **options: Any) -> str:
        return " ".join(self.told(*args, **options).split())


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    with job.journal:
        yield job


@pytest.fixture
def eventful(job: Job) -> Job:
    job.succeed(5500, "premium ok")
    job.succeed(300, "premium server", "standard ok")
    job.succeed(112, "premium rate_limited", "standard ok")
    job.share(38)
    job.fail(10, "all_tiers_exhausted")
    job.fail(2, "duplicate_custom_id")
    job.open_breaker(3)
    return job


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


# -- the whole -------------------------------------------------------------------------------------------------------


def test_wide_summary(eventful: Job) -> None:
    """At 120 columns: rows with reasons, a table of tiers with everything, the remarkable in words, cost and speed."""
    told = lines(eventful.told())
    assert "rows succeeded 5,950" in told
    assert "rows failed 12 every tier failed: 10, custom_id used twice: 2" in told
    assert "not done 0" in told
    assert "tier calls answered failed why rows tokens cost breaker opened" in told
    assert "premium 5,912 5,500 412 500s: 300, 429s: 112 5,500 660,000 $0.385 3 times" in told
    assert "standard 412 412 0 412 49,440 $0.0288 never" in told
    assert "412 rows fell back from premium to another tier." in told
    assert "38 rows shared another row's answer, which saved 4,560 tokens." in told
    assert any(line.startswith("The circuit breaker of premium opened 3 times") for line in told)
    assert "It cost $0.4138 for 709,440 tokens (591,200 in prompts, 118,240 in answers)." in told
    assert "5,962 rows in 13 s: 452 rows/s." in told


def test_narrow_summary(eventful: Job) -> None:
    """At 60 columns no table is wider than the terminal, and what the table leaves out stands in words."""
    told = eventful.told(width=60)
    table = told.partition("answers ")[0]
    assert max(map(len, table.splitlines())) <= 60
    assert "premium   5,912     412  5,500  660,000" in told
    assert "Calls to premium that failed: 500s: 300, 429s: 112." in " ".join(told.split())


def test_no_jargon(eventful: Job) -> None:
    """Names that only the code knows do not reach a reader."""
    told = eventful.told()
    for name in ("half_open", "rate_limited", "all_tiers_exhausted", "usd_micros", "None"):
        assert name not in told


def test_a_quiet_run_is_told_briefly(job: Job) -> None:
    """Where nothing fell back, was shared or opened, no sentence says so; the errors file is not named when there is none."""
    job.succeed(1, "premium ok")
    told = job.told()
    for word in ("fell back", "shared", "circuit breaker", "sent again", "errors.jsonl"):
        assert word not in told
    assert "1 row in 13 s: 0.1 rows/s." in told
    assert "Finished: every row has its answer." in told


def test_file_names_are_never_broken(job: Job) -> None:
    """Names of files stand whole on one line however narrow the terminal, so that they can be copied."""
    job.succeed(1, "premium ok")
    job.fail(1, "deadline")
    told = job.told(width=30)
    for name in (job.out, job.errors, f"{job.out}.journal"):
        assert f" {name}\n" in told


def test_rows_sent_again_are_told(job: Job) -> None:
    """When actors died it is said how many rows that cost a second way."""
    job.tally.redone = 312
    assert "312 rows had to be sent again because the actor that held them died." in job.words()


def test_second_copies_are_told_and_are_no_failures(job: Job) -> None:
    """Who hedges wants to know what it brought: the loser of two copies is a call, but nothing of it failed."""
    slow, quick = Attempt("premium", 0, "cancelled", 0, 0.0), Attempt("standard", 0, "ok", 200, 0.1)
    ours, late = Attempt("premium", 0, "ok", 200, 3.0), Attempt("standard", 0, "cancelled", 0, 0.0, hedged=True)
    for attempts in [(slow, quick._replace(hedged=True))] * 2 + [(late, ours)]:
        job.tally.result(Result(b"{}", 200, attempts[-1].tier, attempts, Usage(100, 20), Amount(120, 70)), "premium")
        job._line(True)
    assert "3 rows had a second call because the first was late; it was quicker 2 times." in job.words()
    assert "premium 3 1 0 1 120" in job.words()
    assert job.tally.asked_again == 0


def test_a_fall_back_names_the_tier_that_should_have_answered(job: Job) -> None:
    """Rows that another tier answered are told by the tier they were meant for, also when it was never asked."""
    job.succeed(2, "premium server", "standard ok")
    job.succeed(1, "standard timeout", "premium ok")
    words = job.words()
    assert "2 rows fell back from premium to another tier." in words
    assert "1 row fell back from standard to another tier." in words


def test_dollars_stand_by_tier(job: Job) -> None:
    """Each tier's row says what its answers cost."""
    job.succeed(3, "premium server", "standard ok")
    told = lines(job.told())
    assert "tier calls answered failed why rows tokens cost breaker opened" in told
    assert "standard 3 3 0 3 360 $0.00021 never" in told


def test_a_refused_attempt_is_not_a_call(job: Job) -> None:
    """What the budget of one request kept from being sent does not count as a call."""
    job.tally.attempts["premium", "budget_exceeded"] += 4
    tier = summary_dict(CONFIG, job.journal, job.run, DONE, 1.0, job.out, job.errors)["tiers"][0]
    assert (tier["calls"], tier["failed"], tier["failed_by_kind"]) == (0, 0, {})


# -- how it ended -----------------------------------------------------------------------------------------------------


def test_failed_rows_are_said_and_where_they_lie(job: Job) -> None:
    """A finished run with failed rows says how many have no answer, and that running it again does not try them."""
    job.fail(12, "deadline")
    words = job.words()
    assert "every row is done, 12 of them without an answer; the errors file says why." in words
    assert "Failed rows count as done and are not tried again. --fresh starts over" in words


def test_a_resumed_run_tells_what_was_done_before(job: Job) -> None:
    """Rows of earlier runs are apart from those of this one, and both together are told."""
    job.earlier(1000)
    job.succeed(20, "premium ok")
    told = lines(job.told())
    assert "rows succeeded 20" in told
    assert "done by earlier runs 1,000 all runs together: 1,020 succeeded, 0 failed" in told


@pytest.mark.parametrize(
    ("ending", "how", "next_step"),
    [
        (
            Ending("budget", "budget of scope 'all' per day: not enough left"),
            "Stopped by a budget: budget of scope 'all' per day: not enough left.",
            "The same command goes on where it stopped, once the budget has been raised, its window has turned or what was halted is resumed.",
        ),
        (
            Ending("interrupted", "interrupted"),
            "Interrupted: the rows that were in flight have been finished.",
            "The same command goes on where it stopped. --fresh starts over",
        ),
        (
            Ending("killed", "stopped at once"),
            "Stopped at once: 7 rows in flight were given up; their calls may have been paid for.",
            "The same command goes on where it stopped and does these rows again.",
        ),
        (
            Ending("output", "out.jsonl: cannot write: No space left on device"),
            "Stopped: out.jsonl: cannot write: No space left on device",
            "The same command goes on where it stopped.",
        ),
        (
            Ending("input", "in.jsonl.gz:9: cannot be read from here on"),
            "Stopped: in.jsonl.gz:9: cannot be read from here on",
            "The same command goes on where it stopped when the input is whole",
        ),
    ],
)
def test_every_ending_says_how_to_go_on(job: Job, ending: Ending, how: str, next_step: str) -> None:
    """Whatever stopped the run, the last lines say what it was and what to do next."""
    job.succeed(3, "premium ok")
    job.run.in_flight = 7
    words = job.words(ending)
    assert how in words
    assert next_step in words
    assert "not done the rest of the input" in words
    assert "not done 97" in job.words(ending, total_rows=100)


# -- as data ------------------------------------------------------------------------------------------------------------


def test_summary_as_data(eventful: Job) -> None:
    """The same facts as a dict that JSON takes as it is."""
    told = summary_dict(CONFIG, eventful.journal, eventful.run, DONE, 13.2, eventful.out, eventful.errors)
    assert json.loads(json.dumps(told)) == told
    assert told["rows"] == {
        "succeeded": 5950,
        "failed": 12,
        "failed_by_code": {"all_tiers_exhausted": 10, "duplicate_custom_id": 2},
        "earlier": 0,
        "not_done": 0,
        "under_way": 0,
    }
    assert told["cost_usd"] == 0.41384
    assert told["fell_back"] == {"rows": 412, "from": {"premium": 412}}
    assert told["tiers"][0] == {
        "name": "premium",
        "model": "gpt-4o",
        "calls": 5912,
        "answered": 5500,
        "cancelled": 0,
        "failed": 412,
        "failed_by_kind": {"server": 300, "rate_limited": 112},
        "rows": 5500,
        "tokens": 660_000,
        "cost_usd": 0.385,
        "breaker_opened": 3,
        "overrun_tokens": 0,
        "margin": 1.0,
    }
    assert told["files"]["journal"] == f"{eventful.out}.journal"


# -- money that was not as expected ------------------------------------------------------------------------------------


def test_answers_without_usage_are_told_with_what_was_booked(job: Job) -> None:
    """Nobody knows what they cost, so they were charged whole; failed rows' answers count too."""
    assert "without usage" not in job.words()
    blind = (Attempt("premium", 0, "ok", 200, 0.1, unmetered_tokens=600),)
    job.tally.result(Result(b"{}", 200, "premium", blind, Usage(0, 0), Amount(600, 70)), "premium")
    assert "1 answer came without usage; it was booked at its reservation (600 tokens in all)." in job.words()
    job.tally.failure("invalid_output", Failure("invalid_output", "", attempts=blind * 2, cost=Amount(1200, 140)))
    assert "3 answers came without usage; each was booked at its reservation (1,800 tokens in all)." in job.words()


def test_replies_that_a_schema_refused_count_with_their_tokens(job: Job) -> None:
    """They were paid for: the cost and the tokens that stand beside it are of the same calls, at the tier of each."""
    refused = Attempt(
        "premium", 0, "ok", 200, 0.1, prompt_tokens=100, completion_tokens=20, booked=Amount(120, 70), misfit=True
    )
    answered = refused._replace(tier="standard", booked=Amount(120, 7), misfit=False)
    usage, attempts = Usage(100, 20), (refused, answered)
    job.tally.result(Result(b"{}", 200, "standard", attempts, usage, Amount(240, 77)), "premium")
    job.tally.failure("invalid_output", Failure("invalid_output", "", attempts=(refused,) * 2, cost=Amount(240, 140)))
    told = summary_dict(CONFIG, job.journal, job.run, DONE, 13.2, job.out, job.errors)
    assert told["tokens"] == {"prompt": 400, "completion": 80, "total": 480}
    assert told["cost_usd"] == pytest.approx(217e-6)
    spent = {tier["name"]: (tier["tokens"], round(tier["cost_usd"] * 1e6)) for tier in told["tiers"]}
    assert spent == {"premium": (360, 210), "standard": (120, 7)}


def test_usage_above_its_reservation_is_told_with_the_margin(job: Job) -> None:
    """The sum by tier, and how much wider the next reservations are."""
    for overrun_tokens, margin_milli in ((1_000, 1_300), (200, 0), (34, 1_250)):
        attempts = (Attempt("premium", 0, "ok", 200, 0.1, "", 0, overrun_tokens, margin_milli),)
        job.tally.result(Result(b"{}", 200, "premium", attempts, Usage(9, 9), Amount(18, 1)), "premium")
    words = job.words()
    assert "1,234 tokens above reservations, charged all the same (margin of premium is now 1.3)." in words
    assert "standard is now" not in words


def test_a_margin_can_widen_though_no_reservation_was_passed(job: Job) -> None:
    """An answer longer than allowed may still fit, since prompts use less than their bound; it is told all the same."""
    attempts = (Attempt("premium", 0, "ok", 200, 0.1, margin_milli=2_200),)
    job.tally.result(Result(b"{}", 200, "premium", attempts, Usage(9, 9), Amount(18, 1)), "premium")
    assert (
        "premium passed the bound of a prompt or an answer, though no reservation (margin of premium is now 2.2)"
        in (job.words())
    )


# -- amounts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usd_micros", "text"),
    [
        (0, "$0.00"),
        (4_200, "$0.0042"),
        (42, "$0.000042"),
        (100_000, "$0.10"),
        (420_000, "$0.42"),
        (999_999, "$1.00"),
        (3_410_000, "$3.41"),
        (1_234_567_890, "$1,234.57"),
    ],
)
def test_dollars(usd_micros: int, text: str) -> None:
    """Cents for dollars, more digits for less, never a small amount shown as nothing."""
    assert dollars(usd_micros) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (12_345, "12.3K"),
        (99_960, "100K"),
        (456_000, "456K"),
        (999_600, "1.0M"),
        (1_234_567, "1.2M"),
        (999_600_000, "1.0B"),
        (12_000_000_000_000, "12,000.0B"),
    ],
)
def test_short_numbers(number: int, text: str) -> None:
    """Large counts have a unit and two or three figures."""
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (4.24, "4.2 s"),
        (9.97, "10 s"),
        (59.7, "1 min"),
        (130, "2 min 10 s"),
        (11_100, "3 h 5 min"),
        (86_400, "1 d"),
        (97_200, "1 d 3 h"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    """Times have their two largest units."""
    assert span(seconds) == text


def test_counts_in_words() -> None:
    """Reasons come the most frequent first, kinds of failed calls in an order that does not change; unknown ones by name."""
    assert counted({"deadline": 1, "novel": 3, "internal": 0}, {"deadline": "not done in time"}) == (
        "novel: 3, not done in time: 1"
    )
    assert kinds_in_words({"ok": 9, "timeout": 5, "server": 1, "novel": 2, "budget_exceeded": 1}) == (
        "500s: 1, timeouts: 5, novel: 2"
    )
    assert (rows(1), rows(2000)) == ("1 row", "2,000 rows")
