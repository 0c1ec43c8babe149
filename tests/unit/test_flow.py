"""The router's path with every actor real, in one process and in simulated time: only the endpoint is scripted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import orjson

from actors import lane as lane_module
from actors import near as near_module
from actors.budget import actor as budget_module
from actors.budget.actor import BudgetActor
from actors.coalescer import actor as coalescer_module
from actors.coalescer.actor import CoalescerActor
from actors.messages import Attempt, Chunk, Failure, Request, Result
from actors.router import attempts as attempts_module
from actors.router import flow as flow_module
from actors.router import purse as purse_module
from actors.router.failures import FailureLog
from actors.router.flow import Peers, Router
from actors.settings import BudgetSettings, CoalesceSettings, Price, RouterSettings, TierSettings
from actors.tier import actor as tier_module
from actors.tier.actor import TierActor
from actors.tier.transport import Reply, TransportError
from tests.simulated import LocalPeer, simulated

modules = (
    lane_module,
    near_module,
    flow_module,
    attempts_module,
    purse_module,
    tier_module,
    coalescer_module,
    budget_module,
)
timed = simulated(*modules)

PROMPT = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":16}'


def answer(text: str = "hello", prompt: int = 10, completion: int = 5) -> Reply:
    body = {
        "id": "x",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }
    return Reply(200, {}, orjson.dumps(body))


def error(status: int, message: str = "oops", **headers: str) -> Reply:
    return Reply(status, headers, orjson.dumps({"error": {"message": message}}))


class Endpoint:
    """A Transport whose replies are made by `reply(number of the call, body)`."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply | Exception], latency_s: float = 0.1) -> None:
        self.reply = reply
        self.latency_s = latency_s
        self.bodies: list[dict[str, Any]] = []

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        self.bodies.append(orjson.loads(body))
        number = len(self.bodies)
        await asyncio.sleep(self.latency_s)
        reply = self.reply(number, self.bodies[number - 1])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def aclose(self) -> None:
        pass


class House:
    """All actors, and a router before them."""

    near: ClassVar[bool] = False
    """Whether the coalescer is in the router's process."""

    def __init__(self, state_dir: Path, endpoints: dict[str, Endpoint], **config: Any) -> None:
        budget = BudgetSettings.model_validate(config.get("budget", {}))
        qualities = config.get("quality", {})
        tiers = [
            TierSettings.model_validate(
                {
                    "name": name,
                    "model": f"model-{name}",
                    "base_url": "http://x",
                    "quality": qualities.get(name, "basic"),
                    **config.get("tier", {}).get(name, {}),
                    "structured": config.get("structured", {}).get(name),
                }
            )
            for name in endpoints
        ]
        self.endpoints = endpoints
        actors = [
            [TierActor(tier, lambda settings: ([self.endpoints[settings.name]], ())) for _ in range(tier.replicas)]
            for tier in tiers
        ]
        self.tiers = [actor for tier in actors for actor in tier]
        self.budget = BudgetActor(budget, str(state_dir))
        coalesce = CoalesceSettings.model_validate(config.get("coalesce", {}))
        self.coalescer = CoalescerActor(coalesce)
        coalescer = self.coalescer if self.near else LocalPeer(self.coalescer)
        self.peers = Peers([list(map(LocalPeer, tier)) for tier in actors], coalescer, self.budget.exchange)
        prices = {tier.name: Price(prompt=1.0, completion=2.0) for tier in tiers}
        settings = RouterSettings.model_validate(config.get("router", {}))
        self.another_router = partial(
            Router,
            tiers=tiers,
            prices=prices,
            settings=settings,
            budget=budget,
            coalesce=coalesce,
            peers=self.peers,
            failures=FailureLog(str(state_dir)),
        )
        self.router = self.another_router("router")

    def ask(self, number: int = 0, **changes: Any) -> "asyncio.Task[Result | Failure]":
        given: dict[str, Any] = {
            "id": f"r{number}",
            "path": "/chat/completions",
            "body": PROMPT,
            "digest": b"",
            "prompt_bound_tokens": 100,
            "max_tokens": 16,
            "job": "j",
            **changes,
        }
        return asyncio.create_task(self.router.run(Request(**given)))

    async def spent(self) -> tuple[int, int]:
        """Tokens of the job: spent (with unknown), reserved."""
        snapshot = await self.budget.show()
        rows = [s for s in snapshot.limits if (s.scope, s.window, s.unit) == ("job:j", "day", "tokens")]
        return (rows[0].spent, rows[0].reserved) if rows else (0, 0)


