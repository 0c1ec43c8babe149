"""raycade.yaml -> `Config`: read once by whatever starts (batch, serve, up), before anything is called.

`load_config` finds everything that can be found without a network: structure, types and ranges (yaml_lines.py), then
what only the whole file and the environment can tell: two tiers of one name, missing key variables, budgets of tiers
that do not exist, models without a known price. Each problem is one line with file, line and key. A key's value is
never read into the Config: it holds the NAME of a variable, and the tier actor reads the variable.

Paths (`state_dir`, `prompts.dir`, `gateway.keys_file`) are relative to the folder the program runs in.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Annotated, Any
from urllib.parse import parse_qsl

from pydantic import Field

from actors.errors import ConfigError
from actors.keys import FILE, find_key
from actors.settings import (
    QUALITIES,
    BudgetSettings,
    CoalesceSettings,
    Price,
    RouterSettings,
    Settings,
    StructuredSettings,
    TierSettings,
)
from runtime.yaml_lines import Document, Path, check, joined, looks_secret, read, shown

__all__ = [
    "BatchSettings",
    "Config",
    "FileSettings",
    "GatewaySettings",
    "PromptSettings",
    "TelemetrySettings",
    "digest",
    "key_values",
    "load_config",
    "resolve_prices",
    "served_name",
]

DEFAULT_FILE = "raycade.yaml"
NO_KEYS_HERE = "a key never stands in this file; api_key_env takes the NAME of an environment variable that holds it"

_HINTS = {
    "name": "a name of letters, digits, '.', '_' and '-', at most 64 characters",
    "api_key_env": f"the NAME of an environment variable ({NO_KEYS_HERE})",
    "after": "a quantile such as p95, or a number of seconds",
    "hedge": "off, or keys such as {after: p95, max_fraction: 0.05}",
    "cors_origins": "a list of origins such as https://chat.example.com, without a path",
    "base_url": "an address, or a list of addresses, beginning with http:// or https://",
}
_KEY_NAMES = re.compile(r"(?:api|auth|access|secret|bearer)?[_-]?(?:key|token|secret|authorization|password)s?", re.I)
_PLAIN_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,59}")
_WITH_PASSWORD = re.compile(r"https?://[^/?#]*@")
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:,@/?#\[\]]*)(?::\d+)?"
_LEDGER = re.compile(rf"postgres(?:ql)?://(?:[^\s:@/?#]+@)?{_HOST}(?:,{_HOST})*(?:/[^\s:@/?#]*)?(?:\?[^\s#]*)?")


class TrialSettings(Settings):
    """When a prompt version on trial is stopped by itself (runtime/prompts_trial.py)."""

    stop: bool = True
    alpha: float = Field(default=0.05, gt=0, le=0.5)
    """The most that may be the chance of ever stopping a trial that is no worse."""
    cost_tolerance: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """A row of it may cost so much more than one of the stable version."""


class PromptSettings(Settings):
    dir: str = Field(default="prompts", min_length=1)
    trial: TrialSettings = TrialSettings()


class FileSettings(Settings):
    """Of /v1/files; each key has so much."""

    max_mb: float = Field(default=200.0, gt=0, le=10_000)
    """Of one upload."""
    max_total_mb: float = Field(default=10_000.0, gt=0, allow_inf_nan=False)
    """Of all a key's files; beyond it nothing more is taken."""
    keep_days: float = Field(default=30.0, gt=0, le=3650)
    """Files are removed then, unless the client has named a time."""


class BatchSettings(Settings):
    """Of /v1/batches."""

    max_rows: int = Field(default=50_000, ge=1)
    per_key: int = Field(default=20, ge=1)
    """Batches of a key that have not ended; one more is refused."""
    at_once: int = Field(default=4, ge=1, le=100)
    """Carried out at the same time; the others wait their turn."""
    window: int = Field(default=256, ge=1, le=10_000)
    """Rows of a batch in flight."""


