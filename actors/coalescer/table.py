"""Who asks what right now: one lead a key, and each follower exactly one end.

    claim     a kept result                 -> the claimant has it at once
              an entry                      -> it follows
              no entry                      -> it leads, in a new generation
              it is a runaway loop          -> it is refused
    finish    followers, or results are kept-> the lead is asked to publish
              nobody                        -> the entry goes
    publish                                 -> every follower has the result; the entry goes
    linger    followers                     -> the lead goes on for them, though its own caller is gone
              nobody                        -> the entry goes, the lead is unwanted
    leave     a follower                    -> it is forgotten
              the last follower of a lead that lingers
                                            -> the entry goes, the lead is unwanted
              the lead, followers           -> the first of them leads, in a new generation; those before it whose
                                               lead would be a runaway loop are refused
              the lead, nobody              -> the entry goes
    expire    a lead whose lease ran out    -> as if it left

Whenever an entry goes or passes to another, a lead that lingered is told that it is unwanted, so it is told exactly
once. finish and publish of an older generation, and leave and linger of a claimant that has ended, change nothing. Results
cross only when somebody waits for them: a lead first says that it has finished, and is told whether to send what it got.

Tickets are the caller's own names for claimants, any hashable values. Pure: `now` is an argument, and what is to be
told to whom is returned.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from actors.coalescer.runaway import Loops, Runaway

__all__ = ["Lead", "Shared", "Table", "Told", "Unwanted"]

Ticket = TypeVar("Ticket", bound=Hashable)


class Lead(NamedTuple):
    """The claimant makes the call; it ends with finish or leave, and publishes under this generation."""

    generation: int


class Shared(NamedTuple):
    """The claimant has its answer: what the lead published."""

    result: Any


class Unwanted(NamedTuple):
    """Nobody waits any more for what a lingering lead is doing."""


class _Entry(Generic[Ticket]):
    __slots__ = ("followers", "generation", "lead", "lease_until", "lingers")

    def __init__(self, lead: Ticket, generation: int, lease_until: float) -> None:
        self.lead = lead
        self.generation = generation
        self.lease_until = lease_until
        self.lingers = False
        """The lead's own caller is gone: it works for the followers alone."""
        self.followers: dict[Ticket, float] = {}  # ticket -> the lease it would lead under, seconds


Told = list[tuple[Ticket, Lead | Shared | Runaway | Unwanted]]


