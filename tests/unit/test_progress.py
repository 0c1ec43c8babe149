"""The progress display: what a person reads on a terminal, in a log, and when something happens."""

import asyncio
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from actors.messages import Amount, Attempt, Failure, Health, Result, Usage
from actors.router.notes import RouterNote, TierNote
from runtime.batch.lines import bar_lines, log_line
from runtime.batch.progress import Progress, _Fold, _rows_in
from runtime.batch.scene import Scene, Watch
from runtime.batch.tally import Tally
from runtime.config import Config
from runtime.events import Event

CONFIG = Config.model_validate(
    {
        "tiers": [
            {"name": "premium", "model": "gpt-4o", "base_url": "http://127.0.0.1:1"},
            {"name": "standard", "model": "gpt-4o-mini", "base_url": "http://127.0.0.1:1"},
        ]
    }
)
OK = Health(in_flight=20, queued=14, limit=40)
OPEN = Health(state="open", open_for_s=11.4, limit=40, opened=1)


def note(
    premium: Health, standard: Health = OK, *, up: bool = True, waiting: int = 0, trouble: str = "", failed: int = 0
) -> RouterNote:
    kinds = {"ok": 1200, "server": failed, "timeout": 2} if failed else {"ok": 1200}
    tiers = (TierNote("premium", (premium,), (up,), 1200, kinds), TierNote("standard", (standard,), (True,), 34, {}))
    return RouterNote(tiers, waiting, trouble)


class Stage:
    """A run that is only its tally, a watch over it, and what the watch said."""

    def __init__(self, **inputs: Any) -> None:
        self.tally = Tally()
        self.run: Any = SimpleNamespace(tally=self.tally, in_flight=0, skipped=0)
        self.inputs: Any = SimpleNamespace(files=("in.jsonl",), size_bytes=None, read_bytes=0, **inputs)
        self.told: list[str] = []

    def watch(self, already_done: int = 0, limit: int | None = None) -> Watch:
        def tell(key: str, text: str) -> None:
            self.told.append(text)

        return Watch(CONFIG, self.inputs, self.run, already_done, limit, tell)

    def succeed(self, rows: int, tokens: int = 1000, usd_micros: int = 2765) -> None:
        result = Result(
            b"{}",
            200,
            "standard",
            (Attempt("standard", 0, "ok", 200, 0.1),),
            Usage(tokens, 0),
            Amount(tokens, usd_micros),
        )
        for _ in range(rows):
            self.tally.result(result, "standard")


def busy() -> tuple[Stage, Watch]:
    """1,234 rows, of which 12 failed and 40 were shared, 10 seconds of them at 123.4 rows/s."""
    stage = Stage()
    watch = stage.watch()
    watch.total_rows = 6000
    watch.look(0.0)
    stage.succeed(1182)
    for _ in range(40):
        stage.tally.shared(10)
    for _ in range(12):
        stage.tally.failure("all_tiers_exhausted", Failure("all_tiers_exhausted", "no"))
    stage.tally.note("router", note(OPEN, failed=300))
    return stage, watch


def shown(scene: Scene, width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO(), highlight=False)
    for line in bar_lines(scene, width):
        console.print(line)
    return [line.rstrip() for line in console.export_text().splitlines()]


# -- the log ---------------------------------------------------------------------------------------------------------


def test_log_line_tells_everything_in_one_line() -> None:
    """A log line has rows, failures, shared rows, speed, tokens, dollars, ETA and every tier's state, in this order."""
    _, watch = busy()
    assert log_line(watch.look(10.0)) == (
        "1,234 rows done (12 failed, 40 coalesced) 123 rows/s, 1.2M tokens, $3.27, eta 39 s (20%) | "
        "premium open (again in 12 s), standard ok 20/40"
    )


def test_log_line_before_anything_is_known() -> None:
    """Before the first note and the first row the line has the same fields and claims nothing."""
    assert log_line(Stage().watch().look(0.0)) == (
        "0 rows done (0 failed, 0 coalesced) 0 rows/s, 0 tokens, $0.00, eta unknown | premium starting, standard starting"
    )


