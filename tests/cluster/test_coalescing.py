"""Equal requests through four routers in processes of their own: one call, also when the one that made it is killed."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from actors.errors import ActorLost
from actors.lane import Lane
from actors.messages import Request, Result
from runtime.mock.process import MockProcess

pytestmark = pytest.mark.usefixtures("local_ray")

ROUTERS = 4
REQUESTS = 1_000
LATENCY_S = 3.0


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess("ok", latency_s=LATENCY_S) as process:
        yield process


@pytest.fixture(autouse=True)
def _fresh_meter(mock: MockProcess) -> None:
    mock.reset()


@asynccontextmanager
async def routers(url: str) -> AsyncIterator[tuple[Any, list[Lane[Request, Any]]]]:
    """A cluster's actors on the tests' Ray, and a lane to each router."""
    from runtime.cluster import Cluster
    from runtime.config import Config, resolve_prices

    with tempfile.TemporaryDirectory(prefix="raycade-") as state_dir:
        tier = {"name": "only", "model": "m", "base_url": url, "price": {"prompt": 1, "completion": 2}}
        given = {"state_dir": state_dir, "tiers": [tier], "router": {"replicas": ROUTERS}}
        config = Config.model_validate(given)
        cluster = await Cluster.start(config, resolve_prices(config), kind="test")
        lanes: list[Lane[Request, Any]] = []
        try:
            lanes = cluster.router_lanes("test", lambda name, note: None, lambda request: 500)
            await asyncio.gather(*(lane.open(60.0) for lane in lanes))
            yield cluster, lanes
        finally:
            for lane in lanes:
                await lane.close()
            await cluster.close()


def ask(number: int) -> Request:
    body = b'{"messages":[{"role":"user","content":"the same for all"}],"max_tokens":16}'
    return Request(f"r{number}", "/chat/completions", body, b"k" * 32, 100, 16, deadline_s=90.0, interactive=True)


async def test_a_thousand_equal_requests_over_four_routers_make_one_call(mock: MockProcess) -> None:
    """All at once: everybody has the answer, the endpoint has seen one request."""
    async with routers(mock.url) as (_, lanes):
        asked = [lanes[number % ROUTERS].call(ask(number), 120.0) for number in range(REQUESTS)]
        done = await asyncio.gather(*asked)
    assert all(isinstance(one, Result) for one in done)
    assert len({one.body for one in done}) == 1
    assert [one.coalesced for one in done].count(False) == 1
    assert mock.stats()["tiers"]["default"]["requests"] == 1


async def test_killing_the_leaders_router_costs_one_more_call_at_most(mock: MockProcess) -> None:
    """SIGKILL while the call is under way: whoever asked a living router is answered, by two calls in all."""
    async with routers(mock.url) as (cluster, lanes):
        pid = await cluster.handles["router/0"].__ray_call__.remote(lambda self: os.getpid())
        leader = asyncio.create_task(lanes[0].call(ask(0), 120.0))
        async with asyncio.timeout(10.0):
            while not mock.stats()["tiers"]["default"]["in_flight"]:  # noqa: ASYNC110 - it happens elsewhere
                await asyncio.sleep(0.02)
        asked = [lanes[number % ROUTERS].call(ask(number), 120.0) for number in range(1, REQUESTS)]
        calls = [asyncio.create_task(call) for call in asked]
        await asyncio.sleep(1.0)  # long enough for all of them to have claimed, shorter than the call
        os.kill(pid, signal.SIGKILL)
        done = await asyncio.gather(leader, *calls, return_exceptions=True)
    lost = [number for number, one in enumerate(done) if isinstance(one, ActorLost)]
    assert lost == list(range(0, REQUESTS, ROUTERS)), "those that were with the dead router, and no others"
    answered = [one for one in done if isinstance(one, Result)]
    assert len(answered) == REQUESTS - len(lost)
    assert [one.coalesced for one in answered].count(False) == 1
    assert mock.stats()["tiers"]["default"]["requests"] <= 2
