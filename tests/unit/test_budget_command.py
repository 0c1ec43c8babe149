"""`raycade budget show | set | halt | resume` over a real ledger file."""

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.budget.actor import BudgetActor
from actors.budget.anomaly import HaltRow, PaceRow
from actors.budget.exchange import AccountReport, Exchange, Totals
from actors.budget.rows import LimitStatus, Snapshot
from actors.errors import ConfigError
from actors.messages import Account, Amount
from actors.settings import BudgetSettings
from runtime import budget, cli
from runtime.budget import parse_limit
from runtime.budget_view import bar, drawn

BUDGET: dict[str, Any] = {"tokens": {"per_hour": 1_000_000}, "tiers": {"premium": {"usd": {"per_day": 20}}}}
CONFIG = """\
state_dir: {state}
tiers:
  - {{name: premium, model: m, base_url: "http://x", api_key_env: NO_SUCH_VARIABLE, price: {{prompt: 1, completion: 1}}}}
  - {{name: economy, model: m, base_url: "http://x", price: {{prompt: 0, completion: 0}}}}
budget: {budget}
"""
NOW = 1_763_910_000.0


class Place:
    """A folder with a configuration, and perhaps a ledger."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.state, self.file = folder / "state", str(folder / "raycade.yaml")
        Path(self.file).write_text(CONFIG.format(state=self.state, budget=json.dumps(settings)))
        self.settings = BudgetSettings.model_validate(settings)

    def ledger(self) -> BudgetActor:
        return BudgetActor(self.settings, str(self.state))

    def spend(self, spent: Amount) -> None:
        """A router spends so much at the tier premium, for the job j1, and takes its leave."""

        async def exchange() -> None:
            ledger = self.ledger()
            report = AccountReport(Account("premium", "j1"), Totals(), Amount(), Amount())
            await ledger.exchange(Exchange("router", "1", 1, (report,), opening=True))
            report = report._replace(totals=Totals(spent=spent, beyond=spent))
            await ledger.exchange(Exchange("router", "1", 2, (report,), closing=True))
            await ledger.close()

        asyncio.run(exchange())

    def snapshot(self) -> Snapshot:
        return asyncio.run(self.ledger().show())

    def limit(self, scope: str, window: str, unit: str) -> int | None:
        return next(row.limit for row in self.snapshot().limits if row[:3] == (scope, window, unit))

    def shown(self, width: int = 80) -> str:
        text = io.StringIO()
        assert budget.show(self.file, False, Console(file=text, width=width, highlight=False)) == 0
        return text.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, BUDGET)


# -- show ----------------------------------------------------------------------------------------------------------


def test_show_makes_no_ledger_where_there_is_none(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so, for people and for machines, and leaves the folder as it was."""
    assert place.shown() == f"no ledger yet in {place.state}: no job has run with this state_dir\n"
    assert budget.show(place.file, True) == 0
    assert json.loads(capsys.readouterr().out)["limits"] == []
    assert budget.resume(place.file, None) == 0
    assert not place.state.exists()


def test_show_draws_what_was_spent_and_what_is_left(place: Place) -> None:
    """Bars with numbers where there are limits, plain figures elsewhere; no ANSI where nobody reads it."""
    place.spend(Amount(250_000, 5_000_000))
    text = place.shown()
    assert "\x1b" not in text
    assert "25% of 1,000,000, turns in" in text
    assert "spent 250,000, reserved 0, left 750,000" in text
    assert "25% of $20.00, turns in" in text
    assert "spent $5.00, reserved $0.00, left $15.00" in text
    assert "job:j1\n  spent in all $5.00, 250,000 tokens\n" in text
    assert "economy" not in text
    assert "spent, outcome unknown" in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_empty_ledger_is_a_sentence(tmp_path: Path) -> None:
    """Not an empty page."""
    place = Place(tmp_path, {})
    place.snapshot()
    assert place.shown() == "nothing has been spent today, and there is no limit\n"


