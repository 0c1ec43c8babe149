"""Run the mock endpoint as a process: listen, say so in one line, end cleanly on SIGTERM and SIGINT."""

import asyncio
import errno
import gc
import math
import os
import resource
import signal
import sys
from pathlib import Path

import uvloop

from actors.errors import ConfigError
from runtime.mock.endpoint import Endpoint
from runtime.mock.load import load_scenario
from runtime.mock.server import Connection

__all__ = ["run"]

_BACKLOG = 8192


def run(
    host: str = "127.0.0.1",
    port: int = 8080,
    scenario: str | Path = "ok",
    latency_s: float | None = None,
    seed: int | None = None,
    quiet: bool = False,
    until_stdin_closes: bool = False,
) -> int:
    """Serve until told to stop. Returns the exit code: 0 after a clean end, 2 when it could not start.

    `latency_s` and `seed` override the scenario's. `until_stdin_closes` ends the mock with the process that holds the
    other end of its standard input, however that one dies.
    """
    try:
        chosen = load_scenario(scenario)
        if latency_s is not None:
            if not 0 <= latency_s < math.inf:
                raise ConfigError("expected seconds of at least 0", key="--latency")
            chosen = chosen.with_latency(latency_s)
        if not 0 <= port <= 65535:
            raise ConfigError("expected a number from 0 to 65535", key="--port")
        if seed is not None:
            chosen = chosen.model_copy(update={"seed": seed})
    except ConfigError as error:
        print(f"mock: {error}", file=sys.stderr, flush=True)
        return 2
    name = Path(scenario).stem
    return uvloop.run(_serve(host, port, Endpoint(chosen, name), name, quiet, until_stdin_closes))


async def _serve(host: str, port: int, endpoint: Endpoint, name: str, quiet: bool, until_stdin_closes: bool) -> int:
    loop = asyncio.get_running_loop()
    connections: set[Connection] = set()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    _allow_many_files()
    try:
        server = await loop.create_server(
            lambda: Connection(endpoint.handle, connections), host, port, backlog=_BACKLOG
        )
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "another program listens there" if taken else str(error)
        print(f"mock: cannot listen on {host}:{port}: {reason}", file=sys.stderr, flush=True)
        return 2
    if until_stdin_closes:
        loop.add_reader(0, lambda: None if os.read(0, 4096) else stopped.set())
    # Whatever lives by now lives to the end; and a request makes no cycles, so that looking for them may be rare.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    if not quiet:
        bound = server.sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        print(f"mock endpoint on http://{shown}:{bound}/v1 (scenario {name})", flush=True)
    await stopped.wait()
    server.close()
    for connection in list(connections):
        connection.abort()
    return 0


def _allow_many_files() -> None:
    """As many connections as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        pass
