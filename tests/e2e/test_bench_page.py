"""A smoke run of `raycade bench`: that page and JSON come out with the numbers in them. Nothing about time."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(sys.executable).with_name("raycade")


@pytest.mark.timeout(170)
def test_two_quick_scenarios_make_a_page_and_a_json_with_every_aim(tmp_path: Path) -> None:
    """Overhead, low load and open loop, few rows, no peers with environments of their own."""
    out = tmp_path / "out"
    options = ["overhead", "low-load", "open-loop", "--quick", "--no-peers", "--out", str(out)]
    done = subprocess.run(
        [str(COMMAND), "bench", *options],
        cwd=tmp_path,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "not measured" in done.stdout, "an aim of a scenario that was not run is told all the same"

    told: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert set(told["scenarios"]) == {"overhead", "low-load", "open-loop"}
    aims = {line["what"]: line["met"] for line in told["aims"]}
    assert sum(met is not None for met in aims.values()) == 7, aims
    overhead, low_load = told["scenarios"]["overhead"], told["scenarios"]["low-load"]
    assert overhead["quick"]
    assert {"python", "ray", "aiohttp", "openai", "commit"} <= set(overhead["versions"])
    assert overhead["machine"]["cores"] >= 1
    clients = ("aiohttp", "openai", "openai-default", "cookbook", "raycade")
    for name in clients:
        (run,) = overhead["runs"][name]
        assert run["rows_per_s"] > 0, name
    assert len(overhead["rows"]) == len(clients)
    assert overhead["runs"]["raycade"][0]["actor_calls"] > 0
    (run,) = low_load["runs"]["raycade"]
    assert 0 < run["p50_ms"] <= run["p99_ms"]
    assert run["at_once"] <= 16, "a window of 16 rows is no more"
    for of_one in told["scenarios"]["open-loop"]["runs"].values():
        assert of_one[0]["lost"] == 0
        assert of_one[0]["asked"] == of_one[0]["answered"] > 0

    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert f"{overhead['rows'][-1]['rows_per_s']['median']:,.0f}" in page
    assert not re.search(r"https?://|<script|src=", page)
