"""A request's body as it arrives, bounded in size and in time."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request

from runtime.gateway.errors import HttpError

__all__ = ["body_parts", "whole_body"]

BODY_S = 30.0
"""A body that takes longer to arrive is not waited for."""


async def body_parts(http: Request, max_bytes: int, too_large: HttpError, most_s: float) -> AsyncIterator[bytes]:
    """The parts of the body. Raises `too_large` past `max_bytes`, HttpError 408 after `most_s` seconds."""
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    if http.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError(415, "send the body as it is, without Content-Encoding", code="unsupported_encoding")
    size, until = 0, asyncio.get_running_loop().time() + most_s
    parts = http.stream()
    while True:
        try:
            async with asyncio.timeout_at(until):
                part = await anext(parts, None)
        except TimeoutError:
            raise HttpError(408, f"the body did not arrive within {most_s:g} s", code="timeout") from None
        if part is None:
            return
        size += len(part)
        if size > max_bytes:
            raise too_large
        yield part


async def whole_body(http: Request, max_bytes: int, too_large: HttpError, most_s: float = BODY_S) -> bytes:
    """All of it. Raises as `body_parts`."""
    return b"".join([part async for part in body_parts(http, max_bytes, too_large, most_s)])
