"""What `benchmarks.overhead` and `benchmarks.page` compare, each run as a process of its own, in its own environment.

    python -m benchmarks.overhead_clients NAME OPTIONS_AS_JSON   ->  one JSON object on the last line of stdout

All read the same JSONL, call the same endpoint, and write one line a row. All are measured alike, by `Meter`: the first
`warmup` rows go through to their last line, then the clock runs from the next row's reading to the last line of all.
Nothing is in flight at either end, so no work is left out of the count. CPU is that of the process and of everything
below it, as /proc counts it. `raycade` is in overhead_raycade.py; the others are here, and import what they need only
when they run: no environment has all of it.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from benchmarks.overhead_meter import Meter

__all__ = ["CLIENTS", "Client", "aiohttp_ask"]

ROOT = Path(__file__).resolve().parents[1]
LITELLM = ROOT / "build" / "peers" / "litellm" / "bin" / "python"
LANGCHAIN = ROOT / "build" / "peers" / "sdk-langchain" / "bin" / "python"
CURATOR = ROOT / "build" / "peers" / "curator" / "bin" / "python"
TIMEOUT_S = 60.0

Ask = Callable[[dict[str, Any]], Awaitable[Any]]
"""From a row's body to the answer's."""


def _read_rows(path: str) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for line in file:
            yield orjson.loads(line)


def _line(row: dict[str, Any], body: Any) -> bytes:
    return orjson.dumps({"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}}) + b"\n"


# -- loops: a pool of coroutines that take the next row, ask, and write its line -----------------------------------


async def _pool(options: dict[str, Any], meter: Meter, opened: AbstractAsyncContextManager[Ask]) -> dict[str, Any]:
    lost = 0

    async def work(rows: Iterator[dict[str, Any]]) -> None:
        nonlocal lost
        for row in rows:
            began = time.perf_counter()
            try:
                body = await ask(row["body"])
            except Exception:
                if not options.get("may_fail"):
                    raise
                lost += 1
            else:
                out.write(_line(row, body))
            meter.row(began)

    async def pool(rows: Iterator[dict[str, Any]]) -> None:
        await asyncio.gather(*(work(rows) for _ in range(options["in_flight"])))
        out.flush()

    with open(options["output"], "wb") as out:  # noqa: ASYNC230 - as everybody does it
        async with opened as ask:
            rows = _read_rows(options["input"])
            meter.warming()
            await pool(islice(rows, options["warmup"]))
            meter.begin()
            await pool(rows)
            meter.end()
    return {"answered": options["rows"] - lost}


@asynccontextmanager
async def aiohttp_ask(options: dict[str, Any]) -> AsyncIterator[Ask]:
    """What a good engineer writes in an afternoon: one session, a pool of workers, orjson. No guards."""
    import aiohttp

    address = f"{options['url']}/chat/completions"
    headers = {"Authorization": "Bearer none", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=options["in_flight"])
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:

        async def ask(body: dict[str, Any]) -> Any:
            async with session.post(address, data=orjson.dumps(body)) as response:
                response.raise_for_status()
                return orjson.loads(await response.read())

        yield ask


@asynccontextmanager
async def _openai(options: dict[str, Any], transport: str) -> AsyncIterator[Ask]:
    """The official client, same shape of loop: with its documented aiohttp transport, or with its default one."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    http = DefaultAioHttpClient() if transport == "aiohttp" else None
    async with AsyncOpenAI(
        base_url=options["url"], api_key="none", max_retries=0, timeout=TIMEOUT_S, http_client=http
    ) as client:

        async def ask(body: dict[str, Any]) -> Any:
            return (await client.chat.completions.create(**body)).model_dump()

        yield ask


@asynccontextmanager
async def _litellm(options: dict[str, Any]) -> AsyncIterator[Ask]:
    """LiteLLM's Router with one deployment, and its defaults but for retries, which nothing here needs."""
    from litellm import Router

    model = {"model": "openai/main", "api_base": options["url"], "api_key": "none", "timeout": TIMEOUT_S}
    router = Router(model_list=[{"model_name": "main", "litellm_params": model}], num_retries=0)

    async def ask(body: dict[str, Any]) -> Any:
        return (await router.acompletion(**body)).model_dump()

    yield ask


# -- those that have a shape of their own --------------------------------------------------------------------------


