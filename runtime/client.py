"""`from runtime import Client`: the cascade for a Python program, with all of its guards.

    async with Client("raycade.yaml") as client:
        completion = await client.complete("Why is the sky blue?")      # openai's ChatCompletion
        async for chunk in client.stream("Tell me more."): ...          # openai's ChatCompletionChunk
        async for outcome in client.map(rows, window=500): ...          # in order of completion, each row once

    ask -> body -> encode.py -> a lane -> router actor -> ... -> result -> openai's type, or RequestFailed

The actors are those of a runtime that is up (`raycade up`), or the client's own, which end with it (runtime/cluster.py says
which Ray). `SyncClient` is the same for programs without an event loop (runtime/client_sync.py).
"""

import asyncio
import itertools
import logging
import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import uuid4

from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ParsedChatCompletion
from pydantic import BaseModel

from actors.errors import ClusterError, InputError, RaycadeError
from actors.lane import Lane
from actors.messages import Failure, Request, Result
from actors.router.failures import FailureLog
from actors.settings import QUALITIES, Quality
from runtime.batch.reader import body_error
from runtime.client_parse import parse
from runtime.client_sending import Sending
from runtime.client_stream import Stream
from runtime.client_sync import SyncClient
from runtime.client_telemetry import Telemetry
from runtime.client_values import CHAT, TYPES, Ask, Outcome, body_of, row_ask, typed
from runtime.config import Config, load_config, resolve_prices
from runtime.encode import BodyEncoder, Terms, filled, rank_of
from runtime.gateway.prompts import Prompts
from runtime.preflight import joins
from runtime.prompts import Rendered
from runtime.routers import GAP_S, how, least_loaded, weight
from runtime.schemas import schema_of

if TYPE_CHECKING:
    from runtime.keeper import Kept

__all__ = ["Client", "Outcome", "Stream", "SyncClient"]

OPEN_S = 60.0
FEED_ROWS = 64
"""Rows that `map` takes before others have a turn."""
Model = TypeVar("Model", bound=BaseModel)

_log = logging.getLogger("raycade.client")
_schema = lru_cache(maxsize=64)(schema_of)


