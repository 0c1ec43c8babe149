"""`/v1/files`: upload, list, look up, download and delete, as `client.files` of the openai package does it.

An upload goes to the desk piece by piece as it arrives (runtime/gateway/desk.py): a replica holds one piece of it at a time, and
how many uploads it takes at once is bounded.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from runtime.config import FileSettings
from runtime.gateway.batch_rules import LEAST_KEEP_S, MOST_KEEP_S, page
from runtime.gateway.body import body_parts
from runtime.gateway.errors import BUSY_S, HttpError
from runtime.gateway.keys import Key
from runtime.gateway.multipart import OVERHEAD_BYTES, FileBegin, FormReader

__all__ = ["Ask", "Files", "json_response"]

Ask = Callable[..., Awaitable[Any]]
"""Calls the desk: `await ask(method, *arguments)`. Raises HttpError."""
PIECE_BYTES = 512 * 1024
UPLOADS_AT_ONCE = 16
UPLOAD_S = 900.0
PURPOSES = ("batch",)
FIELDS = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
MOST_LISTED = 10_000


class Files:
    """One a replica."""

    def __init__(self, ask: Ask, settings: FileSettings) -> None:
        self._ask = ask
        self._max_bytes = int(settings.max_mb * 1_000_000)
        self._uploads = 0

    async def create(self, http: Request, key: Key) -> Response:
        if self._uploads >= UPLOADS_AT_ONCE:
            raise HttpError(429, "too many uploads at once", "rate_limit_error", "overloaded", None, BUSY_S)
        self._uploads += 1
        upload = ""
        try:
            upload = await self._ask("begin_upload", key.name)
            form = FormReader(http.headers.get("content-type", ""))
            filename = await self._receive(http, form, key, upload)
            purpose, keep_s = _terms(form.fields)
            file = await self._ask("keep_upload", key.name, upload, filename, purpose, keep_s)
            upload = ""
        finally:
            self._uploads -= 1
            if upload:
                with contextlib.suppress(HttpError):  # what nobody drops is removed when it is old
                    await self._ask("drop_upload", key.name, upload)
        return json_response(file)

    async def _receive(self, http: Request, form: FormReader, key: Key, upload: str) -> str:
        """Hand the file's bytes to the desk as they come; the file's name."""
        most = f"{self._max_bytes / 1e6:g} MB (gateway.files.max_mb)"
        too_large = HttpError(413, f"the file is larger than {most}", code="file_too_large", param="file")
        filename, held, size = "", bytearray(), 0
        async for part in body_parts(http, self._max_bytes + OVERHEAD_BYTES, too_large, UPLOAD_S):
            for event in form.feed(part):
                if isinstance(event, FileBegin):
                    filename = event.filename
                else:
                    held += event
                    size += len(event)
            if size > self._max_bytes:
                raise too_large
            if len(held) >= PIECE_BYTES:
                await self._ask("append", key.name, upload, bytes(held))
                held.clear()
        form.end()
        if held:
            await self._ask("append", key.name, upload, bytes(held))
        return filename

    async def list(self, http: Request, key: Key) -> Response:
        asked = page(dict(http.query_params), MOST_LISTED, MOST_LISTED)
        return json_response(await self._ask("files", key.name, asked, http.query_params.get("purpose")))

    async def retrieve(self, http: Request, key: Key) -> Response:
        return json_response(await self._ask("file", key.name, http.path_params["id"]))

    async def delete(self, http: Request, key: Key) -> Response:
        return json_response(await self._ask("delete_file", key.name, http.path_params["id"]))

    async def content(self, http: Request, key: Key) -> Response:
        file = await self._ask("file", key.name, http.path_params["id"])
        headers = {"content-length": str(file["bytes"]), "x-content-type-options": "nosniff"}
        if http.method == "HEAD":
            return Response(headers=headers, media_type="application/octet-stream")
        parts = self._parts(key.name, file["id"], file["bytes"])
        return StreamingResponse(parts, headers=headers, media_type="application/octet-stream")

    async def _parts(self, owner: str, id: str, size: int) -> AsyncIterator[bytes]:
        offset = 0
        while offset < size:
            try:
                part = await self._ask("read", owner, id, offset, PIECE_BYTES)
            except HttpError:
                return  # deleted meanwhile: the client has fewer bytes than were announced, and sees that
            yield part
            offset += len(part)


def _terms(fields: dict[str, str]) -> tuple[str, int | None]:
    """Purpose, and how long the file is to be kept. Raises HttpError."""
    for name in fields.keys() - FIELDS:
        raise HttpError(400, f"{name:.80}: there is no such field", code="unknown_field", param=name[:80])
    purpose = fields.get("purpose")
    if purpose is None:
        raise HttpError(400, "purpose is missing", code="missing_field", param="purpose")
    if purpose not in PURPOSES:
        raise HttpError(400, f"purpose: expected batch; found {purpose!r:.80}", code="invalid_field", param="purpose")
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return purpose, None
    right = anchor == "created_at" and seconds is not None and seconds.isascii() and seconds.isdecimal()
    if not right or len(seconds or "") > 9 or not LEAST_KEEP_S <= int(seconds or 0) <= MOST_KEEP_S:
        message = f"expires_after: expected the anchor created_at and {LEAST_KEEP_S} to {MOST_KEEP_S} seconds"
        raise HttpError(400, message, code="invalid_field", param="expires_after")
    return purpose, int(seconds or 0)


def json_response(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
