"""The three clients that `benchmarks.overhead` compares, each run as a process of its own.

    python -m benchmarks.overhead_clients NAME OPTIONS_AS_JSON   ->  one JSON object on the last line of stdout

All read the same JSONL, call the same endpoint, and write one line a row. All are measured alike, by `Meter`: the clock
starts when the first `warmup` lines are written and stops when the last one is; CPU is that of the process and of
everything below it, as /proc counts it.

`raycade` is `runtime.batch.job.run_job`, that is `raycade batch` behind its option parser. What happens is observed at
three public names of that module (open_input, OutputWriter, print_summary), which are replaced by ones that also tell
the meter; nothing of the run itself is changed.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import orjson

__all__ = ["Meter", "cpu_by_role"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_RAY_ROLES = {
    "RouterActor": "router",
    "TierActor": "tiers",
    "CoalescerActor": "coalescer",
    "BudgetActor": "budget",
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
    """Notes time and CPU when the first row is read, when warm-up ends, and when the last line is written."""

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._lines = 0
        self._read_at = 0.0
        self._begin: tuple[float, int, dict[str, float]] | None = None
        self._end: tuple[float, int, dict[str, float]] | None = None
        self.made_at = time.perf_counter()

    def first_read(self) -> None:
        if not self._read_at:
            self._read_at = time.perf_counter()

    def wrote(self, lines: int) -> None:
        self._lines += lines
        if self._begin is None and self._lines >= self._warmup:
            self._begin = self._mark()

    def finished(self) -> None:
        """The last line is written."""
        self._end = self._mark()

    def _mark(self) -> tuple[float, int, dict[str, float]]:
        return time.perf_counter(), self._lines, cpu_by_role(os.getpid())

    def result(self) -> dict[str, Any]:
        """Rates, and CPU per row in microseconds; without the warm-up unless they say `whole`."""
        assert self._end is not None, "finished() was not called"
        assert self._begin is not None, "there were fewer rows than the warm-up has"
        (began, before, cpu_before), (ended, after, cpu_after) = self._begin, self._end
        rows = max(1, after - before)
        cpu = {role: 1e6 * (spent - cpu_before.get(role, 0.0)) / rows for role, spent in cpu_after.items()}
        return {
            "rows": after,
            "measured_rows": after - before,
            "seconds": ended - began,
            "rows_per_s": rows / max(ended - began, 1e-9),
            "whole_seconds": ended - self._read_at,
            "whole_rows_per_s": after / max(ended - self._read_at, 1e-9),
            "cpu_us_per_row": sum(cpu.values()),
            "cpu_us_per_row_by_role": {role: round(us, 1) for role, us in sorted(cpu.items()) if us > 0},
            "start_s": self._read_at - self.made_at,
        }


# -- the two plain loops -------------------------------------------------------------------------------------------


def _read_rows(path: str, meter: Meter) -> Iterator[dict[str, Any]]:
    meter.first_read()
    with open(path, "rb") as file:
        for line in file:
            yield orjson.loads(line)


async def _pool(
    rows: Iterator[dict[str, Any]], ask: Callable[[dict[str, Any]], Any], workers: int, out: BinaryIO, meter: Meter
) -> None:
    """`workers` coroutines that take the next row, ask, and write its line (buffered; flushed at the end)."""

    async def work() -> None:
        for row in rows:
            body = await ask(row)
            out.write(
                orjson.dumps({"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}}) + b"\n"
            )
            meter.wrote(1)

    await asyncio.gather(*(work() for _ in range(workers)))
    out.flush()


async def _aiohttp(options: dict[str, Any], meter: Meter) -> None:
    """What a good engineer writes in an afternoon: one session, a pool of workers, orjson. No guards."""
    import aiohttp

    workers = options["in_flight"]
    address = f"{options['url']}/chat/completions"
    headers = {"Authorization": "Bearer none", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=workers)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=60), headers=headers
    ) as session:

        async def ask(row: dict[str, Any]) -> Any:
            async with session.post(address, data=orjson.dumps(row["body"])) as response:
                response.raise_for_status()
                return orjson.loads(await response.read())

        with open(options["output"], "wb") as out:
            await _pool(_read_rows(options["input"], meter), ask, workers, out, meter)
            meter.finished()


async def _openai(options: dict[str, Any], meter: Meter) -> None:
    """The official client with its documented aiohttp transport, same shape of loop."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    async with AsyncOpenAI(
        base_url=options["url"], api_key="none", max_retries=0, timeout=60, http_client=DefaultAioHttpClient()
    ) as client:

        async def ask(row: dict[str, Any]) -> Any:
            return (await client.chat.completions.create(**row["body"])).model_dump()

        with open(options["output"], "wb") as out:
            await _pool(_read_rows(options["input"], meter), ask, options["in_flight"], out, meter)
            meter.finished()


def _loop(make: Callable[[dict[str, Any], Meter], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def run(options: dict[str, Any]) -> dict[str, Any]:
        meter = Meter(options["warmup"])
        if options["uvloop"]:
            import uvloop

            uvloop.run(make(options, meter))
        else:
            asyncio.run(make(options, meter))
        return meter.result()

    return run


# -- raycade -------------------------------------------------------------------------------------------------------


def _raycade(options: dict[str, Any]) -> dict[str, Any]:
    """`raycade batch`, observed. `options` also has `config`, `window` and `rows`."""
    from runtime.batch import job
    from runtime.batch.reader import InputSet, RawRow
    from runtime.batch.summary import summary_dict
    from runtime.batch.writer import OutputWriter, Written

    meter = Meter(options["warmup"])
    told: dict[str, Any] = {}
    plain_open_input = job.open_input

    def open_input(*args: Any, **kwargs: Any) -> InputSet:
        inputs = plain_open_input(*args, **kwargs)
        plain_chunks = inputs.chunks

        def chunks(*args: Any, **kwargs: Any) -> Iterator[list[RawRow]]:
            meter.first_read()
            return plain_chunks(*args, **kwargs)

        inputs.chunks = chunks  # type: ignore[method-assign]
        return inputs

    class Writer(OutputWriter):
        lines = 0

        def flush(self) -> list[Written]:
            written = super().flush()
            if written:
                meter.wrote(len(written))
                self.lines += len(written)
                if self.lines == options["rows"]:
                    meter.finished()  # here, while the actors still live and their CPU can be read
            return written

    def print_summary(*args: Any, **kwargs: Any) -> None:
        told.update(summary_dict(*args[:7]))

    job.open_input, job.OutputWriter, job.print_summary = open_input, Writer, print_summary  # type: ignore[misc]
    code = job.run_job(
        job.BatchOptions(
            options["input"],
            options["output"],
            config=options["config"],
            window=options["window"],
            fresh=True,
            address="local",
            progress="none",
        )
    )
    total_s = time.perf_counter() - meter.made_at
    if code or told["rows"]["succeeded"] != options["rows"]:
        raise SystemExit(f"raycade batch: exit code {code}, {told.get('rows')}, {told.get('ending')}")
    result = meter.result()
    return result | {"end_s": total_s - result["start_s"] - result["whole_seconds"], "summary": told}


CLIENTS = {"aiohttp": _loop(_aiohttp), "openai": _loop(_openai), "raycade": _raycade}

if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]](json.loads(sys.argv[2]))))
