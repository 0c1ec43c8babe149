"""The benchmark page: aims beside what was measured, and a page that needs nothing from anywhere."""

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.errors import ConfigError
from benchmarks import capacity, growth, open_loop, page, taken
from benchmarks.aims import AIMS, judged, verdicts
from benchmarks.bench import pooled, ratio
from benchmarks.charts import bars, curve
from benchmarks.overhead_meter import Meter, cpu_by_role
from benchmarks.page import SCENARIOS, html
from benchmarks.scenarios import Setup, result
from runtime.bench import run_bench


def _spread(median: float) -> dict[str, float]:
    return {"median": median, "least": median / 2, "most": 2 * median}


def _result(**more: object) -> dict[str, object]:
    table = [{"client": "raycade <b>", "rows_per_s": _spread(1234.5), "times": None}]
    columns = [["client", "client", 0], ["rows_per_s", "rows/s", 0], ["times", "times", 2]]
    points = [{"x": x, **_spread(10.0 * x)} for x in (10, 100, 2_000)]
    plots = [
        {"kind": "bars", "title": "rates", "bars": [{"label": "raycade", **_spread(3.0)}]},
        {"kind": "curve", "title": "growth", "x": "rows", "points": points},
    ]
    return {
        **result(table, columns, {}, plots=plots, notes=["a note"]),
        "about": "What it is.",
        "date": "2026-01-01T00:00:00+00:00",
        "took_s": 12.0,
        "quick": False,
        "rounds": 3,
        "machine": {"cpu": "a CPU", "cores": 2, "memory_gb": 4.0, "load": [0.1, 0.2, 0.3]},
        "versions": {"python": "3.11", "commit": "abc"},
        **more,
    }


def test_every_aim_is_judged_or_said_to_be_not_measured() -> None:
    """Met and not met follow from the median; what no result has is not measured, and nothing is left out."""
    measured = {"over aiohttp": _spread(0.9), "over aiohttp, further": _spread(0.9), "cpu": _spread(0.26)}
    lines = verdicts({"overhead": _result(measured=measured)})
    assert len(lines) == len(AIMS)
    met = {line.what: line.met for line in lines}
    assert met[AIMS["over aiohttp"].what] is True
    assert met[AIMS["over aiohttp, further"].what] is False
    assert met[AIMS["cpu"].what] is False, "the most that it may be"
    assert met[AIMS["two drivers"].what] is None
    assert {aim.scenario for aim in AIMS.values()} <= set(SCENARIOS)


def test_lines_of_the_gateway_report_are_taken_apart() -> None:
    """What, measured and aim of a line; a line without a colon is told as it is."""
    assert judged([("requests/s: 6.0 times LiteLLM's (6 and 1); aim 5", True), ("all whole; aim none", False)]) == [
        {"what": "requests/s", "measured": "6.0 times LiteLLM's (6 and 1)", "aim": "5", "met": True},
        {"what": "all whole", "measured": "all whole", "aim": "none", "met": False},
    ]


def test_the_page_holds_the_numbers_and_names_no_address() -> None:
    """Numbers with least and most, plots as SVG, texts escaped; no script, no link but within the page."""
    results = {"growth": _result(measured={"two drivers": _spread(1.4)})}
    page = html(results, verdicts(results))
    assert "1,234 (617 to 2,469)" in page
    assert "raycade &lt;b&gt;" in page
    assert page.count("<svg") == 2
    assert "1.40 (0.70 to 2.80)" in page
    assert "not measured" in page
    assert not re.search(r"https?://|<script|src=", page)
    assert set(re.findall(r'href="(.)', page)) == {"#"}


def test_a_curve_lies_on_powers_of_ten() -> None:
    """From 10 to 10,000 for values to 2,000; the line goes through as many points as there are."""
    chart = curve([{"x": x, **_spread(1.0)} for x in (10, 100, 2_000)])
    assert [tick.label for tick in chart.x] == ["10", "100", "1,000", "10,000"]
    assert chart.series[0].path.count("L") == 2
    assert curve([{"x": 1_000, **_spread(1.0)}]).x[-1].label == "10,000", "one point is no division by zero"


def test_bars_are_in_proportion_to_the_largest_most() -> None:
    """Twice the median is twice the width, and nothing reaches beyond the drawing."""
    chart = bars([{"label": "a", **_spread(1.0)}, {"label": "b", **_spread(2.0)}])
    first, second = chart.bars
    assert second.width == pytest.approx(2 * first.width, abs=0.2)
    assert second.most < chart.width
    assert bars([{"label": "a", "median": 0, "least": 0, "most": 0}]).bars[0].width == 0


