"""The observer actor: one address that serves the sums over all processes of a runtime, and what is so now.

    doors --Report, once a second--> report() -> sums, scenes -> GET /metrics, GET /status, GET /ui; scrape(), live() for a gateway

It listens on 127.0.0.1 alone, on the node of the program that started it. If the port is taken, it takes another and says
so in its answer. What it has been told is in a file before it answers, so after its own death no sum is less than before,
and none is doubled, since sources tell totals (sums.py). That file belongs to the runtime's life and ends with it: totals
of a later job start at zero, which Prometheus takes for a counter reset. The file is apart from the ledger's store, because
nothing may wait for it: money is booked there, and here only watched.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import Metric as Family

from actors.events import Key
from actors.observer.changes import Changes
from actors.observer.exposition import exposed, families
from actors.observer.history import History, prompts
from actors.observer.page import HEADERS, LIVE_S, PAGE
from actors.observer.scene import Happened, Report, Scene, Taken, TierScene, gauges, merged, plain
from actors.observer.scrapers import Scrapers
from actors.observer.sums import Sums

__all__ = ["ObserverActor"]

HOST = "127.0.0.1"
EVENTS = 12
"""So many are told, the last ones."""
SENT_S = 0.1
"""For so long a scrape that was answered may take to leave."""
SILENT_S = 60.0
"""What a source that has said nothing for so long saw is not shown any more; what it counted is."""
log = logging.getLogger("raycade.observer")


class ObserverActor:
    """Does no I/O when made (a failing constructor is final in Ray); `file` keeps its sums while the runtime lives."""

    def __init__(self, file: str, port: int) -> None:
        self._file = file
        self._port = port
        self._sums = Sums()
        self._history = History()
        self._scenes: dict[str, tuple[Scene, float]] = {}
        """What each source has last seen, and when it told."""
        self._runner: web.AppRunner | None = None
        self._opening = asyncio.Lock()
        self._taken = Taken("", True)
        self._changes = Changes()
        self._events: deque[Happened] = deque(maxlen=EVENTS)
        """With a gateway's tiers. A batch tells of its own."""
        self._scrapers = Scrapers()
        self._open_since = 0.0
        self._scraped = asyncio.Event()
        self._unstored = ""

    async def report(self, report: Report) -> Taken:
        """Take in what a source tells; stored when this returns. Raises OSError when no port can be had."""
        await self._open()
        if self._sums.take(report.totals, report.last):
            self._scenes = {source: seen for source, seen in self._scenes.items() if _is_fresh(seen[1])}
            self._scenes[report.totals.source] = report.scene, time.monotonic()
            self._store()
            now = time.time()
            if report.scene.gateway is not None:
                seen = self._changes.see(tier for scene in self._gateways() for tier in scene.tiers)
                self._events.extend(Happened(now, *change) for change in seen)
            if self._history.due(now):
                models = {tier.name: tier.model for tier in report.scene.tiers}
                self._history.take(self._sums.counters(), self._sums.distributions(), models, now)
        return self._taken

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """`/metrics` for a gateway to pass on: the body and its content type."""
        return exposed(self._families, accept)

    async def live(self) -> bytes:
        """What the page shows, as JSON: `/status`, the last minutes, and the prompt versions."""
        told = self._now() | {"series": self._history.plain(), "prompts": prompts(self._sums.counters())}
        return orjson.dumps(told)

    async def look(self) -> tuple[Taken, tuple[str, ...], tuple[Happened, ...]]:
        """Where it serves, the notices of the gateway's replicas, and what happened last with their tiers.

        Raises OSError when no port can be had."""
        await self._open()
        notices = (notice for scene in self._gateways() if scene.gateway for notice in scene.gateway.notices)
        return self._taken, tuple(dict.fromkeys(notices)), tuple(self._events)

    async def last_scrape(self, most_s: float) -> bool:
        """Wait until everybody who scrapes regularly has come once more, those who should within `most_s`: whether all did."""
        began = time.monotonic()
        due = self._scrapers.due(began, most_s, self._open_since)
        while (left_s := self._scrapers.waits(due, began, time.monotonic())) > 0:
            self._scraped.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._scraped.wait()
        await asyncio.sleep(SENT_S if due else 0)
        return all(by > time.monotonic() for by in due.values())

    async def close(self) -> None:
        """Serve no more, and forget: the runtime ends."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
        with contextlib.suppress(OSError):
            os.unlink(self._file)

    # ------------------------------------------------------------------ the file

    def _load(self) -> int:
        """Carry on where an observer that died stopped; the port that it had, or 0."""
        try:
            with open(self._file, "rb") as file:
                stored = orjson.loads(file.read())
            self._sums.load(stored["sums"])
            self._scrapers.load(stored["scrapers"])
            return int(stored["port"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s cannot be read, sums begin with what sources tell now: %s", self._file, error)
            return 0

    def _store(self) -> None:
        """Atomic, and no fsync: what is written survives this process, and the runtime does not survive the machine."""
        port = int(self._taken.address.rpartition(":")[2])
        data = orjson.dumps({"port": port, "scrapers": self._scrapers.plain(), "sums": self._sums.plain()})
        try:
            with open(f"{self._file}.new", "wb") as file:
                file.write(data)
            os.replace(f"{self._file}.new", self._file)
        except (
            OSError
        ) as error:  # watching goes on; what is lost is what dead sources counted, if this process dies too
            if str(error) != self._unstored:
                self._unstored = str(error)
                log.warning("sums cannot be stored: %s", error)

    # ------------------------------------------------------------------ what it serves

    async def _open(self) -> None:
        async with self._opening:
            if self._runner is not None:
                return
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(self._file), exist_ok=True)
            before = self._load()
            app = web.Application()
            app.add_routes(
                [
                    web.get("/metrics", self._metrics),
                    web.get("/status", self._status),
                    web.get("/ui", self._page),
                    web.get("/ui/live", self._live),
                    web.get("/", self._index),
                ]
            )
            runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2 * LIVE_S)
            await runner.setup()
            port = await _listen(runner, dict.fromkeys((before or self._port, self._port, 0)))
            self._taken = Taken(f"http://{HOST}:{port}", self._port in (0, port))
            self._runner = runner
            self._open_since = time.monotonic()

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = exposed(self._families, request.headers.get("Accept", ""))
        self._scrapers.scraped(request.headers.get("User-Agent", "")[:100], time.monotonic())
        self._scraped.set()
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _families(self) -> Iterator[Family]:
        seen = dict(gauges(scene for scene, _ in self._fresh()))
        seen["sources",] = len(self._sums)
        return families(self._sums.counters(), self._sums.distributions(), seen)

    async def _status(self, request: web.Request) -> web.Response:
        _local(request)
        return web.Response(body=orjson.dumps(self._now()), content_type="application/json")

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(body=PAGE, content_type="text/html", charset="utf-8", headers=HEADERS)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events, one every `LIVE_S`."""
        _local(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while self._runner is not None:
                await response.write(b"data: " + await self.live() + b"\n\n")
                await asyncio.sleep(LIVE_S)
        return response

    def _now(self) -> dict[str, Any]:
        """What is so now. Durations in it were right `age_s` seconds ago."""
        fresh = sorted(self._fresh(), key=lambda each: each[1])
        told_at = fresh[-1][1] if fresh else time.monotonic()
        scene = merged(each for each, _ in fresh)
        calls = {key[1:]: count for key, count in self._sums.counters().items() if key[0] == "attempts"}
        # a process knows its own calls only
        scene = scene._replace(tiers=tuple(_with_calls(tier, calls) for tier in scene.tiers))
        if not scene.events:
            now = time.time()
            scene = scene._replace(events=tuple((max(0.0, now - event.at), event.text) for event in self._events))
        body = {
            "age_s": round(time.monotonic() - told_at, 3),
            **plain(scene._replace(gateway=None)),
            "gateways": [plain(each.gateway) for each, _ in fresh if each.gateway is not None],
        }
        del body["gateway"]
        return body

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(text="raycade: /ui for people, /metrics for Prometheus, /status as JSON\n")

    def _gateways(self) -> Iterator[Scene]:
        return (scene for scene, _ in self._fresh() if scene.gateway is not None)

    def _fresh(self) -> list[tuple[Scene, float]]:
        return [(scene, told_at) for scene, told_at in self._scenes.values() if _is_fresh(told_at)]


def _is_fresh(told_at: float) -> bool:
    return time.monotonic() - told_at < SILENT_S


def _local(request: web.Request) -> None:
    """Refuses what a web page that took a name of its own for this address may ask. Raises HTTPForbidden."""
    name = request.host.rpartition(":")[0] or request.host
    if name not in (HOST, "localhost"):
        raise web.HTTPForbidden(text=f"ask for it as {HOST} or localhost\n")


def _with_calls(tier: TierScene, calls: Mapping[Key, int]) -> TierScene:
    kinds = {key[1]: count for key, count in calls.items() if key[0] == tier.name}
    return tier._replace(answered=kinds.pop("ok", 0), kinds=kinds)


async def _listen(runner: web.AppRunner, ports: dict[int, None]) -> int:
    """Listen on the first of the ports that is free."""
    for number, port in enumerate(ports, 1):
        try:
            site = web.TCPSite(runner, HOST, port)
            await site.start()
        except OSError:
            if number == len(ports):
                raise
            continue
        bound: int = runner.addresses[-1][1]
        return bound
    raise AssertionError("unreachable")
