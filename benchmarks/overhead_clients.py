"""The three clients that `benchmarks.overhead` compares, each run as a process of its own.

    python -m benchmarks.overhead_clients NAME OPTIONS_AS_JSON   ->  one JSON object on the last line of stdout

All read the same JSONL, call the same endpoint, and write one line a row. All are measured alike, by `Meter`: the first
`warmup` rows go through to their last line, then the clock runs from the next row's reading to the last line of all.
Nothing is in flight at either end, so no work is left out of the count. CPU is that of the process and of everything
below it, as /proc counts it.

`raycade` is `runtime.batch.job.run_job`, that is `raycade batch` behind its option parser. What happens is observed at
three names that this module imports (open_input, OutputWriter, print_summary), which are replaced by ones that also tell the
meter; nothing of the run itself is changed.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from unittest.mock import patch

import orjson

__all__ = ["Meter", "cpu_by_role"]

WARMUP_TIMEOUT_S = 120.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_RAY_ROLES = {
    "RouterActor": "router",
    "TierActor": "tiers",
    "CoalescerActor": "coalescer",
    "BudgetActor": "budget",
    "ObserverActor": "observer",
    "raylet": "raylet",
    "gcs_server": "gcs",
}


# -- measuring -----------------------------------------------------------------------------------------------------


def cpu_by_role(root: int) -> dict[str, float]:
    """CPU seconds so far of a process ("driver") and of all processes below it, by what they do."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry)] = int(fields[1])
            # utime, stime, and the two of children that ended and were waited for
            spent[int(entry)] = sum(map(int, fields[11:15])) / _TICKS_PER_S
    roles: dict[str, float] = {}
    for pid, seconds in spent.items():
        above = pid
        while above != root and above in parents:
            above = parents[above]
        if above == root:
            role = "driver" if pid == root else _role(pid)
            roles[role] = roles.get(role, 0.0) + seconds
    return roles


def _role(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace")[:300]
    except OSError:
        return "other"
    return next((role for word, role in _RAY_ROLES.items() if word in command), "other")


class Meter:
    """Notes time and CPU when the first row after the warm-up is about to be read, and when the last line is written."""

    def __init__(self) -> None:
        self._made_at = time.perf_counter()
        self._warming_at = 0.0
        self._begin: tuple[float, dict[str, float]] | None = None
        self._end: tuple[float, dict[str, float]] | None = None

    def warming(self) -> None:
        """The first row of all is about to be read."""
        self._warming_at = time.perf_counter()

    def begin(self) -> None:
        """The warm-up's lines are written, nothing is in flight, and the first row that counts is about to be read."""
        self._begin = time.perf_counter(), cpu_by_role(os.getpid())

    def end(self) -> None:
        """The last line is written."""
        self._end = time.perf_counter(), cpu_by_role(os.getpid())

    def result(self, rows: int) -> dict[str, Any]:
        """Rate, and CPU per row in microseconds. `rows`: how many there were between begin() and end()."""
        assert self._begin is not None, "begin() was not called"
        assert self._end is not None, "end() was not called"
        (began, cpu_before), (ended, cpu_after) = self._begin, self._end
        cpu = {role: 1e6 * (spent - cpu_before.get(role, 0.0)) / rows for role, spent in cpu_after.items()}
        return {
            "rows": rows,
            "seconds": ended - began,
            "rows_per_s": rows / (ended - began),
            "cpu_us_per_row": sum(cpu.values()),
            "cpu_us_per_row_by_role": {role: round(us, 1) for role, us in sorted(cpu.items())},
            "start_s": self._warming_at - self._made_at,
            "end_s": time.perf_counter() - ended,
        }


# -- the two plain loops -------------------------------------------------------------------------------------------


def _read_rows(path: str) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for line in file:
            yield orjson.loads(line)


async def _measured(options: dict[str, Any], ask: Callable[[dict[str, Any]], Any], meter: Meter) -> None:
    """The loop itself: a pool of coroutines that take the next row, ask, and write its line (buffered)."""

    async def work(rows: Iterator[dict[str, Any]]) -> None:
        for row in rows:
            body = await ask(row)
            response = {"status_code": 200, "body": body}
            out.write(orjson.dumps({"custom_id": row["custom_id"], "response": response}) + b"\n")

    async def pool(rows: Iterator[dict[str, Any]]) -> None:
        await asyncio.gather(*(work(rows) for _ in range(options["in_flight"])))
        out.flush()

    with open(options["output"], "wb") as out:  # noqa: ASYNC230 - as everybody does it
        rows = _read_rows(options["input"])
        meter.warming()
        await pool(islice(rows, options["warmup"]))
        meter.begin()
        await pool(rows)
        meter.end()


async def _aiohttp(options: dict[str, Any], meter: Meter) -> None:
    """What a good engineer writes in an afternoon: one session, a pool of workers, orjson. No guards."""
    import aiohttp

    address = f"{options['url']}/chat/completions"
    headers = {"Authorization": "Bearer none", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=options["in_flight"])
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=60), headers=headers
    ) as session:

        async def ask(row: dict[str, Any]) -> Any:
            async with session.post(address, data=orjson.dumps(row["body"])) as response:
                response.raise_for_status()
                return orjson.loads(await response.read())

        await _measured(options, ask, meter)