def test_show_as_json_has_whole_numbers(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Dollars are micro-dollars there, under a unit that says so."""
    place.spend(Amount(10, 1_234_567))
    assert budget.show(place.file, True) == 0
    rows = {(row["scope"], row["window"], row["unit"]): row for row in json.loads(capsys.readouterr().out)["limits"]}
    row = rows["tier:premium", "day", "usd_micros"]
    assert (row["spent"], row["limit"], row["reserved"], row["unknown"]) == (1_234_567, 20_000_000, 0, 0)


def row(**changes: Any) -> LimitStatus:
    given: dict[str, Any] = {
        "scope": "all",
        "window": "hour",
        "unit": "tokens",
        "limit": 1000,
        "spent": 0,
        "reserved": 0,
        "unknown": 0,
        "overrun": 0,
        "turns_in_s": 60.0,
        "set_at_run_time": False,
    }
    return LimitStatus(**{**given, **changes})


def lines(snapshot: Snapshot, width: int = 80, ascii_only: bool = False) -> str:
    return "\n".join(line.plain for line in drawn(snapshot, NOW, width, ascii_only))


@pytest.mark.parametrize(
    ("spent", "unknown", "reserved", "expected"),
    [
        (0, 0, 0, ".........."),
        (500, 100, 200, "####?==..."),
        (1, 0, 1, "#=........"),
        (1000, 0, 0, "##########"),
        (1500, 0, 500, "########=="),
        (999, 0, 0, "#########."),
    ],
)
def test_a_bar_shows_everything_that_is_there(spent: int, unknown: int, reserved: int, expected: str) -> None:
    """Always as long as it should be; an amount that is there has at least one place."""
    assert bar(row(spent=spent, unknown=unknown, reserved=reserved), 1000, 10, "#?=.").plain == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"spent": 1}, "<1% of 1,000, turns in 1 min"),
        ({"spent": 1200}, "over by 200"),
        ({"limit": 0}, "100% of 0"),
        ({"turns_in_s": 11_520.0}, "turns in 3 h 12 min"),
        ({"window": "total", "turns_in_s": None}, "never turns"),
        ({"set_at_run_time": True}, "turns in 1 min *"),
        ({"spent": 30, "unknown": 10}, "spent 30 (10 unknown)"),
    ],
)
def test_a_window_is_told_in_numbers(changes: dict[str, Any], expected: str) -> None:
    """Percent, when it turns, what is above, and what nobody knows."""
    assert expected in lines(Snapshot((row(**changes),), 1))


def test_a_halt_is_shown_with_how_to_resume() -> None:
    """Also of a scope that has spent nothing, and with what is usual for it."""
    halts = (HaltRow("tier:premium", NOW - 60, "$9.20 this minute, usually $0.80"), HaltRow("all", NOW, "by hand"))
    paces = (PaceRow("tier:premium", 0, 0, 0, 24_000.4, 800_000.0, 7, int(NOW // 60)),)
    text = lines(Snapshot((), 0, halts, paces))
    assert "tier:premium\n  stopped at 14:59 UTC: $9.20 this minute, usually $0.80.\n" in text
    assert '"raycade budget resume tier:premium"' in text
    assert "a usual minute: $0.80, 24,000 tokens; last anomaly 2025-11-23 15:00 UTC" in text
    assert "stopped at 15:00 UTC: by hand." in text


def test_jobs_that_are_over_are_counted_and_not_drawn() -> None:
    """A ledger knows every job there ever was."""
    old = [row(scope=f"job:{number}", window="total", limit=None, spent=5) for number in range(3)]
    text = lines(Snapshot((row(spent=5, window="day"), *old), 0), ascii_only=True)
    assert "job:" not in text
    assert "3 without limit and without spend today left out" in text
    assert text.isascii()


# -- set -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("500000", None, (500_000, ("tokens",))),
        ("500,000", None, (500_000, ("tokens",))),
        ("12tokens", None, (12, ("tokens",))),
        ("5", "tokens", (5, ("tokens",))),
        ("$20", None, (20_000_000, ("usd",))),
        ("0.29usd", None, (290_000, ("usd",))),
        ("1_000.5 USD", None, (1_000_500_000, ("usd",))),
        ("20", "usd", (20_000_000, ("usd",))),
        ("0usd", None, (0, ("usd",))),
        ("none", None, (None, ("tokens", "usd"))),
        ("None", "usd", (None, ("usd",))),
    ],
)
def test_a_limit_is_read_as_it_is_written(text: str, unit: str | None, expected: tuple[Any, Any]) -> None:
    """Tokens or dollars, exact in decimal."""
    assert parse_limit(text, unit) == expected


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0", None),  # what a shell makes of an unquoted $20
        ("5.50", None),
        ("1.5tokens", None),
        ("20usd", "tokens"),
        ("$20tokens", None),
        ("1,5usd", None),
        ("-5usd", None),
        ("many", None),
        ("", None),
        ("5", "eur"),
        ("1e6", None),
    ],
)
def test_a_limit_that_can_be_misread_is_refused(text: str, unit: str | None) -> None:
    """In one line that says what to write."""
    with pytest.raises(ConfigError, match=r"expected|whole|not an amount") as caught:
        parse_limit(text, unit)
    assert "\n" not in str(caught.value)


def test_set_says_what_was_and_what_is(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """One line; the limit holds for whoever opens the ledger next."""
    place.spend(Amount(10, 18_200_000))
    assert budget.set_limit(place.file, "tier:premium", "day", "50usd") == 0
    assert capsys.readouterr().out == "tier:premium per day: $20.00 -> $50.00 ($18.20 spent so far)\n"
    assert place.limit("tier:premium", "day", "usd") == 50_000_000
    assert " *" in place.shown()
    assert budget.set_limit(place.file, "tier:premium", "day", "1usd") == 0
    assert capsys.readouterr().out.endswith("($18.20 spent so far: nothing more is granted)\n")


def test_none_lifts_a_limit(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the units that have one; where none has, it says so."""
    assert budget.set_limit(place.file, "all", "hour", "none") == 0
    assert capsys.readouterr().out == "all per hour: 1,000,000 tokens -> no tokens limit (0 tokens spent so far)\n"
    assert place.limit("all", "hour", "tokens") is None
    assert budget.set_limit(place.file, "all", "day", "none") == 0
    assert capsys.readouterr().out == "all per day: there was no limit\n"


def test_a_limit_of_a_key_nobody_has_used_is_set_and_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be one that comes later, or a typing error."""
    assert budget.set_limit(place.file, "key:alice", "total", "5usd") == 0
    assert capsys.readouterr().out == (
        "key:alice in all: no usd limit -> $5.00 (nothing has been spent as key:alice yet)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["set", "tier:premum", "day", "5usd"], "there is no tier 'premum'; there are: premium, economy"),
        (["set", "premium", "day", "5usd"], "expected all, tier:NAME, key:NAME or job:NAME"),
        (["set", "all", "request", "5usd"], "stands in raycade.yaml"),
        (["set", "all", "week", "5usd"], "expected hour, day, total"),
        (["set", "all", "day", "lots"], "expected an amount like 500000tokens or 20usd"),
        (["resume", "tier:nobody"], "there is no tier 'nobody'"),
        (["halt", "job:"], "expected all, tier:NAME"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    """And nothing is created."""
    monkeypatch.setattr(sys, "argv", ["raycade", "budget", *arguments, "-c", place.file])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not place.state.exists()


# -- halt and resume -----------------------------------------------------------------------------------------------


def test_what_is_halted_is_shown_and_resumed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """One scope by its name, or all that are stopped."""
    budget.halt(place.file, "tier:premium")
    budget.halt(place.file, "all")
    assert [halt.scope for halt in place.snapshot().halts] == ["all", "tier:premium"]
    assert "by hand." in place.shown()
    capsys.readouterr()
    budget.resume(place.file, "tier:premium")
    assert capsys.readouterr().out == "tier:premium goes on\n"
    budget.resume(place.file, "tier:premium")
    assert capsys.readouterr().out == "tier:premium is not stopped\n"
    budget.resume(place.file, None)
    assert capsys.readouterr().out == "all goes on\n"
    budget.resume(place.file, None)
    assert capsys.readouterr().out == "nothing is stopped\n"
    assert place.snapshot().halts == ()


def test_resume_restarts_the_history_at_the_new_level(tmp_path: Path) -> None:
    """The rules come from raycade.yaml here as in the job: what was stopped is usual afterwards, up to the threshold."""
    anomaly = {"floor_usd_per_minute": 1, "floor_tokens_per_minute": 10**9, "min_minutes": 0, "stop": True}
    place = Place(tmp_path, {"anomaly": anomaly})
    place.spend(Amount(10, 50_000_000))
    assert [halt.scope for halt in place.snapshot().halts] == ["tier:premium"]
    budget.resume(place.file, "tier:premium")
    snapshot = place.snapshot()
    assert snapshot.halts == ()
    assert [(pace.usual_usd_micros, pace.usd_micros) for pace in snapshot.paces] == [(5_000_000.0, 0)]
