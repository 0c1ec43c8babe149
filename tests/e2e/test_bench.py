"""A tiny run of the throughput benchmark: that it completes and tells something sane. Nothing about time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = 300


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_overhead_benchmark_completes_and_its_report_has_every_field(tmp_path: Path) -> None:
    """300 rows, one round of all three clients: each did them all, and the report says how, where and at what cost."""
    target = tmp_path / "overhead.json"
    command = [sys.executable, "-m", "benchmarks.overhead", "--quick", "--rows", str(ROWS), "--window", "100"]
    done = subprocess.run(
        [*command, "--json", str(target)],
        cwd=ROOT,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CPU us/row" in done.stdout

    report: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    assert report["options"]["rows"] == ROWS
    assert set(report["clients"]) == {"aiohttp", "openai", "raycade"}
    for name, client in report["clients"].items():
        assert client["rows"] == ROWS, name
        assert client["rows_per_s"]["least"] > 0, name
        for field in ("rows_per_s", "cpu_us_per_row"):  # so few rows may take less CPU than /proc can tell
            spread = client[field]
            assert 0 <= spread["least"] <= spread["median"] <= spread["most"], (name, field)
    assert set(report["ratios"]) == set(report["aims"]) == {"aiohttp", "openai"}
    assert all(ratio["median"] > 0 for ratio in report["ratios"].values())
    assert report["machine"]["cores"] >= 1
    assert {"python", "ray", "aiohttp", "openai", "commit"} <= set(report["versions"])

    (run,) = report["runs"]["raycade"]
    assert run["summary"]["rows"]["succeeded"] == ROWS + report["options"]["warmup"]
    assert run["summary"]["coalesced"]["rows"] == 0, "the rows are meant to be distinct"
    assert {"driver", "router", "tiers"} <= set(run["cpu_us_per_row_by_role"])