async def _openai(options: dict[str, Any], meter: Meter) -> None:
    """The official client with its documented aiohttp transport, same shape of loop."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    async with AsyncOpenAI(
        base_url=options["url"], api_key="none", max_retries=0, timeout=60, http_client=DefaultAioHttpClient()
    ) as client:

        async def ask(row: dict[str, Any]) -> Any:
            return (await client.chat.completions.create(**row["body"])).model_dump()

        await _measured(options, ask, meter)


def _loop(make: Callable[[dict[str, Any], Meter], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def run(options: dict[str, Any]) -> dict[str, Any]:
        meter = Meter()
        if options["uvloop"]:
            import uvloop

            uvloop.run(make(options, meter))
        else:
            asyncio.run(make(options, meter))
        return meter.result(options["rows"] - options["warmup"])

    return run


# -- raycade -------------------------------------------------------------------------------------------------------


def _raycade(options: dict[str, Any]) -> dict[str, Any]:
    """`raycade batch`, observed. `options` also has `config`, `window` and `rows`."""
    from actors.errors import InputError
    from runtime.batch import job, reader
    from runtime.batch.reader import InputSet, RawRow
    from runtime.batch.summary import summary_dict
    from runtime.batch.writer import OutputWriter, Written

    meter = Meter()
    told: dict[str, Any] = {}
    warm = threading.Event()

    def open_input(*args: Any, **kwargs: Any) -> InputSet:
        inputs = reader.open_input(*args, **kwargs)
        plain_chunks = inputs.chunks

        def chunks(*args: Any, **kwargs: Any) -> Iterator[list[RawRow]]:
            meter.warming()
            for chunk in plain_chunks(*args, **kwargs):
                early = [row for row in chunk if row.number < options["warmup"]]
                if early:
                    yield early
                if len(early) < len(chunk):
                    if not warm.is_set():
                        if not warm.wait(WARMUP_TIMEOUT_S):  # chunks are read in a thread: the run itself goes on
                            raise InputError("warmup", "the warm-up did not end")
                        meter.begin()
                    yield chunk[len(early) :]

        inputs.chunks = chunks  # type: ignore[method-assign]
        return inputs

    class Writer(OutputWriter):
        lines = 0

        def flush(self) -> list[Written]:
            written = super().flush()
            self.lines += len(written)
            if self.lines == options["warmup"]:
                warm.set()
            if written and self.lines == options["rows"]:
                meter.end()  # here, while the actors still live and their CPU can be read
            return written

    def print_summary(*args: Any, **kwargs: Any) -> None:
        told.update(summary_dict(*args[:7]))

    watched = patch.multiple(job, open_input=open_input, OutputWriter=Writer, print_summary=print_summary)
    asked = job.BatchOptions(
        options["input"],
        options["output"],
        config=options["config"],
        window=options["window"],
        fresh=True,
        address="local",
        progress="none",
    )
    with watched:
        code = job.run_job(asked)
    if code or told["rows"]["succeeded"] != options["rows"]:
        raise SystemExit(f"raycade batch: exit code {code}, {told.get('rows')}, {told.get('ending')}")
    return meter.result(options["rows"] - options["warmup"]) | {"summary": told}


CLIENTS = {"aiohttp": _loop(_aiohttp), "openai": _loop(_openai), "raycade": _raycade}

if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]](json.loads(sys.argv[2]))))
