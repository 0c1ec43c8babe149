"""`raycade serve`: the OpenAI-compatible gateway, until it is told to stop.

What can be wrong with configuration, keys or address is found before Ray starts. Without a keys file only this machine may
call, so the address must be loopback.
"""

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from actors.budget.store import open_store
from actors.errors import ConfigError, RaycadeError
from actors.settings import Price
from runtime import log, preflight
from runtime.batch.job import LedgerWatch
from runtime.config import Config, key_values, load_config, resolve_prices
from runtime.events import Event, Level, event_of
from runtime.gateway.keys import read_keys
from runtime.prompts import load_prompts
from runtime.running import Entry, Running

if TYPE_CHECKING:
    from runtime.cluster import Cluster

__all__ = ["obey", "run_gateway", "watch", "with_keys"]

LOOK_EVERY_S = 2.0


def run_gateway(
    config_file: str | None, host: str, port: int, address: str | None, environ: Mapping[str, str] = os.environ
) -> int:
    """Serve until SIGINT or SIGTERM; exit code. Raises ConfigError and ClusterError."""
    joins = preflight.joins(address, environ)
    config = load_config(config_file, environ, check_keys=not joins)
    prices = resolve_prices(config)
    log.configure(environ, key_values(config, environ))
    config = with_prompts(with_keys(config))
    _check_address(host, port, config)
    if not joins:
        open_store(config.ledger_place).close()
    from runtime.gateway import deploy

    deploy.prepare()
    asyncio.run(_serve(config, prices, host, port, address))
    return 0


async def _serve(config: Config, prices: dict[str, Price], host: str, port: int, address: str | None) -> None:
    """One loop for all of it: Ray's processes end with the thread that started them, and that is a thread of the loop's."""
    from runtime.cluster import Cluster
    from runtime.gateway import deploy

    told = asyncio.Event()
    obey(told)
    _say("starting Ray and the actors ...")
    began = time.monotonic()
    stack = contextlib.ExitStack()
    cluster = await Cluster.start(config, prices, address, routers=0, kind="serve")
    obey(told)  # Ray's own would abort the process three seconds after a SIGTERM
    try:
        if not told.is_set():
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
            entry = Entry(cluster.name, cluster.name, os.getpid(), url, time.time(), kind="gateway")
            registered = stack.enter_context(Running(config.state_dir, entry))
            desk = deploy.start_desk(cluster, config, prices)
            # Serve waits by itself, and inside of a loop its shutdown takes half a minute.
            await asyncio.to_thread(deploy.start, cluster, config, prices, host, port)
            _say(f"ready after {time.monotonic() - began:.1f} s")
            print(f"{url} serves: auto, {', '.join(tier.name for tier in config.tiers)}", flush=True)
            if config.gateway.keys_file is None:
                _say("no gateway.keys_file: whoever is on this machine may call, nobody else can")
            await watch(cluster, config, registered, told)
            _say("stopping: answers under way are being finished ...")
            await asyncio.gather(asyncio.to_thread(deploy.stop), desk.end(config.gateway.drain_s))
    finally:
        await cluster.close()
        stack.close()


def obey(told: asyncio.Event) -> None:
    """Have SIGINT and SIGTERM set it. To be said again when Ray has started: it puts handlers of its own in place."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)


async def watch(cluster: "Cluster", config: Config, registered: Running, told: asyncio.Event) -> None:
    """Until `told` to stop: say where metrics are, what the ledger found and what a gateway's replicas have to tell."""
    watching = [asyncio.create_task(LedgerWatch(cluster.budget, _say).run())]
    if config.telemetry.metrics_port is not None:
        watching.append(asyncio.create_task(_observe(cluster, config.telemetry.metrics_port, registered)))
    await told.wait()
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)


async def _observe(cluster: "Cluster", port: int, registered: Running) -> None:
    address, said, told_until = "", set[str](), time.time()
    while True:
        with contextlib.suppress(RaycadeError):  # it is being restarted
            taken, notices, events = await cluster.observer()
            if taken.address != address:
                address = taken.address
                registered.found_at(address)
                _say(
                    f"metrics at {address}/metrics{'' if taken.wanted_port else f' (port {port} is taken)'}",
                    "metrics_served",
                )
            for notice in notices:
                if notice not in said:
                    _say(notice, "gateway_notice", "warning")
            said = set(notices)
            for happened in events:
                if happened.at > told_until:
                    _tell(event_of(happened.key, happened.text))
            told_until = max((told_until, *(happened.at for happened in events)))
        await asyncio.sleep(LOOK_EVERY_S)


def _say(text: str, name: str = "note", level: Level = "info") -> None:
    _tell(Event(name, text, level))


def _tell(event: Event) -> None:
    print(event.text, file=sys.stderr, flush=True)
    log.tell(event)


def with_keys(config: Config) -> Config:
    """The configuration with the budgets that the keys file gives to keys. Raises ConfigError."""
    file = config.gateway.keys_file
    if file is None:
        return config
    ring = read_keys(file, [tier.name for tier in config.tiers])
    if not ring.by_hash:
        raise ConfigError("there is no key in it; `raycade keys new NAME` makes one", file)
    budgets = {key.name: key.budget for key in ring.keys if key.budget.model_fields_set}
    if both := sorted(budgets.keys() & config.budget.keys.keys()):
        raise ConfigError(f"the key {both[0]} has a budget here and in budget.keys of raycade.yaml", file)
    merged = config.budget.model_copy(update={"keys": {**config.budget.keys, **budgets}})
    return config.model_copy(update={"budget": merged})


def with_prompts(config: Config) -> Config:
    """The configuration with the place of its prompts as every process knows it. Raises ConfigError, if it names one."""
    prompts = config.prompts
    try:
        if os.path.isdir(prompts.dir) or "dir" in prompts.model_fields_set:
            load_prompts(prompts.dir)
    except ConfigError as error:
        if "dir" in prompts.model_fields_set:
            raise
        # A folder of this name may be somebody's own.
        _say(f"raycade: {error}\nwhat is wrong there is not served as a prompt")
    prompts = prompts.model_copy(update={"dir": os.path.abspath(prompts.dir)})
    return config.model_copy(update={"prompts": prompts})


def _check_address(host: str, port: int, config: Config) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"{host!r:.80}: {error.strerror or error}", key="--host") from None
    if config.gateway.keys_file is None and not all(ipaddress.ip_address(at[4][0]).is_loopback for at in found):
        raise ConfigError(
            f"{host} can be reached by others, and there is no gateway.keys_file: anyone could spend your money; "
            "make a key with `raycade keys new NAME`, or serve on 127.0.0.1",
            key="--host",
        )
    with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(found[0][4])
        except OSError as error:
            raise ConfigError(f"{host}:{port}: {error.strerror or error}", key="--port") from None
