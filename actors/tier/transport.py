"""What a tier needs of HTTP: send these bytes to this path, and say honestly what came of it.

Two transports keep this contract: actors/tier/wire.py (the default) and actors/tier/sdk.py (through the openai
package). tests/e2e/test_transports.py holds both to it, fault by fault:

- `send` returns whatever status the endpoint gave, and never follows a redirect: a redirect could carry the key away.
- The timeout covers connecting, headers and body together, so a reply that trickles in does not outlive it.
- A reply is bounded while it is read, after decompression; a reply that was cut short is an error, never a short success.
- No cookies. The environment's proxies are used (HTTPS_PROXY, NO_PROXY ...), but never for a loopback address.
- Nothing is sent twice. A pooled connection that had closed before the request was written is replaced silently,
  since the endpoint surely saw nothing.
- Cancelling `send` closes its connection.
- `stream` is the same with a reply that is read as it comes (`Streamed`). What breaks in the middle is an error after what
  had come; a body that was cut, in whatever way, never looks complete. A slow reader makes the endpoint wait.
- The constructor does no I/O.

This module imports no HTTP client, so that rules and fakes can use its types freely.
"""

import asyncio
from collections.abc import Mapping
from typing import Literal, NamedTuple, NoReturn, Protocol, Self
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from actors.errors import ConfigError, RaycadeError

__all__ = [
    "MAX_REPLY_BYTES",
    "MAX_STREAM_BYTES",
    "Endpoint",
    "Reply",
    "Secret",
    "Streamed",
    "Transport",
    "TransportError",
    "leave",
    "read_whole",
]

MAX_REPLY_BYTES = 32 * 1024 * 1024
MAX_STREAM_BYTES = 256 * 1024 * 1024
"""Of one stream: a million tokens at 250 bytes a chunk. No more than a fraction of a megabyte of it is ever held."""

# What stands in the name of a header or a query field whose value opens doors.
_SECRET_NAMES = ("auth", "key", "token", "secret", "cookie", "password")


class Reply(NamedTuple):
    """An HTTP reply as it came, decompressed."""

    status: int
    headers: Mapping[str, str]
    """Names are lower-cased; of a repeated header the first value counts."""
    body: bytes


class TransportError(RaycadeError):
    """No whole reply came.

    `sent` is False only when surely nothing of the request reached the endpoint (refused, name not resolved, TLS
    failed, still connecting at the timeout). Otherwise the endpoint may have worked, and billed, for it.
    """

    def __init__(self, kind: Literal["timeout", "connection", "malformed"], message: str, sent: bool) -> None:
        super().__init__(kind, message, sent)
        self.kind, self.message, self.sent = kind, message, sent

    def __str__(self) -> str:
        return self.message


class Secret:
    """A string that shows itself to nobody who does not ask: no repr, format or pickle of it carries the value."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # TypeError is what pickle, copy and cloudpickle users expect of a thing that cannot be pickled.
        raise TypeError("a secret is never pickled: pass the name of its environment variable instead")


class Endpoint:
    """Where requests go and what is added to them. Holds secrets, so it shows only its address and is never pickled."""

    __slots__ = ("api_key", "base_url", "headers", "query")

    def __init__(self, base_url: str, api_key: Secret | None = None, headers: Mapping[str, str] | None = None) -> None:
        """`base_url` may carry a query (Azure's `?api-version=`), which every request then gets."""
        parts = urlsplit(base_url)
        if "@" in parts.netloc:
            # Clients and proxies print addresses; and with a key there would be two authorizations.
            raise ConfigError(
                "must not hold a user or a password: name the key's variable in api_key_env", key="base_url"
            )
        self.base_url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self.query = parts.query
        self.api_key = api_key
        self.headers = dict(headers or {})

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an endpoint holds secrets and is never pickled: build it where it is used")

    def with_query(self, url: str) -> str:
        """`url` with the endpoint's query."""
        return f"{url}{'&' if '?' in url else '?'}{self.query}" if self.query else url

    def secrets(self) -> tuple[str, ...]:
        """Every value that must not appear in anything we write; for `redact.redact`."""
        found = [self.api_key.reveal()] if self.api_key else []
        for name, value in (*self.headers.items(), *parse_qsl(self.query)):
            if any(word in name.lower() for word in _SECRET_NAMES):
                found.append(value.removeprefix("Bearer ").removeprefix("Basic "))
        return tuple(dict.fromkeys(secret for secret in found if secret))


class Streamed(Protocol):
    """A reply whose head is in, and whose body is read as it comes: `async for piece in streamed`.

    Whatever has come since the last read is one piece, decompressed. Reading raises TransportError when the connection
    breaks, nothing comes for `stall_timeout_s` while it waits, or more comes than may; and then what had come before has
    been read. One reader at a time; cancelling a read closes the stream. Close it in a `finally`.
    """

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """As in `Reply`."""
        ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """Drop the connection at once unless the body is complete. Again, or after the end, it does nothing."""
        ...


async def read_whole(streamed: Streamed, timeout_s: float, max_bytes: int = MAX_REPLY_BYTES) -> Reply:
    """What a reply that is no event stream (an error's JSON, say) turns out to be; closes it. Raises TransportError."""
    parts: list[bytes] = []
    room = max_bytes
    failure: TransportError | None = None
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in streamed:
                parts.append(piece)
                room -= len(piece)
                if room < 0:
                    raise TransportError("malformed", f"the reply is larger than {max_bytes:,} bytes", sent=True)
    except TimeoutError:
        failure = TransportError("timeout", f"no whole reply within {timeout_s:g} s", sent=True)
    finally:
        await streamed.aclose()
    if failure is not None:  # raised outside the handler, as all of ours
        raise failure
    return Reply(streamed.status, streamed.headers, b"".join(parts))


async def leave(streamed: Streamed, within_s: float = 0.1) -> None:
    """The answer is complete: wait this long for the end of its body, so that the connection can be used again; and close."""
    try:
        async with asyncio.timeout(within_s):
            async for _ in streamed:
                pass
    except (TransportError, TimeoutError):
        pass
    finally:
        await streamed.aclose()


class Transport(Protocol):
    """One endpoint's line. Used from one event loop; as many sends at once as the tier allows."""

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        """POST the JSON `body` to base_url + `path`. Raises TransportError, or CancelledError when cancelled."""
        ...

    async def stream(self, path: str, body: bytes, first_byte_timeout_s: float, stall_timeout_s: float) -> Streamed:
        """POST, and return when the reply's head is in: `first_byte_timeout_s` covers connecting and the head, and
        `stall_timeout_s` each wait for the body's next bytes. Raises TransportError, or CancelledError when cancelled."""
        ...

    async def aclose(self) -> None:
        """Close every connection. Sends and streams in flight end with TransportError."""
        ...
