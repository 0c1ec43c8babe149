"""The default transport: bytes over aiohttp, addressed and authorised as the openai package would.

Why aiohttp 3.14 and not pyreqwest 0.15, which was the first candidate. Both were put through tests/e2e/test_transports.py:

- aiohttp passes every fault.
- pyreqwest does not stop a request that is cancelled. The caller gets its CancelledError at once, but the request runs on
  inside until its own timeout, with its connection open and a model at work behind it; the same when the client is
  closed. (As its source reads, spawn_handled drops a tokio JoinHandle, which detaches the task instead of aborting it.)
  A gateway whose callers hang up would keep paying for them, and pass its concurrency limit. Nothing outside the
  package was found to prevent it; a smaller timeout is the only bound. The rest of the suite, as it was then, it passed.
- CPU per request of one process (500-byte prompt, 0 ms server, 2 cores shared with the server): aiohttp takes 1.8 times
  pyreqwest's at 64 in flight and 1.9 times at 500 on asyncio's loop, 2.3 and 2.6 times on uvloop; about 100 us against
  55 us. This class takes about 1.2 times a bare aiohttp session, the timeout being most of the difference.

Should pyreqwest learn to abort, `Wire` is the class to replace. Then mind what those tests showed: its exception classes do
not tell the phase (a server that hangs after reading gives ConnectTimeoutError, a reset before the headers ConnectError;
only a cause `client error (Connect)` means unsent), and it follows redirects and proxies 127.0.0.1 unless told not to.
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

from actors.tier.transport import MAX_REPLY_BYTES, Endpoint, Reply, TransportError

__all__ = ["Wire", "WireTransport", "openai_client"]

CONNECT_TIMEOUT_S = 5.0
"""A host that does not answer the connect in this time will not: fail while the request is surely unsent. The SDK's default."""

IDLE_S = 4.0
"""How long an idle connection is kept. uvicorn (vLLM and many gateways) closes at 5 s; a request that crosses with that
close is lost with its outcome unknown, while a new connection costs one handshake."""


class Wire:
    """A pool of connections to one origin. What both transports send through, so that both behave alike under faults."""

    def __init__(self, base_url: str, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self._base_url = base_url
        self._max_reply_bytes = max_reply_bytes
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None
        self._closed = False

    async def post(self, url: yarl.URL, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Reply:
        if self._closed:
            raise TransportError("connection", "the transport is closed", sent=False)
        if timeout_s <= 0:
            raise TransportError("timeout", "no time was left to send the request", sent=False)
        session = self._session or self._connectable()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(session, url, headers, body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, zlib.error) as error:
            failure = _failure(error, timeout_s, self._closed)
        # Raised outside the handler, so that nothing of the client's own error hangs on to ours.
        raise failure

    async def _exchange(
        self, session: aiohttp.ClientSession, url: yarl.URL, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        async with session.post(url, data=body, headers=headers, allow_redirects=False, proxy=self._proxy) as response:
            kept: dict[str, str] = {}
            for name, value in response.headers.items():
                kept.setdefault(name.lower(), value)
            limit = self._max_reply_bytes
            encoding = kept.get("content-encoding", "").strip().lower()
            length = response.content_length
            if length is not None and length > limit:
                raise _too_large(limit)
            if length is not None and not encoding:
                return Reply(response.status, kept, await response.read())
            unpack = _unpacker(encoding)
            parts: list[bytes] = []
            room = limit
            while chunk := await response.content.readany():
                if unpack is not None:
                    # One byte more than there is room for tells "too large" from "just fits".
                    chunk = unpack.decompress(chunk, room + 1)
                room -= len(chunk)
                if room < 0:
                    raise _too_large(limit)
                parts.append(chunk)
            if unpack is not None and not unpack.eof:
                raise zlib.error("the compressed reply has no end")
            return Reply(response.status, kept, b"".join(parts))

    async def aclose(self) -> None:
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _connectable(self) -> aiohttp.ClientSession:
        parts = urlsplit(self._base_url)
        # A context of our own reads SSL_CERT_FILE now; aiohttp's was made when it was imported.
        tls = ssl.create_default_context() if parts.scheme == "https" else False
        self._proxy = _proxy_for(self._base_url)
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
        return self._session


class WireTransport:
    """The `wire` transport of one endpoint."""

    def __init__(self, endpoint: Endpoint, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self._endpoint = endpoint
        self._wire = Wire(endpoint.base_url, max_reply_bytes)
        self._urls: dict[str, yarl.URL] = {}
        self._headers: dict[str, str] | None = None
        self._base_url = ""

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        if self._headers is None:
            self._headers = await self._address()
        url = self._urls.get(path)
        if url is None:
            url = yarl.URL(self._endpoint.with_query(self._base_url + path), encoded=True)
            # Paths come from a short list of known ones, but nothing here should grow if they ever do not.
            if len(self._urls) < 64:
                self._urls[path] = url
        return await self._wire.post(url, self._headers, body, timeout_s)

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


def _unpacker(encoding: str) -> "zlib._Decompress | None":
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(wbits=31)
    raise zlib.error("an encoding that was not asked for")


def _too_large(limit: int) -> TransportError:
    return TransportError("malformed", f"the reply is larger than {limit:,} bytes", sent=True)


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
            return TransportError(
                "connection", "the request could not be built: a header or the address is not valid", False
            )
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
    """The operating system's words for it; never aiohttp's, which name host and port."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"the certificate was refused ({inner.verify_message})"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return type(inner).__name__
