"""What a scenario file may say: how each tier of the mock endpoint behaves, and when.

A scenario is data: frozen, checked once, without clock or chance. `behaviour.Script` turns it into decisions, and
`load` reads it from YAML. In brief:

    seed: 7                     # every random choice follows from seed, tier and request number
    require_key: false          # true: 401 for a call without a Bearer token
    tiers:
      premium:                  # served under /premium/v1/...; `default` under /v1/...; `*` is any other name
        latency: 0.2            # or {fixed_s, outlier: {fraction, s}} or {lognormal: {median_s, sigma}, outlier}
        errors: [{fraction: 0.2, status: 500}]
        rate_limit: {per_second: 40, burst: 40, retry_after_s: 1}
        phases:                 # in order; each overrides what it names; the last goes on
          - {until_s: 3}        # seconds since the tier's first request; or until_requests: a count
          - {until_s: 7, status: 503}
          - {}
"""

import math
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

__all__ = [
    "DEFAULT_TIER",
    "Conduct",
    "Dress",
    "ErrorShare",
    "Latency",
    "Mishap",
    "Phase",
    "RateLimit",
    "Scenario",
    "TierScenario",
]

DEFAULT_TIER = "default"
ANY_TIER = "*"

Mishap = Literal[
    "hang",
    "reset",
    "reset_mid_body",
    "malformed",
    "truncated",
    "html",
    "stall",
    "trickle",
    "huge",
    "redirect",
    "mislabeled",
    "swapped",
    "bad_event",
    "no_done",
    "error_event",
]
"""What may go wrong with a share of the requests: each is a fraction in Conduct."""
Dress = Literal["plain", "fenced", "prefixed", "truncated", "mistyped"]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Status = Annotated[int, Field(ge=400, le=599)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lognormal(Part):
    median_s: Rate
    sigma: Seconds = 0.5


class Outlier(Part):
    """A share of the requests that takes `s` seconds instead: stragglers."""

    fraction: Fraction
    s: Seconds


class Latency(Part):
    """Time from a request's arrival to its answer, or to the first token of a stream."""

    fixed_s: Seconds = 0.0
    lognormal: Lognormal | None = None
    outlier: Outlier | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.lognormal is not None and "fixed_s" in self.model_fields_set:
            raise ValueError("give fixed_s or lognormal, not both")
        return self


class ErrorShare(Part):
    """A share of the requests that is answered with an error status."""

    fraction: Fraction
    status: Status
    code: str | None = None
    message: str | None = None
    retry_after_s: Seconds | None = None
    retry_after_as: Literal["s", "ms", "date"] = "s"
    """Retry-After in seconds, retry-after-ms, or Retry-After as a date."""
    headers: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")], Annotated[str, Field(pattern=r"^[ -~]{0,256}$")]
    ] = {}
    """Further ones, such as x-should-retry: "false"."""


