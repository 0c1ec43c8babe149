"""The provider of a history: scripted endpoints that fail in every way, and the meter of what they bill.

The meter is the truth that budgets are held to. It belongs to the provider: it goes on billing for calls whose caller
is dead or has given up. The provider honours its bounds: a call's usage is at most what its caller had to reserve.
"""

import asyncio
import random
import re
from collections.abc import Callable
from typing import NamedTuple

from actors.messages import Request
from actors.tier.transport import Reply, TransportError
from tests.simulation.loop import Loop

__all__ = ["Ask", "Behaviour", "Endpoint", "Limit", "Meter", "Rates"]

PARTS = 1_000_000
"""Of a micro-dollar, as prices are kept."""
BOUND = re.compile(rb'"max_(?:completion_)?tokens":(\d+)')
ANSWER = (
    b'{"id":"x","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"%s"},"finish_reason":%s}]%s}'
)
COUNTED = b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}'
HEADERS = {"content-type": "application/json"}

KINDS = (
    "ok",
    "no_usage",
    "429",
    "500",
    "503",
    "504",
    "refused",
    "hangs",
    "cut",
    "malformed",
    "filtered",
    "400",
    "invalid",
)
"""What a call can come to. `invalid`: an answer that does not satisfy the request's schema."""
UNKNOWN = frozenset({"no_usage", "504", "hangs", "cut"})
"""Whether these were billed, or for how much, the caller cannot tell."""


class Rates(NamedTuple):
    """A tier's prices, in millionths of a micro-dollar per token."""

    prompt: int
    completion: int
    cached: int


class Behaviour(NamedTuple):
    """How an endpoint behaves: `weights` of KINDS, and its latency in seconds."""

    weights: tuple[int, ...]
    latency_s: float
    greedy: float
    """How often a call uses all it may."""


class Limit(NamedTuple):
    scope: str
    window: str
    unit: int
    """0 tokens, 1 micro-dollars."""
    amount: int


class Ask:
    """One request as one router has it, with what its attempts were reserved under."""

    __slots__ = ("billed_parts", "billed_tokens", "number", "periods", "plan", "request", "scopes")

    def __init__(self, number: int, plan: int, request: Request) -> None:
        self.number = number
        self.plan = plan
        """Which request of the history; several asks may be for one, after a router's death."""
        self.request = request
        self.scopes = tuple(f"{kind}:{name}" for kind, name in (("job", request.job), ("key", request.key)) if name)
        self.periods: list[tuple[str, int, int]] = []
        """Of each reservation: tier, and the ledger's hour and day at that moment."""
        self.billed_tokens = 0
        self.billed_parts = 0


