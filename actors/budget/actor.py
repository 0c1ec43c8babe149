"""The budget actor: reads the clock, asks the ledger, commits, answers.

Nothing is answered before it is committed, and every answer is made from the newest version of the store, which others may
write too (store.py). A commit that fails leaves a ledger in memory that is ahead of the store, so all is loaded again with the
next call; to the holder that asked it is as if its message had been lost.

An act may be applied twice: after somebody else's commit came first, and after a commit of which the connection's
end has hidden whether it was made. So whatever is added here must say what shall be, not what to add: an exchange carries
running totals, a limit is set to a value.

One act runs at a time: there is no await between the rule and the commit, so no lock is needed. Ray must therefore
run all methods in one concurrency group.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from actors.budget.anomaly import Anomaly, in_words
from actors.budget.exchange import Exchange, Exchanged
from actors.budget.ledger import Ledger
from actors.budget.limits import UNITS, pace_rules, whole_units, window_limits
from actors.budget.rows import Snapshot
from actors.budget.store import LedgerStore, StoreConflict, open_store
from actors.errors import StoreError
from actors.settings import BudgetSettings, ScopeSettings

if TYPE_CHECKING:
    from actors.budget.webhook import Webhook

__all__ = ["BudgetActor"]

T = TypeVar("T")

log = logging.getLogger("raycade.budget")

ANOMALIES = 20
"""So many are shown, the last ones."""
WEBHOOK_S = 5.0
"""How long the end of the actor waits for webhooks that are under way."""
TRIES = 4
"""Of an act. The second holds the store's lock already; more are for connections that break."""


class BudgetActor:
    """`store` is the folder of the ledger's file, or a postgresql:// address. Every method may raise StoreError."""

    def __init__(
        self,
        settings: BudgetSettings,
        store: str,
        lease_s: float = 10.0,
        *,
        open_store: Callable[[str], LedgerStore] = open_store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # no I/O here: Ray does not restart an actor whose __init__ failed
        self._limits = window_limits(settings)
        self._rules = pace_rules(settings)
        self._webhook = _webhook(settings.anomaly.webhook) if settings.anomaly.webhook else None
        self._anomalies: deque[Anomaly] = deque(maxlen=ANOMALIES)
        self._place = store
        self._lease_s = lease_s
        self._open_store = open_store
        self._clock = clock
        self._store: LedgerStore | None = None
        self._ledger: Ledger | None = None

    async def exchange(self, message: Exchange) -> Exchanged:
        """Book what a router reports and grant what it may have; committed when this returns."""
        return self._committed(lambda ledger, now: ledger.exchange(message, now))

    async def show(self) -> Snapshot:
        snapshot = self._committed(lambda ledger, now: ledger.snapshot(now))
        return snapshot._replace(anomalies=tuple(self._anomalies))

    async def set_limit(self, scope: str, window: str, unit: str, limit: int | None) -> None:
        """Set a limit (tokens or micro-dollars; None: no limit) over the configured one; it outlives restarts.

        Raises ConfigError for a scope, window, unit or limit that cannot be.
        """
        self._committed(lambda ledger, now: ledger.set_limit(scope, window, unit, limit, now))

    async def halt(self, scope: str, reason: str) -> None:
        """Stop all spending of a scope until `resume`. Raises ConfigError for a scope that cannot be."""
        self._committed(lambda ledger, now: ledger.halt(scope, reason, now))

    async def resume(self, scope: str | None = None) -> tuple[str, ...]:
        """Let a scope, or all that are halted, go on; which ones that were."""

        def resume(ledger: Ledger, now: float) -> tuple[str, ...]:
            scopes = [halt.scope for halt in ledger.snapshot(now).halts] if scope is None else [scope]
            return tuple(each for each in scopes if ledger.resume(each, now))

        return self._committed(resume)

    async def open_job(
        self, job: str, limits: ScopeSettings, *, max_tokens: float | None = None, max_usd: float | None = None
    ) -> None:
        """Give a job its own limits: over all its life (`--max-tokens`, `--max-usd`), and per hour and day where given.

        A job that is resumed opens again; its maxima are then those of the new call, its spend carries on.
        """
        given = ((limits.tokens, max_tokens), (limits.usd, max_usd))

        def open_scope(ledger: Ledger, now: float) -> None:
            for unit, (windows, most) in zip(UNITS, given, strict=True):
                ledger.set_limit(f"job:{job}", "total", unit, None if most is None else whole_units(most, unit), now)
                for window, value in (("hour", windows.per_hour), ("day", windows.per_day)):
                    if value is not None:
                        ledger.set_limit(f"job:{job}", window, unit, whole_units(value, unit), now)

        self._committed(open_scope)

    async def close(self, ended: str = "") -> None:
        """Let webhooks that are under way arrive, and close the store. Any later call opens it again.

        `ended`: how the names of holders begin that have ended. What a killed one held is booked now: else it would stand as
        reserved until somebody's ledger has run for the length of a lease.
        """
        if ended:
            self._committed(lambda ledger, now: ledger.dismiss(ended, now))
        if self._webhook is not None:
            await self._webhook.drain(WEBHOOK_S)
        self._close()

    def _committed(self, act: Callable[[Ledger, float], T]) -> T:
        """What `act` returns, once what it changed is in the store; if that fails, it has changed nothing."""
        reason = ""
        try:
            for again in range(TRIES):
                try:
                    if self._store is None:
                        self._store = self._open_store(self._place)
                        self._ledger = self._loaded(self._store, lock=False)
                    elif again:
                        # locked: nobody comes first again
                        self._ledger = self._loaded(self._store, lock=True)
                    assert self._ledger is not None
                    result = act(self._ledger, self._clock())
                    self._store.write(self._ledger.changes())
                    self._tell(self._ledger.anomalies())
                    return result
                except StoreConflict as conflict:
                    reason = str(conflict)
            raise StoreError(f"{reason}, {TRIES} times in a row")
        except BaseException:
            self._close()
            raise

    def _loaded(self, store: LedgerStore, *, lock: bool) -> Ledger:
        rows = store.load(lock=lock)
        return Ledger.load(rows, self._limits, self._lease_s, carry=self._ledger, rules=self._rules)

    def _tell(self, anomalies: tuple[Anomaly, ...]) -> None:
        """Of what has been committed; nothing here may raise or wait."""
        for anomaly in anomalies:
            self._anomalies.append(anomaly)
            log.warning("%s", in_words(anomaly))
            if self._webhook is not None:
                self._webhook.tell(anomaly)

    def _close(self) -> None:
        """Load again with the next call. The ledger stays for its clocks and leases, which no store has."""
        if self._store is not None:
            self._store.close()
        self._store = None


def _webhook(url: str) -> "Webhook":
    from actors.budget.webhook import Webhook  # aiohttp takes a moment to import, and few have a webhook

    return Webhook(url)
