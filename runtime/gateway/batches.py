"""`/v1/batches`: create, list, look up and cancel, as `client.batches` of the openai package does it.

What a batch is and how it goes is in batch_rules.py; the desk carries it out (desk.py, carrying.py).
"""

import orjson
from starlette.requests import Request
from starlette.responses import Response

from runtime.gateway.batch_rules import page, read_batch_ask
from runtime.gateway.body import whole_body
from runtime.gateway.errors import HttpError
from runtime.gateway.files import Ask, json_response
from runtime.gateway.keys import Key

__all__ = ["Batches"]

MAX_BODY_BYTES = 64 * 1024
MOST_LISTED, LISTED = 100, 20


class Batches:
    """One a replica."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def create(self, http: Request, key: Key) -> Response:
        too_large = HttpError(413, f"the body is larger than {MAX_BODY_BYTES // 1024} KiB", code="body_too_large")
        body = await whole_body(http, MAX_BODY_BYTES, too_large)
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise HttpError(400, f"the body is not JSON: {error}", code="invalid_json") from None
        return json_response(await self._ask("create_batch", key.name, read_batch_ask(value)))

    async def list(self, http: Request, key: Key) -> Response:
        return json_response(await self._ask("batches", key.name, page(dict(http.query_params), MOST_LISTED, LISTED)))

    async def retrieve(self, http: Request, key: Key) -> Response:
        return json_response(await self._ask("batch", key.name, http.path_params["id"]))

    async def cancel(self, http: Request, key: Key) -> Response:
        return json_response(await self._ask("cancel_batch", key.name, http.path_params["id"]))
