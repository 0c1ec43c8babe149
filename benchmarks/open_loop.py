"""Requests that arrive by a clock, whether or not earlier ones have ended: the Python client beside plain aiohttp. A scenario of `benchmarks.page`.

    python -m benchmarks.open_loop CLIENT OPTIONS_AS_JSON   ->  one run, one JSON object on the last line of stdout

Arrivals are Poisson's. A latency counts from when its request was due, not from when it left, so that whoever falls behind does
not make its own numbers better (no coordinated omission). A closed loop (`low-load`) cannot show that: it asks less of whom is slow.
"""

import asyncio
import gc
import json
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.bench import Run, spread, text
from benchmarks.overhead_clients import aiohttp_ask
from benchmarks.overhead_meter import Meter, quantile
from benchmarks.scenarios import WITHOUT_AIM, Result, Setup, bars, fields, result

__all__ = ["arrivals", "open_loop", "seen"]

LATENCY_S = 0.1
RATES_PER_S = (100, 500, 1_000)
WARM_S, SECONDS = 4.0, 12.0
METER_S = 0.25
"""So long before the first request that counts the meter is read, which takes milliseconds."""
DRAIN_S = 30.0
"""How long answers are waited for once the last request has left; what has none by then is lost."""
CLIENTS = {"aiohttp": "plain aiohttp client", "raycade": "raycade's Client, every guard on"}

Ask = Callable[[str], Awaitable[object]]
"""From a prompt to an answer, whatever its type."""


def open_loop(setup: Setup) -> Result:
    """Requests at a given rate, by a clock, at an endpoint that takes 100 ms: latency from when each was due, of the Python client and of plain aiohttp."""
    bench = setup.bench
    rates = RATES_PER_S[:1] if setup.quick else RATES_PER_S
    span = {"warm_s": 0.5, "seconds": 1.5} if setup.quick else {"warm_s": WARM_S, "seconds": SECONDS}
    runs: dict[str, list[Run]] = {}
    table: list[dict[str, Any]] = []
    with bench.endpoint(LATENCY_S):
        for number, what in setup.numbers():
            if number >= WITHOUT_AIM:
                break
            for per_s in rates:
                for name in CLIENTS:
                    bench.mock.reset()
                    asked = {"per_s": per_s, "seed": number, **span}
                    run = bench.program("benchmarks.open_loop", name, asked, f"{per_s:,} requests/s, {what}")
                    at_once = bench.mock.stats()["tiers"]["default"]["max_in_flight"]
                    runs.setdefault(f"{name}, {per_s}/s", []).append(run | {"at_once": at_once})
    keys = ("p50_ms", "p99_ms", "most_ms")
    for per_s in rates:
        plain = runs[f"aiohttp, {per_s}/s"]
        for name, label in CLIENTS.items():
            of_one = runs[f"{name}, {per_s}/s"]
            line = {"per_s": f"{per_s:,}", "client": label, **fields(of_one, *keys, "late_ms", "at_once", "lost")}
            line |= fields(of_one, "rows_per_s", "cpu_us_per_row")
            if name != "aiohttp":
                line |= {f"added_{key}": _added(of_one, plain, key) for key in keys}
            table.append(line)
    columns: list[list[Any]] = [["per_s", "requests/s asked", 0], ["client", "client", 0]]
    columns += [[key, f"{key.removesuffix('_ms')}, ms", 1] for key in keys]
    columns += [[f"added_{key}", f"added {key.removesuffix('_ms')}, ms", 1] for key in keys]
    columns += [["late_ms", "left late, p99, ms", 1], ["at_once", "most calls at once", 0], ["lost", "lost", 0]]
    columns += [["rows_per_s", "answers/s", 0], ["cpu_us_per_row", "CPU us/request", 0]]
    told = [{**line, "client": f"{line['client']}, {line['per_s']}/s"} for line in table]
    told.sort(key=lambda line: line["client"] == CLIENTS["aiohttp"])  # in the order of rates within each
    notes = [
        "Added: less the plain client's of the same round and rate, whose arrivals are the same ones.",
        "Left late: how long after it was due a request was given to its client; the clock of an event loop is good for a millisecond.",
        "Both clients run in the process that keeps the clock, on uvloop. What raycade's actors take of the same cores is in its numbers.",
    ]
    plots = [bars("p50, ms from when a request was due", told, "p50_ms"), bars("p99, ms", told, "p99_ms")]
    return result(table, columns, runs, plots=plots, notes=notes) | {"rounds": min(setup.rounds, WITHOUT_AIM)}


