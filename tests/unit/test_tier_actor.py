"""The tier actor around a scripted transport, in simulated time."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from actors import lane as lane_module
from actors.errors import ConfigError
from actors.lane import Lane
from actors.messages import Answer, Failure, Health, Refusal, TierCall
from actors.settings import TierSettings
from actors.tier import actor as tier_module
from actors.tier.actor import TierActor
from actors.tier.capacity import COOLING_S
from actors.tier.concurrency import START
from actors.tier.transport import Reply, TransportError
from tests.faults.servers import ANSWER
from tests.simulated import LocalPeer, simulated

OK = Reply(200, {}, ANSWER)
BROKEN = Reply(500, {}, b'{"error":{"message":"oops"}}')
UNAUTHORIZED = Reply(401, {}, b'{"error":{"message":"Incorrect API key"}}')
BAD_REQUEST = Reply(400, {}, b'{"error":{"message":"temperature must be a number"}}')


def limited(headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(429, headers or {}, b'{"error":{"message":"slow down"}}')


class Script:
    """A Transport that answers as it is told, one line a call, after `latency_s`."""

    def __init__(self, *lines: "Reply | BaseException | float", latency_s: float = 0.01) -> None:
        """A line is a reply, what is raised, or how many seconds the call hangs. After the last line all is well."""
        self.lines = deque(lines)
        self.latency_s = latency_s
        self.sent = 0
        self.now = self.peak = 0
        self.cancelled = 0
        self.closed = False

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        self.sent += 1
        self.now += 1
        self.peak = max(self.peak, self.now)
        line = self.lines.popleft() if self.lines else OK
        try:
            hang_s = line if isinstance(line, float) else self.latency_s
            await asyncio.sleep(min(hang_s, timeout_s))
            if hang_s > timeout_s:
                raise TransportError("timeout", f"no reply within {timeout_s:g} s", True)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
        if isinstance(line, BaseException):
            raise line
        return OK if isinstance(line, float) else line

    async def aclose(self) -> None:
        self.closed = True


class Tier:
    """A tier actor, and a lane to it as a router has one."""

    def __init__(self, *scripts: Script, **settings: Any) -> None:
        self.script, *_ = self.scripts = scripts
        urls = [f"http://{name}" for name, _ in zip("xyz", scripts, strict=False)]
        given: dict[str, Any] = {"name": "t", "model": "m", "base_url": urls, "timeout_s": 10.0, **settings}
        given["breaker"] = {"failure_threshold": 3, "recovery_timeout_s": 20.0, **given.get("breaker", {})}
        self.actor = TierActor(TierSettings.model_validate(given), lambda settings: (scripts, ()))
        self.lane: Lane[TierCall, Any] = Lane("router", LocalPeer(self.actor), on_note=self.observe)
        self.told = Health()
        self.asked = 0

    def observe(self, health: Health) -> None:
        self.told = health

    def call(
        self,
        queue_s: float = 100.0,
        rate_s: float = 100.0,
        tokens: int = 1,
        timeout_s: float = 10.0,
        request: str = "",
        whose: str = "",
    ) -> "asyncio.Task[Any]":
        self.asked += 1
        call = TierCall(
            request or f"r{self.asked}", "/chat/completions", b"{}", timeout_s, queue_s, rate_s, tokens, whose=whose
        )
        return asyncio.create_task(self.lane.call(call, 10_000.0))

    def calls(self, count: int, **options: Any) -> "list[asyncio.Task[Any]]":
        return [self.call(**options) for _ in range(count)]


@asynccontextmanager
async def serving(*scripts: Script, **settings: Any) -> AsyncIterator[Tier]:
    tier = Tier(*scripts, **settings)
    await tier.lane.open(5.0)
    try:
        yield tier
    finally:
        await tier.lane.close()
        await tier.actor.close()
        await asyncio.sleep(0)
        assert tier.actor.health().in_flight == 0, "a slot was not given back"
        tier.actor._balancer.check()


def kinds(done: list[Any]) -> list[str]:
    return ["ok" if isinstance(one, Answer) else one.kind if isinstance(one, Failure) else one.reason for one in done]


timed = simulated(lane_module, tier_module)


@timed
async def test_an_answer_comes_back_with_its_usage() -> None:
    """The body as it came, and what it cost."""
    async with serving(Script(OK)) as tier:
        answer = await tier.call()
        assert isinstance(answer, Answer)
        assert (answer.body, answer.status, answer.model) == (ANSWER, 200, "m-1")
        assert answer.usage is not None
        assert answer.usage.total_tokens == 4
        assert answer.duration_s == pytest.approx(0.01, abs=1e-3)


@timed
async def test_no_more_calls_at_once_than_configured() -> None:
    """The rest waits for a slot, and all are answered."""
    async with serving(Script(), concurrency=3) as tier:
        assert kinds(await asyncio.gather(*tier.calls(20))) == ["ok"] * 20
        assert tier.script.peak == 3


@timed
async def test_a_job_with_many_rows_does_not_hold_up_another() -> None:
    """What waits takes turns by job: two rows of one wait for a few of the other's, not for all of them."""
    async with serving(Script(latency_s=1.0), concurrency=2) as tier:
        many = tier.calls(100, whose="many")
        await asyncio.sleep(0.5)
        async with asyncio.timeout(4):
            assert kinds(await asyncio.gather(*tier.calls(2, whose="few"))) == ["ok", "ok"]
        assert kinds(await asyncio.gather(*many)) == ["ok"] * 100


