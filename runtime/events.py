"""What is worth telling of a run, once for everybody who tells it: the progress display, the log, the status, the report.

    something changes -> Event -> Progress (people), runtime/log.py (machines), Telemetry (raycade status), Recorder (report)

An event has a name that does not change, for machines, and a text for people. What it is about (a tier, a request) is in
fields of its own, so that a log can be searched by it.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

__all__ = ["KNOWN", "Event", "Level", "event_of"]

Level = Literal["debug", "info", "warning", "error"]


class Event(NamedTuple):
    name: str
    text: str
    level: Level = "info"
    about: Mapping[str, str | int | float] = {}


KNOWN: Mapping[str, tuple[str, Level]] = {
    "redone": ("rows_sent_again", "warning"),
    "lost": ("actor_lost", "warning"),
    "back": ("actor_restarted", "info"),
    "endpoint": ("endpoint_left_alone", "warning"),
    "endpoint over": ("endpoint_back", "info"),
    "opened": ("breaker_opened", "warning"),
    "opened over": ("breaker_closed", "info"),
    "absent": ("tier_lacks_path", "error"),
    "absent over": ("tier_has_path", "info"),
    "out": ("tier_out", "error"),
    "out over": ("tier_back", "info"),
    "model": ("model_changed", "info"),
    "budget": ("budget_waiting", "warning"),
    "budget over": ("budget_enough", "info"),
    "purse": ("budget_actor_trouble", "error"),
    "purse over": ("budget_actor_answers", "info"),
}
"""Changes that the display of progress sees, by the word its keys begin with."""


def event_of(key: str, text: str) -> Event:
    """The event of a change. A key is a word of `KNOWN` and, where it is about one, the tier; ` over` ends it."""
    words = key.split(" ")
    over = words[-1] == "over" and f"{words[0]} over" in KNOWN
    name, level = KNOWN[f"{words[0]} over" if over else words[0]]
    return Event(name, text, level, {"tier": words[1]} if len(words) > 1 + over else {})
