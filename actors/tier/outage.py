"""An endpoint, or one path of it, that is no use until somebody puts it right: a refused key, a model that vanished.

Unlike the circuit breaker's, these failures say that the next call would end the same way, so the first one is enough.
Nobody knows when it is put right, and a refusal costs nothing: once a pause, one call asks again.

`refused(reason, now)` when a call was refused; `probe(now, lease_s)` before the next: True for the one call that may find
out. It has until its lease ends; then another may. An answer ends the outage, and its owner drops the object.
"""

from actors.messages import FailureKind

__all__ = ["Outage"]


class Outage:
    """Holds no clock: `now` is an argument. Seconds of one monotonic clock."""

    __slots__ = ("_pause_s", "_probing", "kind", "reason", "since", "until")

    def __init__(self, kind: FailureKind, pause_s: float, now: float) -> None:
        self.kind = kind
        self.since = now
        self.reason = ""
        self.until = 0.0
        """No call before then."""
        self._pause_s = pause_s
        self._probing = True

    def refused(self, reason: str, now: float) -> None:
        """A call was refused. Those that were under way together make one pause."""
        self.reason = reason
        if self._probing:
            self._probing = False
            self.until = now + self._pause_s

    def probe(self, now: float, lease_s: float) -> bool:
        """Whether a call may find out now."""
        if now < self.until:
            return False
        self._probing = True
        self.until = now + lease_s
        return True