@timed
async def test_when_the_breaker_opens_everything_that_waits_is_given_back_at_once() -> None:
    """An unhealthy tier costs its callers the calls that opened it, and nothing more."""
    async with serving(Script(*[BROKEN] * 100), concurrency=1) as tier:
        calls = tier.calls(50)
        done = await asyncio.gather(*calls)
        assert kinds(done) == ["server"] * 3 + ["open"] * 47
        assert {one.retry_in_s for one in done[3:]} == {20.0}
        assert tier.script.sent == 3
        assert kinds([await tier.call()]) == ["open"]
        assert (tier.told.state, tier.told.opened) == ("open", 1)
        assert 0 < tier.told.open_for_s <= 20


@pytest.mark.parametrize("concurrency", [1, 10])
def test_a_recovering_tier_is_asked_by_one_probe(concurrency: int) -> None:
    """While the probe is under way nothing else is sent, and nobody stands in line behind it: it may hang."""

    @timed
    async def test() -> None:
        async with serving(Script(*[BROKEN] * 3, 9.0), concurrency=concurrency) as tier:
            for _ in range(3):
                await tier.call()
            await asyncio.sleep(21.0)
            probe, *others = tier.calls(10)
            await asyncio.sleep(0.1)
            assert kinds([call.result() for call in others]) == ["open"] * 9
            assert (tier.script.sent, tier.told.state) == (4, "half_open")
            assert 19.0 < tier.told.open_for_s <= 20.0, "when another may be sent, if this one hangs"
            assert kinds([await probe]) == ["ok"]
            assert tier.told.state == "closed"
            assert kinds(await asyncio.gather(*tier.calls(10))) == ["ok"] * 10

    test()


@timed
async def test_calls_that_hang_in_all_slots_do_not_keep_the_probe_away() -> None:
    """They are of the time before the outage; the endpoint may long be back."""
    overloaded = [Reply(503, {}, b"{}")] * 3
    async with serving(Script(*overloaded, *[60.0] * 17), concurrency="auto") as tier:
        calls = tier.calls(20, timeout_s=100.0)
        await asyncio.sleep(21.0)
        assert tier.actor.health().in_flight == 17 > tier.actor.health().limit
        assert kinds([await tier.call()]) == ["ok"]
        assert tier.told.state == "closed"
        for call in calls:
            call.cancel()


