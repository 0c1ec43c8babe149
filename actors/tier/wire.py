"""The default transport: bytes over HTTP/1.1, addressed and authorised as the openai package would.

`Wire` has two ways out, and takes one for good at its first request: our own client (actors/tier/http1.py), or aiohttp
where the environment names a proxy for the address, so that tunnels and proxies' errors are none of our code.
tests/e2e/test_transports.py holds both to one contract.

pyreqwest 0.15 (Rust) was the first candidate, and costs little CPU too. It does not stop a request that is cancelled: the
caller gets its CancelledError, but the request runs on inside until its own timeout, with a model at work behind it (as
its source reads, spawn_handled drops a tokio JoinHandle, which detaches the task). A gateway whose callers hang up would
keep paying for them, and pass its concurrency limit. Nor do its exceptions tell the phase: a server that hangs after
reading gives ConnectTimeoutError.
"""

import ipaddress
import os
from collections.abc import Awaitable, Mapping
from importlib.metadata import version
from typing import cast
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import openai
import yarl

from actors.tier.http1 import INVALID, Http1Client, Request
from actors.tier.proxied import ProxiedClient
from actors.tier.transport import MAX_REPLY_BYTES, MAX_STREAM_BYTES, Endpoint, Reply, Streamed, TransportError

__all__ = ["ProxiedClient", "Wire", "WireTransport", "openai_client"]

CONNECT_TIMEOUT_S = 5.0
"""A host that does not answer the connect in this time will not: fail while the request is surely unsent. The SDK's default."""

IDLE_S = 4.0
"""How long an idle connection is kept. uvicorn (vLLM and many gateways) closes at 5 s; a request that crosses with that
close is lost with its outcome unknown, while a new connection costs one handshake."""