class RateLimit(Part):
    """A token bucket in front of the tier: 429 with Retry-After for what exceeds it."""

    per_second: Rate | None = None
    per_minute: Rate | None = None
    burst: Annotated[int, Field(ge=1)] | None = None
    """Bucket size; absent: what the rate gives in one second."""
    retry_after_s: Seconds | None = None
    """Absent: whole seconds until the bucket has room again."""
    tells: Literal["all", "retry_after", "nothing"] = "all"
    """all: x-ratelimit-* in every reply, and Retry-After in a refusal."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.per_second is None) == (self.per_minute is None):
            raise ValueError("give per_second or per_minute")
        return self

    @property
    def rate_per_s(self) -> float:
        return self.per_second if self.per_second is not None else (self.per_minute or 0.0) / 60.0

    @property
    def bucket(self) -> int:
        return self.burst if self.burst is not None else max(1, math.ceil(self.rate_per_s))


def _latency(value: Any) -> Any:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return {"fixed_s": value} if plain else value


class Conduct(Part):
    """How a tier answers. The fractions (hang to swapped, and errors) exclude each other and sum to at most 1."""

    latency: Annotated[Latency, BeforeValidator(_latency)] = Latency()
    tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    """Completion tokens of an echo reply that the request itself does not cut shorter."""
    tokens_per_s: Rate | None = None
    """Pace of a stream after its first token; absent: all at once."""
    stamped: bool = False
    """Each token of a streamed echo is `HASH.NUMBER.MICROSECONDS `: whose answer it is (as in an echo), which of its tokens, and when
    it was written, by the machine's monotonic clock."""
    status: Status | None = None
    """Every request is answered with this error status."""
    errors: tuple[ErrorShare, ...] = ()
    hang: Fraction = 0.0
    """Never answered; the connection stays open until the client leaves."""
    reset: Fraction = 0.0
    """Connection reset before the response's first byte."""
    reset_mid_body: Fraction = 0.0
    """Connection reset after half of the response."""
    malformed: Fraction = 0.0
    """200 with JSON that breaks off."""
    truncated: Fraction = 0.0
    """200 with whole JSON but finish_reason null; a stream ends without finish_reason and [DONE]."""
    html: Fraction = 0.0
    """200 with a text/html page, as a proxy in between would send."""
    bad_event: Fraction = 0.0
    """A whole stream with one event in its middle that is no JSON."""
    no_done: Fraction = 0.0
    """A whole stream but for [DONE]; the connection stays open until the client leaves."""
    error_event: Fraction = 0.0
    """A stream that ends in its middle with an event that tells of an error."""
    stall: Fraction = 0.0
    """Half of the response, then nothing; the connection stays open until the client leaves."""
    trickle: Fraction = 0.0
    """The body a byte at a time, ten a second: no pause is long enough for a timeout between two reads."""
    huge: Fraction = 0.0
    """A whole answer behind 100 MB of white space; every other one does not say so beforehand."""
    redirect: Fraction = 0.0
    """307 to the same path under /redirected. A tier of that name in the scenario sees who follows."""
    mislabeled: Fraction = 0.0
    """A whole answer under `Content-Type: text/plain`."""
    swapped: Fraction = 0.0
    """A whole answer to the request before this one, with its id and echo: nothing in it tells a client."""
    rate_limit: RateLimit | None = None
    capacity: Annotated[int, Field(ge=1)] | None = None
    """So many requests are worked on at a time; the others queue."""
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    """Prompts with more tokens are answered 400 context_length_exceeded."""
    reply: Literal["echo", "json"] = "echo"
    """json: the content is a JSON value even if the request did not ask for one."""
    json_value: JsonValue = None
    """The JSON content; absent: made to satisfy the request's own schema. `{echo}` in it becomes the echo."""
    dress: tuple[Dress, ...] = ()
    """How JSON content is presented, cycled by request number; absent: plain."""
    usage: Literal["told", "absent"] = "told"
    """absent: answers do not tell their usage. What they used is metered all the same."""
    usage_factor: Rate = 1.0
    """So many times its tokens is what an answer is metered at, and what it tells."""
    cached: Fraction = 0.0
    """The share of a prompt's tokens that is told to come from the cache."""
    answers_as: Annotated[str, Field(min_length=1)] | None = None
    """The model that answers name; absent: the one that the request asks for."""
    replies: tuple[JsonValue, ...] = ()
    """Contents, cycled by request number, instead of the echo; `{echo}` in them becomes the echo."""

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        shares = sum(getattr(self, mishap) for mishap in get_args(Mishap))
        if shares + sum(error.fraction for error in self.errors) > 1 + 1e-9:
            raise ValueError("the fractions of hang, reset, malformed, ... and errors sum to more than 1")
        return self


class Phase(Conduct):
    """A stretch of a tier's life. What it does not name stays as the tier has it."""

    until_s: Rate | None = None
    until_requests: Annotated[int, Field(ge=1)] | None = None

    @property
    def endless(self) -> bool:
        return self.until_s is None and self.until_requests is None

    def overrides(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set - {"until_s", "until_requests"}}


class TierScenario(Conduct):
    phases: tuple[Phase, ...] = ()

    @model_validator(mode="after")
    def _phases_in_order(self) -> Self:
        if any(phase.endless for phase in self.phases[:-1]):
            raise ValueError("only the last phase may do without until_s and until_requests")
        for bounds in (
            [phase.until_s for phase in self.phases if phase.until_s is not None],
            [phase.until_requests for phase in self.phases if phase.until_requests is not None],
        ):
            if any(later <= earlier for earlier, later in pairwise(bounds)):
                raise ValueError("until_s and until_requests of the phases must grow")
        for phase in self.phases:
            self.during(phase)
        return self

    def during(self, phase: Phase) -> Conduct:
        """The conduct of one phase: the tier's own with the phase's overrides."""
        own = {name: getattr(self, name) for name in Conduct.model_fields}
        return Conduct(**(own | phase.overrides()))


class Scenario(Part):
    seed: int = 0
    require_key: bool = False
    tiers: dict[Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9_.-]{0,63})$")], TierScenario] = {}

    @model_validator(mode="after")
    def _no_api_name(self) -> Self:
        for name in ("v1", "stats", "healthz"):
            if name in self.tiers:
                raise ValueError(f"a tier cannot be called {name!r}: it is a path of the mock")
        return self

    def tier(self, name: str) -> TierScenario | None:
        """The tier of that name. `default` always exists: a well-behaved one unless the scenario says otherwise."""
        known = self.tiers.get(name) or self.tiers.get(ANY_TIER)
        return TierScenario() if known is None and name == DEFAULT_TIER else known

    def with_latency(self, fixed_s: float) -> "Scenario":
        """The same scenario with one fixed latency everywhere, phases included."""

        def calm(tier: TierScenario) -> TierScenario:
            phases = [phase.model_dump(exclude_unset=True, exclude={"latency"}) for phase in tier.phases]
            own = tier.model_dump(exclude_unset=True, exclude={"latency", "phases"})
            return TierScenario.model_validate({**own, "latency": fixed_s, "phases": phases})

        tiers = dict(self.tiers)
        if ANY_TIER not in tiers:
            tiers.setdefault(DEFAULT_TIER, TierScenario())
        return self.model_copy(update={"tiers": {name: calm(tier) for name, tier in tiers.items()}})
