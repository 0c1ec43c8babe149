"""The page of a running job in a real browser: it loads, lives, and says nothing on its console."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from runtime.mock.process import MockProcess
from runtime.running import running_jobs
from tests.e2e.chromium import chromium
from tests.e2e.jobs import ROOT, Job, chat, end, wait_until

SCENARIO = {
    "tiers": {
        "weak": {"latency": 0.05, "phases": [{"until_requests": 150}, {"status": 503}]},
        "strong": {"latency": 0.3},
    }
}


async def test_the_page_of_a_job_shows_a_breaker_that_opens(tmp_path: Path) -> None:
    """Tiers, budget and progress are there; an endpoint that begins to fail is seen without a reload; nothing is an error."""
    with MockProcess(SCENARIO) as mock:
        tiers = [
            {"name": "weak", "base_url": mock.tier_url("weak"), "breaker": {"recovery_timeout_s": 60}},
            {"name": "strong", "base_url": mock.tier_url("strong"), "concurrency": 4},
        ]
        job = Job(tmp_path, tiers, telemetry={"metrics_port": 0}, budget={"tokens": {"per_day": 10**9}})
        job.rows(chat(number) for number in range(4000))
        process = job.start("--window", "8")
        try:
            wait_until(lambda: any(entry.address for entry in running_jobs(str(job.state))), process)
            (entry,) = running_jobs(str(job.state))
            async with chromium() as tab:
                await tab.open(f"{entry.address}/ui")
                await tab.until("document.querySelectorAll('#tiers article').length === 2")
                await tab.until("document.querySelector('[data-tier=weak]').dataset.state === 'open'")
                await tab.until("document.querySelector('[data-tier=strong] polyline') !== null")
                shown = await tab.value("document.body.innerText")
                assert f"batch {entry.run}" in shown
                assert "all, this day" in shown
                await tab.until("/used up at this pace\\s*(in|not before)/.test(document.body.innerText)")
                assert await tab.value("document.getElementById('state').textContent") == "live"
                assert await tab.value("document.documentElement.scrollWidth <= innerWidth")
                if folder := os.environ.get("RAYCADE_TEST_SHOTS"):  # to look at it
                    await tab.screenshot(f"{folder}/ui.png")
                    await tab.screenshot(f"{folder}/ui-dark-narrow.png", 380, 1400, dark=True)
                assert tab.errors == []
            ask = Request(f"{entry.address}/ui/live", headers={"Host": "evil.example:80"})
            with pytest.raises(HTTPError, match="403"):  # a page elsewhere that has made our address its own
                build_opener(ProxyHandler({})).open(ask, timeout=5)
            with build_opener(ProxyHandler({})).open(f"{entry.address}/ui/live", timeout=5) as live:
                told = json.loads(live.readline().removeprefix(b"data: "))
            assert {tier["name"] for tier in told["tiers"]} == {"weak", "strong"}
            assert f"{entry.address}/ui" in where_it_is(job)
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            end(process)


def where_it_is(job: Job) -> str:
    """What `raycade status --web` says."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", "status", "--web", "-c", str(job.config)],
        env={**job.env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
