"""The disk of a history: the ledger's rows, outliving every budget actor, with a store on it that fails as disks do.

A write can fail before or after it took effect, come to an unknown end, or be the last thing its process does.
"""

import random
from collections.abc import Callable
from typing import Any

from actors.budget.rows import Rows
from actors.budget.store import StoreConflict
from actors.budget.tables import TABLES
from actors.errors import StoreError

__all__ = ["Disk", "MemoryStore"]


class Disk:
    """All rows by their keys, as the last commit left them."""

    def __init__(self, rng: random.Random, tell: Callable[..., None]) -> None:
        self.rng = rng
        self.tell = tell
        self.tables: dict[str, dict[tuple[Any, ...], Any]] = {table.name: {} for table in TABLES}
        self.version = 0
        self.hour = 0
        self.day = 0
        """The ledger's windows, as committed."""
        self.fails = 0.0
        """How often a write fails; half of those have taken effect."""
        self.kills = 0.0
        """How often a write kills its process, before or after it."""
        self.die: Callable[[], None] = lambda: None
        self.failed = 0
        self.conflicts = 0
        self.turned = 0

    def commit(self, rows: Rows) -> None:
        self.version += 1
        tables = self.tables
        gone = {(row.holder, row.incarnation) for row in rows.holders if row.closed_at is not None}
        gone.update(rows.forgotten)
        if gone:
            tables["held"] = {key: row for key, row in tables["held"].items() if key[:2] not in gone}
            for key in rows.forgotten:
                tables["holders"].pop(key, None)
        for scope in rows.resumed:
            tables["halts"].pop((scope,), None)
        for table in TABLES:
            kept = tables[table.name]
            for row in getattr(rows, table.name):
                kept[row[: table.key_columns]] = row
        for counter in rows.counters:
            if counter.window == "hour":
                self.turned += 0 < self.hour < counter.period
                self.hour = max(self.hour, counter.period)
            elif counter.window == "day":
                self.day = max(self.day, counter.period)


class MemoryStore:
    """A LedgerStore on a Disk; one per budget actor. Nothing can come between a load with `lock` and its write."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._version = -1
        if disk.fails and disk.rng.random() < disk.fails / 2:
            disk.failed += 1
            raise StoreError("cannot be opened")

    def load(self, *, lock: bool = False) -> Rows:
        self._version = self._disk.version
        return Rows(**{name: tuple(table.values()) for name, table in self._disk.tables.items()})

    def write(self, rows: Rows) -> None:
        disk = self._disk
        if self._version != disk.version:
            disk.conflicts += 1
            disk.tell("conflict")
            raise StoreConflict("another budget actor has written")
        if not any(rows):
            return
        if disk.kills and disk.rng.random() < disk.kills:
            if disk.rng.random() < 0.5:
                disk.commit(rows)
            disk.die()
            raise StoreError("the process is dead")
        if disk.fails and disk.rng.random() < disk.fails:
            disk.failed += 1
            took_effect = disk.rng.random() < 0.5
            disk.tell("write fails", "after the commit" if took_effect else "before the commit")
            if took_effect:
                disk.commit(rows)
            if disk.rng.random() < 0.5:
                raise StoreConflict("whether it was committed is not known")
            raise StoreError("disk full")
        disk.commit(rows)
        self._version = disk.version

    def close(self) -> None:
        pass