@timed
async def test_a_cancelled_probe_does_not_wedge_the_tier() -> None:
    """Its place is free again at once."""
    async with serving(Script(*[BROKEN] * 3, 9.0)) as tier:
        for _ in range(3):
            await tier.call()
        await asyncio.sleep(21.0)
        probe = tier.call()
        await asyncio.sleep(0.1)
        probe.cancel()
        await asyncio.sleep(0.1)
        assert kinds([await tier.call()]) == ["ok"]


@pytest.mark.parametrize(
    ("headers", "pause_s"), [({}, COOLING_S), ({"retry-after": "7"}, 7.0), ({"retry-after-ms": "2500"}, 2.5)], ids=str
)
def test_a_429_cools_the_tier_for_as_long_as_it_says(headers: dict[str, str], pause_s: float) -> None:
    """What waits is given back at once, nothing is sent before the time, and the breaker stays closed."""

    @timed
    async def test() -> None:
        async with serving(Script(limited(headers)), concurrency=1) as tier:
            done = await asyncio.gather(*tier.calls(5))
            assert kinds(done) == ["rate_limited"] + ["cooling"] * 4
            assert tier.told.cooling_for_s == pytest.approx(pause_s, abs=0.1)
            await asyncio.sleep(pause_s - 0.1)
            assert kinds([await tier.call()]) == ["cooling"]
            assert tier.script.sent == 1
            await asyncio.sleep(0.2)
            assert kinds([await tier.call()]) == ["ok"]
            assert tier.told.state == "closed"

    test()


@timed
async def test_a_429_that_asks_for_no_pause_still_makes_one() -> None:
    """A 429 is no attempt, so without a pause a request would ask again thousands of times a second."""
    async with serving(Script(*[limited({"retry-after": "0"})] * 10_000, latency_s=0.001)) as tier:
        loop = asyncio.get_running_loop()
        end = loop.time() + 10
        while loop.time() < end:
            await tier.call()
            await asyncio.sleep(0.001)
        assert tier.script.sent <= 110


@timed
async def test_nobody_waits_for_a_slot_while_the_tier_pauses() -> None:
    """Also when all slots are taken by calls that hang: a request goes elsewhere in microseconds, not after a timeout."""
    async with serving(Script(limited({"retry-after": "9"}), *[8.0] * 30), concurrency=20) as tier:
        first, *hanging = tier.calls(20)
        assert kinds([await first]) == ["rate_limited"]
        await asyncio.sleep(0.01)
        assert tier.actor.health().in_flight == 19
        late = tier.call()
        await asyncio.sleep(0.1)
        assert kinds([late.result()]) == ["cooling"]
        assert kinds(await asyncio.gather(*hanging)) == ["ok"] * 19


@timed
async def test_nobody_waits_for_a_slot_while_the_breaker_is_open() -> None:
    """As above, with the breaker."""
    overloaded = Reply(503, {}, b"{}")
    async with serving(Script(*[overloaded] * 3, *[9.0] * 30), concurrency="auto") as tier:
        calls = tier.calls(20)
        await asyncio.sleep(0.5)
        assert tier.told.state == "open"
        assert tier.actor.health().in_flight == 17 > tier.actor.health().limit
        late = tier.call()
        await asyncio.sleep(0.1)
        assert kinds([late.result()]) == ["open"]
        await asyncio.gather(*calls)


@timed
async def test_a_call_that_waits_too_long_for_a_slot_is_given_back() -> None:
    """`queue_s` bounds the wait; it was never sent, so it is no attempt."""
    async with serving(Script(*[9.0] * 10), concurrency=1) as tier:
        first, short, long = tier.call(), tier.call(queue_s=2.0), tier.call(queue_s=100.0)
        await asyncio.sleep(3.0)
        assert short.result() == Refusal("queue", 1.0)
        assert not long.done()
        assert kinds(await asyncio.gather(first, long)) == ["ok", "ok"]
        assert tier.script.sent == 2


@timed
async def test_cancelling_stops_the_call_and_frees_its_slot() -> None:
    """In flight or in the queue: what nobody waits for is not sent, and the next has its place."""
    async with serving(Script(9.0, 9.0), concurrency=1) as tier:
        running, queued, third = tier.calls(3)
        await asyncio.sleep(0.1)
        queued.cancel()
        running.cancel()
        assert kinds([await third]) == ["ok"]
        assert (tier.script.cancelled, tier.script.sent) == (1, 2)


