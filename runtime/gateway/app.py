"""The gateway's HTTP face: an ASGI application that any OpenAI client can talk to. Runs in each replica.

A request's way: its route is found; the key is checked for that very route; it is counted in or refused; its body is
read, bounded; the router answers; what came is passed on as it came. Nothing is decided by the Host header, a path
that is spelled otherwise, or a field of the body; a path without a route has no handler at all.

Every way out answers in OpenAI's shape. `x-request-id`, the caller's or a new one, is put on every answer by Serve.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol
from uuid import uuid4

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from actors.messages import Failure, Result
from actors.messages import Request as RouterRequest
from actors.observer.page import HEADERS, KEYED_PAGE, LIVE_S, PAGE
from actors.router.told import Listener
from actors.router.whole import bare
from actors.tier.sse import frame
from runtime.gateway.asks import CONTENT, Asks
from runtime.gateway.body import whole_body
from runtime.gateway.errors import HttpError, error_body, of_failure
from runtime.gateway.keys import Key, KeyRing
from runtime.gateway.limits import Gate
from runtime.gateway.response_events import OutgoingEvents
from runtime.gateway.sse import Outgoing, StreamResponse

__all__ = ["NOBODY", "Answering", "Doors", "GatewayApp"]

NOBODY = Key("", admin=True)
"""Who calls where there are no keys, which is on loopback only."""
LIVE_FOR_S = 15.0
JSON = b"application/json"

Headers = list[tuple[bytes, bytes]]
Handler = Callable[[Request, Key], Awaitable[Response | StreamResponse]]
Scrape = Callable[[str], Awaitable[tuple[bytes, str]]]
Doors = Mapping[str, Mapping[str, Handler]]
"""By path and method: what answers there."""
NO_DOORS: Doors = {}


class Answering(Protocol):
    """The router, as the gateway uses it."""

    async def run(self, request: RouterRequest) -> Result | Failure: ...

    async def stream(self, request: RouterRequest, listener: Listener) -> Result | Failure: ...


class GatewayApp:
    """One a replica. `keys` gives the current keys; None: there is no keys file. `doors`: what else answers here."""

    def __init__(
        self,
        router: Callable[[], Awaitable[Answering]],
        asks: Asks,
        keys: Callable[[], KeyRing | None],
        gate: Gate,
        max_body_bytes: int,
        scrape: Scrape | None = None,
        live: Callable[[], Awaitable[bytes]] | None = None,
        refused: Callable[[str], object] = lambda code: None,
        doors: Doors = NO_DOORS,
    ) -> None:
        """`scrape`: what `/metrics` answers to an Accept header, and `live` what `/ui` shows, where metrics are served.
        `refused` is told the code of what never came to the router."""
        self._scrape, self._live, self._refused = scrape, live, refused
        self._router = router
        self._asks = asks
        self._keys = keys
        self._gate = gate
        self._max_body_bytes = max_body_bytes
        self._created = int(time.time())
        routes = [Route("/healthz", self._health), Route("/readyz", self._ready)]
        for path in CONTENT:
            routes.append(self._route(f"/v1{path}", "POST", self._answer))
        routes.append(self._route("/v1/models", "GET", self._models))
        routes.append(self._route("/v1/models/{model:path}", "GET", self._model))
        if scrape is not None:
            routes.append(self._route("/metrics", "GET", self._metrics, admin=True))
        if live is not None:
            routes.append(Route("/ui", self._page))  # there is nothing in it: what it shows asks for a key
            routes.append(self._route("/ui/live", "GET", self._lively, admin=True))
        routes.extend(self._door(path, methods) for path, methods in doors.items())
        handlers = {404: _not_found, 405: _not_allowed, 500: _internal}
        self.asgi = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._life)
        # Starlette would answer /v1/models/ with a redirect to an address made of the Host header.
        self.asgi.router.redirect_slashes = False

    @contextlib.asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        """From the first moment on: the router opens its lanes, and what there is to tell is told."""
        opening = asyncio.ensure_future(self._router())
        try:
            yield
        finally:
            opening.cancel()

    def _route(self, path: str, method: str, handler: Handler, admin: bool = False) -> Route:
        """A route for callers with a key (`admin`: that is marked so); there is no other way to make one here."""

        async def endpoint(request: Request) -> Response | StreamResponse:
            try:
                key = self._caller(request.headers.get("authorization"))
                if admin and not key.admin:
                    message = f"the key {key.name} may not read this: it is not marked admin in the keys file"
                    raise HttpError(403, message, "permission_error", "not_admin")
                response = await handler(request, key)
            except HttpError as error:
                self._refused(error.code or str(error.status))
                response = _response(error.status, error.body, error.headers)
            except ClientDisconnect:
                response = _response(499, error_body("the client went away", "cancelled"), [])
            return response

        return Route(path, endpoint, methods=[method])

    def _door(self, path: str, handlers: Mapping[str, Handler]) -> Route:
        """A route of a door. What is asked there counts as a request of its key."""

        async def answer(http: Request, key: Key) -> Response | StreamResponse:
            self._gate.enter(key, time.monotonic())
            try:
                return await handlers["GET" if http.method == "HEAD" else http.method](http, key)
            finally:
                self._gate.leave()

        methods = [*handlers]
        route = self._route(path, methods[0], answer)
        route.methods = {*(route.methods or ()), *methods, *(("HEAD",) if "GET" in handlers else ())}
        return route

    # ------------------------------------------------------------------ who

    def _caller(self, authorization: str | None) -> Key:
        """Whose request it is. Raises HttpError: whatever goes wrong here ends as nobody's."""
        ring = self._keys()
        if ring is None:
            return NOBODY
        scheme, _, presented = (authorization or "").partition(" ")
        presented = presented.strip()
        key = ring.find(presented) if scheme.lower() == "bearer" and presented else None
        if key is None:
            said = "the API key is not known here" if presented else "no API key: send Authorization: Bearer KEY"
            raise HttpError(401, said, "authentication_error", "invalid_api_key")
        return key

    # ------------------------------------------------------------------ what

    async def _answer(self, http: Request, key: Key) -> Response | StreamResponse:
        path = http.scope["route"].path.removeprefix("/v1")
        self._gate.enter(key, time.monotonic())
        streaming = False
        try:
            body = await whole_body(http, self._max_body_bytes, self._too_large())
            # The router's name for it must be its own; a client may say the same id twice.
            request = self._asks.read(f"req_{uuid4().hex}", path, body, http.headers, key)
            if trace := http.headers.get("traceparent"):
                request = request._replace(trace=trace[:64])
            if not request.stream:
                return await self._plain(http, request)
            response = await self._stream(http, request, key)
            streaming = isinstance(response, StreamResponse)  # it leaves when it has ended
            return response
        finally:
            if not streaming:
                self._gate.leave()

    async def _plain(self, http: Request, request: RouterRequest) -> Response:
        router = await self._router()
        answering = asyncio.ensure_future(router.run(request))
        leaving = asyncio.ensure_future(_gone(http))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ClientDisconnect
            done = answering.result()
        finally:
            answering.cancel()  # a call that nobody waits for is not paid for
            leaving.cancel()
        if isinstance(done, Failure):
            failed = of_failure(done)
            return _response(failed.status, failed.body, [*failed.headers, *_told(done), *_made_by(request)])
        return _response(done.status, bare(done), [*_told(done), *_made_by(request)])

    async def _stream(self, http: Request, request: RouterRequest, key: Key) -> Response | StreamResponse:
        """The status is chosen when the first words are there, or when there will be none."""
        self._gate.enter_stream(key)
        outgoing = OutgoingEvents() if request.path == "/responses" else Outgoing()
        response: StreamResponse | None = None
        call: asyncio.Task[Result | Failure] | None = None
        try:
            router = await self._router()
            call = asyncio.ensure_future(router.stream(request, outgoing))
            call.add_done_callback(outgoing.stop_waiting)
            leaving = asyncio.ensure_future(_gone(http))
            began = asyncio.ensure_future(outgoing.wait())
            try:
                await asyncio.wait({began, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                began.cancel()
                leaving.cancel()
            if leaving.done() and not leaving.cancelled():
                raise ClientDisconnect
            if call.done() and isinstance(done := call.result(), Failure) and not outgoing.tier:
                failed = of_failure(done)
                return _response(failed.status, failed.body, [*failed.headers, *_told(done), *_made_by(request)])
            headers = [(b"x-raycade-tier", outgoing.tier.encode()), *_made_by(request)]

            def ended() -> None:
                self._gate.leave_stream(key)
                self._gate.leave()

            response = StreamResponse(call, outgoing, headers, ended)
            return response
        finally:
            if response is None:
                if call is not None:
                    call.cancel()
                self._gate.leave_stream(key)

    def _too_large(self) -> HttpError:
        most = f"{self._max_body_bytes / 1e6:g}"
        return HttpError(413, f"the body is larger than {most} MB (gateway.max_body_mb)", code="body_too_large")

    async def _models(self, http: Request, key: Key) -> Response:
        data = [self._model_value(name) for name in self._asks.models(key)]
        return _response(200, orjson.dumps({"object": "list", "data": data}), [])

    async def _model(self, http: Request, key: Key) -> Response:
        name = http.path_params["model"]
        if name not in self._asks.models(key):
            raise HttpError(404, f"there is no model {name!r:.80}", code="model_not_found", param="model")
        return _response(200, orjson.dumps(self._model_value(name)), [])

    def _model_value(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "raycade"}

    # ------------------------------------------------------------------ for those who run it

    async def _metrics(self, http: Request, key: Key) -> Response:
        assert self._scrape is not None
        try:
            body, content_type = await self._scrape(http.headers.get("accept", ""))
        except Exception:  # Ray has a dozen kinds for an actor that is away; it is restarted
            raise HttpError(503, "no metrics just now", "server_error", "restarting", None, 1.0) from None
        response = Response(body)
        response.raw_headers.append((b"content-type", content_type.encode()))
        return response

    async def _lively(self, http: Request, key: Key) -> Response:
        """Server-sent events for the page. It ends after `LIVE_FOR_S`, and the page asks again: a drain waits no longer."""

        async def events() -> AsyncIterator[bytes]:
            until = time.monotonic() + LIVE_FOR_S
            while time.monotonic() < until:
                assert self._live is not None
                with contextlib.suppress(Exception):  # the observer is being restarted
                    yield frame(await self._live())
                await asyncio.sleep(LIVE_S)

        return StreamingResponse(events(), headers={"cache-control": "no-store"}, media_type="text/event-stream")

    async def _health(self, http: Request) -> Response:
        return _response(200, b'{"status":"ok"}', [])

    async def _page(self, http: Request) -> Response:
        page = PAGE if self._keys() is None else KEYED_PAGE
        return Response(page, headers=HEADERS, media_type="text/html")

    async def _ready(self, http: Request) -> Response:
        await self._router()
        return _response(200, b'{"status":"ready"}', [])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.asgi(scope, receive, send)


async def _gone(http: Request) -> None:
    """Returns when the client has left. The body has been read: what comes next can only be that."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _told(done: Result | Failure) -> Headers:
    """What is told beside an answer."""
    headers = [
        (b"x-raycade-attempts", str(len(done.attempts)).encode()),
        (b"x-raycade-cost-usd", f"{done.cost.usd_micros / 1e6:.6f}".encode()),
    ]
    if isinstance(done, Result):
        headers.append((b"x-raycade-tier", done.tier.encode()))
        if done.coalesced:
            headers.append((b"x-raycade-coalesced", b"true"))
    return headers


def _made_by(request: RouterRequest) -> Headers:
    """The version of the registered prompt, where there is one."""
    return [(b"x-raycade-prompt", request.prompt.encode())] if request.prompt else []


def _response(status: int, body: bytes, headers: Headers) -> Response:
    response = Response(body, status)
    response.raw_headers.append((b"content-type", JSON))
    response.raw_headers.extend(headers)
    return response


async def _not_found(http: Request, error: Exception) -> Response:
    message = f"there is nothing at {http.url.path!r:.120}; the API begins at /v1"
    return _response(404, error_body(message, "invalid_request_error", "unknown_url"), [])


async def _internal(http: Request, error: Exception) -> Response:
    """A defect of ours. What it was stands in the log."""
    return _response(500, error_body("something went wrong inside the gateway", "server_error", "internal"), [])


async def _not_allowed(http: Request, error: Exception) -> Response:
    headers: Mapping[str, str] = getattr(error, "headers", None) or {}
    allowed = [(b"allow", headers["Allow"].encode())] if "Allow" in headers else []
    message = f"{http.method} is not allowed here"
    return _response(405, error_body(message, "invalid_request_error", "method_not_allowed"), allowed)