@asynccontextmanager
async def house(state_dir: Path, endpoints: dict[str, Endpoint], **config: Any) -> AsyncIterator[House]:
    made = House(state_dir, endpoints, **config)
    await made.router.open()
    try:
        yield made
    finally:
        await made.router.close()
        for tier in made.tiers:
            await tier.close()
            assert tier.health().in_flight == 0


BUDGET = {"budget": {"jobs": {"j": {"tokens": {"per_day": 100_000}}}}}


@timed
async def test_an_answer_is_charged_by_its_usage(tmp_path: Path) -> None:
    """One request, one call with the tier's model; the ledger has exactly what the endpoint counted."""
    async with house(tmp_path, {"a": Endpoint(lambda n, b: answer())}, **BUDGET) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert (done.tier, done.cost.tokens, done.cost.usd_micros) == ("a", 15, 20)
        assert made.endpoints["a"].bodies[0]["model"] == "model-a"
    assert await made.spent() == (15, 0)


@timed
async def test_a_failing_tier_falls_back_and_is_not_charged(tmp_path: Path) -> None:
    """Two 500s at the first tier, then the second answers; the 500s cost nothing."""
    endpoints = {"a": Endpoint(lambda n, b: error(500)), "b": Endpoint(lambda n, b: answer())}
    async with house(tmp_path, endpoints, **BUDGET) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert [(a.tier, a.kind) for a in done.attempts] == [("a", "server"), ("a", "server"), ("b", "ok")]
    assert await made.spent() == (15, 0)


@timed
async def test_a_failure_that_took_long_is_not_tried_again_in_place(tmp_path: Path) -> None:
    """The time is that of the call itself, and the attempt tells it."""
    endpoints = {"a": Endpoint(lambda n, b: error(500), latency_s=20.0), "b": Endpoint(lambda n, b: answer())}
    async with house(tmp_path, endpoints) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert [(a.tier, a.kind, round(a.duration_s)) for a in done.attempts] == [("a", "server", 20), ("b", "ok", 0)]


@timed
async def test_a_content_filters_refusal_is_final_unless_configured(tmp_path: Path) -> None:
    """With the provider's reason; and with `fallback` the next tier answers."""
    refusal = Reply(200, {}, orjson.dumps({"choices": [{"finish_reason": "content_filter", "message": {}}]}))
    for setting, kinds in (("final", ["content_filter"]), ("fallback", ["content_filter", "ok"])):
        endpoints = {"a": Endpoint(lambda n, b: refusal), "b": Endpoint(lambda n, b: answer())}
        async with house(tmp_path / setting, endpoints, router={"on_content_filter": setting}) as made:
            done = await made.ask()
            assert [attempt.kind for attempt in done.attempts] == kinds
            assert isinstance(done, Result) or (done.kind == "content_filter" and "content_filter" in done.message)


@timed
async def test_an_endpoint_that_asks_for_time_gets_it(tmp_path: Path) -> None:
    """Retry-After of a 503 too: the request goes back no earlier, and the answer comes within its deadline."""
    endpoint = Endpoint(lambda n, b: error(503, **{"retry-after": "7"}) if n == 1 else answer())
    async with house(tmp_path, {"a": endpoint}) as made:
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert isinstance(await made.ask(), Result)
        assert loop.time() - began >= 7.0


@timed
async def test_rows_that_wait_go_to_an_actor_that_is_back(tmp_path: Path) -> None:
    """What an actor gives back in a pause goes to the other; when it may call again it has its half of what waits."""

    def reply(number: int, body: dict[str, Any]) -> Reply:
        return error(429, **{"retry-after": "1"}) if number == 1 else answer()

    async with house(tmp_path, {"a": Endpoint(reply)}, tier={"a": {"replicas": 2, "concurrency": 2}}) as made:
        began = asyncio.get_running_loop().time()
        done = await asyncio.gather(*(made.ask(number) for number in range(200)))
        took_s = asyncio.get_running_loop().time() - began
    assert all(isinstance(one, Result) for one in done)
    # Four calls at once take 5 s for 200 rows, two of them 10 s.
    assert 5.0 <= took_s < 6.5
    assert len(made.endpoints["a"].bodies) == 201, "a call that was given back had been sent"


