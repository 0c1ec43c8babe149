"""Ten thousand histories, in which everything that can die dies, keep every promise; and any of them can be seen again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.histories import Tally

ROOT = Path(__file__).parents[2]
HISTORIES = 10_000
PROCESSES = 2
MUST_HAPPEN = (
    "kills router",
    "kills budget",
    "kills coalescer",
    "kills tier",
    "events stop",
    "events cut",
    "events clock",
    "events second",
    "messages dropped",
    "streams broken",
    "store failures",
    "store conflicts",
    "hours turned",
    "promotions",
    "coalesced",
    "hedged",
    "hedges that won",
    "billed calls",
    "ended ok",
    "ended cancelled",
    "ended lost",
    "ended budget_exceeded",
    "ended deadline",
    "ended all_tiers_exhausted",
)


def simulation(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.timeout(960)
def test_no_history_breaks_a_promise() -> None:
    """10,000 seeds: no limit is passed, nothing stays held, every request ends once, and the ledger equals the meter."""
    done = simulation("--count", str(HISTORIES), "--processes", str(PROCESSES), "--json")
    assert done.stdout, done.stderr
    tally = Tally(**json.loads(done.stdout))
    assert not tally.broken, f"\n{tally.report(0.0)}"
    assert tally.histories == HISTORIES
    assert [what for what in MUST_HAPPEN if tally.counts.get(what, 0) < 100] == []


def test_a_seed_tells_the_same_history_again() -> None:
    """Two runs of one seed differ in nothing: not in a step, a moment or a number."""
    one, other = (simulation("--seed", "78").stdout for _ in range(2))
    assert "# fingerprint" in one
    assert one == other