def test_without_a_checkout_the_command_says_so(tmp_path: Path) -> None:
    """An installed package has no benchmarks: one line, exit code 2."""
    with pytest.raises(ConfigError, match="only in a checkout"):
        run_bench([], True, "out", True, root=tmp_path)


def test_what_takes_a_quarter_of_an_hour_runs_only_when_it_is_named() -> None:
    """All scenarios but `capacity` by default, and that one when asked for."""
    assert set(SCENARIOS) - set(page._options([]).scenarios) == {"capacity"}
    assert page._options(["capacity"]).scenarios == ["capacity"]


def _plan(rounds: int, **setup: Any) -> dict[growth.Point, int]:
    """How often each point of `growth` runs by itself, that is, not as the usual run."""
    points = growth._points(SimpleNamespace(**{"quick": False, "most_rows": None, **setup}))  # type: ignore[arg-type]
    own = [point for point in points if growth.USUAL.get(point[0]) != point[1]]
    return {point: sum(growth._times(point, number) for number in range(rounds)) for point in own}


def test_growth_reaches_a_million_rows_once_and_repeats_what_aims_are_about() -> None:
    """Of three rounds two drivers run in all, 1,000 rows twice in each, a million rows once, and the rest in two."""
    plan = _plan(3)
    assert plan["rows", 1_000_000] == 1
    assert plan["rows", 1_000] == 6
    assert plan["drivers", 2] == 3
    rest = {times for (varied, value), times in plan.items() if varied != "drivers" and value not in (1_000, 1_000_000)}
    assert rest == {2}
    assert {("nodes", 1), ("nodes", 2), ("nodes", 3)} <= set(plan), "nodes never share the usual run"
    assert ("rows", 5_000) in _plan(1, most_rows=5_000)
    assert ("rows", 100_000) not in _plan(1, most_rows=5_000)


def test_cpu_of_short_runs_is_added_up_before_it_is_compared() -> None:
    """Rows count, not runs; a ratio of rounds is of those that both were in."""
    short = [{"rows": 1_000, "cpu_us_per_row": 100.0}, {"rows": 3_000, "cpu_us_per_row": 300.0}]
    assert pooled(short) == 250.0
    flat = growth._flat([{"rows": 1_000_000, "cpu_us_per_row": 275.0}], short)
    assert flat["median"] == pytest.approx(1.1)
    assert (flat["least"], flat["most"]) == (pytest.approx(275 / 300), pytest.approx(2.75))
    assert flat["note"] == "1,000,000 rows, 1 run, over 2 of 1,000"
    two, three = [{"rows_per_s": rate} for rate in (1.0, 2.0)], [{"rows_per_s": rate} for rate in (2.0, 2.0, 9.0)]
    assert ratio(three, two) == {"median": 1.5, "least": 1.0, "most": 2.0}


def test_cpu_of_a_process_is_finer_than_the_ticks_of_proc() -> None:
    """What the meter reads of this process is what its own clock says, or more: children count too."""
    before = time.process_time()
    assert cpu_by_role(os.getpid())["driver"] >= before


def test_arrivals_are_independent_of_answers_and_the_same_for_the_same_seed() -> None:
    """In order, within the time, about as many as asked for; another seed, other moments."""
    due = open_loop.arrivals(100, 20.0, 1)
    assert due == sorted(due)
    assert 0 < due[0] < due[-1] < 20.0
    assert 1_800 < len(due) < 2_200
    assert due == open_loop.arrivals(100, 20.0, 1)
    assert due != open_loop.arrivals(100, 20.0, 2)


def test_latency_counts_from_when_a_request_was_due() -> None:
    """A request that left late is as slow as its user saw it; the warm-up is left out; what had no answer is lost."""
    found = open_loop.seen([(0.5, 0.5, 9.0), (1.0, 1.5, 1.6), (2.0, 2.0, 2.1), (3.0, 3.0, None)], 1.0)
    assert (found["asked"], found["answered"], found["lost"]) == (3, 2, 1)
    assert found["most_ms"] == pytest.approx(600)
    assert found["late_ms"] == pytest.approx(500)
    assert open_loop.seen([], 1.0) == {"asked": 0, "answered": 0, "lost": 0}


async def test_an_endpoint_that_answers_nothing_gets_every_request_all_the_same() -> None:
    """No answer comes before the last request has been sent; then all come."""
    options = {"per_s": 200.0, "warm_s": 0.2, "seconds": 0.3, "seed": 3}
    due = open_loop.arrivals(200.0, 0.5, 3)
    asked: list[str] = []
    all_asked = asyncio.Event()

    async def ask(prompt: str) -> None:
        asked.append(prompt)
        if len(asked) == len(due):
            all_asked.set()
        await all_asked.wait()

    found = await open_loop.load(ask, options, Meter())
    assert len(set(asked)) == len(due)
    assert found["asked"] == found["answered"] == sum(at >= 0.2 for at in due)
    assert found["lost"] == 0


