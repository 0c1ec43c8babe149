"""Sending through a proxy of the environment, over aiohttp, so that tunnels and proxies' errors are none of our code."""

import asyncio
import ssl
import weakref
import zlib
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from actors.tier.http1 import INVALID, Request, reason
from actors.tier.stream_body import NOT_PACKED, StreamBody, too_large, unpacker
from actors.tier.transport import Reply, TransportError

__all__ = ["ProxiedClient"]

FAILURES = (aiohttp.ClientError, TimeoutError, OSError, ValueError, RuntimeError, zlib.error)


class ProxiedClient:
    """aiohttp, for what is reached through a proxy.

    As of 3.14 it gives a reply that came unasked on an idle connection to the next request, which ours does not.
    """

    def __init__(
        self,
        base_url: str,
        proxy: str | None,
        max_reply_bytes: int,
        max_stream_bytes: int,
        connect_timeout_s: float,
        idle_s: float,
    ) -> None:
        self._proxy = proxy
        self._max_reply_bytes, self._max_stream_bytes = max_reply_bytes, max_stream_bytes
        self._connect_timeout_s = connect_timeout_s
        self._closed = False
        self._streams: weakref.WeakSet[ProxiedStream] = weakref.WeakSet()
        # A context of our own reads SSL_CERT_FILE now; aiohttp's was made when it was imported.
        tls = ssl.create_default_context() if urlsplit(base_url).scheme == "https" else False
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=idle_s, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Ours is bounded; aiohttp's would unpack a whole network chunk at once.
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            # It would also read ~/.netrc, and send what it finds to a tier that has no key.
            trust_env=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            headers={"Accept-Encoding": "gzip"},
        )

    async def post(self, request: Request, body: bytes, timeout_s: float) -> Reply:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(request, body)
        except FAILURES as error:
            failure = self.failure(error, f"no whole reply within {timeout_s:g} s", timeout_s)
        # Raised outside the handler, so that nothing of the client's own error hangs on to ours.
        raise failure

    async def stream(
        self, request: Request, body: bytes, first_byte_timeout_s: float, stall_timeout_s: float
    ) -> "ProxiedStream":
        try:
            async with asyncio.timeout(first_byte_timeout_s):
                response = await self._post(request, body)
            try:
                stream = ProxiedStream(self, response, stall_timeout_s, self._max_stream_bytes)
            except BaseException:
                response.close()
                raise
            self._streams.add(stream)
            return stream
        except FAILURES as error:
            late = f"no reply began within {first_byte_timeout_s:g} s"
            failure = self.failure(error, late, first_byte_timeout_s)
        raise failure

    async def aclose(self) -> None:
        self._closed = True
        for stream in list(self._streams):
            await stream.aclose()
        await self._session.close()

    def _post(self, request: Request, body: bytes) -> "aiohttp.client._RequestContextManager":
        return self._session.post(
            request.url, data=body, headers=request.headers, allow_redirects=False, proxy=self._proxy
        )

    async def _exchange(self, request: Request, body: bytes) -> Reply:
        async with self._post(request, body) as response:
            kept = _headers(response)
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

    def failure(self, error: Exception, late: str, timeout_s: float) -> TransportError:
        """Our error for theirs; `late` says what a timeout means here.

        Texts are our own or the operating system's: theirs carry the URL, which may carry secrets.
        """
        match error:
            case zlib.error():
                return TransportError("malformed", NOT_PACKED, True)
            case aiohttp.ConnectionTimeoutError():
                return TransportError(
                    "timeout", f"no connection within {min(self._connect_timeout_s, timeout_s):g} s", False
                )
            case aiohttp.ClientHttpProxyError():
                return TransportError("connection", f"the proxy refused the tunnel with status {error.status}", False)
            case aiohttp.ClientConnectorError() | aiohttp.ClientConnectorCertificateError():
                return TransportError("connection", f"could not connect: {_reason(error)}", False)
            case TimeoutError():
                return TransportError("timeout", late, True)
            case aiohttp.InvalidURL() | ValueError():
                return TransportError("connection", INVALID, False)
            case _ if self._closed:
                return TransportError("connection", "the transport was closed while the request was under way", True)
            case aiohttp.ClientPayloadError():
                return TransportError("connection", "the connection broke in the middle of the reply", True)
            case aiohttp.ServerDisconnectedError():
                return TransportError("connection", "the endpoint closed the connection without an answer", True)
            case aiohttp.ClientResponseError():
                return TransportError("malformed", "the reply is not valid HTTP", True)
            case _:
                return TransportError("connection", f"the connection broke: {_reason(error)}", True)


class ProxiedStream:
    """A reply whose body is read as it comes. aiohttp stops reading the connection while its reader is behind."""

    def __init__(
        self, client: ProxiedClient, response: aiohttp.ClientResponse, stall_timeout_s: float, limit: int
    ) -> None:
        self.status, self.headers = response.status, _headers(response)
        self._client, self._response, self._stall_timeout_s = client, response, stall_timeout_s
        encoding = self.headers.get("content-encoding", "").strip().lower()
        self._body = StreamBody("" if response.status in (204, 304) else encoding, limit)
        self._limit = limit
        self._end: TransportError | None = None
        if response.content_length is not None and response.content_length > limit:
            self._end = too_large(limit)
            response.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._end is not None:
            raise self._end
        try:
            while True:
                if self._body.ready:
                    piece = self._body.take()
                elif piece := await self._more():
                    if not self._body.put(piece):
                        raise too_large(self._limit)
                    continue
                else:
                    raise self._body.unfinished() or StopAsyncIteration
                if piece:
                    return piece
        except TransportError as error:
            self._end = error
            await self.aclose()
            raise

    async def aclose(self) -> None:
        self._end = self._end or TransportError("connection", "the stream was closed", sent=True)
        self._body.drop()
        if not self._response.content.is_eof():
            # aiohttp would leave a reader waiting.
            self._response.content.set_exception(aiohttp.ClientConnectionError())
        # A body that was read to its end has given its connection back already, and this does nothing.
        self._response.close()

    async def _more(self) -> bytes:
        late = f"nothing came for {self._stall_timeout_s:g} s in the middle of the reply"
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                return await self._response.content.readany()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        except FAILURES as error:
            failure = self._client.failure(error, late, self._stall_timeout_s)
        raise failure


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    kept: dict[str, str] = {}
    for name, value in response.headers.items():
        kept.setdefault(name.lower(), value)
    return kept


def _reason(error: Exception) -> str:
    """What the operating system or TLS said, from inside of aiohttp's error."""
    return reason(getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error)
