"""One run of the overspend scenario against LiteLLM. Runs in LiteLLM's own environment, which has nothing of ours.

    build/peers/litellm/bin/python benchmarks/overspend_litellm.py '{"kind": "router", ...}'

overspend.py starts it once a run. `launch` starts what the run needs (Redis, the proxy, the processes that offer the
rows) and prints one line of JSON. `offer` is one of those processes: it offers every row once with so many in flight,
as an application under load does, and then the refused ones again, a few at a time, as a patient one would. Everything
is started in this process's own session, and all of it ends when our standard input closes.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

START_S = 180.0
ANSWER_S = 200.0
"""A client's patience for one answer. It must not run out on a slow machine: a call given up is another experiment."""
ENOUGH_REFUSALS = 300
"""So many since the last answer, with nothing left under way from before it: the rest need not be offered."""
PATIENT_IN_FLIGHT = 20
PATIENT_REFUSALS = 60
"""So many refusals in a row, and even a patient client believes them."""
PATIENT_S = 20.0

Settings = dict[str, Any]


# -- offering rows -------------------------------------------------------------------------------------------------


class Answered(NamedTuple):
    cost_usd_micros: int


class Refused(NamedTuple):
    """The budget said no."""


class Failed(NamedTuple):
    why: str


Ask = Callable[[dict[str, Any]], Awaitable[Answered | Refused | Failed]]


class Offer:
    """What became of the rows. Times are of the wall clock, so that several processes can be compared."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.sent: list[tuple[float, int]] = []
        """When each answered row of the first offer was sent, and what it cost."""
        self.refused_at = float("inf")
        self.refused: list[dict[str, Any]] = []
        self.failed = 0
        self.failure = ""
        self.cut_off = False
        """The time was up before the answer was clear."""
        self.later_usd_micros = 0

    async def once(self, rows: list[dict[str, Any]], in_flight: int, until: float) -> None:
        """Every row once, or until there is nothing but refusals."""
        left = iter(enumerate(rows))
        under_way: dict[int, None] = {}
        answered_at = since = 0

        async def work() -> None:
            nonlocal answered_at, since
            for number, row in left:
                exhausted = since >= ENOUGH_REFUSALS and next(iter(under_way), number) > answered_at
                if exhausted or time.time() > until:
                    self.cut_off = not exhausted
                    return
                at = time.time()
                under_way[number] = None
                answer = await self._ask(row)
                del under_way[number]
                match answer:
                    case Answered(cost):
                        self.sent.append((at, cost))
                        answered_at, since = max(under_way, default=number), 0
                    case Refused():
                        self.refused_at = min(self.refused_at, time.time())
                        self.refused.append(row)
                        since += 1
                    case Failed(why):
                        self.failed, self.failure = self.failed + 1, self.failure or why

        await asyncio.gather(*(work() for _ in range(in_flight)))

    async def again(self, until: float) -> None:
        """The refused rows once more, a few at a time, until the answer is clearly no."""
        left = iter(self.refused)
        in_a_row = 0

        async def work() -> None:
            nonlocal in_a_row
            for row in left:
                if in_a_row >= PATIENT_REFUSALS or time.time() > until:
                    return
                answer = await self._ask(row)
                if isinstance(answer, Answered):
                    self.later_usd_micros += answer.cost_usd_micros
                in_a_row = in_a_row + 1 if isinstance(answer, Refused) else 0

        await asyncio.sleep(2.0)  # whatever is counted late has been counted by then
        await asyncio.gather(*(work() for _ in range(PATIENT_IN_FLIGHT)))


def priced(usage: Any, price: dict[str, int]) -> Answered:
    """`price`: micro-dollars per token."""
    return Answered(usage["prompt_tokens"] * price["prompt"] + usage["completion_tokens"] * price["completion"])


def deployment(settings: Settings) -> dict[str, Any]:
    """The endpoint as LiteLLM wants it described. Its model is not on LiteLLM's price list, so prices stand here."""
    price = settings["price"]
    return {
        "model_name": settings["model"],
        "litellm_params": {
            "model": f"openai/{settings['model']}",
            "api_base": settings["url"],
            "api_key": "none",
            "input_cost_per_token": price["prompt"] / 1e6,
            "output_cost_per_token": price["completion"] / 1e6,
        },
    }


