"""The demo, end to end: what `make demo` tells a stranger is what happened."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actors.settings import Price
from benchmarks.data.make_tickets import EQUAL, ROWS
from runtime.config import load_config

ROOT = Path(__file__).resolve().parents[2]


def start(out: Path) -> "subprocess.Popen[str]":
    """The demo as `make demo` starts it, in a process group of its own, as a terminal would."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.demo", str(out)],
        cwd=ROOT,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def number(pattern: str, text: str) -> int:
    """The number in the first group, which must be there."""
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in:\n{text}"
    return int(found.group(1).replace(",", ""))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]], Path]:
    """What the demo printed, the lines of its answers, and its folder."""
    out = tmp_path_factory.mktemp("demo") / "out"
    process = start(out)
    try:
        text, _ = process.communicate(timeout=150)
    finally:
        stop(process)
    assert process.returncode == 0, text
    return text, [json.loads(line) for line in (out / "answers.jsonl").read_bytes().splitlines()], out


def stop(process: "subprocess.Popen[str]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def test_every_ticket_is_answered_once(demo: tuple[str, list[dict[str, Any]], Path]) -> None:
    """All rows, each once, no error, and the program says so."""
    text, lines, out = demo
    assert sorted(line["custom_id"] for line in lines) == [f"ticket-{row:04d}" for row in range(1, ROWS + 1)]
    assert all(line["error"] is None for line in lines)
    assert not (out / "answers.errors.jsonl").exists()
    assert "Finished: every row has its answer." in text
    assert str(out / "answers.jsonl") in text
    assert "Finished: every row has its answer." in (out / "report.html").read_text()


def test_the_summary_shows_what_was_staged(demo: tuple[str, list[dict[str, Any]], Path]) -> None:
    """500s, 429s, the outage, the breaker, the fallback and the coalesced rows are all told, with their numbers."""
    text, lines, _ = demo
    assert number(r"500s: (\d+)", text) > 5
    assert number(r"429s: (\d+)", text) >= 1
    assert number(r"overloaded: (\d+)", text) >= 5
    assert re.search(r"The circuit breaker of premium opened (once|\d times)", text)
    assert number(r"(\d+) rows fell back from premium", text) > 50
    assert number(r"(\d+) rows shared another row's answer", text) == EQUAL
    ours = [line["response"]["body"]["raycade"] for line in lines]
    assert sum(extra.get("coalesced", False) for extra in ours) == EQUAL
    by_tier = Counter(extra["tier"] for extra in ours if not extra.get("coalesced"))
    assert number(r"answered by premium +(\d+)", text) == by_tier["premium"] > 20
    assert number(r"fell back to standard +(\d+)", text) == by_tier["standard"] > 20
    assert number(r"fell back to basic +(\d+)", text) == by_tier["basic"]


def test_the_cost_is_that_of_the_answers(demo: tuple[str, list[dict[str, Any]], Path]) -> None:
    """The dollars told are usage times price over all answers that were paid for, and no row was called twice."""
    text, lines, out = demo
    prices = {
        tier.name: tier.price or Price(prompt=0, completion=0)
        for tier in load_config(str(out / "raycade.yaml"), {}).tiers
    }
    cost = 0.0
    for line in lines:
        body = line["response"]["body"]
        if not body["raycade"].get("coalesced"):
            price, usage = prices[body["raycade"]["tier"]], body["usage"]
            cost += usage["prompt_tokens"] * price.prompt + usage["completion_tokens"] * price.completion
    told = re.search(r"It cost \$([\d.]+)", text)
    assert told is not None
    assert float(told.group(1)) == pytest.approx(cost / 1e6, abs=0.0005)
    assert number(r"200: (\d+)", text) == ROWS - EQUAL


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_with_nothing_left_over(tmp_path: Path) -> None:
    """Interrupted like at a terminal: exit 130, what was answered is kept, and the mock is gone."""
    out = tmp_path / "out"
    process = start(out)
    try:
        deadline = time.monotonic() + 90
        answers = out / "answers.jsonl"
        while not (answers.exists() and answers.stat().st_size):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 130, text
        assert "Interrupted" in text
        port = number(r"127.0.0.1:(\d+)/premium", (out / "raycade.yaml").read_text())
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        stop(process)
