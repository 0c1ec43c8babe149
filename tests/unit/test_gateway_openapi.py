"""The page that describes the gateway: everything that answers is in it, and nothing else."""

from typing import Any

import jsonschema_rs
import orjson
import pytest
from starlette.routing import Route

from actors.settings import TierSettings
from runtime.config import GatewaySettings
from runtime.gateway.app import GatewayApp
from runtime.gateway.asks import Asks
from runtime.gateway.doors import doors
from runtime.gateway.limits import Gate
from runtime.gateway.openapi import openapi_page

TIERS = [TierSettings.model_validate({"name": name, "model": f"m-{name}", "base_url": "http://x"}) for name in "ab"]
ASKS = Asks(TIERS, min_quality="basic", deadline_s=60.0, share=True)
PAGE = openapi_page("0", ["auto", "a", "b"], metrics=True)


async def never(*_: object) -> Any:
    raise AssertionError


def test_every_route_is_described() -> None:
    app = GatewayApp(
        never, ASKS, lambda: None, Gate(10), 1000, never, never, doors=doors(ASKS, never, GatewaySettings())
    )
    routed = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in app.asgi.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert {(path, method) for path, methods in PAGE["paths"].items() for method in methods} == routed
    ids = [operation["operationId"] for methods in PAGE["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    orjson.dumps(PAGE)


@pytest.mark.parametrize(
    ("path", "body", "right"),
    [
        ("/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "new": 1}, True),
        ("/v1/chat/completions", {"model": "c", "messages": [{"role": "user", "content": "hi"}]}, False),
        ("/v1/chat/completions", {"messages": [], "api_base": "http://evil"}, False),
        ("/v1/embeddings", {"input": ["a"]}, True),
        ("/v1/batches", {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"}, True),
        ("/v1/batches", {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "1h"}, False),
    ],
)
def test_bodies_are_described_as_they_are_checked(path: str, body: dict[str, Any], right: bool) -> None:
    schema = PAGE["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert jsonschema_rs.validator_for(schema).is_valid(body) is right