class Client:
    """One cascade for one event loop. Use it as an async context; all methods may be called at the same time."""

    def __init__(
        self,
        config: Config | str | os.PathLike[str] | None = None,
        address: str | None = None,
        *,
        job: str = "",
        max_usd: float | None = None,
        max_tokens: int | None = None,
        kept: "Kept | None" = None,
    ) -> None:
        """`config`: a file, by default raycade.yaml in the current folder; or one that was read.

        `address`: a Ray cluster to join, or `local` for a Ray of its own; None: as `Cluster.start` says. A program that is
        connected to Ray stays there.
        `job`: the scope in the ledger that this program's requests are charged to (`budget.jobs`), `max_usd` and `max_tokens`
        the most that it may spend. `kept`: the set of actors to use, which is kept while this client is open. Raises
        ConfigError.
        """
        self._check: Callable[[], object] = lambda: None
        if isinstance(config, Config):
            self.config = config
        else:
            file = None if config is None else os.fspath(config)
            self.config = load_config(file, os.environ, check_keys=False)
            # A runtime that is up has the keys, and a program that uses it needs none.
            self._check = partial(load_config, file, os.environ, check_keys=not joins(address, os.environ))
        self._address, self._kept = address, kept
        given = job or max_usd is not None or max_tokens is not None
        self._limits = (max_tokens, max_usd) if given else None
        self.name = f"client-{uuid4().hex[:8]}"
        self.job = job or self.name
        self._encoder = BodyEncoder(
            self.config.tiers,
            deadline_s=self.config.router.deadline_s,
            job=self.job,
            share=self.config.coalesce.enabled,
            structured=self.config.structured,
        )
        self._prompts: Prompts | None = None
        self._cluster: Any = None
        self._lanes: list[Lane[Request, Any]] = []
        self._telemetry = Telemetry(self.config, self.name, self.job)
        waits = self.config.budget.on_exhausted == "wait"
        self._sending = Sending(self._lane, waits, self._telemetry, self._ended)
        self._numbers = itertools.count(1)
        self._opening = asyncio.Lock()

    # ------------------------------------------------------------------ open and closed

    async def open(self) -> None:
        """Find the actors or start them. Raises ConfigError and ClusterError."""
        from runtime.cluster import Cluster  # Ray takes seconds to import: not for a wrong configuration

        async with self._opening:
            if self._cluster is not None:
                return
            prices = resolve_prices(self.config)
            cluster = None
            try:
                if self._kept is not None:
                    await self._kept.join()
                cluster = await Cluster.start(
                    self.config,
                    prices,
                    self._address,
                    kind="client",
                    max_gap_s=GAP_S,
                    check=self._check,
                    home=self._kept.home if self._kept is not None else "",
                )
                if self._limits is not None:
                    await cluster.open_job(self.job, *self._limits)
                self._lanes = cluster.router_lanes(
                    self.name, weigh=weight, on_note=self._telemetry.note, max_gap_s=GAP_S
                )
                await asyncio.gather(*(lane.open(OPEN_S) for lane in self._lanes))
            except TimeoutError:
                await self._close(cluster)
                raise ClusterError(f"the routers did not answer within {OPEN_S:g} s") from None
            except BaseException:
                await self._close(cluster)
                raise
            self._cluster = cluster
            self._telemetry.open(cluster, registered=self._kept is None)

    async def close(self) -> None:
        """End what is under way, and the actors if they are the client's own. Idempotent."""
        async with self._opening:
            cluster, self._cluster = self._cluster, None
            if cluster is not None:
                await self._close(cluster)

    async def _close(self, cluster: Any) -> None:
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            await lane.close()
        await self._telemetry.close()
        if cluster is not None:
            await cluster.close()
        if self._kept is not None:
            self._kept.leave()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ------------------------------------------------------------------ one request

    async def complete(self, ask: Ask | None = None, **how_to: Any) -> ChatCompletion:
        """The answer to a message, to messages, to a whole body, or to `prompt=` with `variables=`.

        Named arguments: `model` (a tier's name or model, or `auto`); `prompt` (`NAME` or `NAME@VERSION`), `variables`, `unit` (for
        whom the version is chosen); `min_quality` (basic, medium, high); `deadline_s`; `share=False` for a sample of one's
        own; anything else is a field of the body, such as `temperature`. How the answer came about is in its extra field
        `raycade`. Raises InputError for what cannot be sent, RequestFailed for what was not answered.
        """
        request = self._request(CHAT, ask, **how_to)
        result = await self._sending.answer(request)
        return typed(ChatCompletion, result.body, how(result, request.prompt))

    def stream(self, ask: Ask | None = None, **how_to: Any) -> Stream:
        """The same, as it comes. Raises InputError."""
        request = self._request(CHAT, ask, b"", True, **how_to)
        return Stream(self._lane, request, self._ended, self._telemetry.left)

    async def parse(self, kind: type[Model], ask: Ask | None = None, **how_to: Any) -> ParsedChatCompletion[Model]:
        """The same, as an object of a pydantic class, in `choices[0].message.parsed`.

        An answer that the class refuses is asked for again, with the reasons, as often as `structured.retries` says; after that
        RequestFailed is raised with the kind `invalid_output`.
        """
        return await self._parse(kind, self._request(CHAT, ask, _schema(kind), **how_to))

    async def result(self, ask: Ask, **how_to: Any) -> Result:
        """The answer as it came, for a row of many: it may wait for a better tier or for budget. Arguments as in `complete`."""
        return await self._sending.answer(self._request(CHAT, ask, b"", False, False, **how_to))

    async def embed(self, input: str | list[Any], **how_to: Any) -> CreateEmbeddingResponse:
        """Embeddings of a text or of several. Named arguments as in `complete`."""
        result = await self._sending.answer(self._request("/embeddings", {"input": input}, **how_to))
        return typed(CreateEmbeddingResponse, result.body, how(result))

    def _request(
        self,
        path: str,
        ask: Ask | None,
        schema: bytes = b"",
        stream: bool = False,
        interactive: bool = True,
        /,
        *,
        prompt: str | None = None,
        variables: Mapping[str, Any] | None = None,
        unit: str | None = None,
        min_quality: Quality | None = None,
        deadline_s: float | None = None,
        share: bool = True,
        **fields: Any,
    ) -> Request:
        """The request that is meant. Raises InputError."""
        body = body_of(ask, fields)
        ref, quality, retries, escalate = "", rank_of(self._quality(min_quality)), None, None
        if prompt is not None:
            made = self._rendered(prompt, variables or {}, unit)
            body = filled(path, body, made.body)
            ref, retries, escalate = made.ref, made.retries, made.escalate
            schema, quality = schema or made.schema, max(quality, made.min_quality)
        elif variables is not None:
            raise InputError("invalid_argument", "variables go with a prompt", field="variables")
        if body.pop("stream", False):
            raise InputError("invalid_argument", "Client.stream streams an answer", field="stream")
        if wrong := body_error(path, body):
            raise wrong
        request = self._encoder.request(
            f"{self.name}-{next(self._numbers)}",
            path,
            body,
            Terms(
                min_quality=quality,
                prompt=ref,
                schema=schema,
                retries=retries,
                escalate=escalate,
                interactive=interactive,
                deadline_s=self._deadline_s(deadline_s),
                stream=stream,
            ),
        )
        return request if share else request._replace(digest=b"")

    def _rendered(self, ref: str, variables: Mapping[str, Any], unit: str | None) -> Rendered:
        if self._prompts is None:
            self._prompts = Prompts(self.config.prompts)
        return self._prompts.rendered(ref, variables, unit)

    def _quality(self, asked: str | None) -> str:
        if asked is not None and asked not in QUALITIES:
            raise InputError(
                "invalid_argument", f"expected {', '.join(QUALITIES)}; found {asked!r:.40}", field="min_quality"
            )
        return asked or self.config.router.min_quality

    def _deadline_s(self, asked: float | None) -> float | None:
        if asked is not None and not 0 < asked < float("inf"):
            raise InputError("invalid_argument", f"expected seconds, above 0; found {asked!r:.40}", field="deadline_s")
        return asked

    # ------------------------------------------------------------------ on its way

    def _lane(self) -> "Lane[Request, Any]":
        if not self._lanes:
            raise ClusterError("the client is not open: use it within `async with Client(...) as client:`")
        return least_loaded(self._lanes)

    def _ended(self, request: Request, done: Result | Failure, seconds: float) -> None:
        """A request has ended; one of a prompt may stop its trial by that. A follower's answer is its lead's."""
        self._telemetry.ended(request, done, seconds)
        if self._prompts is None or not request.prompt or not done.attempts:
            return
        kind = done.kind if isinstance(done, Failure) else ""
        for stopped in self._prompts.ended(request.prompt, done.refused_replies, kind, done.cost.usd_micros / 1e6):
            _log.warning("%s", self._prompts.stop(stopped))  # once in a trial's life: it may wait for the disk

    async def _parse(self, kind: type[Model], request: Request) -> ParsedChatCompletion[Model]:
        log = FailureLog(os.path.abspath(self.config.state_dir))
        return await parse(kind, request, self._sending.answer, [tier.name for tier in self.config.tiers], log)

    # ------------------------------------------------------------------ many requests

    async def map(
        self,
        rows: Iterable[Any] | AsyncIterable[Any],
        *,
        window: int = 500,
        into: type[BaseModel] | None = None,
        **how_to: Any,
    ) -> AsyncIterator[Outcome]:
        """An Outcome for each row, in order of completion; at most `window` rows are read ahead of what was taken.

        A row is what `complete` takes first, or a row of OpenAI's Batch format (`custom_id`, `url`, `body`). With `prompt=` it is the
        variables, or has them. Named arguments as in `complete`; `into`: a pydantic class, as in `parse`. With
        `budget.on_exhausted: wait` a row that a budget puts off waits until there is some again. A row that fails ends as an
        Outcome with its error; what iterating `rows` raises is raised when the rows before have ended. Whoever stops
        iterating ends what is under way.
        """
        if window < 1:
            raise InputError("invalid_argument", f"expected a number above 0, found {window!r:.40}", field="window")
        room, news, ended = asyncio.Semaphore(window), asyncio.Event(), deque[Outcome]()
        running: set[asyncio.Task[Outcome]] = set()

        def end(task: "asyncio.Task[Outcome]") -> None:
            running.discard(task)
            if not task.cancelled():
                ended.append(task.result())
                news.set()

        async def feed() -> None:
            number = 0
            async for row in _each(rows):
                await room.acquire()
                task = asyncio.create_task(self._outcome(number, row, into, how_to))
                running.add(task)
                task.add_done_callback(end)
                number += 1
                if not number % FEED_ROWS:
                    await asyncio.sleep(0)

        feeding = asyncio.create_task(feed())
        feeding.add_done_callback(lambda _: news.set())
        try:
            while running or ended or not feeding.done():
                while ended:
                    room.release()
                    yield ended.popleft()
                news.clear()
                if (running or not feeding.done()) and not ended:
                    await news.wait()
            await feeding
        finally:
            for task in (feeding, *running):
                task.cancel()
            await asyncio.gather(feeding, *running, return_exceptions=True)

    async def _outcome(self, number: int, row: Any, into: type[BaseModel] | None, how_to: dict[str, Any]) -> Outcome:
        try:
            path, ask, variables, unit = row_ask(row, "prompt" in how_to)
            given = {**how_to, "variables": variables, "unit": unit} if variables is not None else how_to
            schema = b"" if into is None else _schema(into)
            request = self._request(path, ask, schema, False, False, **given)
            if into is not None:
                return Outcome(number, row, await self._parse(into, request))
            result = await self._sending.answer(request)
            return Outcome(number, row, typed(TYPES[path], result.body, how(result, request.prompt)))
        except RaycadeError as error:
            return Outcome(number, row, None, error)
        except Exception as error:  # what is in a row may raise anything, and the others must not suffer for it
            return Outcome(number, row, None, InputError("invalid_row", f"{type(error).__name__}: {error}"[:300]))


async def _each(rows: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row
