"""What can be configured of the actors: frozen values, checked once when raycade.yaml is read.

They live here, not in runtime, because the actors need them and imports run one way. Field names are the keys of
raycade.yaml; units are in the names. Nothing here reads a file or the environment.
"""

import math
import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

__all__ = [
    "QUALITIES",
    "AnomalySettings",
    "BreakerSettings",
    "BudgetSettings",
    "CoalesceSettings",
    "HedgeSettings",
    "Limits",
    "Price",
    "Quality",
    "RouterSettings",
    "RunawaySettings",
    "ScopeSettings",
    "Settings",
    "StructuredSettings",
    "TierSettings",
]

QUALITIES = ("basic", "medium", "high")
QUANTILE = re.compile(r"p[5-9]\d(\.\d)?")
Quality = Literal["basic", "medium", "high"]
_NATIVE_HOST = re.compile(r"https://(?:api\.openai\.com|[\w-]+\.openai\.azure\.com)(?:[:/]|$)")


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Price(Settings):
    """USD per million tokens. `cached`: prompt tokens read from the provider's cache; absent: the prompt price."""

    prompt: float = Field(ge=0, allow_inf_nan=False)
    completion: float = Field(ge=0, allow_inf_nan=False)
    cached: float | None = Field(None, ge=0, allow_inf_nan=False)


class BreakerSettings(Settings):
    """When an endpoint is left alone, and when it is tried again (actors/tier/breaker.py)."""

    failure_threshold: int = Field(5, ge=1)
    recovery_timeout_s: float = Field(30.0, gt=0)
    failure_rate: float = Field(0.5, gt=0, le=1)
    min_calls: int = Field(20, ge=1)
    window_s: float = Field(30.0, gt=0)
    half_open_calls: int = Field(1, ge=1)
    slow_call_s: float | None = Field(None, gt=0)
    """A call that takes so long is slow; absent: none is."""
    slow_call_rate: float = Field(1.0, gt=0, le=1)
    """Opens when so many of the window's calls were slow, under the same `min_calls`."""


class TierSettings(Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    model: str = Field(min_length=1)
    base_url: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda v: (v,) if isinstance(v, str) else tuple(v) if isinstance(v, list) else v),
    ] = Field(min_length=1)
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    quality: Quality = "basic"
    price: Price | None = None
    replicas: int = Field(1, ge=1, le=256)
    concurrency: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    timeout_s: float = Field(30.0, gt=0)
    first_token_timeout_s: float | None = Field(None, gt=0)
    """Of a stream, from sending to the first part of the answer; absent: timeout_s."""
    stall_timeout_s: float = Field(30.0, gt=0)
    """Of a stream, each wait for more."""
    prefill: bool | Literal["prefix"] = False
    """Whether it continues an answer that another tier began (actors/router/resume.py)."""
    context_tokens: int | None = Field(None, ge=1)
    max_output_tokens: int = Field(1024, ge=1)
    image_tokens: int | None = Field(None, ge=1)
    transport: Literal["wire", "sdk"] = "wire"
    structured: Literal["native", "instruction"] | None = None
    """How a schema is demanded: as `response_format`, or in words. None: natively where that is known to work."""
    breaker: BreakerSettings = BreakerSettings()

    @field_validator("base_url")
    @classmethod
    def _http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError("expected an address that begins with http:// or https://")
        return tuple(url.rstrip("/") for url in urls)

    @property
    def rank(self) -> int:
        """0 basic, 1 medium, 2 high."""
        return QUALITIES.index(self.quality)

    @property
    def native_schema(self) -> bool:
        """Words work everywhere, and the answer is checked anyway; a server that quietly ignores `response_format` would
        leave the model without any demand, so only those are trusted with it that document it, or that are set to it."""
        if self.structured is not None:
            return self.structured == "native"
        return all(_NATIVE_HOST.match(url) for url in self.base_url)


class Limits(Settings):
    per_request: float | None = Field(None, ge=0, allow_inf_nan=False)
    per_hour: float | None = Field(None, ge=0, allow_inf_nan=False)
    per_day: float | None = Field(None, ge=0, allow_inf_nan=False)


