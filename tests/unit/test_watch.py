"""`raycade status --watch`: rates from counters, and what a person sees of them."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.errors import ConfigError
from actors.events import Tally
from actors.messages import Amount, Attempt
from actors.observer.exposition import exposed, families
from actors.observer.scene import ActorScene, BudgetScene, JobScene, Scene, TierScene, plain
from actors.observer.sums import Sums
from runtime.running import Entry
from runtime.watch import Rates, view, watch
from tests.unit.test_status import config

ENTRY = Entry("job-1", "run1", 4711, "/data/out.jsonl", 1000.0, "http://127.0.0.1:1")
OPEN = ActorScene("0", "open", "open", "HTTP 503, \x1b[31mno", 4.0, 26.0, 0, 0, 20, 1)
WELL = ActorScene("1", "closed", "closed", "", 65.0, None, 12, 3, 20, 0)
SCENE = Scene(
    jobs=(
        JobScene(
            "run1", "/out", 65.0, 40, 100, 0.4, 8.0, 7.5, 1, 2, 10, 999, 1_500_000, 3, ("no row has ended for 12 s",)
        ),
    ),
    tiers=(TierScene("premium", "gpt", 7, {"server": 2}, (OPEN, WELL)), TierScene("basic", "small", 0, {}, ())),
    budgets=(
        BudgetScene("all", "day", "usd", 50_000_000, 1_500_000, 250_000, 0, 3600.0),
        BudgetScene("all", "hour", "tokens", None, 999, 0, 0, 61.0),
    ),
    halts=(("tier:premium", "by hand"),),
    events=((61.0, "premium keeps failing: its circuit breaker opened \x1b[2J"),),
)
OK = Attempt("premium", 0, "ok", 200, 0.3, prompt_tokens=100, completion_tokens=20, booked=Amount(120, 10_000))
BUSY = Attempt("premium", 0, "rate_limited", 429, 0.1)


class Door:
    """Counts requests, and is scraped as an observer would serve it."""

    def __init__(self) -> None:
        self._tally = Tally("door", {"premium": "gpt"})

    def answered(self, count: int, seconds: float = 0.3) -> None:
        for _ in range(count):
            attempts = (BUSY, OK._replace(duration_s=seconds))
            self._tally.request("premium", "ok", attempts, "/chat/completions", seconds=seconds)

    def scrape(self) -> str:
        sums = Sums()
        sums.take(self._tally.totals())
        return exposed(lambda: families(sums.counters(), sums.distributions(), {}), "")[0].decode()


def told(scene: Scene = SCENE) -> dict[str, Any]:
    return {"age_s": 0.0, **plain(scene)}


def text(rates: Rates, scene: Scene = SCENE, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    for part in view(ENTRY, told(scene), rates, 1065.0, width):
        console.print(part)
    return console.export_text()


def test_rates_are_those_of_the_last_seconds() -> None:
    """Of 15 seconds, whatever was before; nothing is known from one look."""
    door, rates = Door(), Rates()
    door.answered(1000, 9.0)
    rates.take(door.scrape(), 0.0)
    assert rates.tier("premium", "gpt") == (0.0, 0.0, 0.0, 0, None, None)
    for second in range(1, 41):
        door.answered(10 if second > 20 else 500)
        rates.take(door.scrape(), float(second))
    found = rates.tier("premium", "gpt")
    assert found.rows_per_s == pytest.approx(10)
    assert found.tokens_per_s == pytest.approx(1200)
    assert found.usd_per_h == pytest.approx(10 * 0.01 * 3600)
    assert found.refused == 150
    assert found.p50_s is not None
    assert 0.16 < found.p50_s <= 0.32
    assert rates.tier("basic", "small").rows_per_s == 0


def test_a_job_that_began_anew_has_no_rates_below_zero() -> None:
    door, rates = Door(), Rates()
    door.answered(50)
    rates.take(door.scrape(), 0.0)
    fresh = Door()
    fresh.answered(1)
    rates.take(fresh.scrape(), 1.0)
    assert min(filter(None, rates.tier("premium", "gpt")), default=0.0) >= 0


def test_a_budget_tells_how_long_it_lasts_at_the_present_pace() -> None:
    rates = Rates()
    row = plain(SCENE.budgets[0])
    for second in range(0, 31, 2):
        rates.take_budgets([{**row, "spent": 1_500_000 + second * 100_000}], float(second))
    spent = 4_500_000
    assert rates.lasts_s({**row, "spent": spent}) == pytest.approx((50_000_000 - spent) / 100_000)
    scene = SCENE._replace(budgets=(SCENE.budgets[0]._replace(spent=spent),))
    assert "used up in 7 min 35 s" in text(rates, scene)
    rates.take_budgets([{**row, "spent": 0}], 32.0)
    assert rates.lasts_s(row) is None, "the window has turned"


def test_a_person_sees_progress_tiers_budgets_and_what_happened_last() -> None:
    door, rates = Door(), Rates()
    rates.take(door.scrape(), 0.0)
    door.answered(80)
    rates.take(door.scrape(), 10.0)
    lines = [" ".join(line.split()) for line in text(rates).splitlines()]
    assert lines[0] == "job run1 /data/out.jsonl, for 1 min 5 s"
    assert lines[1].endswith(
        "40% 40 of 100 rows, 8 rows/s, 1 failed, 2 coalesced, $1.50, 3 rows wait for budget, done in about 8 s"
    )
    assert "no row has ended for 12 s" in lines
    premium = next(line for line in lines if line.startswith("premium 1 of 2 open, 26 s 12/40 +3 8.0"))
    assert premium.endswith("80 960 288.00 HTTP 503, [31mno")
    assert "basic starting 0/0 0.0 0 0 0.00" in lines
    assert any(line.startswith("all today") and "3% $1.50 of $50.00 turns in 1 h" in line for line in lines)
    assert "tier:premium is stopped (by hand) until: raycade budget resume tier:premium" in lines
    assert "1 min 1 s ago premium keeps failing: its circuit breaker opened [2J" in lines


def test_a_narrow_terminal_has_room_for_the_numbers() -> None:
    """Each budget stays on one line, with a bar that is whole and the time that matters."""
    rates = Rates()
    tokens = BudgetScene("all", "day", "tokens", 2_000_000, 1_400_000, 250_000, 0, 12_600.0)
    scene = SCENE._replace(budgets=(SCENE.budgets[0], tokens))
    for second in range(0, 31, 2):
        rates.take_budgets([{**plain(tokens), "spent": 1_100_000 + second * 10_000}], float(second))
    lines = text(rates, scene, width=78).splitlines()
    assert all(len(line) <= 78 for line in lines)
    shown = [" ".join(line.split()) for line in lines if line.startswith("  all today")]
    assert shown == [
        "all today ────────── 3% $1.50 of $50.00 turns in 1 h",
        "all today ━━━━━━━─── 70% 1.4M of 2.0M tokens used up in 1 min",
    ]


def test_without_a_terminal_there_is_nothing_to_watch_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--watch: needs a terminal"):
        watch(config(tmp_path), Console(file=io.StringIO()))
