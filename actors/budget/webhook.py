"""Tells an address of the user's that spend is an anomaly: one POST of JSON for each, beside the budget actor's work.

`tell()` returns at once. A receiver that is slow or dead costs a line in the log; it can neither delay nor break an
exchange, and what waits for it is bounded. The address may carry a secret in its path or query, as those of chat
services do, so the log names the host alone.
"""

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from urllib.parse import urlsplit

import aiohttp

from actors.budget.anomaly import Anomaly, in_words

__all__ = ["Webhook", "event"]

TIMEOUT_S = 5.0
TRIES = 2
PAUSE_S = 1.0
UNDER_WAY = 50
"""More calls than this at a time are not begun: ten thousand keys may all be anomalous in one minute."""

log = logging.getLogger("raycade.budget")


class Webhook:
    """Posts anomalies to one address. Use it inside an event loop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._host = urlsplit(url).hostname or "?"
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, anomaly: Anomaly) -> None:
        """Post it in the background."""
        if len(self._tasks) >= UNDER_WAY:
            log.warning("webhook at %s: too many calls are under way, %s was left out", self._host, anomaly.scope)
            return
        task = asyncio.get_running_loop().create_task(self._post(anomaly))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, timeout_s: float) -> None:
        """Wait for what is under way, and give up the rest."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _post(self, anomaly: Anomaly) -> None:
        said = ""
        for number in range(TRIES):
            if number:
                await asyncio.sleep(PAUSE_S)
            try:
                said = await self._try(anomaly)
            except Exception as error:  # its text may quote the address
                said = type(error).__name__
            if not said:
                return
        log.warning("webhook at %s: %s was not taken: %s", self._host, anomaly.scope, said)

    async def _try(self, anomaly: Anomaly) -> str:
        """Why it was not taken; empty when it was."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            # a redirect could lead anywhere, inside the user's network too
            session.post(self._url, json=event(anomaly), allow_redirects=False) as answer,
        ):
            return "" if 200 <= answer.status < 300 else f"status {answer.status}"


def event(anomaly: Anomaly) -> dict[str, object]:
    """What is posted. Amounts are tokens, or dollars where the unit is usd; `text` is what chat services show."""
    amounts = {"spent": anomaly.spent, "usual": anomaly.usual, "threshold": anomaly.threshold}
    return {
        "event": "spend_anomaly",
        "scope": anomaly.scope,
        "unit": anomaly.unit,
        **{name: amount / 1e6 if anomaly.unit == "usd" else amount for name, amount in amounts.items()},
        "minute": datetime.fromtimestamp(anomaly.minute * 60, UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "stopped": anomaly.stopped,
        "text": in_words(anomaly),
    }
