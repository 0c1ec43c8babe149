"""The log: one line an event, for people or for machines, and no secret in any."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from actors.errors import ConfigError
from actors.tier.transport import Endpoint, Secret
from runtime.events import KNOWN, Event, event_of
from runtime.log import configure, tell

KEY = "prod-7f3a91c2d4e5b6a7"
OPENED = Event("breaker_opened", "premium keeps failing", "warning", {"tier": "premium"})


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger("raycade")
    before = (root.level, root.propagate, list(root.handlers))
    yield
    root.level, root.propagate, root.handlers = before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(setting: str, *events: Event, stream: io.StringIO | None = None, default: str = "off") -> list[str]:
    stream = stream or io.StringIO()
    configure({"RAYCADE_LOG": setting} if setting else {}, [KEY], default, stream)
    for event in events:
        tell(event)
    return stream.getvalue().splitlines()


def test_a_line_for_machines_has_name_text_and_what_it_is_about() -> None:
    refused = Event("budget_refused", "no more today", "error", {"request_id": "req_ab_7"})
    first, second = (json.loads(line) for line in logged("info", OPENED, refused))
    assert first["time"].endswith("+00:00")
    assert (first["level"], first["event"], first["tier"]) == ("warning", "breaker_opened", "premium")
    assert first["message"] == "premium keeps failing"
    assert second["request_id"] == "req_ab_7"


def test_on_a_terminal_it_is_for_people_unless_told_otherwise() -> None:
    (line,) = logged("info", OPENED, stream=Terminal())
    assert line.endswith("warning breaker_opened tier=premium: premium keeps failing")
    (line,) = logged("info,json", OPENED, stream=Terminal())
    assert json.loads(line)["event"] == "breaker_opened"
    (line,) = logged("info,text", OPENED)
    assert not line.startswith("{")


def test_levels() -> None:
    calm = Event("breaker_closed", "premium answers again")
    assert len(logged("warning", OPENED, calm)) == 1
    assert len(logged("info", OPENED, calm)) == 2
    assert logged("off", OPENED) == logged("", OPENED) == []
    assert len(logged("", OPENED, default="info")) == 1


@pytest.mark.parametrize("value", ["loud", "info,xml", ",json", "info json"])
def test_a_wrong_setting_is_one_line_about_it(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^RAYCADE_LOG: expected debug, info, warning, error, off") as raised:
        configure({"RAYCADE_LOG": value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_line_holds_a_secret(form: str) -> None:
    """Not in a text, not as what an event is about, not of an object that holds it, not in an exception, not in part."""
    endpoint = Endpoint("https://api.example/v1", Secret(KEY))
    stream = io.StringIO()
    events = [
        Event("note", f"refused {KEY}", "info", {"tier": f"key {KEY}"}),
        Event("note", f"{Secret(KEY)} {Secret(KEY)!r} {endpoint} {endpoint.api_key:>20}"),
        Event("note", f"Authorization: Bearer {KEY[:14]}x1"),
    ]
    text = "\n".join(logged(f"debug,{form}", *events, stream=stream))
    assert len(text.splitlines()) == 3
    try:
        raise ValueError(KEY)
    except ValueError:
        logging.getLogger("raycade.budget").exception("webhook said sk-%s", KEY)
    assert KEY[:12] not in stream.getvalue()
    assert "[redacted]" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 4


def test_nobody_can_forge_a_line() -> None:
    """Line ends and terminal escapes in what an endpoint said stay within their line."""
    forged = Event("note", 'bad\n{"event":"forged"}\r\x1b[2Jx', "info", {"tier": "a\nb"})
    for form in ("json", "text"):
        (line,) = logged(f"info,{form}", forged)
        assert "\x1b" not in line


def test_every_change_that_is_shown_has_a_name_of_its_own() -> None:
    assert len({name for name, _ in KNOWN.values()}) == len(KNOWN)
    assert event_of("opened premium", "x").about == {"tier": "premium"}
    assert event_of("opened premium over", "x").name == "breaker_closed"
    assert event_of("budget over", "x") == Event("budget_enough", "x")
    assert event_of("model premium gpt 4 over", "x").name == "model_changed"
