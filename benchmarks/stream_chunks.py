"""What a chunk of a stream costs a reader: our wire, events and rules against openai's AsyncOpenAI, on one mock endpoint.

    python -m benchmarks.stream_chunks [--streams 200] [--tokens 100] [--per-s 20] [--rounds 3]

Each round runs every reader once, in turn, in a process of its own on uvloop, against the same paced streams: as many at once
as `--streams`, one token an event. CPU is the reader's process alone, from the moment when all streams have begun to their
last chunk, so that connecting and the package's start do not count.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import uvloop

from runtime.mock.process import MockProcess

READERS = ("wire", "wire, bytes only", "sdk", "openai", "openai, aiohttp")
ASKED: dict[str, Any] = {
    "model": "gpt-4o-2024-08-06",
    "stream": True,
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "stream_options": {"include_usage": True},
}


def _ours(name: str, url: str) -> Callable[[], AsyncIterator[int]]:
    from actors.tier.sdk import SdkTransport
    from actors.tier.stream_rules import StreamReader
    from actors.tier.streaming import follow
    from actors.tier.transport import Endpoint, Secret, Transport
    from actors.tier.wire import WireTransport

    endpoint = Endpoint(url, Secret("any"))
    transport: Transport = SdkTransport(endpoint) if name == "sdk" else WireTransport(endpoint)
    body = orjson.dumps(ASKED)

    async def read() -> AsyncIterator[int]:
        streamed = await transport.stream("/chat/completions", body, 60, 60)
        if name == "wire, bytes only":
            async for piece in streamed:
                yield piece.count(b"\n\n")
            return
        reader = StreamReader("/chat/completions", usage_for_caller=False)
        async for told in follow(streamed, reader):
            if isinstance(told, list):
                yield len(told)

    return read


def _openai(name: str, url: str) -> Callable[[], AsyncIterator[int]]:
    import openai

    http_client = openai.DefaultAioHttpClient() if name.endswith("aiohttp") else None
    client = openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0, http_client=http_client)

    async def read() -> AsyncIterator[int]:
        stream = await client.chat.completions.create(**ASKED)
        async for _ in stream:
            yield 1

    return read


async def _run(name: str, url: str, streams: int) -> dict[str, float]:
    read = (_openai if name.startswith("openai") else _ours)(name, url)
    begun, chunks, counting = 0, 0, False
    started = cpu = 0.0

    async def one() -> None:
        nonlocal begun, chunks, counting, started, cpu
        first = True
        async for count in read():
            if first:
                first, begun = False, begun + 1
                if begun == streams:
                    counting, started, cpu = True, time.monotonic(), time.process_time()
            chunks += count * counting

    work: list[Awaitable[None]] = [one() for _ in range(streams)]
    await asyncio.gather(*work)
    wall = time.monotonic() - started
    return {"chunks": chunks, "cpu_us": (time.process_time() - cpu) / chunks * 1e6, "per_s": chunks / wall}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--per-s", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        name, url = options.read
        print(json.dumps(uvloop.run(_run(name, url, options.streams))))
        return 0
    scenario = {"tiers": {"default": {"tokens": options.tokens, "tokens_per_s": options.per_s}}}
    results: dict[str, list[dict[str, float]]] = {}
    with MockProcess(scenario) as mock:
        for _ in range(options.rounds):
            for name in READERS:
                command = [sys.executable, "-m", "benchmarks.stream_chunks", "--read", name, mock.url]
                done = subprocess.run(
                    [*command, "--streams", str(options.streams)], check=True, capture_output=True, text=True
                )
                results.setdefault(name, []).append(json.loads(done.stdout))
    print(
        f"{options.streams} streams of {options.tokens} tokens at {options.per_s:g}/s; medians of {options.rounds} rounds"
    )
    ours = statistics.median(run["cpu_us"] for run in results.get("wire", []) or [{"cpu_us": 1.0}])
    for name, runs in results.items():
        cpu = statistics.median(run["cpu_us"] for run in runs)
        rate = statistics.median(run["per_s"] for run in runs)
        print(f"{name:18} {cpu:8.1f} us of CPU a chunk   {rate:8,.0f} chunks/s   {cpu / ours:5.1f} times the wire")
    return 0


if __name__ == "__main__":
    sys.exit(main())