@timed
async def test_actors_of_a_tier_share_a_rate_limit_without_configuration(tmp_path: Path) -> None:
    """100 calls a second are allowed, ten at once; whoever is refused is asked to pause for a second."""
    level, at, refused = 10.0, 0.0, 0

    def reply(number: int, body: dict[str, Any]) -> Reply:
        nonlocal level, at, refused
        now = asyncio.get_running_loop().time()
        level, at = min(10.0, level + (now - at) * 100.0) - 1, now
        if level >= 0:
            return answer()
        level, refused = level + 1, refused + 1
        return error(429, **{"retry-after": "1"})

    async with house(tmp_path, {"a": Endpoint(reply, 0.0)}, tier={"a": {"replicas": 4}}) as made:
        began = asyncio.get_running_loop().time()
        done = await asyncio.gather(*(made.ask(number, deadline_s=600.0) for number in range(5000)))
        took_s = asyncio.get_running_loop().time() - began
    assert all(isinstance(one, Result) for one in done)
    assert took_s < 5000 / 100 / 0.8
    assert refused < 100


@timed
async def test_answers_are_counted_by_the_model_that_they_name(tmp_path: Path) -> None:
    """A version that changes under an alias is seen; an endpoint that names a new one each time fills no memory."""
    names = ["v1", "v1", "v2"] + [f"odd-{number}" for number in range(40)]

    def named(number: int, body: Any) -> Reply:
        reply = orjson.loads(answer().body)
        return Reply(200, {}, orjson.dumps({**reply, "model": names[number - 1]}))

    async with house(tmp_path, {"a": Endpoint(named)}) as made:
        for number in range(len(names)):
            await made.ask(number)
        (note,) = made.router.note().tiers
        assert list(note.models.items())[:2] == [("v1", 2), ("v2", 1)]
        assert len(note.models) == 16
        assert sum(note.models.values()) == len(names)


@timed
async def test_asking_again_for_structure_keeps_away_from_a_silent_tier(tmp_path: Path) -> None:
    """The request's past is one, however often its answer did not fit; so is max_attempts."""
    silent = Endpoint(lambda n, b: TransportError("timeout", "no reply", True))
    prose = Endpoint(lambda n, b: answer("no json here") if n < 3 else answer('{"a": 1}'))
    async with house(tmp_path, {"a": silent, "b": prose}) as made:
        done = await made.ask(schema=b'{"type":"object"}')
        assert isinstance(done, Result)
        assert (len(silent.bodies), len(prose.bodies), len(done.attempts)) == (1, 3, 4)


@timed
async def test_an_outcome_that_nobody_saw_is_charged_whole(tmp_path: Path) -> None:
    """A timeout may have been billed: its reservation stays booked, the answer's usage comes on top."""
    silent = Endpoint(lambda n, b: TransportError("timeout", "no reply", True))
    async with house(tmp_path, {"a": silent, "b": Endpoint(lambda n, b: answer())}, **BUDGET) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert len(silent.bodies) == 1, "a tier that stayed silent is not asked again while another can answer"
    spent, reserved = await made.spent()
    assert (spent, reserved) == (15 + 116, 0)


@timed
async def test_equal_requests_share_one_call(tmp_path: Path) -> None:
    """A hundred at once: one call, one charge, a hundred answers."""
    endpoint = Endpoint(lambda n, b: answer())
    async with house(tmp_path, {"a": endpoint}, **BUDGET) as made:
        done = await asyncio.gather(*(made.ask(n, digest=b"k" * 32) for n in range(100)))
        assert all(isinstance(one, Result) for one in done)
        assert sum(not one.coalesced for one in done if isinstance(one, Result)) == 1
        assert len(endpoint.bodies) == 1
    assert await made.spent() == (15, 0)


@timed
async def test_a_failure_of_the_requests_own_is_shared_and_another_is_not(tmp_path: Path) -> None:
    """A 400 would be everybody's; a lead's own bad luck makes the next in line try."""
    refusing = Endpoint(lambda n, b: error(400, "temperature must be a number"))
    async with house(tmp_path, {"a": refusing}) as made:
        done = await asyncio.gather(*(made.ask(n, digest=b"k" * 32) for n in range(10)))
        assert {one.kind for one in done if isinstance(one, Failure)} == {"bad_request"}
        assert len(refusing.bodies) == 1
    flaky = Endpoint(lambda n, b: error(500) if n <= 1 else answer())
    async with house(tmp_path / "2", {"a": flaky}, router={"max_attempts": 1}) as made:
        done = await asyncio.gather(*(made.ask(n, digest=b"k" * 32) for n in range(10)))
        assert sum(isinstance(one, Failure) for one in done) == 1
        assert len(flaky.bodies) == 2