def provider_budget(settings: Settings) -> dict[str, Any]:
    return {"openai": {"budget_limit": settings["budget_usd_micros"] / 1e6, "time_period": "1d"}}


@contextlib.asynccontextmanager
async def through_router(settings: Settings) -> Any:
    """LiteLLM's Router with a provider budget; with Redis where several instances share one budget."""
    import litellm
    from litellm import Router

    litellm.suppress_debug_info = True
    redis = {"redis_host": "127.0.0.1", "redis_port": settings["redis_port"]} if settings["redis_port"] else {}
    router = Router(model_list=[deployment(settings)], provider_budget_config=provider_budget(settings), **redis)

    async def ask(body: dict[str, Any]) -> Answered | Refused | Failed:
        try:
            reply = await router.acompletion(**body)
        except Exception as error:  # which class it is differs; the text says it
            return Refused() if "budget" in str(error).lower() else Failed(f"{type(error).__name__}: {error}"[:300])
        return priced(reply.usage.model_dump(), settings["price"])

    yield ask


@contextlib.asynccontextmanager
async def through_proxy(settings: Settings) -> Any:
    """Plain HTTP, no retries, as many connections as there are requests in flight."""
    import aiohttp

    address = f"http://127.0.0.1:{settings['proxy_port']}/v1/chat/completions"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=ANSWER_S),
        headers={"Authorization": f"Bearer {settings['key']}"},
    ) as session:

        async def ask(body: dict[str, Any]) -> Answered | Refused | Failed:
            try:
                async with session.post(address, json=body) as response:
                    text = await response.text()
            except (aiohttp.ClientError, TimeoutError) as error:
                return Failed(f"{type(error).__name__}: {error}"[:300])
            if response.status == 200:
                return priced(json.loads(text)["usage"], settings["price"])
            return Refused() if "budget" in text.lower() else Failed(f"{response.status} {text}"[:300])

        yield ask