class GatewaySettings(Settings):
    keys_file: str | None = Field(default=None, min_length=1)
    max_body_mb: float = Field(default=10.0, gt=0, le=1024)
    max_queued: int = Field(default=1000, ge=1)
    """Requests in one replica at once; beyond it the answer is 429."""
    replicas: int = Field(default=1, ge=1, le=1000)
    max_replicas: int | None = Field(default=None, ge=1, le=1000)
    """More than `replicas`: as many as the load needs, up to so many."""
    drain_s: float = Field(default=60.0, gt=0, le=3600)
    """At shutdown, how long answers that are under way may take to end."""
    files: FileSettings = FileSettings()
    batches: BatchSettings = BatchSettings()
    cors_origins: list[Annotated[str, Field(pattern=r"^https?://[^/\s*@]+$")]] = Field(default=[])
    """Where web pages that call the gateway may come from, such as https://chat.example.com; none by default."""


class TelemetrySettings(Settings):
    metrics_port: int | None = Field(default=9464, ge=0, le=65535)
    """None: no metrics are served; 0: any free port."""
    otlp_endpoint: str | None = Field(default=None, min_length=1)


class Config(Settings):
    """All of raycade.yaml."""

    state_dir: str = Field(default=".raycade", min_length=1)
    ledger: str | None = None
    """A PostgreSQL to keep the budget in, for several clusters; None: a file in state_dir."""
    tiers: list[TierSettings] = Field(min_length=1)
    """In the order in which they are tried."""
    budget: BudgetSettings = BudgetSettings()
    router: RouterSettings = RouterSettings()
    coalesce: CoalesceSettings = CoalesceSettings()
    structured: StructuredSettings = StructuredSettings()
    prompts: PromptSettings = PromptSettings()
    gateway: GatewaySettings = GatewaySettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def ledger_place(self) -> str:
        """Where the ledger's store is, as BudgetActor takes it."""
        return self.ledger or os.path.abspath(self.state_dir)


def load_config(path: str | None, environ: Mapping[str, str], *, check_keys: bool = True) -> Config:
    """The checked configuration. `path` None: raycade.yaml in the current folder.

    `check_keys` False leaves the variables of api_key_env unchecked, for commands that call no endpoint. Raises
    ConfigError; when several things are wrong its text has one line for each.
    """
    file = DEFAULT_FILE if path is None else path
    if not os.path.exists(file):
        raise ConfigError(
            "there is no such file; name yours with -c FILE, or begin with this one line: "
            'tiers: [{name: main, model: gpt-4o-mini, base_url: "https://api.openai.com/v1", '
            "api_key_env: OPENAI_API_KEY}]",
            file,
        )
    document = read(file)
    misplaced = list(_misplaced_keys(document))
    if misplaced:
        raise joined(misplaced)
    config = check(Config, document, _HINTS)
    problems = [*_contradictions(config, document)]
    if check_keys:
        problems.extend(_missing_keys(config, document, environ))
    problems.extend(_unpriced(config, document)[1])
    if problems:
        raise joined(problems)
    return config