@timed
async def test_a_call_cancelled_before_its_first_step_gives_back_its_slot() -> None:
    """A slot that leaks here is lost for the life of the actor."""
    async with serving(Script(), concurrency=1) as tier:
        stream = tier.actor.completions("direct", 1)
        await anext(stream)
        call = TierCall("id", "/chat/completions", b"{}", 10.0, 5.0, 5.0, 1)
        for number in range(3):
            await tier.actor.submit("direct", 1, [(number, call)], [number])
            await asyncio.sleep(0.1)
        assert tier.actor.health().in_flight == 0
        assert tier.script.sent == 0
        assert kinds([await tier.call()]) == ["ok"]
        await stream.aclose()


@timed
async def test_a_router_that_goes_away_takes_its_calls_with_it() -> None:
    """Nothing is sent for a lane that is closed."""
    async with serving(Script(*[9.0] * 20), concurrency=2) as tier:
        calls = tier.calls(10)
        await asyncio.sleep(0.1)
        await tier.lane.close()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert (tier.script.cancelled, tier.script.sent) == (2, 2)
        assert tier.actor.health().in_flight == 0


@timed
async def test_a_wrong_key_takes_the_tier_out() -> None:
    """It says so in its health until it answers again; once a pause, one call asks."""
    async with serving(Script(UNAUTHORIZED, UNAUTHORIZED), concurrency=10) as tier:
        assert kinds([await tier.call()]) == ["auth"]
        assert kinds(await asyncio.gather(*tier.calls(5))) == ["cooling"] * 5
        assert tier.told.dead_reason
        assert (tier.told.dead_kind, tier.told.cooling_for_s) == ("auth", pytest.approx(20.0, abs=0.1))
        await asyncio.sleep(20.1)
        assert kinds(await asyncio.gather(*tier.calls(5))) == ["auth"] + ["cooling"] * 4
        assert tier.told.dead_reason
        assert tier.told.cooling_for_s == pytest.approx(20.0, abs=0.1)
        await asyncio.sleep(20.1)
        assert tier.script.sent == 2
        assert kinds(await asyncio.gather(*tier.calls(5))) == ["ok"] + ["cooling"] * 4
        assert tier.told.dead_reason == ""
        assert kinds(await asyncio.gather(*tier.calls(5))) == ["ok"] * 5


GONE = Reply(404, {}, b'{"error":{"message":"The model `m` does not exist","code":"model_not_found"}}')


@timed
async def test_a_model_that_vanishes_takes_the_tier_out_until_it_is_back() -> None:
    """Calls that were under way when it went end as they end; they make one pause and end no outage."""
    async with serving(Script(OK, 0.5, 1.0, GONE, GONE, 5.0), concurrency=10) as tier:
        await tier.call()
        late = tier.calls(2)
        assert kinds(await asyncio.gather(*tier.calls(2))) == ["not_found"] * 2
        assert tier.told.dead_kind == "not_found"
        assert "model_not_found" in tier.told.dead_reason
        assert kinds(await asyncio.gather(*late)) == ["ok"] * 2
        assert tier.told.dead_reason, "an answer that had been under way says nothing"
        await asyncio.sleep(18.0)
        assert kinds([await tier.call()]) == ["cooling"]
        await asyncio.sleep(2.0)
        assert kinds(await asyncio.gather(*tier.calls(3))) == ["ok"] + ["cooling"] * 2
        assert tier.told.dead_reason == ""


@timed
async def test_a_lost_probe_is_followed_by_another() -> None:
    """A call that was to find out and was cancelled keeps nobody out for longer than its lease."""
    async with serving(Script(OK, GONE, 9.0)) as tier:
        await tier.call()
        await tier.call()
        await asyncio.sleep(20.1)
        probe = tier.call()
        await asyncio.sleep(0.1)
        probe.cancel()
        assert kinds([await tier.call()]) == ["cooling"]
        await asyncio.sleep(15.1)
        assert kinds([await tier.call()]) == ["ok"]


