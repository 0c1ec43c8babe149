"""`raycade up` and `raycade down`: a set of actors that stays, for jobs, gateways and programs to share.

    with a cluster   (--address or RAY_ADDRESS) detached actors there; they live until `down`, or as long as the cluster
    without one      a process in the background that holds a Ray of its own; others find it by state_dir (runtime/running.py)

Whoever then starts with the same configuration uses these actors: one set of rate limits, breakers, concurrency and
leases, and one place where equal requests meet (runtime/cluster.py).
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from actors.budget.store import open_store
from actors.errors import ClusterError, ConfigError
from actors.settings import Price
from runtime import preflight
from runtime.config import Config, load_config, resolve_prices
from runtime.running import Entry, Running, running_jobs
from runtime.serve import obey, watch, with_keys

__all__ = ["run_down", "run_up"]

KIND = "runtime"
START_S = 150.0
END_S = 60.0
LOOK_EVERY_S = 0.1
LOG = "up.log"


def run_up(
    config_file: str | None, address: str | None, foreground: bool, environ: Mapping[str, str] = os.environ
) -> int:
    """Start the actors; exit code. Raises ConfigError and ClusterError."""
    joins = preflight.joins(address, environ)
    config = with_keys(load_config(config_file, environ, check_keys=not joins))
    prices = resolve_prices(config)
    place = address or environ.get("RAY_ADDRESS") or "local"
    if joins:
        preflight.check_exposed(config, environ)
        preflight.check_ledger(config, (), os.getcwd())
        name = asyncio.run(_make(config, prices, place))
        print(f"{name} is up on the Ray at {place}; `raycade down --address {place}` ends it")
        return 0
    if here := _here(config):
        raise ConfigError(
            f"a runtime is up with it already, pid {here[0].pid}; `raycade down` ends it", config.state_dir
        )
    open_store(config.ledger_place).close()
    if foreground:
        asyncio.run(_hold(config, prices))
        return 0
    return _begin(config, config_file)


def run_down(config_file: str | None, address: str | None, environ: Mapping[str, str] = os.environ) -> int:
    """End the actors; exit code. Raises ConfigError and ClusterError."""
    config = load_config(config_file, environ, check_keys=False)
    place = address or environ.get("RAY_ADDRESS") or "local"
    if place != "local":
        from runtime.cluster import Cluster

        ended = asyncio.run(Cluster.down(config, place))
        print(f"ended {', '.join(ended)}" if ended else f"nothing is up with {config.state_dir} on the Ray at {place}")
        return 0
    here = _here(config)
    for entry in here:
        os.kill(entry.pid, signal.SIGTERM)
    until = time.monotonic() + END_S
    while _here(config):
        if time.monotonic() > until:
            raise ClusterError(f"the runtime with pid {here[0].pid} has not ended within {END_S:g} s")
        time.sleep(LOOK_EVERY_S)
    print(f"ended {', '.join(entry.name for entry in here)}" if here else f"nothing is up with {config.state_dir}")
    return 0


def _here(config: Config) -> list[Entry]:
    """The runtime on this machine. An entry is there only as long as its process is, so the pid is its own."""
    return [entry for entry in running_jobs(config.state_dir) if entry.kind == KIND]


async def _make(config: Config, prices: dict[str, Price], address: str) -> str:
    from runtime.cluster import Cluster

    cluster = await Cluster.up(config, prices, address)
    await cluster.close()
    return cluster.name


async def _hold(config: Config, prices: dict[str, Price]) -> None:
    """Keep a Ray of our own with the actors, until SIGINT or SIGTERM."""
    from runtime.cluster import Cluster
    from runtime.gateway import deploy

    deploy.prepare()  # a gateway that joins takes Ray's processes as they are
    cluster = await Cluster.up(config, prices, "local")
    told = asyncio.Event()
    obey(told)
    entry = Entry(cluster.name, cluster.name, os.getpid(), cluster.address, time.time(), kind=KIND, ray=cluster.address)
    with Running(config.state_dir, entry) as registered:
        try:
            await watch(cluster, config, registered, told)
        finally:
            cluster.stays = False
            await cluster.close()


def _begin(config: Config, config_file: str | None) -> int:
    """Have a process in the background do it, and wait until it has."""
    os.makedirs(config.state_dir, exist_ok=True)
    log = Path(config.state_dir) / LOG
    command = [sys.executable, "-m", "runtime", "up", "--foreground"]
    command += ["-c", config_file] if config_file is not None else []
    with open(log, "wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
    until = time.monotonic() + START_S
    try:
        while not any(entry.pid == process.pid for entry in _here(config)):
            if process.poll() is not None:
                raise ClusterError(f"it did not start: {_last_line(log)}")
            if time.monotonic() > until:
                raise ClusterError(f"it did not start within {START_S:g} s; {log} says more")
            time.sleep(LOOK_EVERY_S)
    except BaseException:
        process.terminate()
        raise
    [entry] = _here(config)
    print(f"{entry.name} is up on a Ray of its own at {entry.ray}, pid {entry.pid}; `raycade down` ends it")
    return 0


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("raycade: ")[:300] if lines else f"{log} says nothing"
