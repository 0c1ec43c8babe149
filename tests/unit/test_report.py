"""The report of a run: what its recorder keeps of any number of rows, and a page that says it and does nothing else."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from actors.budget.rows import LimitStatus, Snapshot
from actors.errors import ConfigError
from actors.messages import Amount, Attempt, Failure, Result, Usage
from runtime.batch.charts import lines, stacked, time_ticks
from runtime.batch.recorder import BINS, EVENTS, SLOWEST, Example, Latencies, Recorder
from runtime.batch.report import Job, check_place, failures_of, html, write
from runtime.config import Config

NASTY = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x1b[31m"
TIERS = ("premium", "standard")
CONFIG = Config.model_validate(
    {"tiers": [{"name": name, "model": f"m-{NASTY}", "base_url": "http://127.0.0.1:1"} for name in TIERS]}
)
OK = Attempt("premium", 0, "ok", 200, 0.3, prompt_tokens=100, completion_tokens=20, booked=Amount(120, 450))
ANSWER = Result(b"{}", 200, "premium", (OK,), Usage(100, 20), Amount(120, 450))


def told(**over: Any) -> dict[str, Any]:
    """What `summary_dict` says."""
    tier = {
        "model": "m-" + NASTY,
        "calls": 6,
        "failed": 1,
        "failed_by_kind": {"server": 1},
        "rows": 5,
        "breaker_opened": 1,
    }
    return {
        "ending": {"stop": "", "message": ""},
        "duration_s": 12.0,
        "rows_per_s": 0.5,
        "rows": {"succeeded": 5, "failed": 1, "earlier": 0, "not_done": 0},
        "all_runs": {"succeeded": 5, "failed": 1},
        "tokens": {"total": 600},
        "cost_usd": 0.002200,
        "coalesced": {"rows": 1, "saved_tokens": 120},
        "without_usage": {"answers": 0},
        "hedged": {"copies": 0, "won": 0},
        "sent_again": 0,
        "fell_back": {"rows": 1, "from": {"premium": 1}},
        "tiers": [{"name": name, **tier} for name in TIERS],
        "files": {"out": f"/tmp/{NASTY}/out.jsonl", "errors": f"/tmp/{NASTY}.errors.jsonl"},
        **over,
    }


def recorder() -> Recorder:
    made = Recorder(100.0)
    for number in range(5):
        made.answered(101.0 + number, number, NASTY, ANSWER, f"p{NASTY}@1", 100.5, 0.3)
    made.shared(105.0, 120, "sort@1")
    made.failed(106.0, 9, NASTY, Failure("server", NASTY, attempts=(OK._replace(kind="server"),)), "sort@2", 100.0)
    made.saw(101.0, "premium", "open", NASTY)
    made.saw(104.0, "premium", "")
    made.event(104.0, f"premium answers again {NASTY}")
    return made


def page(summary: Mapping[str, Any] | None = None, made: Recorder | None = None, **about: Any) -> str:
    made = made or recorder()
    fields: dict[str, Any] = {
        "told": summary or told(),
        "run": "ab12cd34",
        "config": CONFIG,
        "recorder": made,
        "failures": {"server": 1, NASTY: 2},
        "examples": {NASTY: Example(NASTY, NASTY), "server": Example("", NASTY)},
        "before": None,
        "began": 1_790_000_000.0,
        "total_rows": 6,
    }
    return html(Job(**{**fields, **about}))


class Read(HTMLParser):
    """Reads a page strictly: tags that do not fit raise; collects what a reader sees, and every attribute."""

    VOID = frozenset({"meta", "br", "line", "rect", "path", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self.text += " "
        if tag not in self.VOID or tag in ("rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


# -- the page


def test_what_came_from_outside_is_text_and_nothing_else() -> None:
    """Ids, messages, models, prompts, file names and conditions that would be markup, or turn text around, in a page."""
    text = page()
    read = Read(text)
    assert not read.tags["script"] + read.tags["img"]
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "<script>alert(1)</script>" in read.text


def test_it_asks_for_nothing_from_anywhere() -> None:
    text = page()
    assert not [value for name, value in Read(text).attributes if name in ("src", "href", "action", "xlink:href")]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_a_manager_reads_how_it_ended_what_failed_and_what_it_cost() -> None:
    read = " ".join(Read(page()).text.split())
    assert "Finished: every row is done, 1 of them without an answer." in read
    assert "Rows with an answer 5 of 6" in read
    assert "1 row got an answer from another tier" in read
    assert "120 tokens that were not paid for, about $0.00044" in read
    assert "breaker opened once" in read


def test_after_a_resume_the_whole_job_and_this_run_are_told_apart() -> None:
    """Rows and the ledger's sums are the job's; times and calls are this run's, and the page says which is which."""
    earlier = told(
        rows={"succeeded": 5, "failed": 1, "earlier": 94, "not_done": 0}, all_runs={"succeeded": 90, "failed": 10}
    )
    spent = (
        LimitStatus("job:ab12cd34", "total", "usd", None, 79_800, 0, 0, 0, None, False),
        LimitStatus("job:other", "total", "usd", None, 1, 0, 0, 0, None, False),
    )
    read = " ".join(Read(page(earlier, before=Snapshot(spent, 1))).text.split())
    assert "94 rows had been done before it began" in read
    assert "Rows with an answer 90 of 6 whole job" in read
    assert "$0.082 whole job; this run $0.0022" in read


def test_a_run_in_which_nothing_ended_has_a_page_too() -> None:
    nothing = told(
        rows={"succeeded": 0, "failed": 0, "earlier": 0, "not_done": 6},
        all_runs={"succeeded": 0, "failed": 0},
        ending={"stop": "budget", "message": "budget of scope 'all'"},
        tokens={"total": 0},
        coalesced={"rows": 0, "saved_tokens": 0},
    )
    read = Read(page(nothing, Recorder(0.0), failures={}, examples={})).text
    assert "Stopped by a budget" in read
    assert "No row failed." in read
    assert "No row ended in this run." in read


