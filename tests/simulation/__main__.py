"""Run many histories, or one again with everything that happened in it.

    python -m tests.simulation --count 10000           seeds 0 to 9,999, on all cores
    python -m tests.simulation --seed 4711             that history alone, step by step

Ends with 1 when a promise was broken, and then says which seeds to look at.
"""

import argparse
import os
import sys
import time

from tests.simulation.histories import Tally, replay, run_many

PROGRESS_EVERY_S = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="run this one history and print its trace")
    parser.add_argument("--count", type=int, default=1_000, help="how many histories (default: 1,000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print the counts as JSON, for a program")
    given = parser.parse_args()
    if given.seed is not None:
        return replay(given.seed)

    started = time.monotonic()
    shown = started

    def progress(tally: Tally) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= (1.0 if sys.stderr.isatty() else PROGRESS_EVERY_S):
            shown = now
            left_s = (now - started) / tally.histories * (given.count - tally.histories)
            print(f"{tally.line()}, {left_s:,.0f} s to go", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)

    tally = run_many(given.first, given.count, given.processes, progress)
    if given.json:
        print(tally.as_json())
    else:
        print(tally.report(time.monotonic() - started))
    return 1 if tally.broken else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of strings is part of a history
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