async def test_log_mode_writes_events_at_once_and_a_last_line_at_the_end() -> None:
    """In a log every event is a line of its own, and the state at the end of the run is there even of a short run."""
    stage, stream = Stage(), io.StringIO()
    progress = Progress("auto", CONFIG, stage.inputs, stage.run, 0, None, stream)
    shown = asyncio.create_task(progress.run())
    await asyncio.sleep(0)
    progress.event("stopping: 12 rows in flight are being finished")
    assert stream.getvalue() == "stopping: 12 rows in flight are being finished\n"
    stage.succeed(3)
    shown.cancel()
    await asyncio.gather(shown, return_exceptions=True)
    assert stream.getvalue().splitlines()[-1].startswith("3 rows done (0 failed, 0 coalesced)")
    assert "\x1b" not in stream.getvalue()


async def test_none_writes_nothing() -> None:
    """With --progress none neither lines nor events appear."""
    stage, stream = Stage(), io.StringIO()
    progress = Progress("none", CONFIG, stage.inputs, stage.run, 0, None, stream)
    progress.event("something")
    await progress.run()
    assert stream.getvalue() == ""


async def test_a_closed_stream_does_not_reach_the_run() -> None:
    """When the stream is gone, events and the display fail in silence: the job matters more."""
    stage, stream = Stage(), io.StringIO()
    progress = Progress("log", CONFIG, stage.inputs, stage.run, 0, None, stream)
    stream.close()
    progress.event("something")
    shown = asyncio.create_task(progress.run())
    await asyncio.sleep(0)
    shown.cancel()
    results = await asyncio.gather(shown, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)


async def test_a_log_that_takes_only_ascii_still_gets_its_events() -> None:
    """What the stream's encoding has no character for becomes a question mark instead of an error."""
    stage, raw = Stage(), io.BytesIO()
    progress = Progress("log", CONFIG, stage.inputs, stage.run, 0, None, io.TextIOWrapper(raw, encoding="ascii"))
    progress.event("Zürich → ok")
    assert raw.getvalue() == b"Z?rich ? ok\n"


# -- the bar -----------------------------------------------------------------------------------------------------------


def test_bar_on_a_wide_terminal() -> None:
    """At 120 columns: percent and rows, the counts on one line, and one line a tier with its failures by kind."""
    _, watch = busy()
    lines = shown(watch.look(10.0), 120)
    assert lines[0].endswith("20%  1,234 of 6,000 rows")
    assert lines[1] == "123 rows/s  eta 39 s  12 failed  40 coalesced  1.2M tokens  $3.27"
    assert lines[2] == (
        "premium   open, again in 12 s   0/40 in flight  1,200 answered   0 queued  500s: 300, timeouts: 2"
    )
    assert lines[3] == "standard  ok                   20/40 in flight     34 answered  14 queued"
    assert len(lines) == 4


def test_bar_on_a_narrow_terminal() -> None:
    """At 60 columns nothing wraps; each tier keeps its line, its state, what is in flight and how many calls failed."""
    _, watch = busy()
    lines = shown(watch.look(10.0), 60)
    assert max(map(len, lines)) <= 60
    assert lines[0].endswith("20%  1,234 of 6,000 rows")
    assert lines[1:3] == ["123 rows/s  eta 39 s  12 failed  40 coalesced", "1.2M tokens  $3.27"]
    assert lines[3] == "premium   open, again in 12 s   0/40 in flight  302 failed"
    assert lines[4] == "standard  ok                   20/40 in flight  0 failed"


def test_bar_without_colour_and_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR no colour code is sent, and a terminal that knows only ASCII gets a bar of # and -."""
    _, watch = busy()
    scene = watch.look(10.0)
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=60, highlight=False)
    for line in bar_lines(scene, 60, ascii_only=True):
        console.print(line)
    assert stream.getvalue().isascii()
    assert "\x1b[3" not in stream.getvalue()
    assert "##" in stream.getvalue()
    assert "open, again in 12 s" in stream.getvalue()


async def test_bar_leaves_the_terminal_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled, the bar takes its lines away and shows the cursor again; events told meanwhile stay."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    stage, stream = Stage(), io.StringIO()
    progress = Progress("bar", CONFIG, stage.inputs, stage.run, 0, None, stream)
    shown = asyncio.create_task(progress.run())
    await asyncio.sleep(0)
    progress.event("an actor was lost")
    assert "an actor was lost" in stream.getvalue()
    assert "starting" in stream.getvalue()
    shown.cancel()
    await asyncio.gather(shown, return_exceptions=True)
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("premium")  # the cursor is shown
    assert stream.getvalue().endswith("\x1b[2K")  # and the last thing done is to clear a line


