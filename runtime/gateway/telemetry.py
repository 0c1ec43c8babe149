"""What a gateway's replica tells the observer, once a second: what its requests count, what it has in hand.

    Router --every attempt that is settled--> attempt() --.
    Router.run, Router.stream  <-- Watched ----> ended() --+-> Tally --.
    the gate's refusals ----------------------> refused() -'           +-> draw_up() -> Report -> observer
    router.note(), the gate, the ledger ------------------------------'

Attempts are counted when they are settled and not with the answer, since callers leave: what a call has cost that nobody
waits for any more is in the sums all the same. Answers of registered prompts go on to their trials (prompts.py).
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Awaitable
from typing import Any

from actors.events import NONE, Tally
from actors.messages import Attempt, Failure, Request, Result
from actors.observer.scene import GatewayScene, Report
from actors.router.flow import Router
from actors.router.told import Listener
from runtime.config import Config
from runtime.gateway.limits import Gate
from runtime.gateway.prompts import Prompts, Stopped
from runtime.telling import Telling
from runtime.view import View

__all__ = ["Telemetry", "Watched"]

RATE_OVER_S = 10.0
NOTICES = 8


class Telemetry:
    """One a replica. It counts from the beginning on, and reports from `open` to `close`."""

    def __init__(self, config: Config, gate: Gate, prompts: Prompts) -> None:
        self._config, self._gate, self._prompts = config, gate, prompts
        self._view = View(config)
        self._tally = Tally("", self._view.models)
        self._replica = ""
        self._router: Router | None = None
        self._watching: Any = None
        self._telling: Telling | None = None
        self._began = time.monotonic()
        self._answered = self._failed = self._coalesced = self._tokens = self._usd_micros = 0
        self._before: deque[tuple[float, int]] = deque()
        self._notices: deque[str] = deque(maxlen=NOTICES)

    # ------------------------------------------------------------------ what it counts

    def attempt(self, request: Request, attempt: Attempt) -> None:
        """A call has been settled."""
        self._tally.attempts((attempt,), request.path, request.prompt, request.id, bool(request.schema))
        self._tokens += attempt.booked.tokens
        self._usd_micros += attempt.booked.usd_micros

    def refused(self, code: str) -> None:
        """A request was refused before it came to the router."""
        self._failed += 1
        self._tally.request(NONE, code)

    def left(self, request: Request) -> None:
        """Its caller has gone."""
        self._failed += 1
        self._tally.request(NONE, "cancelled", (), request.path, request.prompt)

    def ended(self, request: Request, done: Result | Failure, seconds: float) -> None:
        """The router has ended a request. Its attempts have been counted; which of their replies were refused is known now."""
        failed = ""
        if isinstance(done, Result):
            tier, outcome = done.tier, "coalesced" if done.coalesced else "ok"
            self._answered += 1
            self._coalesced += done.coalesced
        else:
            tier, outcome = done.attempts[-1].tier if done.attempts else NONE, done.kind
            failed = done.kind
            self._failed += 1
        self._tally.request(tier, outcome, (), request.path, request.prompt, request.id, seconds)
        for attempt in done.attempts:
            if attempt.misfit:
                self._tally.misfit(request.prompt, attempt.tier)
        if request.prompt and done.attempts:  # a follower's answer is its lead's, and counts once
            for stopped in self._prompts.ended(
                request.prompt, done.refused_replies, failed, done.cost.usd_micros / 1e6
            ):
                asyncio.get_running_loop().create_task(self._stop(stopped))

    async def _stop(self, stopped: Stopped) -> None:
        self._notice(await asyncio.to_thread(self._prompts.stop, stopped))

    def _notice(self, text: str) -> None:
        self._notices.append(text)
        print(f"raycade: {text}", file=sys.stderr)

    # ------------------------------------------------------------------ what it tells

    def open(self, replica: str, source: str, router: Router, watching: Any) -> None:
        """From now on there is something to tell, and `watching` (runtime.cluster.Watching) to tell it to; None: nobody."""
        self._replica, self._router, self._watching = replica, router, watching
        self._tally.source = source
        if watching is not None:
            self._telling = Telling(self.draw_up, watching.report, watching.budget)

    async def close(self) -> None:
        """The last report. The router has been closed: nothing is counted after it."""
        if self._telling is not None:
            await self._telling.close()

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """`/metrics`, with what this replica has counted up to now. Raises what Ray raises."""
        assert self._telling is not None, "there is an observer, and `open` was called"
        await self._telling.say()
        scraped: tuple[bytes, str] = await self._watching.scrape(accept)
        return scraped

    async def live(self) -> bytes:
        """What `/ui` shows, as JSON. Raises what Ray raises."""
        told: bytes = await self._watching.live()
        return told

    def draw_up(self) -> Report:
        """The report of this moment."""
        assert self._router is not None
        now, note, totals = time.monotonic(), self._router.note(), self._tally.totals()
        told = self._view.scene({self._replica: note}, totals, self._telling.snapshot if self._telling else None)
        told = told._replace(
            gateway=GatewayScene(
                self._replica,
                now - self._began,
                self._gate.in_flight,
                self._gate.streams,
                self._config.gateway.max_queued,
                self._answered,
                self._failed,
                self._coalesced,
                self._rate(now),
                self._tokens,
                self._usd_micros,
                note.waiting_for_budget,
                (*self._notices, *self._prompts.trouble, *((note.trouble,) if note.trouble else ())),
            ),
        )
        return Report(totals, told)

    def _rate(self, now: float) -> float:
        """Requests a second over the last `RATE_OVER_S`."""
        ended, before = self._answered + self._failed, self._before
        before.append((now, ended))
        while len(before) > 2 and now - before[1][0] >= RATE_OVER_S:
            before.popleft()
        at, then = before[0]
        return round((ended - then) / (now - at), 2) if now > at else 0.0


class Watched:
    """The router, with all that it ends counted."""

    def __init__(self, router: Router, telemetry: Telemetry) -> None:
        self._router, self._telemetry = router, telemetry

    async def run(self, request: Request) -> Result | Failure:
        """As Router.run."""
        return await self._counted(request, self._router.run(request))

    async def stream(self, request: Request, listener: Listener) -> Result | Failure:
        """As Router.stream."""
        return await self._counted(request, self._router.stream(request, listener))

    async def _counted(self, request: Request, answering: Awaitable[Result | Failure]) -> Result | Failure:
        began = time.monotonic()
        try:
            done = await answering
        except asyncio.CancelledError:
            self._telemetry.left(request)
            raise
        self._telemetry.ended(request, done, time.monotonic() - began)
        return done
