"""What a Python program's requests count: the observer of its actors tells the same as the endpoint and the program."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from actors.errors import RequestFailed
from runtime import Client
from runtime.cluster import Cluster
from runtime.config import resolve_prices
from runtime.mock.process import MockProcess
from runtime.running import running_jobs
from tests.cluster.test_client import config
from tests.e2e.test_metrics import Samples, parsed, total

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.asyncio(loop_scope="module")]

TIERS: dict[str, Any] = {
    "dead": {"status": 500},
    "steady": {"latency": 0.05, "tokens": 12, "tokens_per_s": 400},
    "cut": {"reset_mid_body": 1.0, "tokens": 12, "tokens_per_s": 200},
    "long": {"tokens": 400, "tokens_per_s": 10},
    "sleepy": {"latency": 20},
}


class Shared:
    """A set of actors that somebody else keeps."""

    def __init__(self, home: str) -> None:
        self.home = home

    async def join(self) -> None:
        pass

    def leave(self) -> None:
        pass


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess({"seed": 7, "tiers": TIERS}) as process:
        yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(local_ray: None, mock: MockProcess, folder: Path) -> AsyncIterator[Client]:
    async with Client(config(mock, folder, telemetry={"metrics_port": 0}), job="nightly", max_usd=100) as opened:
        yield opened


async def scraped(folder: Path, until: Callable[[Samples], bool]) -> Samples:
    """The metrics, once they tell what they should within some seconds; reports come once a second."""
    seen: Samples = {}
    async with asyncio.timeout(15), aiohttp.ClientSession() as session:
        while not until(seen):
            for entry in running_jobs(str(folder / "state")):
                if entry.address:
                    async with session.get(f"{entry.address}/metrics") as reply:
                        seen = parsed(await reply.text())
            await asyncio.sleep(0.2)
    return seen


async def test_answers_streams_failures_and_who_left_are_counted_once(
    client: Client, mock: MockProcess, folder: Path
) -> None:
    """Requests, tokens and dollars equal the endpoint's meter; what was shared is told as shared."""
    await client.complete("What is it?", model="steady")
    asked = [client.complete("The same?", model="steady") for _ in range(3)]
    await asyncio.gather(*asked)
    async for _ in client.stream("And streamed?", model="steady"):
        pass
    async for outcome in client.map([f"Row {number}" for number in range(20)], model="dead"):
        assert outcome.error is None, "the tiers after it answer"
    with pytest.raises(RequestFailed):
        await client.complete("Nobody", model="sleepy", deadline_s=0.5)
    leaving = client.stream("A long one", model="long")
    await anext(leaving)
    leaving.close()

    def whole(seen: Samples) -> bool:
        return total(seen, "raycade_requests_total") == 27

    seen = await scraped(folder, whole)
    assert total(seen, "raycade_requests_total", outcome="ok", tier="steady") == 23
    assert total(seen, "raycade_requests_total", outcome="coalesced") == total(seen, "raycade_coalesced_total") == 2
    assert total(seen, "raycade_requests_total", outcome="cancelled") == 1
    meter = mock.stats()["tiers"]
    assert total(seen, "raycade_attempts_total", tier="dead", kind="server") == meter["dead"]["by_status"]["500"]
    assert total(seen, "raycade_attempts_total", tier="steady") == meter["steady"]["requests"]
    for kind in ("prompt", "completion"):
        tokens = meter["steady"][f"{kind}_tokens"]
        assert total(seen, "raycade_tier_tokens_total", tier="steady", type=kind) == tokens
    usd_micros = meter["steady"]["prompt_tokens"] + 2 * meter["steady"]["completion_tokens"]
    assert round(total(seen, "raycade_tier_cost_dollars_total", tier="steady") * 1e6) == usd_micros
    assert total(seen, "raycade_time_to_first_token_seconds_count", model="model-steady") >= 1
    assert {dict(key[1])["tier"] for key in seen if key[0] == "raycade_breaker_state"} == set(TIERS)


async def test_status_finds_the_program_and_its_jobs_budget(client: Client, folder: Path) -> None:
    (entry,) = running_jobs(str(folder / "state"))
    assert (entry.kind, entry.run) == ("client", "nightly")
    async with asyncio.timeout(15), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{entry.address}/status") as reply:
                told = await reply.json()
            if any(row["scope"] == "job:nightly" and row["limit"] == 100_000_000 for row in told["budgets"]):
                break
            await asyncio.sleep(0.2)
    assert {tier["name"] for tier in told["tiers"]} == set(TIERS)


async def test_a_client_that_is_opened_again_counts_on(mock: MockProcess, tmp_path: Path) -> None:
    """On a set of actors that stays, as that of `raycade up`: its counters never fall, and each request is in them once."""
    settings = config(mock, tmp_path, telemetry={"metrics_port": 0})
    home = await Cluster.kept(settings, resolve_prices(settings), "kept-for-test")
    program = Client(settings, kept=Shared(home.home))  # type: ignore[arg-type]
    for number in range(2):
        async with program:
            await program.complete(f"Opened {number}", model="steady")
    taken, _, _ = await home.observer()
    async with aiohttp.ClientSession() as session, session.get(f"{taken.address}/metrics") as reply:
        seen = parsed(await reply.text())
    await home.close()
    assert total(seen, "raycade_requests_total", outcome="ok") == 2
    assert total(seen, "raycade_observer_sources") == 2
