"""The same rows through three steps of a Ray Data pipeline: ours, ray.data.llm's, and a plain actor with aiohttp.

    python -m benchmarks.ray_data [--rows 4000] [--rounds 3] [--latency 0 0.2] [--json FILE] [--quick]

    raycade   runtime.ray_data.complete, every guard on (budget, coalescing, breakers, metrics), two tier actors
    llm       ray.data.llm's HttpRequestProcessorConfig, as it comes: no budget, breaker or sharing; retries are off
    aiohttp   `map_batches` with an actor that sends all rows of a batch at once, and nothing more

One Ray, one mock endpoint, Parquet in and Parquet out, one worker each, batches of 256 (llm: 64, its own default), four
batches of a worker at a time (Ray Data's own bound). Runs are interleaved: A B C A B C. A run's rate counts from the
first call at the endpoint to the last, so what starts workers and actors is not in it. With a latency llm gets a tenth of
the rows, or it would take most of the time.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.bench import ratio, spread
from runtime.mock.process import MockProcess
from runtime.ray_data import complete

if TYPE_CHECKING:
    import aiohttp

__all__ = ["main"]

BATCH = 256
PROMPT_BYTES = 500
MAX_TOKENS = 16
CONNECTIONS = 1000
LLM_SHARE = 10
POLL_S = 0.05


class Plain:
    """What one writes in ten minutes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import asyncio

        import aiohttp

        session = self._session = self._session or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS)
        )

        async def ask(prompt: str) -> str:
            async with session.post(self._url, json=body(prompt)) as reply:
                return str((await reply.json())["choices"][0]["message"]["content"])

        return {**batch, "answer": await asyncio.gather(*(ask(str(prompt)) for prompt in batch["prompt"]))}


def body(prompt: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": MAX_TOKENS}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Always 0 when everything ran, whatever the numbers are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_data", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, help="rows a run (default 4000)")
    parser.add_argument("--rounds", type=int, help="runs of each (default 3)")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 0.2], help="seconds before every answer")
    parser.add_argument("--json", help="write everything here")
    parser.add_argument("--quick", action="store_true", help="600 rows, one round: to see that it works")
    options = parser.parse_args(arguments)
    rows, rounds = options.rows or (600 if options.quick else 4000), options.rounds or (1 if options.quick else 3)
    if rows < 10 * LLM_SHARE or rounds < 1:
        parser.error(f"expected at least {10 * LLM_SHARE} rows and one round")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    console, found = Console(), {}
    with tempfile.TemporaryDirectory(prefix="rcrd-", ignore_cleanup_errors=True) as folder:
        for number, latency in enumerate(options.latency):
            place = Path(folder) / str(number)
            place.mkdir()
            runs = measured(place, rows, rounds, latency)
            found[latency] = runs
            shown(console, runs, rows, rounds, latency)
        ray.shutdown()
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def measured(folder: Path, rows: int, rounds: int, latency: float) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {"raycade": [], "llm": [], "aiohttp": []}
    with MockProcess({"tiers": {"a": {"latency": latency, "tokens": MAX_TOKENS}}}) as mock:
        config = folder / "raycade.yaml"
        tier = {"name": "a", "model": "m", "base_url": mock.tier_url("a"), "price": {"prompt": 1, "completion": 2}}
        tiers = [{**tier, "replicas": 2}]
        budget = {"usd": {"per_day": 1000}, "tokens": {"per_day": 10**10}}
        config.write_text(yaml.safe_dump({"state_dir": str(folder / "state"), "tiers": tiers, "budget": budget}))
        for round_ in range(-1, rounds):  # the first is to warm up
            for name, of_one in runs.items():
                count = rows // LLM_SHARE if name == "llm" and latency else rows
                count = count if round_ >= 0 else max(count // 10, 50)
                run = one(name, folder / f"{name}{round_}", count, mock, config)
                if round_ >= 0:
                    of_one.append(run)
    return runs


def one(name: str, folder: Path, rows: int, mock: MockProcess, config: Path) -> dict[str, Any]:
    """One pipeline, from Parquet to Parquet."""
    folder.mkdir()
    filler = "the parcel came late and the invoice was charged twice " * 20
    prompts = [f"{folder.name} {number} {filler}"[:PROMPT_BYTES] for number in range(rows)]
    pq.write_table(pa.table({"prompt": prompts}), folder / "in.parquet", row_group_size=BATCH)
    source = ray.data.read_parquet(str(folder / "in.parquet"))
    url = f"{mock.tier_url('a')}/chat/completions"
    strategy = ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=4)
    common: dict[str, Any] = {"compute": strategy, "batch_size": BATCH, "num_cpus": 0.5}
    if name == "raycade":
        fields = {"config": str(config), "max_tokens": MAX_TOKENS}
        out = source.map_batches(complete, fn_constructor_kwargs=fields, batch_format="pyarrow", **common)
    elif name == "aiohttp":
        out = source.map_batches(Plain, fn_constructor_kwargs={"url": url}, **common)
    else:
        from ray.data.llm import HttpRequestProcessorConfig, build_processor

        processor = build_processor(
            HttpRequestProcessorConfig(url=url, concurrency=1),
            preprocess=lambda row: {"payload": body(row["prompt"])},
            postprocess=lambda row: {
                "prompt": row["prompt"],
                "answer": row["http_response"]["choices"][0]["message"]["content"],
            },
        )
        out = processor(source)
    mock.reset()
    began = time.monotonic()
    with clock(mock) as span:
        out.write_parquet(str(folder / "out"))
    whole_s = time.monotonic() - began
    answers = pq.read_table(folder / "out")["answer"]
    assert len(answers) == rows
    assert answers.null_count == 0, "rows failed"
    assert mock.stats()["total"]["requests"] == rows
    seconds = span[1] - span[0]
    return {"rows": rows, "whole_s": whole_s, "calls_s": seconds, "rows_per_s": rows / seconds}


@contextmanager
def clock(mock: MockProcess) -> Iterator[list[float]]:
    """When the first call was seen at the endpoint, and when no more came."""
    span, ended = [0.0, 0.0], threading.Event()

    def look() -> None:
        last = 0
        while not ended.wait(POLL_S):
            done = mock.stats()["total"]["requests"]
            if done > last:
                span[1] = time.monotonic()
                span[0] = span[0] or span[1] - POLL_S
                last = done

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield span
    finally:
        ended.set()
        looking.join()


def shown(console: Console, runs: dict[str, list[dict[str, Any]]], rows: int, rounds: int, latency: float) -> None:
    title = f"{rows:,} rows, {latency * 1000:g} ms, {rounds} rounds"
    table = Table(title=title, title_justify="left")
    for column in ("step", "rows/s", "least to most", "raycade, as a multiple", "whole pipeline, s"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, of_one in runs.items():
        rates, times = spread(run["rows_per_s"] for run in of_one), [run["whole_s"] for run in of_one]
        share = ratio(runs["raycade"], of_one)
        table.add_row(
            name,
            f"{rates['median']:,.0f}",
            f"{rates['least']:,.0f} to {rates['most']:,.0f}",
            f"{share['median']:.2f} ({share['least']:.2f} to {share['most']:.2f})",
            f"{statistics.median(times):.1f} for {of_one[0]['rows']:,} rows",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
