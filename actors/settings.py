"""What can be configured of the actors: frozen values, checked once when raycade.yaml is read.

They live here, not in runtime, because the actors need them and imports run one way. Field names are the keys of
raycade.yaml; units are in the names. Nothing here reads a file or the environment.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

__all__ = [
    "QUALITIES",
    "AnomalySettings",
    "BreakerSettings",
    "BudgetSettings",
    "CoalesceSettings",
    "Limits",
    "Price",
    "RouterSettings",
    "RunawaySettings",
    "ScopeSettings",
    "StructuredSettings",
    "TierSettings",
]

QUALITIES = ("basic", "medium", "high")
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
    failure_threshold: int = Field(5, ge=1)
    recovery_timeout_s: float = Field(30.0, gt=0)
    failure_rate: float = Field(0.5, gt=0, le=1)
    min_calls: int = Field(20, ge=1)
    window_s: float = Field(30.0, gt=0)
    half_open_calls: int = Field(1, ge=1)


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


class RouterSettings(Settings):
    replicas: int = Field(1, ge=1, le=64)
    min_quality: Quality = "basic"
    deadline_s: float = Field(600.0, gt=0)
    max_attempts: int = Field(6, ge=1, le=100)
    on_rate_limit: Literal["fallback", "wait"] = "fallback"
    hedge: Literal["off"] = "off"


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