def test_a_budget_that_raycade_overspends_is_an_aim_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the endpoint served counts, of raycade alone; what was left out is told."""

    def told(served: float) -> dict[str, Any]:
        common = {"in_flight": 50, "calls_after_exhaustion": 0, "until_first_refusal_percent": 90.0, "cut_off": False}
        systems = {"Raycade": served, "LiteLLM Router": 300.0}
        runs = [{"system": name, "served_percent": share, **common} for name, share in systems.items()]
        return {"runs": runs, "skipped": {"LiteLLM proxy": "no time"}, "failed": {}, "notes": ()}

    setup: Any = SimpleNamespace(peers=True)
    for served, met in ((99.9, True), (100.1, False)):
        monkeypatch.setattr(taken, "_program", lambda *_, served=served, **__: told(served))
        found = taken.overspend(setup)
        (judgement,) = found["judged"]
        assert (judgement["measured"], judgement["met"]) == (f"{served}%", met)
        assert "LiteLLM proxy: left out, no time" in found["notes"]


def test_the_capacity_benchmark_reaches_its_tier_actor() -> None:
    """What it measures is calls that the real tier actor made."""
    seen = capacity._measured({"latency": 0.01}, 0.5, setting=4, ask=4)
    assert seen
    assert {one.kind for one in seen} == {"ok"}


class _Bench:
    """No processes: every run says the same, and what was asked for is noted."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        tier = {"by_status": {"429": 1}, "max_in_flight": 3}
        told = {"total": {"requests": 10}, "tiers": {"default": tier}}
        self.mock = SimpleNamespace(reset=lambda: None, stats=lambda: told, tier_url=str)

    @contextmanager
    def endpoint(self, *_: object, **__: object) -> Iterator[None]:
        yield

    def tier(self, **more: Any) -> dict[str, Any]:
        return more

    def choose(self, name: str, *_: object) -> list[dict[str, Any]]:
        return [{"settings": {"in_flight": 100, "uvloop": True}}]

    def run(self, name: str, rows: int, warmup: int, what: str, *_: object, **__: object) -> dict[str, Any]:
        self.asked.append((name, what))
        run = {"rows": rows, "rows_per_s": 100.0, "cpu_us_per_row": 5.0, "cpu_us_per_row_by_role": {"driver": 5.0}}
        times = {"p50_ms": 1.0, "p99_ms": 2.0, "most_ms": 3.0, "late_ms": 0.1, "lost": 0}
        return {**run, **times, "answered": rows + warmup, "rows_per_actor_call": 20.0}

    def drivers(self, count: int, rows: int, warmup: int, what: str, *_: object) -> dict[str, Any]:
        return self.run("drivers", rows, warmup, what)

    def program(self, module: str, name: str, asked: object, what: str) -> dict[str, Any]:
        return self.run(name, 1_000, 0, what)


def _rounds_of(scenario: str, rounds: int) -> tuple[dict[str, Any], Counter[str]]:
    """A scenario's result, and how often each client ran outside of tries."""
    bench: Any = _Bench()
    console: Any = SimpleNamespace(print=lambda *_, **__: None)
    found = SCENARIOS[scenario](Setup(bench, Path(), console, False, rounds, False))
    return found, Counter(name for name, _ in bench.asked)


def test_clients_that_an_aim_is_about_run_in_every_round_and_others_in_fewer() -> None:
    """Three rounds: in `waiting` the slow ones run once with each number in flight, and nothing of 500 in flight thrice."""
    _, ran = _rounds_of("overhead", 3)
    assert (ran["aiohttp"], ran["openai"], ran["raycade"], ran["cookbook"]) == (3, 3, 3, 2)
    _, ran = _rounds_of("waiting", 3)
    assert (ran["aiohttp"], ran["raycade"], ran["openai"], ran["cookbook"]) == (5, 10, 2, 2)
    _, ran = _rounds_of("rate-limited", 3)
    assert (ran["raycade"], ran["cookbook"]) == (5, 2)


@pytest.mark.parametrize(
    "scenario", ["overhead", "waiting", "low-load", "open-loop", "rate-limited", "flaky", "duplicates", "growth"]
)
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_every_result_has_its_aims_and_can_be_drawn(scenario: str, rounds: int) -> None:
    """However many rounds there are, each aim of the scenario is measured, and table and plots hold numbers."""
    found, _ = _rounds_of(scenario, rounds)
    aims = {key for key, aim in AIMS.items() if aim.scenario == scenario} - {"over litellm"}
    assert aims <= set(found["measured"])
    results = {scenario: _result(**found)}
    assert "<svg" in html(results, verdicts(results)) or not found["plots"]
