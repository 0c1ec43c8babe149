"""What an outage costs, with real routers and tier actors in simulated time: the probes, and how soon its end is seen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actors import lane as lane_module
from actors.budget import actor as budget_module
from actors.budget.actor import BudgetActor
from actors.messages import Request, Result
from actors.router import attempts as attempts_module
from actors.router import flow as flow_module
from actors.router import purse as purse_module
from actors.router.flow import Peers, Router
from actors.settings import BudgetSettings, CoalesceSettings, Price, RouterSettings, TierSettings
from actors.tier import actor as tier_module
from actors.tier.actor import TierActor
from actors.tier.transport import Reply, TransportError
from tests.simulated import LocalPeer, simulated
from tests.unit.test_flow import PROMPT, answer, error

timed = simulated(lane_module, flow_module, attempts_module, purse_module, tier_module, budget_module)

RECOVERY_S = 3.0
THRESHOLD = 5
CONCURRENCY = 20
"""Of each endpoint at each actor: what an endpoint that hangs may hold before anybody can know."""


class Replica:
    """An endpoint that can be away. Notes when it was called."""

    def __init__(self, latency_s: float = 0.2) -> None:
        self.latency_s = latency_s
        self.away = ""
        """dead: refuses at once; hangs: says nothing until the timeout."""
        self.calls: list[float] = []
        self.answered: list[float] = []

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        loop = asyncio.get_running_loop()
        self.calls.append(loop.time())
        if self.away == "hangs":
            await asyncio.sleep(timeout_s)
            raise TransportError("timeout", "no reply", True)
        await asyncio.sleep(0.01 if self.away else self.latency_s)
        if self.away:
            return error(500)
        self.answered.append(loop.time())
        return answer()

    async def aclose(self) -> None:
        pass


class Site:
    """Tiers with their actors and endpoints, and routers that are asked in turn, at so many rows a second."""

    def __init__(
        self, state_dir: Path, tiers: list[list[Replica]], routers: int, replicas: int, timeout_s: float
    ) -> None:
        self.replicas = tiers
        settings = [
            TierSettings.model_validate(
                {
                    "name": f"t{at}",
                    "model": "m",
                    "base_url": [f"http://h{number}" for number in range(len(endpoints))],
                    "replicas": replicas,
                    "timeout_s": timeout_s,
                    "concurrency": CONCURRENCY if at == 0 else 1000,
                    "breaker": {"recovery_timeout_s": RECOVERY_S, "failure_threshold": THRESHOLD},
                }
            )
            for at, endpoints in enumerate(tiers)
        ]
        self.actors = [
            [TierActor(tier, lambda settings, to=to: (to, ())) for _ in range(replicas)]  # type: ignore[misc]
            for tier, to in zip(settings, tiers, strict=True)
        ]
        self.budget = BudgetActor(BudgetSettings(), str(state_dir))
        self.routers = [
            Router(
                f"router/{number}",
                settings,
                {tier.name: Price(prompt=0, completion=0) for tier in settings},
                RouterSettings(),
                BudgetSettings(),
                CoalesceSettings(enabled=False),
                Peers([[LocalPeer(actor) for actor in tier] for tier in self.actors], None, self.budget.exchange),
            )
            for number in range(routers)
        ]
        self.asked: list[asyncio.Task[Any]] = []

    async def work(self, seconds: float, rows_per_s: float = 40.0) -> None:
        """Rows come in for so long."""
        for _ in range(int(seconds * rows_per_s)):
            router = self.routers[len(self.asked) % len(self.routers)]
            request = Request(f"r{len(self.asked)}", "/chat/completions", PROMPT, b"", 100, 16, job="j")
            self.asked.append(asyncio.create_task(router.run(request)))
            await asyncio.sleep(1 / rows_per_s)


@asynccontextmanager
async def site(*args: Any) -> AsyncIterator[Site]:
    made = Site(*args)
    await asyncio.gather(*(router.open() for router in made.routers))
    try:
        yield made
        done = await asyncio.gather(*made.asked)
        assert all(isinstance(one, Result) for one in done), "a row was lost"
    finally:
        for router in made.routers:
            await router.close()
        for actor in (actor for tier in made.actors for actor in tier):
            await actor.close()


def busiest(calls: list[float], seconds: float) -> int:
    """The most calls within any window of so many seconds."""
    return max((sum(start <= call < start + seconds for call in calls) for start in calls), default=0)


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(("how", "timeout_s"), [("dead", 1.0), ("hangs", 1.0), ("hangs", 10.0)])
@pytest.mark.parametrize(("routers", "replicas"), [(1, 1), (3, 2)])
def test_a_first_tier_that_is_out(how: str, routers: int, replicas: int, timeout_s: float, tmp_path: Path) -> None:
    """However many actors and routers: one probe in a recovery time, and the end is seen within one."""

    @timed
    async def test() -> None:
        first, second = Replica(), Replica()
        first.away = how
        async with site(tmp_path, [[first], [second]], routers, replicas, timeout_s) as made:
            began = now()
            await made.work(8 * RECOVERY_S)
            opening = [call for call in first.calls if call < began + timeout_s + 1.0]
            assert len(opening) <= replicas * CONCURRENCY * 2
            probes = first.calls[len(opening) :]
            assert busiest(probes, RECOVERY_S * 0.95) == 1
            assert len(probes) >= (8 * RECOVERY_S - timeout_s) / RECOVERY_S - 3
            first.away, back = "", now()
            await made.work(RECOVERY_S + 1.0)
            assert first.answered[0] - back <= RECOVERY_S + 0.5
            before = len(second.calls)
            await made.work(5.0)
            assert len(second.calls) - before <= 10, "all is as before the outage"

    test()


@pytest.mark.parametrize("how", ["dead", "hangs"])
@pytest.mark.parametrize(("routers", "replicas"), [(1, 1), (2, 3)])
def test_one_replica_of_a_fleet_that_is_out(how: str, routers: int, replicas: int, tmp_path: Path) -> None:
    """It is taken out alone: the others take the rows, the next tier is not needed, and one actor probes for all."""

    @timed
    async def test() -> None:
        fleet, second = [Replica(), Replica(), Replica()], Replica()
        async with site(tmp_path, [fleet, [second]], routers, replicas, 1.0) as made:
            await made.work(5.0)
            out = fleet[1]
            out.away = how
            out.calls.clear()
            left = now()
            await made.work(8 * RECOVERY_S)
            opening = [call for call in out.calls if call < left + RECOVERY_S]
            assert len(opening) <= replicas * CONCURRENCY
            assert busiest([call for call in out.calls if call >= left + RECOVERY_S], RECOVERY_S * 0.95) == 1
            assert len(second.calls) <= len(out.calls), "the next tier gets only what was failed here"
            out.away, back = "", now()
            out.answered.clear()
            await made.work(RECOVERY_S + 1.0)
            assert out.answered[0] - back <= RECOVERY_S + 0.5
            await made.work(5.0)
            assert len(out.answered) >= 50, "it has its share again, from every actor"

    test()
