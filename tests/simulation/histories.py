"""Many histories on all cores, added up; and one history told line by line."""

import gc
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from typing import Any

from tests.simulation.house import History
from tests.simulation.modules import simulated_modules

__all__ = ["BROKEN_KINDS", "Tally", "replay", "run_many", "run_seeds"]

BLOCK = 200
"""Seeds that one process runs before it ends: cheaper than to have Python collect what they leave."""
SHOWN = 20
BROKEN_KINDS = ("overspend", "leak", "hang", "end", "books", "coalescing", "happy", "trouble")


class Tally:
    """What many histories come to."""

    def __init__(self, counts: dict[str, int] | None = None, broken: Iterable[Any] = ()) -> None:
        self.counts: dict[str, int] = dict(counts or {})
        self.broken: list[tuple[int, str, str]] = [(seed, kind, what) for seed, kind, what in broken]
        """(seed, kind, what happened)"""

    @property
    def histories(self) -> int:
        return self.counts.get("histories", 0)

    def add(self, other: "Tally") -> None:
        for what, number in other.counts.items():
            self.counts[what] = self.counts.get(what, 0) + number
        self.broken += other.broken

    def broken_by_kind(self) -> dict[str, int]:
        return {kind: sum(found == kind for _, found, _ in self.broken) for kind in BROKEN_KINDS}

    def line(self) -> str:
        counts, broken = self.counts, self.broken_by_kind()
        kills = sum(number for what, number in counts.items() if what.startswith("kills "))
        others = len(self.broken) - broken["overspend"] - broken["leak"]
        return (
            f"{self.histories:,} histories, {counts.get('requests', 0):,} requests, "
            f"{counts.get('billed calls', 0):,} billed calls, {kills:,} kills: "
            f"overspends {broken['overspend']}, leaks {broken['leak']}, other broken promises {others}"
        )

    def report(self, elapsed_s: float) -> str:
        """For people: all counts, and the seeds that broke a promise with the command that shows each again."""
        lines = [f"  {what:<28}{number:>14,}" for what, number in sorted(self.counts.items())]
        lines.append(f"{self.line()}; {elapsed_s:,.0f} s, {elapsed_s / max(1, self.histories) * 1e3:.1f} ms each")
        lines += [failure_line(*each) for each in sorted(self.broken)[:SHOWN]]
        if len(self.broken) > SHOWN:
            lines.append(f"... and {len(self.broken) - SHOWN} more")
        return "\n".join(lines)

    def as_json(self) -> str:
        return json.dumps({"counts": self.counts, "broken": sorted(self.broken)})


def failure_line(seed: int, kind: str, what: str) -> str:
    return f"seed {seed}: {kind}: {what[:300]}\n    see it again: python -m tests.simulation --seed {seed}"


def run_seeds(seeds: Iterable[int]) -> Tally:
    """Run these histories here, one after the other."""
    tally = Tally()
    with simulated_modules():
        for seed in seeds:
            history = History(seed).run()
            tally.add(Tally(history.counts, ((seed, kind, what) for kind, what in history.broken[:3])))
    return tally


def run_many(first: int, count: int, processes: int, progress: Callable[[Tally], None]) -> Tally:
    """Run `count` histories from seed `first` on in several processes."""
    tally = Tally()
    blocks = [range(at, min(at + BLOCK, first + count)) for at in range(first, first + count, BLOCK)]
    gc.freeze()
    gc.disable()  # the processes inherit it: what a history leaves goes with its process
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        for part in pool.imap_unordered(run_seeds, blocks):
            tally.add(part)
            progress(tally)
    return tally


def replay(seed: int) -> int:
    """Print everything that happens in one history. 1 when it broke a promise."""
    with simulated_modules():
        history = History(seed, trace=True).run()
    for field, value in history.scenario._asdict().items():
        if field == "plans":
            for number, plan in enumerate(value):
                print(f"# request q{number}: {plan}")
        else:
            print(f"# {field}: {value}")
    for told in history.trace:
        print(f"{told.at_s:10.4f}  {told.process:<12}", *told.words)
    print("#", ", ".join(f"{number} {what}" for what, number in sorted(history.counts.items())))
    print(f"# fingerprint {history.fingerprint}")
    for kind, what in history.broken:
        print(f"BROKEN {kind}: {what}")
    sys.stdout.flush()
    return 1 if history.broken else 0
