"""What a gateway's replica counts and tells: every attempt once, every request once, and trials that end by themselves."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from actors.budget.rows import Snapshot
from actors.messages import Amount, Attempt, Failure, Request, Result, Usage
from actors.observer.scene import GatewayScene, Report, Taken
from actors.router.notes import RouterNote
from actors.settings import BudgetSettings, ScopeSettings, TierSettings
from runtime.config import Config, PromptSettings
from runtime.gateway.limits import Gate
from runtime.gateway.prompts import Prompts
from runtime.gateway.telemetry import Telemetry, Watched
from runtime.prompts import load_prompts
from runtime.prompts_release import release
from tests.unit.test_telemetry import row

ATTEMPT = Attempt("a", 0, "ok", 200, 0.5, prompt_tokens=10, completion_tokens=5, booked=Amount(15, 20))
RESULT = Result(b"{}", 200, "a", (ATTEMPT,), Usage(10, 5), Amount(15, 20))
ASK = Request("req_1", "/chat/completions", b"{}", b"", 100, 16)


class ScriptedRouter:
    """Ends each request as `end` says, and tells its attempts as a Router does."""

    def __init__(self, telemetry: Telemetry, end: Callable[[Request], Awaitable[Result | Failure]]) -> None:
        self._telemetry, self._end = telemetry, end

    async def run(self, request: Request) -> Result | Failure:
        done = await self._end(request)
        for attempt in done.attempts:
            self._telemetry.attempt(request, attempt._replace(misfit=False))  # found out afterwards
        return done

    def note(self) -> RouterNote:
        return RouterNote((), 2, "")


class Heard:
    """The observer and the ledger."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    async def report(self, report: Report) -> Taken:
        self.reports.append(report)
        return Taken("http://127.0.0.1:1", True)

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        return b"%d" % len(self.reports), accept

    async def budget(self) -> Snapshot:
        return Snapshot((row("key:blue"), row("key:4711")), 1)


def made(folder: Path, end: Callable[[Request], Awaitable[Result | Failure]]) -> tuple[Telemetry, Watched, Heard]:
    config = Config(
        tiers=[TierSettings(name="a", model="m", base_url=("http://x",))],
        budget=BudgetSettings(keys={"blue": ScopeSettings()}),
        prompts=PromptSettings(dir=str(folder)),
    )
    telemetry, heard = Telemetry(config, Gate(10), Prompts(config.prompts)), Heard()
    router: Any = ScriptedRouter(telemetry, end)
    telemetry.open("one", "source", router, heard)
    return telemetry, Watched(router, telemetry), heard


def gateway(report: Report) -> GatewayScene:
    assert report.scene.gateway is not None
    return report.scene.gateway


async def test_requests_and_attempts_are_counted_once(tmp_path: Path) -> None:
    """An answer, a shared one, a failure, a refusal at the door, and a caller who went away."""
    lost = ATTEMPT._replace(kind="server", booked=Amount(0, 0), prompt_tokens=0, completion_tokens=0)
    misfit = ATTEMPT._replace(misfit=True)

    async def end(request: Request) -> Result | Failure:
        match request.id:
            case "shared":
                return RESULT._replace(coalesced=True, attempts=(), cost=Amount())
            case "failed":
                return Failure("invalid_output", "no", attempts=(lost, misfit), cost=Amount(15, 20), refused_replies=1)
            case "left":
                await asyncio.sleep(60)
        return RESULT

    telemetry, router, heard = made(tmp_path, end)
    for id in ("one", "shared", "failed"):
        await router.run(ASK._replace(id=id, prompt="p@1"))
    leaving = asyncio.ensure_future(router.run(ASK._replace(id="left")))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    telemetry.refused("overloaded")
    before = len(heard.reports)
    scraped, accept = await telemetry.scrape("text/plain")
    assert (int(scraped) > before, accept) == (True, "text/plain"), "this replica has told before it asks"
    await telemetry.close()
    report = heard.reports[-1]
    counts = report.totals.counters
    outcomes = {key[1:]: count for key, count in counts.items() if key[0] == "requests"}
    assert outcomes == {
        ("a", "ok"): 1,
        ("a", "coalesced"): 1,
        ("a", "invalid_output"): 1,
        ("none", "cancelled"): 1,
        ("none", "overloaded"): 1,
    }
    assert {key[1:]: count for key, count in counts.items() if key[0] == "attempts"} == {
        ("a", "ok"): 2,
        ("a", "server"): 1,
    }
    assert (counts["cost", "m"], counts["structured_failures", "p", "1", "a"]) == (40, 1)
    assert counts["prompt_cost", "p", "1"] == 40
    seen = gateway(report)
    assert (seen.answered, seen.failed, seen.coalesced, seen.tokens, seen.usd_micros) == (2, 3, 1, 30, 40)
    assert seen.waiting_for_budget == 2
    assert report.totals.source == "source"
    assert [each.scope for each in report.scene.budgets] == ["key:blue"]


async def test_a_trial_that_is_worse_is_ended_and_told(tmp_path: Path) -> None:
    """By what the answers were like; those that were shared count once."""
    place = tmp_path / "p"
    place.mkdir()
    for number in (1, 2):
        (place / f"v{number}.yaml").write_bytes(orjson.dumps({"version": number, "user_template": "{text}"}))
    release(str(tmp_path), "p", 1, {2: 0.5}, "try")

    async def end(request: Request) -> Result | Failure:
        if request.id == "shared":
            return RESULT._replace(coalesced=True, attempts=(), refused_replies=1)
        return RESULT._replace(refused_replies=int(request.prompt == "p@2"))

    telemetry, router, _ = made(tmp_path, end)
    telemetry._prompts.rendered("p", {"text": "x"}, None)
    for _ in range(100):
        await router.run(ASK._replace(id="shared", prompt="p@2"))
        await router.run(ASK._replace(prompt="p@1"))
    assert load_prompts(str(tmp_path)).release("p").trial
    for _ in range(20):
        await router.run(ASK._replace(prompt="p@2"))
    async with asyncio.timeout(10.0):
        while not gateway(telemetry.draw_up()).notices:  # noqa: ASYNC110 - a thread writes release.yaml
            await asyncio.sleep(0.01)
    (notice,) = gateway(telemetry.draw_up()).notices
    assert notice.startswith("stopped the trial of p@2: its answers were refused in ")
    assert load_prompts(str(tmp_path)).release("p").trial == {}
    await telemetry.close()