@timed
async def test_a_path_that_is_not_there_is_asked_for_once() -> None:
    """A 404 is remembered for its path, so that a million rows do not each ask again; the tier itself stays in."""
    async with serving(Script(Reply(404, {}, b"{}")), concurrency=1) as tier:
        assert kinds(await asyncio.gather(*tier.calls(5))) == ["not_found"] + ["absent"] * 4
        assert tier.told.dead_reason == ""
        assert "HTTP 404" in tier.told.absent
        assert tier.script.sent == 1
        await asyncio.sleep(20.1)
        assert kinds(await asyncio.gather(*tier.calls(3))) == ["ok"] + ["absent"] * 2
        assert tier.told.absent == ""


@timed
async def test_a_failure_tells_how_long_it_took() -> None:
    """From the moment it was sent: a quick failure may be tried again in place, a slow one not."""
    async with serving(Script(BROKEN, 11.0, latency_s=0.5), concurrency=1) as tier:
        quick, slow = await asyncio.gather(*tier.calls(2))
        assert (quick.kind, quick.duration_s) == ("server", pytest.approx(0.5, abs=0.01))
        assert (slow.kind, slow.duration_s) == ("timeout", pytest.approx(10.0, abs=0.01))


@timed
async def test_a_missing_key_takes_the_tier_out_without_a_call() -> None:
    """The transport cannot even be made: the message says why."""

    def make(settings: TierSettings) -> Any:
        raise ConfigError("OPENAI_KEY is not set", key="api_key_env")

    tier = Tier(Script())
    tier.actor = TierActor(TierSettings(name="t", model="m", base_url=("http://x",)), make)
    tier.lane = Lane("router", LocalPeer(tier.actor), on_note=tier.observe)
    await tier.lane.open(5.0)
    failure = await tier.call()
    assert (failure.kind, failure.message, failure.billed) == ("auth", "api_key_env: OPENAI_KEY is not set", "no")
    assert tier.told.dead_reason == failure.message
    await tier.lane.close()
    await tier.actor.close()


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (RuntimeError("a defect"), "internal"),
        (asyncio.CancelledError(), "connection"),
        (TransportError("connection", "reset", True), "connection"),
    ],
    ids=repr,
)
def test_whatever_the_transport_raises_the_item_completes(raised: BaseException, kind: str) -> None:
    """No row is swallowed, and the slot is free again."""

    @timed
    async def test() -> None:
        async with serving(Script(raised), concurrency=1) as tier:
            failure = await tier.call()
            assert (failure.kind, failure.billed) == (kind, "unknown")
            assert kinds([await tier.call()]) == ["ok"]

    test()


@pytest.mark.parametrize(
    ("line", "opens"), [(BROKEN, True), (11.0, True), (Reply(200, {}, b"<html>"), True), (BAD_REQUEST, False)], ids=str
)
def test_what_counts_against_the_endpoint(line: Any, opens: bool) -> None:
    """Errors, timeouts and nonsense open the breaker; requests that are wrong in themselves never do."""

    @timed
    async def test() -> None:
        async with serving(Script(*[line] * 10)) as tier:
            for _ in range(10):
                await tier.call()
            assert (tier.told.opened > 0) == opens
            assert tier.script.sent == (3 if opens else 10)

    test()


@timed
async def test_concurrency_grows_with_success_and_shrinks_when_the_endpoint_is_overloaded() -> None:
    """`auto` finds what the endpoint can take."""
    async with serving(Script()) as tier:
        before = tier.actor.health().limit
        await asyncio.gather(*tier.calls(300))
        grown = tier.actor.health().limit
        assert grown > 2 * before
        tier.script.lines.append(Reply(529, {}, b"{}"))
        await tier.call()
        assert tier.actor.health().limit == int(grown * 0.7)


