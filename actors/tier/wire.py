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

import asyncio
import ipaddress
import os
import ssl
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import cast
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp
import openai
import yarl

from actors.tier.http1 import INVALID, Http1Client, Request, reason
from actors.tier.http1_reply import too_large, unpacker
from actors.tier.transport import MAX_REPLY_BYTES, Endpoint, Reply, TransportError

__all__ = ["ProxiedClient", "Wire", "WireTransport", "openai_client"]

CONNECT_TIMEOUT_S = 5.0
"""A host that does not answer the connect in this time will not: fail while the request is surely unsent. The SDK's default."""

IDLE_S = 4.0
"""How long an idle connection is kept. uvicorn (vLLM and many gateways) closes at 5 s; a request that crosses with that
close is lost with its outcome unknown, while a new connection costs one handshake."""


class Wire:
    """A pool of connections to one endpoint. What both transports send through, so that both behave alike under faults."""

    def __init__(self, base_url: str, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self._base_url = base_url
        self._max_reply_bytes = max_reply_bytes
        self._client: Http1Client | ProxiedClient | None = None
        self._closed = False

    async def post(self, url: yarl.URL, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Reply:
        return await self.send(prepare(url, headers), body, timeout_s)

    async def send(self, request: Request, body: bytes, timeout_s: float) -> Reply:
        """`post` for a request that is sent more than once."""
        if self._closed:
            raise TransportError("connection", "the transport is closed", sent=False)
        if timeout_s <= 0:
            raise TransportError("timeout", "no time was left to send the request", sent=False)
        return await (self._client or self._connectable()).post(request, body, timeout_s)

    async def aclose(self) -> None:
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _connectable(self) -> "Http1Client | ProxiedClient":
        proxy = _proxy_for(self._base_url)
        if proxy is None:
            self._client = Http1Client(self._max_reply_bytes, CONNECT_TIMEOUT_S, IDLE_S)
        else:
            self._client = ProxiedClient(self._base_url, proxy, self._max_reply_bytes)
        return self._client


def prepare(url: yarl.URL, headers: Mapping[str, str]) -> Request:
    try:
        return Request(url, headers)
    except ValueError:
        pass
    raise TransportError("connection", INVALID, sent=False)


class ProxiedClient:
    """aiohttp, for what is reached through a proxy.

    As of 3.14 it gives a reply that came unasked on an idle connection to the next request, which ours does not.
    """

    def __init__(self, base_url: str, proxy: str | None, max_reply_bytes: int) -> None:
        self._proxy = proxy
        self._max_reply_bytes = max_reply_bytes
        self._closed = False
        # A context of our own reads SSL_CERT_FILE now; aiohttp's was made when it was imported.
        tls = ssl.create_default_context() if urlsplit(base_url).scheme == "https" else False
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Ours is bounded; aiohttp's would unpack a whole network chunk at once.
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            # It would also read ~/.netrc, and send what it finds to a tier that has no key.
            trust_env=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            headers={"Accept-Encoding": "gzip"},
        )

    async def post(self, request: Request, body: bytes, timeout_s: float) -> Reply:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(request, body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RuntimeError, zlib.error) as error:
            failure = _failure(error, timeout_s, self._closed)
        # Raised outside the handler, so that nothing of the client's own error hangs on to ours.
        raise failure

    async def aclose(self) -> None:
        self._closed = True
        await self._session.close()

    async def _exchange(self, request: Request, body: bytes) -> Reply:
        async with self._session.post(
            request.url, data=body, headers=request.headers, allow_redirects=False, proxy=self._proxy
        ) as response:
            kept: dict[str, str] = {}
            for name, value in response.headers.items():
                kept.setdefault(name.lower(), value)
            limit = self._max_reply_bytes
            encoding = kept.get("content-encoding", "").strip().lower()
            length = response.content_length
            if length is not None and length > limit:
                raise too_large(limit)
            if length is not None and not encoding:
                return Reply(response.status, kept, await response.read())
            unpack = unpacker(encoding)
            parts: list[bytes] = []
            room, packed = limit, 0
            while chunk := await response.content.readany():
                packed += len(chunk)
                if unpack is not None:
                    # One byte more than there is room for tells "too large" from "just fits".
                    chunk = unpack.decompress(chunk, room + 1)
                room -= len(chunk)
                if room < 0 or packed > limit:
                    raise too_large(limit)
                if unpack is not None and unpack.unused_data:
                    raise zlib.error("something follows the compressed reply")
                parts.append(chunk)
            # Errors without a body often name an encoding all the same.
            if unpack is not None and not unpack.eof and packed:
                raise zlib.error("the compressed reply has no end")
            return Reply(response.status, kept, b"".join(parts))


class WireTransport:
    """The `wire` transport of one endpoint."""

    def __init__(self, endpoint: Endpoint, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self._endpoint = endpoint
        self._wire = Wire(endpoint.base_url, max_reply_bytes)
        self._requests: dict[str, Request] = {}
        self._headers: dict[str, str] | None = None
        self._base_url = ""

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        if self._headers is None:
            self._headers = await self._address()
        request = self._requests.get(path)
        if request is None:
            url = yarl.URL(self._endpoint.with_query(self._base_url + path), encoded=True)
            request = prepare(url, self._headers)
            # Paths come from a short list of known ones, but nothing here should grow if they ever do not.
            if len(self._requests) < 64:
                self._requests[path] = request
        return await self._wire.send(request, body, timeout_s)

    async def aclose(self) -> None:
        await self._wire.aclose()

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


def _failure(error: Exception, timeout_s: float, closed: bool) -> TransportError:
    """Our error for theirs. Texts are our own or the operating system's: theirs carry the URL, which may carry secrets."""
    match error:
        case zlib.error():
            return TransportError("malformed", "the reply is not compressed as its header says", True)
        case aiohttp.ConnectionTimeoutError():
            return TransportError("timeout", f"no connection within {min(CONNECT_TIMEOUT_S, timeout_s):g} s", False)
        case aiohttp.ClientHttpProxyError():
            return TransportError("connection", f"the proxy refused the tunnel with status {error.status}", False)
        case aiohttp.ClientConnectorError() | aiohttp.ClientConnectorCertificateError():
            return TransportError("connection", f"could not connect: {_reason(error)}", False)
        case TimeoutError():
            return TransportError("timeout", f"no whole reply within {timeout_s:g} s", True)
        case aiohttp.InvalidURL() | ValueError():
            return TransportError("connection", INVALID, False)
        case _ if closed:
            return TransportError("connection", "the transport was closed while the request was under way", True)
        case aiohttp.ClientPayloadError():
            return TransportError("connection", "the connection broke in the middle of the reply", True)
        case aiohttp.ServerDisconnectedError():
            return TransportError("connection", "the endpoint closed the connection without an answer", True)
        case aiohttp.ClientResponseError():
            return TransportError("malformed", "the reply is not valid HTTP", True)
        case _:
            return TransportError("connection", f"the connection broke: {_reason(error)}", True)


def _reason(error: Exception) -> str:
    """What the operating system or TLS said, from inside of aiohttp's error."""
    return reason(getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error)
