"""What browsers need, and what must not be done through them. An ASGI layer around the application.

A page may call the gateway from another address only where `gateway.cors_origins` names its origin; then the preflight is
answered and the gateway's own headers may be read. Cookies are never used, so none are allowed.

Without keys the gateway trusts whoever is on this machine, and that includes every page that a browser here has open: a
POST with plain text needs no preflight, and the money is spent though the page may not read the answer. Browsers put the
page's origin on such a request, and no other client does, so there a foreign origin is refused. With keys nothing is
lost: a page cannot send Authorization without a preflight.
"""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.gateway.errors import error_body

__all__ = ["for_browsers"]

TOLD = [
    "x-request-id",
    "retry-after",
    *(f"x-raycade-{name}" for name in ("tier", "attempts", "cost-usd", "coalesced", "prompt")),
]
PREFLIGHT_HOLDS_S = 600


def for_browsers(app: ASGIApp, origins: Sequence[str], *, keyed: bool) -> ASGIApp:
    """`origins`: pages from there may call; `keyed`: every request needs a key."""
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=TOLD,
            max_age=PREFLIGHT_HOLDS_S,
        )
    return app if keyed else _NoForeignPages(app, origins)


class _NoForeignPages:
    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == b"origin" and value not in self._origins:
                    await _refuse(send)
                    return
        await self._app(scope, receive, send)


async def _refuse(send: Send) -> None:
    said = "a web page asks, and its origin is not among gateway.cors_origins"
    body = error_body(said, "permission_error", "foreign_origin")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