async def offer(settings: Settings) -> dict[str, Any]:
    """One process that offers its share of the rows."""
    with open(settings["input"], encoding="utf-8") as file:  # noqa: ASYNC230 - before anything is measured
        rows = [json.loads(line)["body"] | {"model": settings["model"]} for line in file]
    rows = rows[settings["share"] :: settings["shares"]]
    way = through_router if settings["kind"] == "router" else through_proxy
    async with way(settings) as ask:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # all begin together
        result = Offer(ask)
        await result.once(rows, settings["in_flight"] // settings["shares"], time.time() + settings["deadline_s"])
        if settings["patient"]:
            await result.again(time.time() + PATIENT_S)
    return {
        "sent": result.sent,
        "refused_at": result.refused_at if result.refused else None,
        "refused": len(result.refused),
        "failed": result.failed,
        "failure": result.failure,
        "cut_off": result.cut_off,
        "later_usd_micros": result.later_usd_micros,
    }


# -- what a run needs ----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], folder: Path, log: str, ready: Callable[[], bool], **more: str) -> Iterator[None]:
    """A process that is up when `ready` says so, and is ended afterwards."""
    with open(folder / log, "wb") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file, env={**os.environ, **more})
    try:
        deadline = time.monotonic() + START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start: {(folder / log).read_text(errors='replace')[-1500:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def alive(port: int) -> bool:
    with contextlib.suppress(OSError):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/health/liveliness", timeout=2) as response:
            return bool(response.status == 200)
    return False


def proxy_config(settings: Settings) -> dict[str, Any]:
    """Default settings, and the budget where this kind of run has it."""
    general: dict[str, Any] = {}
    config: dict[str, Any] = {"model_list": [deployment(settings)], "general_settings": general}
    if settings["redis_port"]:
        redis = {"host": "127.0.0.1", "port": settings["redis_port"]}
        general["coordination_redis"] = redis
        config["router_settings"] = {f"redis_{name}": value for name, value in redis.items()}
    if settings["kind"] == "proxy-provider":
        config.setdefault("router_settings", {})["provider_budget_config"] = provider_budget(settings)
    else:
        # Virtual keys live in PostgreSQL behind Prisma, whose engine is no Python package. The key comes from LiteLLM's
        # hook for custom keys instead; counting, reserving and settling are LiteLLM's own, as with a database.
        general |= {"custom_auth": "litellm_key.user_api_key_auth", "custom_auth_run_common_checks": True}
        config["litellm_settings"] = {"callbacks": ["litellm_key.charge"]}
        if settings["strict"]:
            general["fail_closed_budget_enforcement"] = True
    return config


@contextlib.contextmanager
def proxy(settings: Settings, folder: Path) -> Iterator[None]:
    settings["proxy_port"] = port = free_port()
    settings["key"] = master_key = f"sk-{secrets.token_hex(32)}"
    (folder / "config.yaml").write_text(json.dumps(proxy_config(settings)), encoding="utf-8")  # JSON is YAML
    shutil.copy(Path(__file__).parent / "peers" / "litellm_key.py", folder)
    command = [str(Path(sys.executable).parent / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", str(settings["processes"])]
    if settings["processes"] > 1:
        # Else a worker that is busy for five seconds is taken for dead and killed, and its calls are lost.
        command += ["--timeout_worker_healthcheck", "120"]
    budget = repr(settings["budget_usd_micros"] / 1e6)
    more = {"LITELLM_MASTER_KEY": master_key, "OVERSPEND_BUDGET_USD": budget}
    with running(command, folder, "proxy.log", lambda: alive(port), **more):
        if settings["processes"] > 1:
            time.sleep(8)  # the first worker answers before the others are up
        yield


@contextlib.contextmanager
def redis(settings: Settings, folder: Path) -> Iterator[None]:
    settings["redis_port"] = port = free_port()
    command = [settings["redis"], "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running([*command, "--dir", str(folder)], folder, "redis.log", lambda: accepts(port)):
        yield


def launch(settings: Settings) -> dict[str, Any]:
    """The whole run."""
    folder = Path(settings["folder"])
    os.environ |= {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    settings["redis_port"] = 0
    shares = settings["processes"] if settings["kind"] == "router" else 1
    with contextlib.ExitStack() as stack:
        if settings["redis"]:
            stack.enter_context(redis(settings, folder))
        if settings["kind"] != "router":
            stack.enter_context(proxy(settings, folder))
        children = []
        for share in range(shares):
            told = json.dumps(settings | {"share": share, "shares": shares})
            errors = stack.enter_context(open(folder / f"offer-{share}.log", "wb"))
            children.append(
                subprocess.Popen(
                    [sys.executable, __file__, "offer", told],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            )
        for child in children:
            assert child.stdout is not None
            while (line := child.stdout.readline().strip()) != "ready":
                if not line and child.poll() is not None:
                    raise SystemExit((folder / "offer-0.log").read_text(errors="replace")[-1500:])
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        results = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    return summed(results)


def summed(results: list[dict[str, Any]]) -> dict[str, Any]:
    refusals = [result["refused_at"] for result in results if result["refused_at"] is not None]
    first = min(refusals, default=float("inf"))
    sent = [one for result in results for one in result["sent"]]
    return {
        "answered": len(sent),
        "refused": sum(result["refused"] for result in results),
        "failed": sum(result["failed"] for result in results),
        "failure": next((result["failure"] for result in results if result["failure"]), ""),
        "cut_off": any(result["cut_off"] for result in results),
        "until_first_refusal_usd_micros": sum(cost for at, cost in sent if at <= first),
        "once_usd_micros": sum(cost for _, cost in sent),
        "later_usd_micros": sum(result["later_usd_micros"] for result in results),
    }


def die_with_the_parent() -> None:
    """Whoever started this holds our standard input; when it closes, everything in this session ends."""

    def watch() -> None:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    if os.getpgid(0) == os.getpid():  # else the group is somebody else's
        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    role, settings_now = sys.argv[1], json.loads(sys.argv[2])
    if role == "offer":
        print(json.dumps(asyncio.run(offer(settings_now))), flush=True)
    else:
        die_with_the_parent()
        from importlib.metadata import version

        print(json.dumps({"litellm": version("litellm"), **launch(settings_now)}), flush=True)
