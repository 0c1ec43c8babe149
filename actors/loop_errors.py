"""Errors that no caller awaits, such as within a protocol's callback: one line in the process' log, not a traceback."""

import asyncio
import logging
import traceback
from typing import Any

__all__ = ["one_line_each"]

log = logging.getLogger("raycade.loop")
FRAMES = 3


def one_line_each() -> None:
    """Have the running loop tell its errors so."""
    asyncio.get_running_loop().set_exception_handler(_tell)


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    what = str(context.get("message", "")).split("\n", 1)[0]
    if not isinstance(error, BaseException):
        log.error("%s", what)
        return
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    way = " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
    log.error("%s: %s (%s)", what, type(error).__name__, way)  # not its text, in which a header or a key may stand