def _added(ours: Sequence[Run], theirs: Sequence[Run], key: str) -> dict[str, float]:
    return spread(our[key] - their[key] for our, their in zip(ours, theirs, strict=True))


# -- one run -------------------------------------------------------------------------------------------------------


def arrivals(per_s: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, in seconds from the beginning: the times between them are exponential, independent of any answer."""
    chance, at, due = random.Random(seed), 0.0, []
    while (at := at + chance.expovariate(per_s)) < seconds:
        due.append(at)
    return due


def seen(ended: Sequence[tuple[float, float, float | None]], warm_s: float) -> dict[str, Any]:
    """Quantiles of requests by (due, left, answered or None: lost), of those that were due after the warm-up."""
    counted = [each for each in ended if each[0] >= warm_s]
    took = sorted(1000 * (answered - due) for due, _, answered in counted if answered is not None)
    late = sorted(1000 * (left - due) for due, left, _ in counted)
    found: dict[str, Any] = {"asked": len(counted), "answered": len(took), "lost": len(counted) - len(took)}
    if late:
        found["late_ms"] = quantile(late, 0.99)
    if took:
        found |= {f"p{share}_ms": quantile(took, share / 100) for share in (50, 99)} | {"most_ms": took[-1]}
    return found


async def load(ask: Ask, options: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """Send what is due when it is due. Whoever is slow gets no fewer requests for it."""
    warm_s = options["warm_s"]
    due = arrivals(options["per_s"], warm_s + options["seconds"], options["seed"])
    chance = random.Random(1)
    prompts = [text(f"{options['seed']}.{number}", chance) for number in range(len(due))]
    ended: list[tuple[float, float, float | None]] = []
    under_way: set[asyncio.Task[None]] = set()

    async def one(at: float, prompt: str) -> None:
        left = time.perf_counter() - began
        try:
            await ask(prompt)
        except Exception:
            ended.append((at, left, None))
        else:
            ended.append((at, left, time.perf_counter() - began))

    gc.freeze()  # what has been made so far is no garbage; collecting goes on as in any program
    metered = sum(at >= warm_s - METER_S for at in due)
    meter.warming()
    began = time.perf_counter()
    for number, (at, prompt) in enumerate(zip(due, prompts, strict=True)):
        if number == len(due) - metered:
            meter.begin()
        if (pause := began + at - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(one(at, prompt))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    lost = (await asyncio.wait(under_way, timeout=DRAIN_S))[1] if under_way else set()
    meter.end()
    for task in lost:
        task.cancel()
    found = seen(ended, warm_s)
    counted = sum(at >= warm_s for at in due)
    return meter.result(metered) | found | {"asked": counted, "lost": counted - found["answered"]}


@asynccontextmanager
async def _aiohttp(options: dict[str, Any]) -> AsyncIterator[Ask]:
    async with aiohttp_ask({**options, "in_flight": 0}) as ask:  # as many connections as are needed
        yield lambda prompt: ask({"model": "main", "messages": [{"role": "user", "content": prompt}], "max_tokens": 16})


@asynccontextmanager
async def _raycade(options: dict[str, Any]) -> AsyncIterator[Ask]:
    from runtime import Client

    async with Client(options["config"], "local") as client:
        yield lambda prompt: client.complete(prompt, max_tokens=16)


async def _run(name: str, options: dict[str, Any]) -> dict[str, Any]:
    meter = Meter()
    async with {"aiohttp": _aiohttp, "raycade": _raycade}[name](options) as ask:
        return await load(ask, options, meter)


if __name__ == "__main__":
    import uvloop

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(uvloop.run(_run(sys.argv[1], json.loads(sys.argv[2])))))