def test_percent_by_bytes_leaves_out_the_rows_in_flight() -> None:
    """Where rows are not counted the percent goes by bytes read, less the share of the rows that are still in flight."""
    stage = Stage()
    stage.inputs.size_bytes, stage.inputs.read_bytes, stage.run.in_flight = 1000, 800, 100
    watch = stage.watch()
    watch.look(0.0)
    stage.succeed(100)
    scene = watch.look(10.0)
    assert shown(scene, 60)[0].endswith("40%  100 rows")
    assert scene.eta_s == pytest.approx(15.0)


def test_without_a_size_there_are_rows_only() -> None:
    """Of a pipe nobody knows the end: rows are shown, no percent and no ETA."""
    stage = Stage()
    watch = stage.watch()
    watch.look(0.0)
    stage.succeed(5)
    lines = shown(watch.look(10.0), 60)
    assert lines[0] == "5 rows"
    assert "eta unknown" in lines[1]


def test_a_resumed_run_counts_earlier_rows_as_done_but_not_as_speed() -> None:
    """After a resume the bar begins where the job stood, and rows/s and ETA are those of this run."""
    stage = Stage()
    watch = stage.watch(already_done=500)
    watch.total_rows = 1000
    watch.look(0.0)
    stage.succeed(100)
    scene = watch.look(10.0)
    assert shown(scene, 60)[0].endswith("60%  600 of 1,000 rows")
    assert (scene.rows_per_s, scene.eta_s) == (10.0, pytest.approx(40.0))


def test_a_limit_is_the_end() -> None:
    """With --limit the percent is of the limit, and rows beyond it that an earlier run did do not count."""
    stage = Stage()
    watch = stage.watch(already_done=900, limit=200)
    watch.total_rows = 1000
    stage.run.skipped = 50
    assert shown(watch.look(0.0), 60)[0].endswith("25%  50 of 200 rows")


# -- tiers in words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (OK, "ok"),
        (OPEN, "open, again in 12 s"),
        (Health(state="half_open"), "trying"),
        (Health(cooling_for_s=2.5), "asked to pause 3 s"),
        (Health(cooling_for_s=0.2), "ok"),
        (
            Health(cooling_for_s=300.0, dead_reason="HTTP 401, the key was refused"),
            "out: HTTP 401, the key was refused",
        ),
    ],
)
def test_states_in_words(health: Health, words: str) -> None:
    """Each condition of a tier has plain words; the tier's own short pacing is not one."""
    stage = Stage()
    watch = stage.watch()
    stage.tally.note("router", note(health))
    line = shown(watch.look(0.0), 120)[2]
    assert line.startswith(f"premium   {words}")
    assert line[len(f"premium   {words}") :][:2] in ("", "  ")


def test_an_actor_that_is_down_is_restarting() -> None:
    """A tier whose actor was up and is down is shown as restarting, and that is an event, as is its return."""
    stage = Stage()
    watch = stage.watch()
    for up in (True, False, True):
        stage.tally.note("router", note(OK, up=up))
        state = watch.look(0.0).tiers[0].condition.word
        assert state == ("ok" if up else "restarting")
    assert stage.told == ["premium: an actor was lost and is restarting", "premium: the actor is back"]


def test_the_time_until_the_next_try_counts_down_between_notes() -> None:
    """The router repeats what it heard last, so the wait is counted from when it was first heard."""
    stage = Stage()
    watch = stage.watch()
    stage.tally.note("router", note(OPEN))
    watch.look(0.0)
    stage.tally.note("router", note(OPEN, failed=1))  # a new note with the old condition
    assert watch.look(9.0).tiers[0].condition.detail == "again in 3 s"
    assert watch.look(20.0).tiers[0].condition.detail == "to be tried again"


