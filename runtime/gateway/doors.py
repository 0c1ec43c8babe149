"""What the gateway answers beside models' calls: files, batches, and the page that describes it all."""

from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response

from runtime.config import GatewaySettings
from runtime.gateway.app import Doors
from runtime.gateway.asks import Asks
from runtime.gateway.batches import Batches
from runtime.gateway.files import Ask, Files, json_response
from runtime.gateway.keys import Key
from runtime.gateway.openapi import openapi_page

__all__ = ["doors"]


def doors(asks: Asks, ask: Ask, settings: GatewaySettings, *, metrics: bool = False) -> Doors:
    """`ask` calls the desk. `metrics`: they are served beside these."""
    files, batches = Files(ask, settings.files), Batches(ask)

    async def page(http: Request, key: Key) -> Response:
        return json_response(openapi_page(version("raycade"), asks.models(key), metrics=metrics))

    return {
        "/v1/files": {"POST": files.create, "GET": files.list},
        "/v1/files/{id}": {"GET": files.retrieve, "DELETE": files.delete},
        "/v1/files/{id}/content": {"GET": files.content},
        "/v1/batches": {"POST": batches.create, "GET": batches.list},
        "/v1/batches/{id}": {"GET": batches.retrieve},
        "/v1/batches/{id}/cancel": {"POST": batches.cancel},
        "/openapi.json": {"GET": page},
    }