def test_it_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    place.write_text("old")
    made = recorder()
    fields = ("ab12cd34", CONFIG, made, {}, {}, None, 0.0, None)
    with pytest.raises(KeyError):
        write(str(place), Job({}, *fields))  # type: ignore[arg-type]
    assert (place.read_text(), os.listdir(tmp_path)) == ("old", ["report.html"])
    write(str(place), Job(told(), *fields))  # type: ignore[arg-type]
    assert place.read_text().startswith("<!doctype html>")
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_place_that_cannot_be_written_is_told_before_the_job(tmp_path: Path) -> None:
    check_place(str(tmp_path / "report.html"), (str(tmp_path / "out.jsonl"),))
    for place in (tmp_path / "no" / "report.html", tmp_path, tmp_path / "out.jsonl"):
        with pytest.raises(ConfigError, match="--report"):
            check_place(str(place), (str(tmp_path / "out.jsonl"),))


def test_failures_are_those_of_the_errors_file_torn_lines_and_all(tmp_path: Path) -> None:
    file = tmp_path / "errors.jsonl"
    lines = ['{"custom_id":"a","error":{"code":"server","message":"x"}}'] * 3
    file.write_text("\n".join([*lines, '{"custom_id":null,"error":{"code":"invalid_json","message":"y"}}', "{torn"]))
    codes, examples = failures_of(str(file))
    assert codes == {"server": 3, "invalid_json": 1}
    assert examples["invalid_json"] == Example("", "y")
    assert failures_of(str(tmp_path / "none")) == (Counter(), {})


# -- what it is made of


def test_a_run_of_any_length_is_kept_in_so_many_slices_and_loses_no_row() -> None:
    made = Recorder(0.0)
    for number in range(20_000):
        made.answered(number * 1.7, number, f"row-{number}", ANSWER, "", number * 1.7 - number % 100, 0.3)
        made.event(number, "x")
        made.saw(number * 1.7, "premium", "open" if number % 2 else "")
    assert len(made.slices) <= BINS
    assert sum(each.tiers["premium"] for each in made.slices) == 20_000
    assert sum(each.latencies.count for each in made.slices) == made.latencies.count == 20_000
    assert len(made.slowest()) == SLOWEST
    assert {round(row.seconds) for row in made.slowest()} == {99}
    assert len(made.events) == EVENTS
    assert len(made.periods) + made.periods_left_out == 10_000
    assert len(made.periods) <= 300
    assert len(page(made=made)) < 400_000


def test_slices_stand_where_their_rows_ended() -> None:
    """Also after they were joined in pairs, with an odd number of them."""
    made = Recorder(0.0)
    made.answered(1.1, 1, "a", ANSWER, "", 0.0, 0.3)
    made.shared(1000.0, 5, "")
    places = [index for index, each in enumerate(made.slices) if each.tiers or each.shared]
    assert places == [int(1.1 / made.width_s), int(1000.0 / made.width_s)]


@pytest.mark.parametrize("seconds", [0.0004, 0.02, 0.3, 7.7, 300.0])
def test_quantiles_are_right_to_a_fifth(seconds: float) -> None:
    latencies = Latencies()
    for step in range(1000):
        latencies.add(seconds * (1 + step / 1000))
    for share in (0.5, 0.95):
        found = latencies.quantile(share)
        assert found is not None
        assert found == pytest.approx(seconds * (1 + share), rel=0.2, abs=0.001)
    assert Latencies().quantile(0.5) is None


def test_what_a_tier_charged_is_the_sum_of_its_attempts() -> None:
    made = Recorder(0.0)
    lost = Attempt("standard", 0, "timeout", 0, 5.0, booked=Amount(200, 900))
    skipped = Attempt("standard", 0, "budget_exceeded", 0, 0.0)
    made.answered(1.0, 1, "a", ANSWER._replace(attempts=(lost, skipped, OK)), "", 0.0, 0.3)
    made.put_off((lost,))
    sums = made.tiers["standard"]
    assert (sums.calls, sums.failed, sums.usd_micros, sums.tokens) == (2, 2, 1800, 400)
    assert made.tiers["premium"].usd_micros == 450


def test_a_condition_lasts_from_when_it_was_first_seen_until_another_is() -> None:
    made = Recorder(10.0)
    for now, word in ((11.0, "open"), (12.0, "open"), (13.0, "trying"), (14.0, ""), (15.0, "")):
        made.saw(now, "premium", word)
    assert [(each.word, each.began, each.ended) for each in made.periods] == [("open", 1.0, 3.0), ("trying", 3.0, 4.0)]


def test_charts_stay_within_their_frame() -> None:
    values = [3.0, 0.0, 7.5, 12.0]
    for chart in (
        stacked([("a", "t0", values), ("b", "t1", values)], 2.0, 8.0),
        lines([("a", "p50", [None, 1.0, None, 4.0])], 2.0, 8.0),
        stacked([], 1.0, 0.0),
    ):
        points = [
            (float(x), float(y)) for one in chart.series for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", one.path)
        ]
        assert all(chart.left <= x <= chart.right and 0 <= y <= chart.bottom for x, y in points)
        assert chart.y[0].label == "0"


@pytest.mark.parametrize("seconds", [0.0, 0.4, 19.0, 3600.0, 90_000.0, 5_000_000.0])
def test_times_are_told_at_a_handful_of_round_moments(seconds: float) -> None:
    ticks = time_ticks(seconds)
    assert ticks[0] == 0
    assert len(ticks) <= 9
    assert ticks[-1] <= seconds