class Wire:
    """A pool of connections to one endpoint. What both transports send through, so that both behave alike under faults."""

    def __init__(
        self, base_url: str, max_reply_bytes: int = MAX_REPLY_BYTES, max_stream_bytes: int = MAX_STREAM_BYTES
    ) -> None:
        self._base_url = base_url
        self._max_reply_bytes, self._max_stream_bytes = max_reply_bytes, max_stream_bytes
        self._client: Http1Client | ProxiedClient | None = None
        self._closed = False

    async def post(self, url: yarl.URL, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Reply:
        return await self.send(prepare(url, headers), body, timeout_s)

    def send(self, request: Request, body: bytes, timeout_s: float) -> Awaitable[Reply]:
        """`post` for a request that is sent more than once. No coroutine of its own, since each call passes here."""
        return self._usable(timeout_s).post(request, body, timeout_s)

    async def stream(
        self, request: Request, body: bytes, first_byte_timeout_s: float, stall_timeout_s: float
    ) -> Streamed:
        if stall_timeout_s <= 0:
            raise TransportError("timeout", "no time was left to read the reply", sent=False)
        client = self._usable(first_byte_timeout_s)
        return await client.stream(request, body, first_byte_timeout_s, stall_timeout_s)

    async def aclose(self) -> None:
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _usable(self, timeout_s: float) -> "Http1Client | ProxiedClient":
        if self._closed:
            raise TransportError("connection", "the transport is closed", sent=False)
        if timeout_s <= 0:
            raise TransportError("timeout", "no time was left to send the request", sent=False)
        if self._client is None:
            self._client = self._connectable()
        return self._client

    def _connectable(self) -> "Http1Client | ProxiedClient":
        proxy = _proxy_for(self._base_url)
        if proxy is not None:
            return self._proxied(proxy)
        return Http1Client(self._max_reply_bytes, CONNECT_TIMEOUT_S, IDLE_S, self._max_stream_bytes)

    def _proxied(self, proxy: str | None) -> ProxiedClient:
        return ProxiedClient(
            self._base_url, proxy, self._max_reply_bytes, self._max_stream_bytes, CONNECT_TIMEOUT_S, IDLE_S
        )


def prepare(url: yarl.URL, headers: Mapping[str, str]) -> Request:
    try:
        return Request(url, headers)
    except ValueError:
        pass
    raise TransportError("connection", INVALID, sent=False)


class WireTransport:
    """The `wire` transport of one endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        max_stream_bytes: int = MAX_STREAM_BYTES,
    ) -> None:
        self._endpoint = endpoint
        self._wire = Wire(endpoint.base_url, max_reply_bytes, max_stream_bytes)
        self._requests: dict[str, Request] = {}
        self._headers: dict[str, str] | None = None
        self._base_url = ""

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        request = self._requests.get(path)
        if request is None:
            request = await self._request(path)
        return await self._wire.send(request, body, timeout_s)

    async def stream(self, path: str, body: bytes, first_byte_timeout_s: float, stall_timeout_s: float) -> Streamed:
        return await self._wire.stream(await self._request(path), body, first_byte_timeout_s, stall_timeout_s)

    async def aclose(self) -> None:
        await self._wire.aclose()

    async def _request(self, path: str) -> Request:
        if self._headers is None:
            self._headers = await self._address()
        request = self._requests.get(path)
        if request is None:
            url = yarl.URL(self._endpoint.with_query(self._base_url + path), encoded=True)
            request = prepare(url, self._headers)
            # Paths come from a short list of known ones, but nothing here should grow if they ever do not.
            if len(self._requests) < 64:
                self._requests[path] = request
        return request

    async def _address(self) -> dict[str, str]:
        client = openai_client(self._endpoint)
        try:
            self._base_url = str(client.base_url).rstrip("/")
            headers = {**client.auth_headers, **client.default_headers}
        finally:
            await client.close()
        # X-Stainless-* say that the SDK made the call, which is not so, and are a third of a small request's bytes.
        kept = {
            n: v for n, v in headers.items() if isinstance(v, str) and v and not n.lower().startswith("x-stainless-")
        }
        return kept | {"User-Agent": f"raycade/{version('raycade')} (openai-python {openai.__version__})"}


def openai_client(endpoint: Endpoint, http_client: openai.DefaultAsyncHttpxClient | None = None) -> openai.AsyncOpenAI:
    """The AsyncOpenAI object that knows the endpoint's address, authorization and default headers. Never retries.

    The SDK fills gaps from the environment (OPENAI_API_KEY, OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS, of
    which the last may even replace the key). With tiers of several vendors that would hand one vendor's credentials to
    another, so the key is only ever the endpoint's own, and the rest is kept for api.openai.com alone.
    """
    headers: dict[str, str | openai.Omit] = {}
    if urlsplit(endpoint.base_url).hostname != "api.openai.com":
        ambient = (line.partition(":")[0].strip() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n"))
        headers = {name: openai.omit for name in ("OpenAI-Organization", "OpenAI-Project", *ambient) if name}
    key = endpoint.api_key.reveal() if endpoint.api_key else ""
    headers |= {"Authorization": f"Bearer {key}" if key else openai.omit} | endpoint.headers
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=key or _no_key,
        default_headers=cast("dict[str, str]", headers),
        max_retries=0,
        http_client=http_client,
    )


async def _no_key() -> str:
    # A callable is the SDK's public way to have no key without falling back to OPENAI_API_KEY.
    return ""


def _proxy_for(url: str) -> str | None:
    """The environment's proxy for this address: HTTPS_PROXY, HTTP_PROXY or ALL_PROXY unless NO_PROXY names the host."""
    parts = urlsplit(url)
    if _is_loopback(parts.hostname or "") or proxy_bypass_environment(parts.netloc.rpartition("@")[2]):
        return None
    proxies: dict[str, str] = getproxies_environment()
    return proxies.get(parts.scheme) or proxies.get("all")


def _is_loopback(host: str) -> bool:
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # 0.0.0.0 and :: reach this very machine too.
    return address.is_loopback or address.is_unspecified