class ScopeSettings(Settings):
    tokens: Limits = Limits()
    usd: Limits = Limits()


class AnomalySettings(Settings):
    """When a tier's or key's spend per minute is an anomaly (actors/budget/anomaly.py), and what is done about it."""

    factor: float = Field(5.0, gt=1, allow_inf_nan=False)
    floor_usd_per_minute: float = Field(1.0, ge=0, allow_inf_nan=False)
    floor_tokens_per_minute: int = Field(200_000, ge=0)
    min_minutes: int = Field(5, ge=0)
    webhook: str | None = None
    """An address that gets a POST for each anomaly."""
    stop: bool = False
    """Whether an anomaly stops all spending of its tier or key until `raycade budget resume`."""

    @field_validator("webhook")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("expected an address that begins with http:// or https://")
        return url


class BudgetSettings(ScopeSettings):
    tiers: dict[str, ScopeSettings] = {}
    keys: dict[str, ScopeSettings] = {}
    jobs: dict[str, ScopeSettings] = {}
    anomaly: AnomalySettings = AnomalySettings()
    on_exhausted: Literal["stop", "wait"] = "stop"


class HedgeSettings(Settings):
    """When a second copy of a slow call is sent (actors/router/hedging.py)."""

    after: float | str = "p95"
    """Seconds, or a quantile of the tier's recent calls."""
    max_fraction: float = Field(0.05, ge=0, le=1)
    """Second copies per call, at most. The last rows of a job are free of it, so 0 hedges them alone."""

    @field_validator("after")
    @classmethod
    def _time(cls, after: float | str) -> float | str:
        quantile = isinstance(after, str) and QUANTILE.fullmatch(after)
        if not quantile and not (isinstance(after, int | float) and 0 < after < math.inf):
            raise ValueError("expected p50 to p99.9, or a number of seconds > 0")
        return after

    @property
    def share(self) -> float | None:
        """The quantile as a share, 0.95 say; None: `after_s` is what counts."""
        return float(self.after[1:]) / 100 if isinstance(self.after, str) else None

    @property
    def after_s(self) -> float | None:
        return None if isinstance(self.after, str) else self.after


class RouterSettings(Settings):
    replicas: int = Field(1, ge=1, le=64)
    min_quality: Quality = "basic"
    deadline_s: float = Field(600.0, gt=0)
    max_attempts: int = Field(6, ge=1, le=100)
    on_rate_limit: Literal["fallback", "wait"] = "fallback"
    on_content_filter: Literal["final", "fallback"] = "final"
    """Whether a content filter's refusal ends a request, or the next tier is asked."""
    hedge: Annotated[HedgeSettings | None, BeforeValidator(lambda v: None if v == "off" else v)] = None
    """None: `off`."""
    on_broken_stream: Literal["error", "resume"] = "resume"
    """What follows when an answer breaks off after its first words (actors/router/telling.py)."""


class StructuredSettings(Settings):
    """What follows an answer that does not satisfy its schema (actors/router/asking.py)."""

    retries: int = Field(2, ge=0, le=10)
    """How often it is asked for again."""
    escalate: bool = False
    """Whether, after once more at the same tier, better tiers are asked."""


class RunawaySettings(Settings):
    max_per_minute: int = Field(0, ge=0)
    """Calls for one and the same request within a minute; 0: no limit. See actors/coalescer/runaway.py."""


class CoalesceSettings(Settings):
    runaway: RunawaySettings = RunawaySettings()
    enabled: bool = True
    across_keys: bool = False
    """Whether callers with different gateway keys share calls and kept answers."""
    keep_s: float = Field(0.0, ge=0)
    keep_mb: int = Field(64, ge=1)
    """Bound on the kept answers, in MiB; the oldest go first."""

    @field_validator("enabled")
    @classmethod
    def _sees_loops(cls, enabled: bool, info: ValidationInfo) -> bool:
        runaway = info.data.get("runaway")
        if not enabled and runaway is not None and runaway.max_per_minute:
            raise ValueError("expected true, since runaway.max_per_minute is set and loops are seen where calls meet")
        return enabled