@timed
async def test_a_cancelled_request_leaves_its_key_free(tmp_path: Path) -> None:
    """Whenever a lead is cancelled, the same question asked again is answered, and soon."""
    for moment in range(12):
        endpoint = Endpoint(lambda n, b: answer())
        async with house(tmp_path / str(moment), {"a": endpoint}) as made:
            first = made.ask(0, digest=b"k" * 32)
            for _ in range(moment):
                await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            async with asyncio.timeout(5.0):
                assert isinstance(await made.ask(1, digest=b"k" * 32), Result)


@timed
async def test_coalescing_never_stops_work(tmp_path: Path) -> None:
    """With the coalescer dead, every request makes its own call."""
    endpoint = Endpoint(lambda n, b: answer())
    async with house(tmp_path, {"a": endpoint}) as made:
        peer = made.peers.coalescer
        assert isinstance(peer, LocalPeer)
        peer.kill()
        await asyncio.sleep(1.0)
        done = await asyncio.gather(*(made.ask(n, digest=b"k" * 32) for n in range(5)))
        assert all(isinstance(one, Result) for one in done)
        assert len(endpoint.bodies) == 5


@timed
async def test_a_budget_that_is_spent_puts_the_request_off(tmp_path: Path) -> None:
    """No call is made, and the failure says that the row is not done, only put off, with scope, window and limit."""
    endpoint = Endpoint(lambda n, b: answer(prompt=90, completion=10))
    async with house(tmp_path, {"a": endpoint}, budget={"tokens": {"per_day": 250}}) as made:
        done = [await made.ask(n) for n in range(5)]
        refused = [one for one in done if isinstance(one, Failure)]
        assert len(endpoint.bodies) == 2
        assert all(one.resumable and one.kind == "budget_exceeded" for one in refused)
        assert "'all' per day" in refused[0].message
        assert refused[0].retry_after_s is not None


@timed
async def test_a_tiers_own_budget_sends_rows_to_the_next_tier(tmp_path: Path) -> None:
    """When the first tier's money is gone the second answers; nobody is refused."""
    endpoints = {"a": Endpoint(lambda n, b: answer(prompt=90)), "b": Endpoint(lambda n, b: answer())}
    budget = {"tiers": {"a": {"tokens": {"per_day": 250}}}}
    async with house(tmp_path, endpoints, budget=budget) as made:
        done = [await made.ask(n) for n in range(5)]
        assert [one.tier for one in done if isinstance(one, Result)] == ["a", "a", "b", "b", "b"]


@timed
async def test_the_limit_of_one_request_bounds_the_sum_of_its_attempts(tmp_path: Path) -> None:
    """A request whose first attempt may have been billed does not get a second one that the limit has no room for."""
    silent = Endpoint(lambda n, b: TransportError("timeout", "no reply", True))
    endpoints = {"a": silent, "b": Endpoint(lambda n, b: answer())}
    async with house(tmp_path, endpoints, budget={"tokens": {"per_request": 200}}) as made:
        done = await made.ask()
        assert isinstance(done, Failure)
        assert (done.kind, done.resumable, done.cost.tokens) == ("budget_exceeded", False, 116)
        assert endpoints["b"].bodies == []


@timed
async def test_a_wrong_answer_is_asked_for_again_with_what_was_wrong(tmp_path: Path) -> None:
    """Prose, then fenced JSON of the right shape: the second is accepted, both are paid for."""
    schema = b'{"type":"object","properties":{"queue":{"type":"string"}},"required":["queue"]}'
    replies = ["I think it is billing.", '```json\n{"queue": "billing"}\n```']
    endpoint = Endpoint(lambda n, b: answer(replies[n - 1]))
    async with house(tmp_path, {"a": endpoint}, **BUDGET) as made:
        done = await made.ask(schema=schema)
        assert isinstance(done, Result)
        assert orjson.loads(done.parsed) == {"queue": "billing"}
        assert done.cost.tokens == 30
        again = endpoint.bodies[1]["messages"]
        assert again[2] == {"role": "assistant", "content": replies[0]}
    assert await made.spent() == (30, 0)