def test_some_of_several_actors() -> None:
    """Of a tier with several actors it is said how many are not well; the others take the calls."""
    stage = Stage()
    watch = stage.watch()
    tiers = (TierNote("premium", (OK, OPEN, OK), (True, True, True), 7, {}),)
    stage.tally.note("router", RouterNote(tiers, 0, ""))
    scene = watch.look(0.0)
    assert scene.tiers[0].condition[:2] == ("1 of 3 open", "again in 12 s")
    assert (scene.tiers[0].in_flight, scene.tiers[0].limit) == (40, 120)


def test_two_routers_are_added_up() -> None:
    """Calls are summed over routers, but a tier actor that both know is one actor, as it was heard last."""
    stage = Stage()
    watch = stage.watch()
    stage.tally.note("one", note(OK))
    watch.look(0.0)
    stage.tally.note("two", note(OPEN))
    premium = watch.look(1.0).tiers[0]
    assert premium.answered == 2400
    assert (premium.condition.word, premium.limit) == ("open", 40)


# -- events ----------------------------------------------------------------------------------------------------------------


def test_breaker_events_are_plain_words() -> None:
    """When a breaker opens and when it has closed again, it is told once each."""
    stage = Stage()
    watch = stage.watch()
    for health in (OK, OPEN, OPEN, Health(state="half_open", opened=1), Health(opened=1), Health(opened=1)):
        stage.tally.note("router", note(health))
        watch.look(0.0)
    assert stage.told == [
        "premium keeps failing: its circuit breaker opened, no calls to it for 12 s",
        "premium answers again: its circuit breaker closed",
    ]


def test_one_endpoint_that_is_left_alone_is_told_by_its_address() -> None:
    """One replica of a fleet: the tier goes on, and is not said to fail."""
    stage = Stage()
    watch = stage.watch()
    first, second = Health(address="a:1/v1"), Health(address="b:2/v1")
    out = second._replace(state="open", why="5 failures in a row")
    for one, opened in ((second, 0), (out, 1), (out, 1), (second, 1), (second, 1)):
        stage.tally.note("router", note(Health(opened=opened, endpoints=(first, one))))
        watch.look(0.0)
    assert stage.told == ["premium: b:2/v1 is left alone (5 failures in a row)", "premium: b:2/v1 takes calls again"]


def test_a_tier_that_is_out_is_told_once_with_what_to_check() -> None:
    """Its name, its model, what it said, on one line without control characters; and once that it is in again."""
    stage = Stage()
    watch = stage.watch()
    out = Health(cooling_for_s=300, dead_reason="HTTP 401:\n\x1b[31mbad [red] key")
    for health in (out, out._replace(cooling_for_s=0.0), out, OK):
        stage.tally.note("router", note(health))
        watch.look(0.0)
    assert stage.told == [
        "premium (gpt-4o) is out: HTTP 401: [31mbad [red] key; check api_key_env, which is not set, and the account "
        "behind it; asked again every 30 s",
        "premium (gpt-4o) is in again",
    ]
    stage.told.clear()
    stage.tally.note("router", note(out._replace(dead_reason="HTTP 404, model_not_found", dead_kind="not_found")))
    watch.look(1.0)
    assert stage.told == [
        "premium (gpt-4o) is out: HTTP 404, model_not_found; check that http://127.0.0.1:1 serves the model gpt-4o; "
        "asked again every 30 s"
    ]


def test_a_path_that_a_tier_does_not_have_is_told_once() -> None:
    """Also when it never served anything: the usual sign of a wrong model or base_url."""
    stage = Stage()
    watch = stage.watch()
    absent = OK._replace(absent="HTTP 404, the model is not there: no gpt-4o")
    for health in (absent, absent, OK):
        stage.tally.note("router", note(health))
        watch.look(0.0)
    assert stage.told == [
        "premium (gpt-4o) does not take these calls: HTTP 404, the model is not there: no gpt-4o; check that "
        "http://127.0.0.1:1 serves the model gpt-4o; asked again every 30 s",
        "premium (gpt-4o) takes all calls again",
    ]


def test_another_version_of_the_model_is_told_once() -> None:
    """The first name is the alias's version; each further one is news, whichever router hears it first."""
    stage = Stage()
    watch = stage.watch()
    for names in ({"gpt-4o-08": 5}, {"gpt-4o-08": 9, "gpt-4o-11": 1}, {"gpt-4o-08": 9, "gpt-4o-11": 70}):
        told = note(OK)
        stage.tally.note("router", told._replace(tiers=(told.tiers[0]._replace(models=names), told.tiers[1])))
        watch.look(0.0)
    assert stage.told == ["premium (gpt-4o) answers as gpt-4o-11 now, before as gpt-4o-08"]


