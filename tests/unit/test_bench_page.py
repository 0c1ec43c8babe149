"""The benchmark page: aims beside what was measured, and a page that needs nothing from anywhere."""

import re
from pathlib import Path

import pytest

from actors.errors import ConfigError
from benchmarks.aims import AIMS, judged, verdicts
from benchmarks.charts import bars, curve
from benchmarks.page import SCENARIOS, html
from benchmarks.scenarios import result
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