class Table(Generic[Ticket]):
    """See the module's table of events."""

    def __init__(self, keep_s: float = 0.0, keep_bytes: int = 64 << 20, loops: Loops | None = None) -> None:
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self._loops = loops
        self._kept: OrderedDict[bytes, tuple[float, int, Any]] = OrderedDict()
        self._kept_bytes = 0
        self._entries: dict[bytes, _Entry[Ticket]] = {}
        self._generation = 0
        self._keys: dict[Ticket, bytes] = {}  # what each live ticket leads or follows
        self.coalesced = 0
        """Claims that were answered with somebody else's result."""

    def __len__(self) -> int:
        return len(self._entries)

    def tickets(self) -> Iterable[Ticket]:
        """All that lead or follow now."""
        return self._keys.keys()

    def claim(self, key: bytes, ticket: Ticket, lease_s: float, now: float) -> Lead | Shared | Runaway | None:
        """Ask for `key`. None: the claimant follows, and is told later. `lease_s` bounds its time as a lead."""
        kept = self._kept.get(key)
        if kept is not None and kept[0] <= now:
            kept = None
        entry = self._entries.get(key)
        if self._loops is not None:
            runaway = self._loops.claim(key, now, leads=kept is None and entry is None)
            if runaway is not None:
                return runaway
        if kept is not None:
            self.coalesced += 1
            return Shared(kept[2])
        self._keys[ticket] = key
        if entry is not None:
            entry.followers[ticket] = lease_s
            return None
        self._generation += 1
        self._entries[key] = _Entry(ticket, self._generation, now + lease_s)
        return Lead(self._generation)

    def lead(self, key: bytes) -> Ticket | None:
        """Who makes the call for `key` now."""
        entry = self._entries.get(key)
        return None if entry is None else entry.lead

    def key(self, ticket: Ticket) -> bytes | None:
        """What a claimant leads or follows."""
        return self._keys.get(ticket)

    def followers(self, key: bytes) -> tuple[Ticket, ...]:
        """Who waits for what the lead of `key` gets."""
        entry = self._entries.get(key)
        return () if entry is None else tuple(entry.followers)

    def leads(self, key: bytes, generation: int) -> bool:
        """Whether this is still the generation that makes the call."""
        return self._current(key, generation) is not None

    def finish(self, key: bytes, generation: int) -> bool:
        """The lead has an answer. True: somebody wants it, publish it."""
        entry = self._current(key, generation)
        if entry is None:
            return False
        if entry.followers or self._keep_s > 0:
            return True
        self._forget(key, entry)
        return False

    def publish(
        self, key: bytes, generation: int, result: Any, size: int, now: float, keep: bool = True
    ) -> Told[Ticket]:
        """Give the followers `result`; keep it for `keep_s` if so configured and `keep`."""
        entry = self._current(key, generation)
        if entry is None:
            return []
        followers = list(entry.followers)
        self.coalesced += len(followers)
        unwanted = self._forget(key, entry)
        if keep and self._keep_s > 0:
            self._keep(key, result, size, now)
        return [*((ticket, Shared(result)) for ticket in followers), *unwanted]

    def linger(self, ticket: Ticket) -> bool:
        """A lead's caller is gone. True: nobody else waits, stop. False: go on; it is told when it is unwanted."""
        key = self._keys.get(ticket)
        if key is None or self._entries[key].lead != ticket:
            return True
        entry = self._entries[key]
        if not entry.followers:
            self._forget(key, entry)
            return True
        entry.lingers = True
        return False

    def leave(self, ticket: Ticket, now: float) -> Told[Ticket]:
        """A claimant is gone, or gives up, whatever it was."""
        key = self._keys.get(ticket)
        if key is None:
            return []
        entry = self._entries[key]
        if entry.lead == ticket:
            return self._promote(key, entry, now)
        del entry.followers[ticket], self._keys[ticket]
        return self._forget(key, entry) if entry.lingers and not entry.followers else []

    def expire(self, now: float) -> Told[Ticket]:
        """End the leads whose lease ran out, and drop kept results that are too old."""
        while self._kept and next(iter(self._kept.values()))[0] <= now:
            self._kept_bytes -= self._kept.popitem(last=False)[1][1]
        late = [(key, entry) for key, entry in self._entries.items() if entry.lease_until <= now]
        return [told for key, entry in late for told in self._promote(key, entry, now)]

    # ------------------------------------------------------------------ inside

    def _current(self, key: bytes, generation: int) -> "_Entry[Ticket] | None":
        entry = self._entries.get(key)
        return entry if entry is not None and entry.generation == generation else None

    def _forget(self, key: bytes, entry: "_Entry[Ticket]") -> Told[Ticket]:
        del self._entries[key], self._keys[entry.lead]
        for ticket in entry.followers:
            del self._keys[ticket]
        return [(entry.lead, Unwanted())] if entry.lingers else []

    def _promote(self, key: bytes, entry: "_Entry[Ticket]", now: float) -> Told[Ticket]:
        told: Told[Ticket] = [(entry.lead, Unwanted())] if entry.lingers else []
        del self._keys[entry.lead]
        while entry.followers:
            ticket = next(iter(entry.followers))
            lease_s = entry.followers.pop(ticket)
            runaway = self._loops.lead(key, now) if self._loops is not None else None
            if runaway is None:
                self._generation += 1
                entry.lead, entry.generation, entry.lease_until = ticket, self._generation, now + lease_s
                entry.lingers = False
                return [*told, (ticket, Lead(self._generation))]
            del self._keys[ticket]
            told.append((ticket, runaway))
        del self._entries[key]
        return told

    def _keep(self, key: bytes, result: Any, size: int, now: float) -> None:
        if size > self._keep_bytes:
            return
        old = self._kept.pop(key, None)
        if old is not None:
            self._kept_bytes -= old[1]
        self._kept[key] = (now + self._keep_s, size, result)
        self._kept_bytes += size
        while self._kept_bytes > self._keep_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1][1]

    def check(self) -> None:
        """Assert what always holds; for tests."""
        tickets = [t for entry in self._entries.values() for t in (entry.lead, *entry.followers)]
        assert len(tickets) == len(set(tickets)), "a ticket stands in two places"
        assert set(tickets) == set(self._keys), "a ticket is lost"
        assert all(self._keys[t] == key for key, e in self._entries.items() for t in (e.lead, *e.followers))
        assert all(e.followers for e in self._entries.values() if e.lingers), "a lead lingers for nobody"
        assert self._kept_bytes == sum(size for _, size, _ in self._kept.values()) <= self._keep_bytes
