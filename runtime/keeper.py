"""A set of actors that lives as long as somebody uses it, whoever was first and whoever goes.

The workers of a Ray Data pipeline (runtime/ray_data.py) come and go, on all nodes, and no program stands above them that could
make the actors for all. So the first to come makes the keeper, an actor of a name that follows from the job, the
configuration and the code, and the keeper makes the set. Each user joins, and joins again every RENEW_S: whoever has not for
LEASE_S has gone, however it ended. When the last has gone, the keeper ends the set and itself.

The keeper and the ledger are on the head node: pipelines of later jobs find the same `state_dir` there.
"""

import asyncio
import time
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayActorError, RayError

from actors.errors import ClusterError
from runtime.cluster import Cluster
from runtime.config import Config, resolve_prices, served_name
from runtime.nodes import code_digest
from runtime.wiring import ACTOR, find, plain

__all__ = ["Keeper", "Kept", "job_name"]

LEASE_S = 30.0
"""Generous: a node may stand still for long under load, and who has lost its set cannot go on."""
RENEW_S = 2.0
LOOK_EVERY_S = 1.0
JOIN_TIMEOUT_S = 150.0
ASK_AGAIN_S = 0.25
HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head node."""


class Keeper:
    """The actor. It starts again when it dies, and takes over what there is of its set."""

    def __init__(self, config: Config, home: str) -> None:
        self._config, self._home = config, home
        self._until: dict[str, float] = {}
        self._cluster: Cluster | None = None
        self._making = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    async def join(self, user: str) -> None:
        """Say that `user` uses the set, which is there when this returns. Raises RaycadeError."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        self._renew(user)
        async with self._making:
            if self._cluster is None:
                self._cluster = await Cluster.kept(self._config, resolve_prices(self._config), self._home)
        self._renew(user)

    def _renew(self, user: str) -> None:
        self._until[user] = time.monotonic() + LEASE_S

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if any(until > time.monotonic() for until in self._until.values()):
                continue
            async with self._making:
                if self._cluster is not None:
                    await self._cluster.close()
                ray.kill(find(f"{self._home}/keeper"))
                # Not let go of until this process is dead: who joins now gets no answer, and makes the next keeper.
                await asyncio.Event().wait()


class Kept:
    """A user's side: joins, and goes on joining until it leaves."""

    def __init__(self, config: Config) -> None:
        self._config, self._user = config, uuid4().hex
        self.home = f"{job_name()}-{served_name(config)}-{code_digest()[:12]}"
        self._staying: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Find the set or have it made, and stay joined, whatever happens to the keeper. Raises RaycadeError."""
        await self._join()
        self._staying = asyncio.create_task(self._stay())

    def leave(self) -> None:
        """Stay no longer. Idempotent."""
        if self._staying is not None:
            self._staying.cancel()

    async def _join(self) -> None:
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                while True:
                    try:
                        await self._keeper().join.remote(self._user)
                        return
                    except RayActorError:  # it has ended, or is being started again
                        await asyncio.sleep(ASK_AGAIN_S)
        except RayError as error:
            raise plain(error) from None
        except TimeoutError:
            raise ClusterError(f"the actor {self.home}/keeper does not answer within {JOIN_TIMEOUT_S:g} s") from None

    async def _stay(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._join()
            except Exception:  # whatever is wrong with it, the rows tell
                continue

    def _keeper(self) -> Any:
        options = {**ACTOR, "name": f"{self.home}/keeper", "lifetime": "detached", "get_if_exists": True}
        return ray.remote(Keeper).options(**options, resources={HEAD: 0.001}).remote(self._config, self.home)


def job_name() -> str:
    """Of the Ray job that this process works for; no other has it, on whatever cluster."""
    head = next(node["NodeID"] for node in ray.nodes() if HEAD in node["Resources"])
    return f"data-{head[:8]}-{ray.get_runtime_context().get_job_id()}"
