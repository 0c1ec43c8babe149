"""A runaway loop, as it happens: a script asks the same again and again, all night if nobody stops it.

With the real gateway, a real Prometheus that goes by the rules that `raycade metrics rules` prints, and a real browser.
"""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest

from runtime.mock.process import MockProcess
from tests.e2e.chromium import chromium
from tests.e2e.gateways import GatewayProcess
from tests.e2e.jobs import ROOT, wait_until
from tests.e2e.test_metrics import command, firing, free_port, last_samples, prometheus

STOP_USD = 8
"""A minute; the rules warn at 5."""


class Loop:
    """The script: what it is told stops it as little as it stops a real one. Ends with its context."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(4)]
        self.answered = 0
        self.refusals: list[openai.APIStatusError] = []

    def _run(self) -> None:
        with openai.OpenAI(base_url=self._url, api_key="none", max_retries=0) as client:
            while not self._ended.is_set():
                try:
                    client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "And now?"}])
                    self.answered += 1
                except openai.APIStatusError as refused:
                    self.refusals.append(refused)
                    self._ended.wait(0.2)

    def __enter__(self) -> "Loop":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)


@pytest.mark.slow
def test_a_runaway_loop_is_stopped_told_and_shown(tmp_path: Path) -> None:
    """Spending stops near what the anomaly's settings say, both alerts fire within a minute, the page tells it, and it goes
    on when somebody says so."""
    port = free_port()
    with MockProcess({"tiers": {"dear": {"latency": 0.05}}}) as mock:
        tiers = [{"name": "dear", "base_url": mock.tier_url("dear"), "price": {"prompt": 3000, "completion": 6000}}]
        # A small factor over a high floor: when the minute turns just before the limit, what was spent in it is the usual
        # of the next one, which must be out of bounds all the same.
        anomaly = {"min_minutes": 0, "factor": 2, "floor_usd_per_minute": STOP_USD / 2, "stop": True}
        config = {"telemetry": {"metrics_port": port}, "budget": {"anomaly": anomaly, "usd": {"per_day": 1000}}}
        rules = command("metrics", "rules").stdout
        with (
            GatewayProcess(tmp_path, tiers, **config) as gateway,
            prometheus(tmp_path / "prometheus", port, rules) as address,
            contextlib.ExitStack() as looping,
        ):
            process = gateway.process
            assert process is not None
            wait_until(lambda: is_watched(address), process)
            loop = looping.enter_context(Loop(gateway.url))
            wait_until(lambda: bool(loop.refusals), process)
            assert loop.refusals[0].code == "budget_exceeded", loop.refusals[0]
            fired: set[str] = set()

            def both_fired() -> bool:
                fired.update(firing(address))
                return fired >= {"RaycadeCostRate", "RaycadeSpendAnomaly"}

            wait_until(both_fired, process)
            assert loop.answered > 20
            meter = mock.stats()["tiers"]["dear"]
            spent_usd = (meter["prompt_tokens"] * 3000 + meter["completion_tokens"] * 6000) / 1e6
            assert STOP_USD / 2 < spent_usd < 4 * STOP_USD, "it is stopped by reports of a second each"
            asyncio.run(page_tells(gateway))
            before = mock.stats()["tiers"]["dear"]["requests"]
            time.sleep(2.0)
            assert mock.stats()["tiers"]["dear"]["requests"] == before, "it stays stopped while the loop goes on"
            subprocess.run(
                [sys.executable, "-P", "-m", "runtime", "budget", "resume", "tier:dear"],
                cwd=tmp_path,
                env={"PYTHONPATH": str(ROOT), "PATH": ""},
                timeout=60,
                check=True,
            )
            wait_until(lambda: mock.stats()["tiers"]["dear"]["requests"] > before, process)


def is_watched(address: str) -> bool:
    """Whether Prometheus has a sample of what the tier has cost: nothing, but told."""
    try:
        return ("raycade_tier_cost_dollars_total", (("tier", "dear"),)) in last_samples(address)
    except OSError:  # it has just been started
        return False


async def page_tells(gateway: GatewayProcess) -> None:
    async with chromium() as tab:
        await tab.open(f"{gateway.root}/ui")
        await tab.until("document.body.innerText.includes('raycade budget resume tier:dear')")
        assert tab.errors == []
