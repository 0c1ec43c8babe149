"""The budget actor: reads the clock, asks the ledger, commits, answers.

Nothing is answered before it is committed. A commit that fails leaves a ledger in memory that is ahead of the store, so the ledger
is dropped and loaded again with the next call; to the holder that asked it is as if its message had been lost.

One exchange runs at a time: there is no await between the rule and the commit, so no lock is needed. Ray must therefore
run all methods but `ping` in one concurrency group.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from actors.budget.lease import Exchange, Exchanged
from actors.budget.ledger import UNITS, Ledger, Snapshot, whole_units, window_limits
from actors.budget.store import LedgerStore, SqliteStore
from actors.errors import StoreError, StoreFenced
from actors.settings import BudgetSettings, ScopeSettings

__all__ = ["BudgetActor"]

T = TypeVar("T")


class BudgetActor:
    """Every method may raise StoreError; a StoreFenced is final, since a newer budget actor has taken over."""

    def __init__(
        self,
        settings: BudgetSettings,
        state_dir: str,
        lease_s: float = 10.0,
        *,
        open_store: Callable[[Path, int | None], LedgerStore] = SqliteStore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # no I/O here: Ray does not restart an actor whose __init__ failed
        self._limits = window_limits(settings)
        self._state_dir = Path(state_dir)
        self._lease_s = lease_s
        self._open_store = open_store
        self._clock = clock
        self._store: LedgerStore | None = None
        self._ledger: Ledger | None = None
        self._epoch: int | None = None
        self._fenced = ""

    async def exchange(self, message: Exchange) -> Exchanged:
        """Book what a router reports and grant what it may have; committed when this returns."""
        return self._committed(lambda ledger, now: ledger.exchange(message, now))

    async def show(self) -> Snapshot:
        return self._committed(lambda ledger, now: ledger.snapshot(now))

    async def set_limit(self, scope: str, window: str, unit: str, limit: int | None) -> None:
        """Set a limit (tokens or micro-dollars; None: no limit) over the configured one; it outlives restarts.

        Raises ConfigError for a scope, window, unit or limit that cannot be.
        """
        self._committed(lambda ledger, now: ledger.set_limit(scope, window, unit, limit, now))

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

    async def ping(self) -> None:
        """Answers, or raises StoreFenced if this actor has been replaced."""
        if self._fenced:
            raise StoreFenced(self._fenced)

    def _committed(self, act: Callable[[Ledger, float], T]) -> T:
        """What `act` returns, once what it changed is in the store; if that fails, it has changed nothing."""
        ledger, store = self._opened()
        try:
            result = act(ledger, self._clock())
            rows = ledger.changes()
            if any(rows):
                store.write(rows)
        except BaseException as error:
            self._close(error)
            raise
        return result

    def _opened(self) -> tuple[Ledger, LedgerStore]:
        if self._fenced:
            raise StoreFenced(self._fenced)
        if self._ledger is None or self._store is None:
            try:
                self._store = self._open_store(self._state_dir, self._epoch)
                self._epoch = self._store.epoch
                self._ledger = Ledger.load(self._store.load(), self._limits, self._lease_s)
            except StoreError as error:
                self._close(error)
                raise
        return self._ledger, self._store

    def _close(self, error: BaseException) -> None:
        if isinstance(error, StoreFenced):
            self._fenced = str(error)
        if self._store is not None:
            self._store.close()
        self._store = self._ledger = None