def digest(config: Config) -> str:
    """SHA-256 over what decides which answers a job gets; a journal is resumed only under the digest it began with.

    In it: each tier's name, model, quality and max_output_tokens, the tiers' order, and router.min_quality. A job whose
    first half comes from one model and second half from another is two jobs, and its user must be told.

    Not in it: whatever only says how fast, how far, where or at what cost the same questions are asked: budgets,
    prices, rates, concurrency, replicas, timeouts, attempts and deadlines, breakers, key variables, base_url,
    transport, context_tokens, coalescing, gateway, telemetry, ledger and folders. A job stopped by its budget must go on
    after the budget is raised, and one stopped by an outage after the endpoint moved. Prompts have digests of their own
    (`prompts.Registry.digest`), since their content counts and not the folder they lie in.
    """
    matters = {
        "tiers": [[tier.name, tier.model, tier.quality, tier.max_output_tokens] for tier in config.tiers],
        "min_quality": config.router.min_quality,
    }
    return hashlib.sha256(json.dumps(matters, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def key_values(config: Config, environ: Mapping[str, str]) -> list[str]:
    """The values of all keys of endpoints: what nothing that is written may hold."""
    values = []
    for name in filter(None, (tier.api_key_env for tier in config.tiers)):
        with contextlib.suppress(ConfigError):  # where the actors run elsewhere, this process needs no key
            values.append(find_key(name, environ))
    return [value for value in values if value]


def served_name(config: Config) -> str:
    """What tells runtimes apart that stay up: `PLACE-DIGEST`, the ledger they go by, and all else that their actors go by.

    Two of one place would each believe that the limits are theirs alone. Not in it: what each door reads for itself
    (prompts, structured, gateway), and the keys' budgets, which are the gateway's. Paths are in it as they were
    written, since a job that was submitted stands in a folder of its own.
    """
    budget = config.budget.model_dump(mode="json", exclude={"keys"})
    served = config.model_dump(mode="json", include={"tiers", "router", "coalesce"}) | {
        "budget": budget,
        "metrics": config.telemetry.metrics_port is not None,
    }
    parts = ([config.ledger or config.state_dir], 8), (served, 12)
    return "-".join(hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:n] for part, n in parts)


def resolve_prices(config: Config) -> dict[str, Price]:
    """Price by tier name: the tier's own, else looked up by model. Raises ConfigError for a model nobody knows."""
    prices, problems = _unpriced(config, None)
    if problems:
        raise joined(problems)
    return prices


def _unpriced(config: Config, document: Document | None) -> tuple[dict[str, Price], list[ConfigError]]:
    prices: dict[str, Price] = {}
    problems: list[ConfigError] = []
    for index, tier in enumerate(config.tiers):
        price = tier.price or _known_price(tier)
        if price is not None:
            prices[tier.name] = price
            continue
        message = (
            f"no price is known for model {shown(tier.model)}; give this tier one in USD per million tokens, "
            "such as price: {prompt: 2.5, completion: 10.0} (zeros for a model of your own)"
        )
        path: Path = ("tiers", index, "model")
        problems.append(
            document.error(message, path) if document else ConfigError(message, key=f"tiers[{index}].model")
        )
    return prices, problems


def _known_price(tier: TierSettings) -> Price | None:
    """What the data inside the package genai-prices says; nothing is fetched.

    Where a provider charges other prices at other hours, the dearest of the next day holds, because a budget must not
    be passed. Where long prompts cost more, the price of the longest prompt that the tier's context_tokens allow holds;
    without context_tokens the usual price.
    """
    # Imported here: it takes 0.4 s, and a file whose tiers have prices does not need it.
    from genai_prices import Usage, calc_price

    maker, _, model = tier.model.partition("/")
    guesses: list[tuple[str, dict[str, Any]]] = [(tier.model, {"provider_api_url": url}) for url in tier.base_url]
    guesses += [(tier.model, {}), (tier.model, {"provider_id": "openai"})]
    if model:
        guesses.append((model, {"provider_id": maker}))
    start = datetime.now(UTC)
    for name, provider in guesses:
        try:
            found = calc_price(Usage(), name, **provider).model
        except LookupError:
            continue
        prices = [found.get_prices(start + timedelta(hours=hour)) for hour in range(24)]
        prompt, completion, cached = (
            max(
                (_per_million(getattr(price, kind), tier.context_tokens) for price in prices),
                default=None,
                key=_or_zero,
            )
            for kind in ("input_mtok", "output_mtok", "cache_read_mtok")
        )
        if completion is None and "embed" in found.id.lower():
            completion = 0.0
        if prompt is not None and completion is not None:
            return Price(prompt=prompt, completion=completion, cached=cached)
    return None


def _or_zero(price: float | None) -> float:
    return price or 0.0


def _per_million(price: Any, context_tokens: int | None) -> float | None:
    """A flat price, or of one with steps the highest that a prompt of so many tokens can reach."""
    if price is None or not hasattr(price, "tiers"):
        return None if price is None else float(price)
    reached = [step.price for step in price.tiers if step.start < (context_tokens or 0)]
    return float(max([price.base, *reached]))


def _misplaced_keys(document: Document) -> Iterator[ConfigError]:
    """Keys that were written into the file itself. Looked for first, so that no other check speaks about them."""
    tiers = document.value.get("tiers") if isinstance(document.value, dict) else None
    for index, tier in enumerate(tiers if isinstance(tiers, list) else []):
        for name, value in tier.items() if isinstance(tier, dict) else ():
            path: Path = ("tiers", index, name)
            named = name == "api_key_env" and isinstance(value, str) and looks_secret(value)
            if named or _KEY_NAMES.fullmatch(name):
                yield document.error(NO_KEYS_HERE, path)


def _contradictions(config: Config, document: Document) -> Iterator[ConfigError]:
    """What is right in itself and wrong beside the rest of the file."""
    first: dict[str, int] = {}
    for index, tier in enumerate(config.tiers):
        path: Path = ("tiers", index, "name")
        if tier.name in first:
            line = document.line(("tiers", first[tier.name], "name"))
            yield document.error(f"two tiers are called {shown(tier.name)}; the first is on line {line}", path)
        first.setdefault(tier.name, index)
        if any(_WITH_PASSWORD.match(url) for url in tier.base_url):
            yield document.error(
                f"an address must not carry a name or password; {NO_KEYS_HERE}", ("tiers", index, "base_url")
            )
    if config.ledger is not None and (wrong := _wrong_ledger(config.ledger)):
        yield document.error(wrong, ("ledger",))
    names = ", ".join(first)
    for name in config.budget.tiers:
        if name not in first:
            yield document.error(f"there is no tier of this name; there are: {names}", ("budget", "tiers", name))
    best = max(tier.rank for tier in config.tiers)
    if QUALITIES.index(config.router.min_quality) > best:
        message = f"no tier is of quality {config.router.min_quality}; the best is {QUALITIES[best]}"
        yield document.error(message, ("router", "min_quality"))
    webhook = config.budget.anomaly.webhook
    if webhook is not None and _WITH_PASSWORD.match(webhook):
        yield document.error("an address must not carry a name or password", ("budget", "anomaly", "webhook"))
    endpoint = config.telemetry.otlp_endpoint
    if endpoint is not None and _WITH_PASSWORD.match(endpoint):
        yield document.error("an address must not carry a name or password", ("telemetry", "otlp_endpoint"))
    elif endpoint is not None and not endpoint.startswith(("http://", "https://")):
        yield document.error("expected an address such as http://127.0.0.1:4318", ("telemetry", "otlp_endpoint"))
    elif endpoint is not None and not _has_otel():
        yield document.error("traces need: pip install 'raycade[otel]'", ("telemetry", "otlp_endpoint"))


def _has_otel() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # of one of its parents
        return False


def _wrong_ledger(url: str) -> str:
    """What is wrong with the address of a ledger. The address is not shown: it may hold a password."""
    options = [name for name, _ in parse_qsl(url.partition("?")[2], keep_blank_values=True)]
    if re.match(r"\w+://[^@]*:[^@]*@", url) or any("password" in name for name in options):
        return (
            "a password never stands in this file; put it into the environment variable PGPASSWORD, into ~/.pgpass "
            "or into a service file"
        )
    return "" if _LEDGER.fullmatch(url) else "expected an address such as postgresql://USER@HOST:5432/DATABASE"


def _missing_keys(config: Config, document: Document, environ: Mapping[str, str]) -> Iterator[ConfigError]:
    for index, tier in enumerate(config.tiers):
        if tier.api_key_env is None:
            continue
        path: Path = ("tiers", index, "api_key_env")
        try:
            value = find_key(tier.api_key_env, environ)
        except ConfigError as error:
            yield document.error(error.message, path)
            continue
        # A name in the usual form is shown; anything else might be a key that was put here by mistake.
        plain = _PLAIN_VARIABLE.fullmatch(tier.api_key_env) and ("_" in tier.api_key_env or len(tier.api_key_env) < 16)
        variable = f"environment variable {tier.api_key_env}" if plain else "environment variable it names"
        if not value:
            state = "empty" if tier.api_key_env in environ else "not set"
            if not plain:
                state += f"; {NO_KEYS_HERE}"
            elif state == "not set":
                state += f" (nor {tier.api_key_env}{FILE}, a file's path)"
            yield document.error(f"the {variable} is {state}", path)
        elif not value.isascii() or not value.isprintable() or " " in value:
            where = variable if environ.get(tier.api_key_env) else f"file that {tier.api_key_env}{FILE} names"
            yield document.error(f"the {where} holds blanks, line ends or other characters no key has", path)
