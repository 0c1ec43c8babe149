"""The sdk transport: the openai package makes the request, for what only it can do.

That is: Azure AD token providers, workload identities, its Bedrock and other providers, which sign or rewrite a request
as it leaves. It costs many times the CPU of the wire, so it is chosen per tier (`transport: sdk`).

The SDK's HTTP client is replaced, by its public `http_client` argument, with one that hands the finished request to the
same Wire as the default transport. So timeouts, bounds, proxies, redirects and broken connections have one
implementation and one set of surprises, and the SDK's own (retries, 600 s, a cost that grows with the connections)
play no part.

A stream passes the SDK by: it makes the request and is shown the reply's head, with an empty body, while the body goes from
the Wire to the reader.

The SDK's exceptions carry the request with its Authorization header: none leaves this module.
"""

import asyncio
import json
from contextvars import ContextVar
from typing import Any, cast

import httpx2
import openai
import yarl

from actors.tier.transport import MAX_REPLY_BYTES, MAX_STREAM_BYTES, Endpoint, Reply, Streamed, TransportError
from actors.tier.wire import Wire, openai_client, prepare

__all__ = ["SdkTransport"]


class _Passage:
    """One request on its way through the SDK."""

    def __init__(self, stall_timeout_s: float = 0.0) -> None:
        self.handed_over = False
        """Whether the SDK has come as far as sending."""
        self.stall_timeout_s = stall_timeout_s
        """Above zero: the reply is streamed, and is left here."""
        self.streamed: Streamed | None = None


_passage: ContextVar[_Passage] = ContextVar("_passage")
"""Of this task's request: the SDK has no other way to carry it from one end to the other."""


class SdkTransport:
    """The `sdk` transport of one endpoint, or of an AsyncOpenAI object that was built elsewhere (with a provider, say)."""

    def __init__(
        self,
        endpoint: Endpoint,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        max_stream_bytes: int = MAX_STREAM_BYTES,
        client: openai.AsyncOpenAI | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._given = client
        self._wire = Wire(str(client.base_url) if client else endpoint.base_url, max_reply_bytes, max_stream_bytes)
        self._client: openai.AsyncOpenAI | None = None

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        return _reply(await self._through(_Passage(), path, body, timeout_s))

    async def stream(self, path: str, body: bytes, first_byte_timeout_s: float, stall_timeout_s: float) -> Streamed:
        if stall_timeout_s <= 0:
            raise TransportError("timeout", "no time was left to read the reply", sent=False)
        passage = _Passage(stall_timeout_s)
        try:
            await self._through(passage, path, body, first_byte_timeout_s)
        except BaseException:
            if passage.streamed is not None:
                await passage.streamed.aclose()
            raise
        if passage.streamed is None:
            raise TransportError("connection", "the openai package sent nothing", sent=False)
        return passage.streamed

    async def _through(self, passage: _Passage, path: str, body: bytes, timeout_s: float) -> httpx2.Response:
        if timeout_s <= 0:
            raise TransportError("timeout", "no time was left to send the request", sent=False)
        if self._client is None:
            self._client = self._connectable()
        failure: TransportError
        before = _passage.set(passage)
        try:
            # Around the whole, because a provider may fetch a token before it sends.
            async with asyncio.timeout(timeout_s):
                response: httpx2.Response = await self._client.post(
                    path, cast_to=httpx2.Response, options=self._options(timeout_s), **_payload(body)
                )
            return response
        except openai.APIStatusError as error:
            return error.response
        except TransportError as error:
            failure = TransportError(error.kind, error.message, error.sent)
        except TimeoutError:
            what = "no reply began" if passage.stall_timeout_s else "no whole reply"
            failure = TransportError("timeout", f"{what} within {timeout_s:g} s", passage.handed_over)
        except Exception as error:
            # Token providers raise what they like, and its text may quote a token: the type has to do.
            stage = "read the reply" if passage.handed_over else "prepare the request"
            message = f"the openai package could not {stage} ({type(error).__name__})"
            failure = TransportError("connection", message, passage.handed_over)
        finally:
            _passage.reset(before)
        # Raised outside the handlers, so that no error of the SDK hangs on to ours as its context.
        raise failure

    async def aclose(self) -> None:
        await self._wire.aclose()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _options(self, timeout_s: float) -> Any:
        options: dict[str, Any] = {"timeout": timeout_s, "max_retries": 0, "security": {"bearer_auth": True}}
        names = {name.lower() for name in self._endpoint.headers}
        if self._given is None and not self._endpoint.api_key and "authorization" not in names:
            # The SDK sends nothing without authorization unless each request says that this is meant.
            options["headers"] = {"Authorization": openai.omit}
        return options

    def _connectable(self) -> openai.AsyncOpenAI:
        http_client = httpx2.AsyncClient(
            transport=_OverWire(self._wire, self._endpoint), follow_redirects=False, trust_env=False
        )
        if self._given is not None:
            return self._given.with_options(http_client=http_client, max_retries=0)
        return openai_client(self._endpoint, http_client)


class _OverWire(httpx2.AsyncBaseTransport):
    """An httpx2 transport that sends through a Wire."""

    def __init__(self, wire: Wire, endpoint: Endpoint) -> None:
        self._wire, self._endpoint = wire, endpoint

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        # The Wire writes these itself; httpx2's own would promise encodings that the Wire does not undo.
        headers = {n: v for n, v in request.headers.items() if n not in ("host", "content-length", "accept-encoding")}
        # The query is added only here, because httpx2 logs the addresses that it knows.
        url = yarl.URL(self._endpoint.with_query(str(request.url)), encoded=True)
        timeout_s = request.extensions["timeout"]["read"]
        passage = _passage.get()
        passage.handed_over = True
        if passage.stall_timeout_s:
            if passage.streamed is not None:  # a provider asks again, with another token
                await passage.streamed.aclose()
            passage.streamed = await self._wire.stream(prepare(url, headers), body, timeout_s, passage.stall_timeout_s)
            status, reply_headers, content = passage.streamed.status, passage.streamed.headers, b""
        else:
            status, reply_headers, content = await self._wire.post(url, headers, body, timeout_s)
        # Set-Cookie is left out because httpx2 would keep the cookie; the rest described the body on the wire.
        left_out = ("set-cookie", "content-encoding", "content-length", "transfer-encoding")
        kept = {name: value for name, value in reply_headers.items() if name not in left_out}
        return httpx2.Response(status, headers=kept, content=content, request=request)


def _payload(body: bytes) -> dict[str, Any]:
    """The body as the SDK wants it: parsed, because its Azure client reads the model from it to choose the address."""
    try:
        return {"body": cast(object, json.loads(body))}
    except ValueError:
        return {"content": body}


def _reply(response: httpx2.Response) -> Reply:
    return Reply(response.status_code, {n.lower(): v for n, v in response.headers.items()}, response.content)
