"""The errors of Raycade.

    RaycadeError
    ├── ConfigError          raycade.yaml or an option is wrong; carries file, line and key
    ├── InputError           an input row is wrong; carries file, line and field
    │   └── RowError         the same with the row's number and custom_id (runtime/batch/reader.py)
    ├── OutputError          an output file takes no more (runtime/batch/journal.py)
    ├── ActorLost            the actor at the other end of a lane died; carries whether the item had been handed over
    ├── LaneClosed           the lane was closed while the item waited
    ├── LaneTimeout          no completion came by the item's deadline
    ├── BudgetExceeded       a budget would be passed; carries scope, window, unit, limit, spent and when it turns
    ├── RunawayLoop          the same request came too often; carries its digest, the count, the limit and the window
    ├── StoreError           the ledger's store cannot be used (disk full, not writable, damaged, not reachable)
    ├── RequestFailed        a program's request got no answer; carries the kind of failure and when it is worth another try
    └── ClusterError         Ray could not be started, reached, or has other code than we do

Every error survives pickling: all arguments go to `super().__init__`. Between actors, failures of a request are
values (`messages.Failure`), not exceptions; a program that asked gets them as RequestFailed.
"""

from typing import Any

__all__ = [
    "ActorLost",
    "BudgetExceeded",
    "ClusterError",
    "ConfigError",
    "InputError",
    "LaneClosed",
    "LaneTimeout",
    "RaycadeError",
    "RequestFailed",
    "RunawayLoop",
    "StoreError",
]


class RaycadeError(Exception):
    """Root of the tree: `except RaycadeError` catches everything that Raycade raises on purpose."""


class ConfigError(RaycadeError):
    """A configuration that cannot be used: one line that names its place."""

    def __init__(self, message: str, file: str = "", line: int = 0, key: str = "") -> None:
        super().__init__(message, file, line, key)
        self.message, self.file, self.line, self.key = message, file, line, key

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.key + ': ' if self.key else ''}{self.message}"


class InputError(RaycadeError):
    """An input row that cannot be used. `code` is what the row's error line carries."""

    def __init__(self, code: str, message: str, file: str = "", line: int = 0, field: str = "") -> None:
        super().__init__(code, message, file, line, field)
        self.code, self.message, self.file, self.line, self.field = code, message, file, line, field

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file else ""
        return f"{place}{self.field + ': ' if self.field else ''}{self.message}"


class ActorLost(RaycadeError):
    """The actor that served a lane died. `sent` tells whether the item had been handed over: if not, it surely did not run."""

    def __init__(self, lane: str, sent: bool) -> None:
        super().__init__(lane, sent)
        self.lane, self.sent = lane, sent

    def __str__(self) -> str:
        return f"the actor behind {self.lane} was lost; the outcome is {'unknown' if self.sent else 'known: not run'}"


class LaneClosed(RaycadeError):
    """The lane was closed before the item completed."""


class LaneTimeout(RaycadeError):
    """No completion came in time; the item has been cancelled at the other end. `sent` as in ActorLost."""

    def __init__(self, lane: str, sent: bool) -> None:
        super().__init__(lane, sent)
        self.lane, self.sent = lane, sent

    def __str__(self) -> str:
        return f"no completion from {self.lane} by the deadline"


class BudgetExceeded(RaycadeError):
    """Granting this would pass a limit, or its scope was halted: then `reason` says when and why."""

    def __init__(
        self, scope: str, window: str, unit: str, limit: int, spent: int, turns_in_s: float | None, reason: str = ""
    ) -> None:
        super().__init__(scope, window, unit, limit, spent, turns_in_s, reason)
        self.scope, self.window, self.unit = scope, window, unit
        self.limit, self.spent, self.turns_in_s, self.reason = limit, spent, turns_in_s, reason

    @property
    def halted(self) -> bool:
        """Not a limit but a person, or an anomaly, has stopped the scope; it goes on when a person says so."""
        return self.window == "halted"

    def __str__(self) -> str:
        if self.halted:
            resume = f'"raycade budget resume {self.scope}" lets it go on'
            return f"spending of {self.scope} was stopped {self.reason}; {resume}"

        def show(amount: int) -> str:
            return f"${amount / 1e6:,.2f}" if self.unit == "usd" else f"{amount:,} tokens"

        turns = "" if self.turns_in_s is None else f"; the window turns in {_duration(self.turns_in_s)}"
        return (
            f"budget of scope {self.scope!r} {'in all' if self.window == 'total' else 'per ' + self.window}: "
            f"{show(self.spent)} of {show(self.limit)} "
            f"spent or booked, not enough left{turns}"
        )


class RunawayLoop(RaycadeError):
    """The same request came too often. `what`: it would make too many `calls`, or there are too many equal `requests`."""

    def __init__(self, digest: str, what: str, count: int, limit: int, window_s: float) -> None:
        super().__init__(digest, what, count, limit, window_s)
        self.digest, self.what, self.count, self.limit, self.window_s = digest, what, count, limit, window_s

    def __str__(self) -> str:
        if self.what == "calls":
            told = f"would make call {self.count:,}"
            limit = f"the limit is coalesce.runaway.max_per_minute: {self.limit}"
        else:
            told = f"came {self.count:,} times"
            limit = f"the limit, which follows coalesce.runaway.max_per_minute, is {self.limit:,}"
        return f"runaway loop: the same request (digest {self.digest}) {told} within {self.window_s:g} s; {limit}"


class StoreError(RaycadeError):
    """The ledger's store cannot be used."""


class RequestFailed(RaycadeError):
    """A program's request failed (runtime/client.py). `kind` is a FailureKind of actors/messages.py.

    `status`: the HTTP status of the last answer, 0 where there was none; `attempts`: what was tried, in order;
    `cost_usd`: what it cost all the same; `body`: the endpoint's last error, as it came.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        status: int = 0,
        retry_after_s: float | None = None,
        attempts: tuple[Any, ...] = (),
        cost_usd: float = 0.0,
        body: bytes = b"",
    ) -> None:
        super().__init__(kind, message, status, retry_after_s, attempts, cost_usd, body)
        self.kind, self.message, self.status, self.retry_after_s = kind, message, status, retry_after_s
        self.attempts, self.cost_usd, self.body = attempts, cost_usd, body

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class ClusterError(RaycadeError):
    """Ray could not be started or reached, or the cluster has other code than this process."""


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {secs} s" if minutes else f"{secs} s"