@timed
async def test_what_waits_for_the_pace_goes_elsewhere_when_its_patience_ends() -> None:
    """A refusal without a time paces the calls; who may not wait is given back, who may gets through."""
    async with serving(Script(latency_s=0.01)) as tier:
        tier.script.lines.extend([OK] * 30 + [limited()] * 10)
        everything = await asyncio.gather(*tier.calls(200, rate_s=100.0))
        assert kinds(everything).count("ok") == 200 - kinds(everything).count("rate_limited")
        hasty, patient = tier.calls(2000, rate_s=0.5), tier.calls(5, rate_s=100.0)
        assert "rate" in kinds(await asyncio.gather(*hasty))
        assert kinds(await asyncio.gather(*patient)) == ["ok"] * 5


@timed
async def test_a_call_that_would_wait_too_long_for_the_rate_is_given_back() -> None:
    """With patience the tier's own limit only delays; without it the call goes to another tier, unsent."""
    async with serving(Script(), requests_per_minute=60) as tier:
        assert kinds(await asyncio.gather(*tier.calls(3, rate_s=10.0))) == ["ok"] * 3
        assert kinds(await asyncio.gather(*tier.calls(3, rate_s=0.1))) == ["rate"] * 3
        assert tier.script.sent == 3
        await asyncio.sleep(5.0)
        assert kinds([await tier.call(rate_s=0.1)]) == ["ok"]


@timed
async def test_when_one_endpoint_goes_out_what_waits_goes_to_the_others_at_once() -> None:
    """Queued calls belong to the tier, not to an endpoint; nothing is given back while one is well."""
    dead, well = Script(*[BROKEN] * 1000), Script()
    async with serving(dead, well, concurrency=2) as tier:
        done = await asyncio.gather(*tier.calls(60))
        assert Counter(kinds(done)) == {"ok": 60 - dead.sent, "server": dead.sent}
        assert 3 <= dead.sent <= 4, "what opened it, and one that was under way"
        assert {one.endpoint for one in done if isinstance(one, Failure)} == {0}
        assert {one.endpoint for one in done if isinstance(one, Answer)} == {1}
        assert (tier.told.state, [one.state for one in tier.told.endpoints]) == ("closed", ["open", "closed"])


@timed
async def test_an_endpoint_that_is_back_is_used_again_after_one_probe() -> None:
    """While the others carry the load: its probe is one of their calls."""
    back, well = Script(*[BROKEN] * 100), Script()
    async with serving(back, well) as tier:
        await asyncio.gather(*tier.calls(30))
        back.lines.clear()
        sent = back.sent
        await asyncio.sleep(20.1)
        assert kinds([await tier.call()]) == ["ok"]
        assert back.sent == sent + 1
        assert [one.state for one in tier.told.endpoints] == ["closed", "closed"]


@timed
async def test_a_second_copy_of_a_late_request_goes_to_another_endpoint() -> None:
    """However loaded that one is: where the first copy hangs there is nothing to be won."""
    scripts = Script(*[9.0] * 5), Script(*[9.0] * 5)
    async with serving(*scripts) as tier:
        first = [tier.call(request="late")]
        await asyncio.sleep(0.1)
        (at,) = (script for script in scripts if script.sent)
        others = [tier.call(request=str(number)) for number in range(5)]
        await asyncio.sleep(0.1)
        before = at.sent
        second = tier.call(request="late")
        await asyncio.sleep(0.1)
        assert at.sent == before
        assert kinds(await asyncio.gather(*first, *others, second)) == ["ok"] * 7
        assert not tier.actor._under_way


@timed
async def test_what_waits_finds_an_endpoint_that_is_due_again() -> None:
    """Also when nothing else happens: the other endpoint's slots are full of calls that hang."""
    back, full = Script(BROKEN), Script(*[500.0] * 10)
    async with serving(back, full, concurrency=1, breaker={"failure_threshold": 1}) as tier:
        calls = tier.calls(3, timeout_s=1000.0)
        await asyncio.sleep(20.5)
        assert sorted(kinds([call.result() for call in calls if call.done()])) == ["ok", "server"]
        for call in calls:
            call.cancel()


