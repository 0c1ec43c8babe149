"""This process and its Ray: starting one, joining one, and letting go of it.

A process is connected to one Ray at most. Several sets of actors may be used over it (runtime/cluster.py), and the last
one to go lets go of it; a connection that the program itself has made is used as it is, and left alone.

All of it happens in one thread, which lives as long as the process: Ray's processes end with the thread that started them.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from actors.errors import ClusterError
from runtime.running import running_jobs

__all__ = ["NAMESPACE", "Place", "connect", "disconnect", "first_line", "place_of", "started_here"]

NAMESPACE = "raycade"
OBJECT_STORE_BYTES = 200 * 1024 * 1024
"""Of an embedded Ray: rows travel inline, so the object store is nearly unused."""
EMBEDDED = {"RAY_task_events_report_interval_ms": "0", "RAY_event_stats": "0", "RAY_worker_niceness": "0"}
"""An embedded Ray has no dashboard, so nobody reads its record of every actor call, which costs a tenth of the CPU. And its
actors are the job: Ray would run them behind everything else on the machine (nice 15)."""

_TOKEN = (
    "one that asks for a token needs RAY_AUTH_MODE=token, and its token in ~/.ray/auth_token or in the file that "
    "RAY_AUTH_TOKEN_PATH names"
)
_thread = ThreadPoolExecutor(1, "raycade-ray")
_started = False
"""Whether the Ray that we are connected to is our own."""
_users = 0
"""Of a Ray that the first of them has connected to; 0 also where the program itself has."""


class Place(NamedTuple):
    """Which Ray."""

    address: str
    ours: bool = False
    """Somebody else of this user has started it as Ray's own default has it: with a token that is asked for."""


def place_of(state_dir: str, address: str | None) -> Place:
    """The Ray that is named, else the one where `raycade up` runs with this state_dir, else one of our own."""
    if address or os.environ.get("RAY_ADDRESS"):
        return Place(address or os.environ["RAY_ADDRESS"])
    up = [Place(entry.ray, True) for entry in running_jobs(state_dir) if entry.ray]
    return up[0] if up else Place("local")


def started_here() -> bool:
    """Whether this process has started the Ray that it is connected to."""
    return _started


async def connect(place: Place) -> None:
    """Start or join Ray, unless this process is connected already. Raises ClusterError."""
    await asyncio.get_running_loop().run_in_executor(_thread, _connect, place)


async def disconnect() -> None:
    """Undo one `connect`."""
    await asyncio.get_running_loop().run_in_executor(_thread, _disconnect)


def _connect(place: Place) -> None:
    global _users, _started
    address = place.address
    if ray.is_initialized():
        _users += _users > 0
        return
    options: dict[str, Any] = {}
    if address == "local":
        options = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        for name, value in EMBEDDED.items():
            os.environ.setdefault(name, value)
    elif place.ours:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as Ray does for one that it finds itself
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # Ray raises a dozen kinds here, from ConnectionError to its own
        reason = first_line(error)
        if address == "local":
            raise ClusterError(f"cannot start Ray: {reason}") from None
        raise ClusterError(f"cannot reach Ray: {reason}; {_TOKEN}") from None
    _users, _started = 1, address == "local"


def _disconnect() -> None:
    global _users, _started
    if _users:
        _users -= 1
        if not _users:
            _started = False
            ray.shutdown()


def first_line(error: BaseException) -> str:
    """What an error of Ray's says, in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
