"""A tiny run of the overspend benchmark, Raycade's side alone: what it says about money. Nothing about time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUDGET_ROWS = 60


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_overspend_benchmark_stops_raycade_at_its_budget_by_the_endpoints_own_meter(tmp_path: Path) -> None:
    """Three times the budget is asked for; what the endpoint served stays within it, and the report says where it ended."""
    target = tmp_path / "overspend.json"
    command = [sys.executable, "-m", "benchmarks.overspend", "--only", "raycade", "--budget-rows", str(BUDGET_ROWS)]
    done = subprocess.run(
        [*command, "--in-flight", "40", "--json", str(target)],
        cwd=ROOT,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert "% of budget" in done.stdout

    report: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    assert report["rows"] == 3 * BUDGET_ROWS
    (run,) = report["runs"]
    assert run["exit_code"] == 4, "a job that its budget stops says so"
    assert 0 < run["served_usd_micros"] <= run["budget_usd_micros"] == report["budget_usd_micros"]
    assert run["served_percent"] >= 90, "a budget is there to be used: 60 rows leave room for a few reservations"
    assert run["calls_after_exhaustion"] == 0
    assert run["answered"] + run["refused"] == report["rows"]
    assert run["calls"] == run["answered"], "every call that was paid for has its line"