def test_waiting_for_budget_is_said_when_it_lasts() -> None:
    """Rows that wait a moment for a lease are no news; those that wait longer are, until none does."""
    stage = Stage()
    watch = stage.watch()
    stage.tally.note("router", note(OK, waiting=1204))
    assert watch.look(0.0).notices == ()
    assert watch.look(3.0).notices == ("1,204 rows wait for budget",)
    assert "1,204 rows wait for budget" in shown(watch.look(4.0), 60)
    stage.tally.note("router", note(OK))
    assert watch.look(5.0).notices == ()
    assert stage.told == ["1,204 rows wait for budget", "no row waits for budget any more"]


def test_trouble_with_the_budget_actor_is_said() -> None:
    """While the budget actor does not answer, the display says so with the reason."""
    stage = Stage()
    watch = stage.watch()
    stage.tally.note("router", note(OK, trouble="TimeoutError: "))
    scene = watch.look(0.0)
    assert scene.notices == ("the budget actor gives trouble: TimeoutError:",)
    assert log_line(scene).endswith("| the budget actor gives trouble: TimeoutError:")
    stage.tally.note("router", note(OK))
    watch.look(1.0)
    assert stage.told[-1] == "the budget actor answers again"


def test_a_standstill_is_said() -> None:
    """When rows are in flight and none ends for a while, the display says for how long."""
    stage = Stage()
    stage.run.in_flight = 3
    watch = stage.watch()
    assert watch.look(0.0).notices == ()
    assert watch.look(34.0).notices == ("no row has ended for 34 s",)
    stage.succeed(1)
    assert watch.look(35.0).notices == ()


def test_rows_sent_again_are_an_event() -> None:
    """Rows that are sent again after an actor died are told with their number."""
    stage = Stage()
    watch = stage.watch()
    stage.tally.redone = 312
    watch.look(0.0)
    watch.look(1.0)
    assert stage.told == ["312 rows lost the actor that held them; they are sent again"]


def test_equal_events_are_folded() -> None:
    """The first of many equal events is shown at once, the others later with their number, and the last at the end."""
    told: list[str] = []
    fold = _Fold(lambda event: told.append(event.text))
    for moment in (0.0, 1.0, 2.0):
        fold.tell("a", Event("note", f"a at {moment:g}"), moment)
    assert told == ["a at 0"]
    fold.tick(11.0)
    assert told == ["a at 0", "a at 2 (2 more like this)"]
    fold.tell("a", Event("note", "a at 12"), 12.0)
    fold.tell("b", Event("note", "b"), 12.0)
    fold.end()
    assert told[2:] == ["b", "a at 12 (1 more like this)"]


def test_events_that_differ_in_numbers_only_are_equal() -> None:
    """A thousand rows that wait for the same budget are one event, though each names another amount."""
    stage, stream = Stage(), io.StringIO()
    progress = Progress("log", CONFIG, stage.inputs, stage.run, 0, None, stream)
    for spent in range(1000):
        progress.event(f"budget of scope 'all' per day: {spent:,} tokens of 300,000 tokens spent")
    progress.event("budget of scope 'tier:gpt-4' per day: 1 tokens of 2 tokens spent")
    assert stream.getvalue().splitlines() == [
        "budget of scope 'all' per day: 0 tokens of 300,000 tokens spent",
        "budget of scope 'tier:gpt-4' per day: 1 tokens of 2 tokens spent",
    ]


def test_counts_the_rows_of_plain_files(tmp_path: Path) -> None:
    """Lines that are not blank are rows, the last one without its end too; a compressed or missing file is not counted."""
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    plain.write_bytes(b"{}\n\n{}\r\n \r\n{}")
    packed.write_bytes(b"\x1f\x8b\x08\x00")
    assert _rows_in([str(plain), str(plain)]) == 6
    assert _rows_in([str(plain), str(packed)]) is None
    assert _rows_in([str(tmp_path / "none")]) is None
