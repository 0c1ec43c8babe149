"""The log: one line for each event worth noting, on standard error, for people or for machines.

    RAYCADE_LOG=LEVEL[,json|text]    LEVEL is debug, info, warning, error or off

JSON unless standard error is a terminal. A JSON line has `time` (UTC), `level`, `logger`, `event` (a name that does not
change), `message`, and what the event is about: `tier`, `request_id` and so on. `request_id` is the one in the output
files and in metrics' exemplars. Level debug tells every row that fails, too.

No line holds a secret: keys live in a type that shows itself to nobody (actors/tier/transport.py), values of configured
keys are taken out of every line, and so is whatever looks like a key.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from actors.errors import ConfigError
from actors.tier.redact import one_line, redact
from runtime.events import Event

__all__ = ["VARIABLE", "configure", "tell"]

VARIABLE = "RAYCADE_LOG"
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}
ROOT = "raycade"
"""All of our loggers are below it."""
_log = logging.getLogger(f"{ROOT}.events")


def configure(
    environ: Mapping[str, str], secrets: Sequence[str] = (), default: str = "off", stream: TextIO | None = None
) -> bool:
    """Set up the log of this process as RAYCADE_LOG says, else as `default`; whether anything is logged.

    `secrets`: values that no line may hold. Raises ConfigError for a value that cannot be.
    """
    stream = sys.stderr if stream is None else stream
    level, form = _wanted(environ.get(VARIABLE, "") or default)
    root = logging.getLogger(ROOT)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Lines(form == "json" if form else not stream.isatty(), secrets))
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    root.propagate = False
    return level != "off"


def tell(event: Event) -> None:
    """Log an event."""
    _log.log(LEVELS[event.level], "%s", event.text, extra={"event": event.name, "about": event.about})


def _wanted(value: str) -> tuple[str, str]:
    level, _, form = (part.strip().lower() for part in value.partition(","))
    if level not in LEVELS or form not in ("", "json", "text"):
        expected = f"expected {', '.join(LEVELS)}, perhaps followed by ,json or ,text"
        raise ConfigError(f"{expected}; found {value[:60]!r}", key=VARIABLE)
    return level, form


class _Lines(logging.Formatter):
    """A record as one line, without secrets."""

    def __init__(self, as_json: bool, secrets: Sequence[str]) -> None:
        super().__init__()
        self._as_json, self._secrets = as_json, tuple(secrets)

    def format(self, record: logging.LogRecord) -> str:
        about: Mapping[str, Any] = getattr(record, "about", {})
        clean = {name: value if isinstance(value, int | float) else self._clean(value) for name, value in about.items()}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", "note"),
            "message": self._clean(record.getMessage()),
            **clean,
        }
        if record.exc_info and record.exc_info[1] is not None:
            # the kind alone: texts of foreign errors may carry a request with its headers
            line["error"] = type(record.exc_info[1]).__name__
        if self._as_json:
            return orjson.dumps(line).decode()
        told = " ".join(f"{name}={value}" for name, value in clean.items())
        return f"{line['time']} {line['level']:<7} {line['event']}{f' {told}' if told else ''}: {line['message']}"

    def _clean(self, value: object) -> str:
        return redact(one_line(str(value)).encode("utf-8", "replace").decode(), self._secrets)
