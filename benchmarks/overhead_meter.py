"""The clock of a client under measurement: rate, CPU of all of its processes, and how long each row took.

Without anything that is not in the standard library, since it also runs in the environments of what raycade is compared with.
"""

import os
import time
from pathlib import Path
from typing import Any

__all__ = ["Meter", "cpu_by_role", "quantile"]

START_TOGETHER_S = 180.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ALL_THREADS = 2
"""What clock_getcpuclockid(3) adds to a process id that it has turned into a clock."""
_RAY_ROLES = {
    "RouterActor": "router",
    "TierActor": "tiers",
    "CoalescerActor": "coalescer",
    "BudgetActor": "budget",
    "ObserverActor": "observer",
    "raylet": "raylet",
    "gcs_server": "gcs",
}


def cpu_by_role(root: int) -> dict[str, float]:
    """CPU seconds so far of a process ("driver") and of all processes below it, by what they do."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry)] = int(fields[1])
            # Of children that ended and were waited for nothing is known but the ticks.
            spent[int(entry)] = _own_s(int(entry), fields) + sum(map(int, fields[13:15])) / _TICKS_PER_S
    roles: dict[str, float] = {}
    for pid, seconds in spent.items():
        above = pid
        while above != root and above in parents:
            above = parents[above]
        if above == root:
            role = "driver" if pid == root else _role(pid)
            roles[role] = roles.get(role, 0.0) + seconds
    return roles


def _own_s(pid: int, fields: list[bytes]) -> float:
    """CPU seconds of all threads a process has had, by its clock: in /proc they are whole ticks of 10 ms, too coarse for 1,000 rows."""
    try:
        return time.clock_gettime(~pid << 3 | _ALL_THREADS)
    except OSError:  # it has ended meanwhile, or the system knows no such clocks
        return sum(map(int, fields[11:13])) / _TICKS_PER_S


def _role(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace")[:300]
    except OSError:
        return "other"
    return next((role for word, role in _RAY_ROLES.items() if word in command), "other")


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Meter:
    """Notes time and CPU when the first row after the warm-up is about to be read, and when the last line is written.

    `together`: a folder. Clients that share it begin at once: each leaves a file there when it is warm, and waits for `go`.
    """

    def __init__(self, together: str = "") -> None:
        self._together = together
        self._made_at = time.perf_counter()
        self._warming_at = 0.0
        self._begin: tuple[float, dict[str, float]] | None = None
        self._end: tuple[float, dict[str, float]] | None = None
        self._took_s: list[float] = []

    def warming(self) -> None:
        """The first row of all is about to be read."""
        self._warming_at = time.perf_counter()

    def begin(self) -> None:
        """The warm-up's lines are written, nothing is in flight, and the first row that counts is about to be read."""
        if self._together:
            Path(self._together, f"warm-{os.getpid()}").touch()
            until = time.monotonic() + START_TOGETHER_S
            while not Path(self._together, "go").exists() and time.monotonic() < until:
                time.sleep(0.005)
        self._took_s.clear()
        self._begin = time.perf_counter(), cpu_by_role(os.getpid())

    def row(self, began: float) -> None:
        """A row has its line; `began`: when it was taken up, by time.perf_counter()."""
        self._took_s.append(time.perf_counter() - began)

    def end(self) -> None:
        """The last line is written."""
        self._end = time.perf_counter(), cpu_by_role(os.getpid())

    def result(self, rows: int) -> dict[str, Any]:
        """Rate, and CPU per row in microseconds. `rows`: how many there were between begin() and end().

        `began` and `ended` are moments of this machine's monotonic clock, the same for all processes.
        """
        assert self._begin is not None, "begin() was not called"
        assert self._end is not None, "end() was not called"
        (began, cpu_before), (ended, cpu_after) = self._begin, self._end
        cpu = {role: 1e6 * (spent - cpu_before.get(role, 0.0)) / rows for role, spent in cpu_after.items()}
        took = sorted(self._took_s)
        return {
            "rows": rows,
            "began": began,
            "ended": ended,
            "seconds": ended - began,
            "rows_per_s": rows / (ended - began),
            "cpu_us_per_row": sum(cpu.values()),
            "cpu_us_per_row_by_role": {role: round(us, 1) for role, us in sorted(cpu.items())},
            "start_s": self._warming_at - self._made_at,
            "end_s": time.perf_counter() - ended,
        } | ({f"p{share}_ms": 1000 * quantile(took, share / 100) for share in (50, 99)} if took else {})
