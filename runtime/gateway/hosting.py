"""The desk as a Ray actor of the gateway's: made, kept at work, asked by replicas, ended.

It runs on the machine of `raycade serve`, since its files are there, and ends with it. What the actors of a runtime are to
each other is in runtime/cluster.py; this one belongs to one gateway, and only that gateway's replicas know it.
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.router.flow import Router
from runtime.config import Config
from runtime.gateway.asks import Asks
from runtime.gateway.desk import Desk
from runtime.gateway.errors import BUSY_S, HttpError
from runtime.gateway.files import Ask
from runtime.wiring import ACTOR, Watching, find

__all__ = ["DeskHost", "asker"]

AGAIN_S = 0.25
CLOSE_S = 8.0
"""Beside what rows in flight may take."""


class DeskHost:
    """One a gateway, made within its event loop; `cluster` is the name of its set of actors."""

    def __init__(
        self,
        cluster: str,
        config: Config,
        folder: str,
        asks: Callable[[], Asks],
        make: Callable[..., Router],
        watch: Callable[[], Watching] | None,
    ) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._handle: Any = (
            ray.remote(Desk)
            .options(**ACTOR, name=_name(cluster), scheduling_strategy=here)
            .remote(config, folder, asks, make, cluster, watch)
        )
        self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        """Until the desk has closed. Its work begins again whenever its process was lost."""
        while True:
            with contextlib.suppress(RayActorError):
                await self._handle.run.remote()
                return
            await asyncio.sleep(AGAIN_S)

    async def end(self, grace_s: float) -> None:
        """Rows in flight have `grace_s` seconds to end; the actor ends with this program. Never raises."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(grace_s + CLOSE_S):
                await self._handle.close.remote(grace_s)
                await self._working
        self._working.cancel()


def asker(cluster: str) -> Ask:
    """What asks the desk, from any process of the cluster."""
    return partial(_ask, _name(cluster))


def _name(cluster: str) -> str:
    return f"{cluster}/desk"


async def _ask(desk: str, *args: object) -> Any:
    try:
        return await _found(desk).ask.remote(*args)
    except (RayError, ValueError) as error:  # ValueError: it is only being made
        cause = getattr(error, "cause", None)
        said = "a part of the gateway is being started again"
        lost = HttpError(503, said, "server_error", "restarting", None, BUSY_S)
        raised = cause if isinstance(cause, HttpError) else lost
    raise raised


_found = functools.cache(find)