@timed
async def test_an_answer_that_never_fits_is_a_failure_with_the_reasons(tmp_path: Path) -> None:
    """Three tries, then `invalid_output` with the last reply."""
    endpoint = Endpoint(lambda n, b: answer("no json here"))
    async with house(tmp_path, {"a": endpoint}) as made:
        done = await made.ask(schema=b'{"type":"object"}')
        assert isinstance(done, Failure)
        assert done.kind == "invalid_output"
        assert b"no json here" in done.body
        assert len(endpoint.bodies) == 3


@timed
async def test_min_quality_is_never_undercut(tmp_path: Path) -> None:
    """A tier below the asked quality is not tried, even when the better one fails for good."""
    endpoints = {"a": Endpoint(lambda n, b: error(500)), "b": Endpoint(lambda n, b: answer())}
    quality = {"a": "high"}
    async with house(tmp_path, endpoints, quality=quality, router={"max_attempts": 3}) as made:
        done = await made.ask(min_quality=2)
        assert isinstance(done, Failure)
        assert done.kind == "all_tiers_exhausted"
        assert endpoints["b"].bodies == []


@timed
async def test_a_row_without_a_bound_gets_the_tiers(tmp_path: Path) -> None:
    """The body that is sent always bounds the completion, or no budget could hold."""
    endpoint = Endpoint(lambda n, b: answer())
    async with house(tmp_path, {"a": endpoint}) as made:
        await made.ask(body=b'{"messages":[]}', max_tokens=None)
        assert endpoint.bodies[0]["max_tokens"] == 1024


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.tier = ""
        self.chunks: list[Chunk] = []

    def begin(self, tier: str) -> None:
        self.tier = tier

    def hear(self, chunks: list[Chunk]) -> None:
        self.chunks += chunks


@timed
async def test_a_stream_whose_answer_must_satisfy_a_schema_is_judged_before_it_is_said(tmp_path: Path) -> None:
    """The first reply is refused and nobody hears of it; the second comes in one piece, without its fence. One that never
    satisfies it is a failure before the first word. It shares its call with the same request that is not streamed."""
    replies = ["no", '```json\n{"a": 1}\n```']
    body = PROMPT[:-1] + b',"stream_options":{"include_usage":true}}'
    wanted: dict[str, Any] = {"schema": b'{"type":"object","required":["a"]}', "digest": b"d" * 32}
    async with house(tmp_path, {"a": Endpoint(lambda n, b: answer(replies[n - 1] if n < 3 else "no"))}) as made:
        heard = Heard()
        streaming = Request(
            "s", "/chat/completions", body, prompt_bound_tokens=100, max_tokens=16, stream=True, **wanted
        )
        plain = made.ask(**wanted)
        done = await made.router.stream(streaming, heard)
        assert isinstance(done, Result)
        assert done.coalesced or (await plain).coalesced
        (chunk,) = heard.chunks
        told = orjson.loads(chunk.data)
        assert (told["object"], told["choices"][0]["delta"]["content"]) == ("chat.completion.chunk", '{"a": 1}')
        assert told["usage"]["completion_tokens"] == 5
        assert (heard.tier, chunk.text) == ("a", '{"a": 1}')
        assert all("stream" not in body and "stream_options" not in body for body in made.endpoints["a"].bodies)
        silent = Heard()
        failed = await made.router.stream(streaming._replace(digest=b"", reply_retries=0), silent)
        assert isinstance(failed, Failure)
        assert (failed.kind, silent.tier, silent.chunks) == ("invalid_output", "", [])


@timed
async def test_every_attempt_is_told_once_whoever_has_left(tmp_path: Path) -> None:
    """A failed one, one that answered, and one whose caller went away: with what each was charged, as the ledger has it."""
    told: list[tuple[str, str, str, int]] = []

    def tell(request: Request, attempt: Attempt) -> None:
        told.append((request.id, attempt.tier, attempt.kind, attempt.booked.tokens))

    endpoints = {"a": Endpoint(lambda n, b: error(400, "no such field")), "b": Endpoint(lambda n, b: answer())}
    async with house(tmp_path, endpoints, **BUDGET) as made:
        made.router = made.another_router("counting", on_attempt=tell)
        await made.router.open()
        await made.ask(1, start_tier=1)
        await made.ask(2)
        leaving = made.ask(3, start_tier=1)
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.sleep(0.05)
        assert told == [("r1", "b", "ok", 15), ("r2", "a", "bad_request", 0), ("r3", "b", "cancelled", 116)]
        await made.router.close()
        assert await made.spent() == (15 + 116, 0)
