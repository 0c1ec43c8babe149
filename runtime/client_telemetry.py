"""What a Python program's requests count, told to the observer once a second: as a batch's rows and a gateway's requests are.

    Client, Stream --every request that ended--> Telemetry --Report--> observer of the actors it uses

Attempts come with the answers. What a request has cost whose caller left, or whose router died, is in the ledger alone.
"""

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING
from uuid import uuid4

from actors.events import NONE, Tally
from actors.messages import Failure, Request, Result
from actors.observer.scene import Report
from actors.router.notes import RouterNote
from runtime.config import Config
from runtime.running import Entry, Running
from runtime.telling import Telling
from runtime.view import View

if TYPE_CHECKING:
    from runtime.cluster import Cluster

__all__ = ["Telemetry"]

CLOSE_S = 5.0
"""A program that ends waits for its last report no longer."""


class Telemetry:
    """One a client. It counts from the beginning on, and reports from `open` to `close`."""

    def __init__(self, config: Config, name: str, job: str) -> None:
        self._config, self._name, self._job = config, name, job
        self._view = View(config, f"job:{job}")
        self._tally = Tally(name, self._view.models)
        self._notes: dict[str, RouterNote] = {}
        self._telling: Telling | None = None
        self._stack = contextlib.ExitStack()

    # ------------------------------------------------------------------ what it counts

    def note(self, router: str, note: RouterNote) -> None:
        """What a router says of the tiers."""
        self._notes[router] = note

    def ended(self, request: Request, done: Result | Failure, seconds: float) -> None:
        """A request has its answer, or will have none."""
        if isinstance(done, Result):
            tier, outcome = done.tier, "coalesced" if done.coalesced else "ok"
        else:
            tier, outcome = done.attempts[-1].tier if done.attempts else NONE, done.kind
        checked = bool(request.schema)
        self._tally.request(
            tier, outcome, done.attempts, request.path, request.prompt, request.id, seconds, checked=checked
        )

    def put_off(self, request: Request, failure: Failure) -> None:
        """A budget has nothing left for it now: it will be sent again."""
        self._tally.attempts(failure.attempts, request.path, request.prompt, request.id, bool(request.schema))

    def redone(self) -> None:
        """A request is sent again because its router died."""
        self._tally.add(("redone",), 1)

    def left(self, request: Request) -> None:
        """Its caller has gone."""
        self._tally.request(NONE, "cancelled", (), request.path, request.prompt)

    # ------------------------------------------------------------------ what it tells

    def open(self, cluster: "Cluster", registered: bool) -> None:
        """There is an observer now, unless there is none. `registered`: `raycade status` is to find the program."""
        if "observer" not in cluster.handles:
            return
        # A client that is opened again begins anew: what it told before has been added up, and its source has ended.
        self._tally = Tally(f"{self._name}/{uuid4().hex[:8]}", self._view.models)
        entry = Entry(self._name, self._job, os.getpid(), _program(), time.time(), kind="client")
        running = Running(self._config.state_dir, entry)
        if registered:
            self._stack.enter_context(running)
        self._telling = Telling(
            self.draw_up, cluster.report, cluster.budget, lambda taken: running.found_at(taken.address)
        )

    async def close(self) -> None:
        """The last report, once all requests have ended. Never raises; does nothing where nothing was opened."""
        if self._telling is not None:
            await self._telling.close(CLOSE_S)
            self._telling = None
        self._stack.close()

    def draw_up(self) -> Report:
        """The report of this moment."""
        totals = self._tally.totals()
        snapshot = self._telling.snapshot if self._telling is not None else None
        return Report(totals, self._view.scene(self._notes, totals, snapshot))


def _program() -> str:
    """What runs here, as `raycade status` shows it: the script, without its arguments."""
    script = sys.argv[0] if sys.argv else ""
    return os.path.abspath(script) if os.path.isfile(script) else "python"
