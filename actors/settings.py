"""What can be configured of the actors: frozen values, checked once when raycade.yaml is read.

They live here, not in runtime, because the actors need them and imports run one way. Field names are the keys of
raycade.yaml; units are in the names. Nothing here reads a file or the environment.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

__all__ = [
    "QUALITIES",
    "BreakerSettings",
    "BudgetSettings",
    "CoalesceSettings",
    "Limits",
    "Price",
    "RouterSettings",
    "RunawaySettings",
    "ScopeSettings",
    "TierSettings",
]

QUALITIES = ("basic", "medium", "high")
Quality = Literal["basic", "medium", "high"]


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
    transport: Literal["wire", "sdk"] = "wire"
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


class Limits(Settings):
    per_request: float | None = Field(None, ge=0, allow_inf_nan=False)
    per_hour: float | None = Field(None, ge=0, allow_inf_nan=False)
    per_day: float | None = Field(None, ge=0, allow_inf_nan=False)


class ScopeSettings(Settings):
    tokens: Limits = Limits()
    usd: Limits = Limits()


class BudgetSettings(ScopeSettings):
    tiers: dict[str, ScopeSettings] = {}
    keys: dict[str, ScopeSettings] = {}
    jobs: dict[str, ScopeSettings] = {}
    on_exhausted: Literal["stop", "wait"] = "stop"


class RouterSettings(Settings):
    replicas: int = Field(1, ge=1, le=64)
    min_quality: Quality = "basic"
    deadline_s: float = Field(600.0, gt=0)
    max_attempts: int = Field(6, ge=1, le=100)
    on_rate_limit: Literal["fallback", "wait"] = "fallback"
    hedge: Literal["off"] = "off"


class RunawaySettings(Settings):
    max_per_minute: int = Field(0, ge=0)

    @field_validator("max_per_minute")
    @classmethod
    def _not_yet(cls, value: int) -> int:
        if value:
            raise ValueError("expected 0: runaway loops are not detected yet")
        return value


class CoalesceSettings(Settings):
    enabled: bool = True
    keep_s: float = Field(0.0, ge=0)
    runaway: RunawaySettings = RunawaySettings()