async def _cookbook(options: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """The approach of OpenAI's cookbook script api_request_parallel_processor, written anew.

    One coroutine takes requests one at a time out of two token buckets, requests and tokens a minute, makes a task of each,
    and sleeps a millisecond; a request that fails is queued to be tried again; a 429 pauses all for 15 s; each result is
    appended to the file by opening it. One aiohttp session with its defaults, json, no bound on what is in flight.
    """
    import aiohttp

    address, output = f"{options['url']}/chat/completions", options["output"]
    per_minute = {"requests": float(options.get("requests_per_minute", 1e9)), "tokens": 1e12}
    again: asyncio.Queue[tuple[dict[str, Any], int]] = asyncio.Queue()
    limited_at, lost, under_way = 0.0, 0, 0
    tasks: set[asyncio.Task[None]] = set()

    async def call(session: aiohttp.ClientSession, row: dict[str, Any], tries: int, began: float) -> None:
        nonlocal limited_at, lost, under_way
        try:
            async with session.post(address, headers={"Authorization": "Bearer none"}, json=row["body"]) as response:
                body = await response.json()
            if response.status == 429:
                limited_at = time.time()
            if response.status >= 400:
                raise OSError(response.status)
        except (OSError, ValueError, TimeoutError, aiohttp.ClientError):
            if tries > 1:
                again.put_nowait((row, tries - 1))
                return
            lost += 1
        else:
            with open(output, "a", encoding="utf-8") as file:  # noqa: ASYNC230 - as the script does
                file.write(json.dumps([row, body]) + "\n")
        meter.row(began)
        under_way -= 1

    async def process(session: aiohttp.ClientSession, rows: Iterator[dict[str, Any]]) -> None:
        nonlocal under_way
        capacity, updated = dict(per_minute), time.time()
        following: tuple[dict[str, Any], int] | None = None
        while True:
            if following is None:
                if not again.empty():
                    following = again.get_nowait()
                elif row := next(rows, None):
                    following, under_way = (row, 5), under_way + 1
            now = time.time()
            for what, most in per_minute.items():
                capacity[what] = min(capacity[what] + most * (now - updated) / 60.0, most)
            updated = now
            if following is not None:
                tokens = len(following[0]["body"]["messages"][0]["content"]) // 4 + following[0]["body"]["max_tokens"]
                if capacity["requests"] >= 1 and capacity["tokens"] >= tokens:
                    capacity["requests"] -= 1
                    capacity["tokens"] -= tokens
                    task = asyncio.create_task(call(session, *following, time.perf_counter()))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    following = None
            if not under_way:
                return
            await asyncio.sleep(0.001)
            if (pause := limited_at + 15.0 - time.time()) > 0:
                await asyncio.sleep(pause)

    Path(output).write_bytes(b"")
    async with aiohttp.ClientSession() as session:
        rows = _read_rows(options["input"])
        meter.warming()
        await process(session, islice(rows, options["warmup"]))
        meter.begin()
        await process(session, rows)
        meter.end()
    return {"answered": options["rows"] - lost}


async def _langchain(options: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """LangChain's `abatch`, which takes all rows at once and gives all answers at its end."""
    from langchain_openai import ChatOpenAI

    limits = {"max_retries": 0, "timeout": TIMEOUT_S}
    model = ChatOpenAI(model="main", base_url=options["url"], api_key="none", max_tokens=16, **limits)

    async def answer(rows: list[dict[str, Any]]) -> None:
        asked = [[("user", row["body"]["messages"][0]["content"])] for row in rows]
        answers = await model.abatch(asked, config={"max_concurrency": options["in_flight"]})
        out.writelines(_line(row, said.model_dump()) for row, said in zip(rows, answers, strict=True))
        out.flush()

    with open(options["output"], "wb") as out:  # noqa: ASYNC230 - as everybody does it
        rows = _read_rows(options["input"])
        meter.warming()
        await answer(list(islice(rows, options["warmup"])))
        meter.begin()
        await answer(list(rows))
        meter.end()
    return {"answered": options["rows"]}


def _curator(options: dict[str, Any]) -> dict[str, Any]:
    """Curator's online processor for OpenAI's API: a whole data set in, one out, kept in files of its own between them.

    It is told limits that it never reaches, and as many calls at once as the others; its cache, viewer and telemetry are off.
    """
    import os
    import tempfile
    from importlib.util import find_spec

    meter = Meter()
    package = find_spec("litellm")  # not imported here: it comes with what Curator itself costs
    assert package is not None, "Curator depends on LiteLLM"
    assert package.origin is not None, "LiteLLM is a package in files"
    os.environ |= {
        "TELEMETRY_ENABLED": "false",
        "CURATOR_DISABLE_CACHE": "true",
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        # Curator counts tokens by a table that it would download; the same table lies in LiteLLM.
        "TIKTOKEN_CACHE_DIR": str(Path(package.origin).parent / "litellm_core_utils" / "tokenizers"),
    }
    from bespokelabs import curator

    class Answer(curator.LLM):  # type: ignore[misc]
        def prompt(self, row: dict[str, Any]) -> str:
            return str(row["text"])

        def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
            return {"custom_id": row["custom_id"], "response": response}

    limits = {"max_requests_per_minute": 10**8, "max_tokens_per_minute": 10**12}
    model = Answer(
        model_name="gpt-4",
        backend="openai",
        generation_params={"max_tokens": 16},
        backend_params={
            "base_url": options["url"],
            "api_key": "none",
            "max_concurrent_requests": options["in_flight"],
            "max_retries": 0,
            "request_timeout": int(TIMEOUT_S),
            "invalid_finish_reasons": ["content_filter"],
            **limits,
        },
    )
    with tempfile.TemporaryDirectory(prefix="rcb-curator-") as folder, open(options["output"], "wb") as out:

        def answer(rows: Iterator[dict[str, Any]]) -> int:
            asked = [{"custom_id": row["custom_id"], "text": row["body"]["messages"][0]["content"]} for row in rows]
            answered = model(asked, working_dir=folder).dataset
            out.writelines(_line(row, row["response"]) for row in answered)
            out.flush()
            return len(answered)

        rows = _read_rows(options["input"])
        meter.warming()
        count = answer(islice(rows, options["warmup"]))
        meter.begin()
        count += answer(rows)
        meter.end()
    if count != options["rows"]:
        raise SystemExit(f"Curator answered {count} of {options['rows']} rows")
    return meter.result(options["rows"] - options["warmup"]) | {"answered": count}


# -- what there is -------------------------------------------------------------------------------------------------


def _loop(make: Callable[[dict[str, Any], Meter], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def run(options: dict[str, Any]) -> dict[str, Any]:
        meter = Meter()
        more: dict[str, Any]
        if options["uvloop"]:
            import uvloop

            more = uvloop.run(make(options, meter))
        else:
            more = asyncio.run(make(options, meter))
        return meter.result(options["rows"] - options["warmup"]) | more

    return run


def _raycade(options: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.overhead_raycade import run

    return run(options)


class Client(NamedTuple):
    """One that is compared."""

    run: Callable[[dict[str, Any]], dict[str, Any]]
    label: str
    share: int = 1
    """It gets the rows divided by this, or the slow ones would take most of the time; its rate is computed."""
    python: Path = Path(sys.executable)
    uvloop: tuple[bool, ...] = (False, True)
    """What is tried. To the slow ones, whose own Python is what takes time, it makes no difference; LangChain's
    environment has no uvloop, and the script uses asyncio's loop."""
    in_flight: tuple[int, ...] = (100, 200, 500)
    """What is tried at 0 ms, where more only costs a loop. Those that take milliseconds a row are quickest with few."""

    def is_there(self) -> bool:
        """Whether its environment has been set up, to the end."""
        return self.python == Path(sys.executable) or (self.python.parents[1] / ".installed").exists()


FEW = (20, 100)
CLIENTS = {
    "aiohttp": Client(_loop(lambda options, meter: _pool(options, meter, aiohttp_ask(options))), "plain aiohttp loop"),
    "openai": Client(
        _loop(lambda options, meter: _pool(options, meter, _openai(options, "aiohttp"))),
        "AsyncOpenAI loop, aiohttp transport",
        share=8,
    ),
    "openai-default": Client(
        _loop(lambda options, meter: _pool(options, meter, _openai(options, ""))),
        "AsyncOpenAI loop, default transport",
        share=16,
        uvloop=(True,),
        in_flight=FEW,
    ),
    "cookbook": Client(
        _loop(_cookbook), "approach of OpenAI's cookbook script", share=8, uvloop=(False,), in_flight=(0,)
    ),
    "litellm": Client(
        _loop(lambda options, meter: _pool(options, meter, _litellm(options))),
        "LiteLLM Router",
        share=16,
        python=LITELLM,
        uvloop=(True,),
        in_flight=FEW,
    ),
    "langchain": Client(
        _loop(_langchain), "LangChain abatch", share=16, python=LANGCHAIN, uvloop=(False,), in_flight=FEW
    ),
    "curator": Client(
        _curator, "Curator (bespokelabs-curator)", share=20, python=CURATOR, uvloop=(False,), in_flight=(100,)
    ),
    "raycade": Client(_raycade, "raycade, every guard on"),
}

if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # 2,000 connections are more than many shells allow
    print(json.dumps(CLIENTS[sys.argv[1]].run(json.loads(sys.argv[2]))))
