"""The mock's addresses: which tier and endpoint a path means, and what stands beside them (/stats, /healthz).

/v1/...            the tier `default`
/<tier>/v1/...     the tier of that name, so that one process plays several
"""

import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
import orjson

from runtime.mock import ask, shapes, sse
from runtime.mock.call import Kind
from runtime.mock.exchange import Exchange
from runtime.mock.scenario import DEFAULT_TIER, Scenario
from runtime.mock.stats import summed
from runtime.mock.tier import Tier

__all__ = ["Endpoint"]

_KINDS = {
    kind.path: kind
    for kind in (
        Kind(b"chat/completions", ask.chat, shapes.chat_body, sse.chat_events),
        Kind(b"completions", ask.completions, shapes.completions_body, sse.completions_events),
        Kind(b"embeddings", ask.embeddings, shapes.embeddings_body),
        Kind(b"responses", ask.responses, shapes.responses_body, sse.responses_events),
    )
}
_SERVED = "POST " + ", ".join(f"/v1/{path.decode()}" for path in _KINDS) + "; GET /v1/models, /stats, /healthz"
_TIER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAX_TIERS = 256
"""Names under `*` make a tier each: so many at most."""
_MAX_ROUTES = 4096

Answer = Callable[[Exchange, bytes, bool], None]
"""(exchange, body, authorized)"""


class Endpoint:
    """Takes every request of every connection. `handle` is what server.Connection calls."""

    def __init__(self, scenario: Scenario, name: str) -> None:
        self._scenario, self._name = scenario, name
        self._tiers: dict[str, Tier] = {}
        for tier in [DEFAULT_TIER, *scenario.tiers]:
            self._tier(tier)
        self._created = int(time.time())
        self._routes: dict[bytes, dict[bytes, Answer]] = {}

    def handle(self, exchange: Exchange, method: bytes, url: bytes, body: bytes, authorized: bool) -> None:
        route = self._routes.get(url)
        if route is None:
            route = self._route(url)
            if len(self._routes) < _MAX_ROUTES:
                self._routes[url] = route
        answer = route.get(b"GET" if method == b"HEAD" else method)
        if answer is not None:
            answer(exchange, body, authorized)
        elif route:
            allowed = b", ".join([*route, b"HEAD"] if b"GET" in route else route)
            message = f"Not allowed to {method.decode()} on {_path(url)}."
            error = shapes.error_body(405, message, "method_not_allowed")
            exchange.reply(405, error, b"Allow: %b\r\n" % allowed)
        else:
            tiers = ", ".join(f"/{name}" for name in self._tiers if name != DEFAULT_TIER) or "none"
            message = f"Invalid URL ({method.decode()} {_path(url)}). Here are: {_SERVED}; before /v1, a tier: {tiers}."
            exchange.reply(404, shapes.error_body(404, message, "unknown_url"))

    def _route(self, url: bytes) -> dict[bytes, Answer]:
        """What each method does there; empty for an unknown address."""
        first, *rest = _path(url).strip("/").split("/")
        match (first, *rest):
            case ("stats",):
                return {b"GET": self._stats}
            case ("stats", "reset"):
                return {b"POST": self._reset}
            case ("healthz",):
                return {b"GET": self._health}
            case ("v1", *_):
                return self._api(DEFAULT_TIER, tuple(rest))
            case (_, "v1", *_):
                return self._api(first, tuple(rest[1:]))
            case _:
                return {}

    def _api(self, name: str, path: tuple[str, ...]) -> dict[bytes, Answer]:
        tier = self._tier(name)
        if tier is None:
            return {}
        kind = _KINDS.get("/".join(path).encode())
        if kind is not None:
            return {b"POST": lambda exchange, body, authorized: tier.serve(kind, exchange, body, authorized)}
        if path and path[0] == "models":
            return {b"GET": self._models("/".join(path[1:]))}
        return {}

    def _tier(self, name: str) -> Tier | None:
        tier = self._tiers.get(name)
        if tier is None and _TIER_NAME.fullmatch(name) and len(self._tiers) < _MAX_TIERS:
            scenario = self._scenario.tier(name)
            if scenario is not None:
                tier = self._tiers[name] = Tier(name, scenario, self._scenario.seed, self._scenario.require_key)
        return tier

    def _models(self, wanted: str) -> Answer:
        """All tiers as models, or any one model: the mock serves whatever it is asked for."""

        def answer(exchange: Exchange, body: bytes, authorized: bool) -> None:
            if self._scenario.require_key and not authorized:
                exchange.reply(401, shapes.error_body(401, "You didn't provide an API key."))
            elif wanted:
                exchange.reply(200, orjson.dumps(shapes.model_value(unquote(wanted), self._created)))
            else:
                exchange.reply(200, shapes.models_body([f"mock-{name}" for name in self._tiers], self._created))

        return answer

    def _stats(self, exchange: Exchange, body: bytes, authorized: bool) -> None:
        exchange.reply(200, orjson.dumps(self.stats()))

    def _reset(self, exchange: Exchange, body: bytes, authorized: bool) -> None:
        for tier in self._tiers.values():
            tier.restart()
        exchange.reply(200, b'{"status":"reset"}')

    def _health(self, exchange: Exchange, body: bytes, authorized: bool) -> None:
        exchange.reply(200, b'{"status":"ok"}')

    def stats(self) -> dict[str, Any]:
        tiers = {name: tier.stats.value() for name, tier in self._tiers.items()}
        return {
            "scenario": self._name,
            "seed": self._scenario.seed,
            "total": summed(list(tiers.values())),
            "tiers": tiers,
        }


def _path(url: bytes) -> str:
    """Without the query; a proxy's absolute form is reduced to its path."""
    if not url.startswith(b"/"):
        try:
            url = httptools.parse_url(url).path or b"/"
        except httptools.HttpParserInvalidURLError:
            return ""
    return url.partition(b"?")[0].decode("utf-8", "replace")