@pytest.mark.parametrize(
    "wrong", [UNAUTHORIZED, Reply(404, {}, b'{"error":{"code":"model_not_found"}}')], ids=["401", "404"]
)
def test_an_endpoint_with_a_wrong_key_or_model_costs_no_row(wrong: Reply) -> None:
    """One replica of a fleet is set up wrongly: it bills nothing, so its calls go to the others, and it is left alone."""

    @timed
    async def test() -> None:
        bad, well = Script(*[wrong] * 100), Script()
        async with serving(bad, well, concurrency=1) as tier:
            assert kinds(await asyncio.gather(*tier.calls(40))) == ["ok"] * 40
            assert bad.sent == 1
            assert tier.told.dead_reason == ""
            assert "HTTP 40" in tier.told.endpoints[0].why

    test()


@timed
async def test_a_call_that_waits_for_the_rate_goes_elsewhere_when_its_endpoint_goes_out() -> None:
    """It has taken its share of the rate, and is not refused for what happened to its endpoint meanwhile."""
    dead, well = Script(*[BROKEN] * 100), Script()
    async with serving(dead, well, requests_per_minute=60, breaker={"failure_threshold": 1}) as tier:
        done = await asyncio.gather(*tier.calls(10))
        assert Counter(kinds(done)) == {"ok": 9, "server": 1}
        assert dead.sent == 1


@timed
async def test_a_paced_endpoint_is_asked_when_its_time_has_come() -> None:
    """Nothing else happens then that would start the next call."""
    async with serving(Script()) as tier:
        (upstream,) = tier.actor._balancer.all
        now = asyncio.get_running_loop().time()
        upstream.capacity.ready_at = lambda in_flight, at: max(now + 5.0, at)  # type: ignore[method-assign]
        assert kinds([await tier.call()]) == ["ok"]
        assert asyncio.get_running_loop().time() == pytest.approx(now + 5.0, abs=0.1)


@timed
async def test_closing_closes_the_connections() -> None:
    """To all endpoints; and its callers see the lane lost."""
    async with serving(Script(OK), Script()) as tier:
        await tier.call()
    assert [script.closed for script in tier.scripts] == [True, True]


def test_making_one_does_no_io() -> None:
    """A constructor that fails is final in Ray, so nothing that can fail is done in it."""

    def never(settings: TierSettings) -> Any:
        raise AssertionError("called in the constructor")

    make: Callable[[TierSettings], Any] = never
    assert TierActor(TierSettings(name="t", model="m", base_url=("http://x",)), make).health() == Health(
        limit=20, address="x"
    )


@timed
async def test_who_waits_in_person_is_let_in_before_anything_is_learned() -> None:
    """Fifty callers at once at a new endpoint, with long answers: the short ones tell that it lives, and nobody is refused."""
    async with serving(Script(*[0.1] * 5, *[30.0] * 60), timeout_s=60.0, concurrency="auto") as tier:
        calls = tier.calls(55, queue_s=2.0, timeout_s=60.0)
        await asyncio.sleep(2.5)
        assert tier.script.now == 50
        assert kinds(await asyncio.gather(*calls)) == ["ok"] * 55


@timed
async def test_a_batch_waits_and_so_do_callers_of_an_endpoint_that_hangs() -> None:
    """Rows are in no hurry; and what has said nothing gets no more calls than any new endpoint."""
    for queue_s, first in ((100.0, 0.1), (2.0, 30.0)):
        async with serving(Script(first, *[30.0] * 60), timeout_s=60.0, concurrency="auto") as tier:
            calls = tier.calls(50, queue_s=queue_s, timeout_s=60.0)
            await asyncio.sleep(1.5)
            assert tier.script.now == START
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


@timed
async def test_a_number_is_a_number() -> None:
    """Whoever configures 3 has 3, however many wait."""
    async with serving(Script(0.1, *[5.0] * 10), concurrency=3) as tier:
        calls = tier.calls(10, queue_s=2.0)
        await asyncio.sleep(1.5)
        assert tier.script.peak == 3
        await asyncio.gather(*calls)