class Meter:
    """What the provider has billed, for every scope and window, held to the limits with every call."""

    def __init__(
        self, limits: tuple[Limit, ...], per_request: tuple[int | None, int | None], overspent: Callable[[str], None]
    ) -> None:
        self._limits = [limit for limit in limits if limit.window != "request"]
        self._per_request = per_request
        self._overspent = overspent
        self.used: dict[tuple[str, str, int], list[int]] = {}
        """(scope, window, period) -> tokens, parts."""
        self.micros: dict[str, int] = {}
        """(scope) -> micro-dollars with every call rounded up, as the ledger counts them."""
        self.calls = 0
        self.straddled = 0
        """Calls of which nobody can say which hour they belong to."""

    def bill(self, ask: Ask, tier: str, tokens: int, parts: int) -> None:
        """Charge one call. Its windows are those in which its reservation was made."""
        self.calls += 1
        ask.billed_tokens += tokens
        ask.billed_parts += parts
        most_tokens, most_micros = self._per_request
        if most_tokens is not None and ask.billed_tokens > most_tokens:
            self._overspent(f"request {ask.request.id}: billed {ask.billed_tokens} of {most_tokens} tokens")
        if most_micros is not None and ask.billed_parts > most_micros * PARTS:
            self._overspent(f"request {ask.request.id}: billed {ask.billed_parts} parts of {most_micros} micro-dollars")
        at = {(hour, day) for name, hour, day in ask.periods if name == tier}
        windows = [("total", 0)]
        if len(at) == 1:
            hour, day = at.pop()
            windows += [("hour", hour), ("day", day)]
        else:
            self.straddled += 1
        for scope in ("all", f"tier:{tier}", *ask.scopes):
            self.micros[scope] = self.micros.get(scope, 0) - (-parts // PARTS)
            for window, period in windows:
                used = self.used.get((scope, window, period))
                if used is None:
                    used = self.used[scope, window, period] = [0, 0]
                used[0] += tokens
                used[1] += parts
        for scope, window, unit, amount in self._limits:
            for name, period in windows:
                if name == window and (used := self.used.get((scope, window, period))) is not None:
                    most = amount * PARTS if unit else amount
                    if used[unit] > most:
                        what = "micro-dollar parts" if unit else "tokens"
                        self._overspent(f"{scope} per {window}: billed {used[unit]} of {most} {what}")


class Endpoint:
    """A tier's endpoint. A Transport; all actors of the tier share it."""

    def __init__(
        self,
        loop: Loop,
        rng: random.Random,
        tier: str,
        behaviour: Behaviour,
        rates: Rates,
        asks: list[Ask],
        meter: Meter,
        tell: Callable[..., None],
    ) -> None:
        self._loop = loop
        self._rng = rng
        self._tier = tier
        self._rates = rates
        self._asks = asks
        self._meter = meter
        self._tell = tell
        self.behaviour = behaviour
        self.pending = 0
        """Bills that are still to come."""
        self.kinds: dict[str, int] = {}
        self.unknown = 0
        self.under_way: dict[bytes, int] = {}
        """Calls at this moment, by digest."""
        self.most_equal = 0
        """The most equal calls that were ever under way at once."""
        self.calls_by_digest: dict[bytes, int] = {}

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        rng, loop = self._rng, self._loop
        at = body.rindex(b'"user":"') + 8
        ask = self._asks[int(body[at : body.index(b'"', at)])]
        bound = BOUND.search(body)
        assert bound is not None, "a call without a bound on its completion"
        (kind,) = rng.choices(KINDS, self.behaviour.weights)
        if kind == "invalid" and not ask.request.schema:
            kind = "ok"
        latency_s = self.behaviour.latency_s * 2.0 * rng.random()
        if kind == "hangs" or latency_s > timeout_s:
            kind, latency_s = "hangs", timeout_s
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        usage = self._usage(ask, int(bound[1]))
        self._tell("call", self._tier, ask.request.id, kind, usage)
        if kind in UNKNOWN:
            self.unknown += 1
        if self._bills(kind):
            # the provider may go on when its caller has given up
            late_s = latency_s * rng.random() if kind != "hangs" else latency_s * 1.5 * rng.random()
            self.pending += 1
            loop.run_in(loop.world, late_s, self._bill, ask, usage)
        self._begins(ask.request.digest)
        try:
            await asyncio.sleep(latency_s)
        finally:
            self.under_way[ask.request.digest] -= 1
        return self._reply(kind, ask, usage)

    async def aclose(self) -> None:
        pass

    def _begins(self, digest: bytes) -> None:
        if digest:
            self.calls_by_digest[digest] = self.calls_by_digest.get(digest, 0) + 1
        now = self.under_way[digest] = self.under_way.get(digest, 0) + 1
        if digest:
            self.most_equal = max(self.most_equal, now)

    def _usage(self, ask: Ask, max_tokens: int) -> tuple[int, int, int]:
        rng = self._rng
        prompt, completion = ask.request.prompt_bound_tokens, max_tokens * ask.request.choices
        if rng.random() >= self.behaviour.greedy:
            prompt = rng.randint(1, prompt)
            completion = rng.randint(0, completion)
        return prompt, completion, rng.choice((0, 0, prompt // 2))

    def _bills(self, kind: str) -> bool:
        match kind:
            case "429" | "500" | "503" | "400" | "refused":
                return False
            case "504" | "hangs" | "cut":
                return self._rng.random() < 0.7
        return True

    def _bill(self, ask: Ask, usage: tuple[int, int, int]) -> None:
        self.pending -= 1
        prompt, completion, cached = usage
        rates = self._rates
        parts = (prompt - cached) * rates.prompt + cached * rates.cached + completion * rates.completion
        self._meter.bill(ask, self._tier, prompt + completion, parts)

    def _reply(self, kind: str, ask: Ask, usage: tuple[int, int, int]) -> Reply:
        match kind:
            case "ok" | "no_usage" | "malformed" | "filtered" | "invalid":
                reason = {"malformed": "null", "filtered": '"content_filter"'}.get(kind, '"stop"')
                content = ask.plan if ask.request.schema else ask.number
                said = b"nonsense" if kind == "invalid" else b"%d" % content
                counted = b"" if kind == "no_usage" else COUNTED % usage
                return Reply(200, HEADERS, ANSWER % (said, reason.encode(), counted))
            case "refused":
                raise TransportError("connection", "connection refused", sent=False)
            case "hangs":
                raise TransportError("timeout", "no reply in time", sent=True)
            case "cut":
                raise TransportError("connection", "the reply was cut short", sent=True)
            case "429":
                pause = self._rng.choice(("", "0", "1"))
                return Reply(429, {"retry-after": pause} if pause else {}, b'{"error":{"message":"slow down"}}')
        return Reply(int(kind), HEADERS, b'{"error":{"message":"oops"}}')
