"""The two ends of a lane between Ray actors: LaneHost, the base of those that serve, and RayPeer, how callers reach them.

On one machine a lane goes over a socket (actors/lane_socket.py), elsewhere over Ray: submits are actor calls, completions one
long-lived Ray streaming generator. Which of the two is settled anew whenever the lane opens.
"""

import contextlib
import os
import pickle
from collections.abc import AsyncGenerator, Callable
from typing import Any

from actors.lane import FAR, NEAR, Batch, Gap, LaneServer
from actors.lane_socket import Connection, Door, Doorway, connect
from actors.loop_errors import one_line_each

__all__ = ["LaneHost", "RayPeer"]


class RayPeer:
    """A LaneHost in a Ray actor. Over Ray, blocks cross as bytes that pickle made: Ray's own pickler costs twice as much a row."""

    def __init__(self, handle: Any, cancel: Callable[[Any], object], near: bool = True) -> None:
        """`cancel` stops a Ray generator. `near`: whether to use the socket where that can be; the environment's
        RAYCADE_LANES=ray says no for all."""
        self._submit = handle.submit_packed
        self._completions = handle.completions_packed.options(num_returns="streaming")
        self._door = handle.door
        self._cancel = cancel
        self._may_be_near = near and os.environ.get("RAYCADE_LANES") != "ray"
        self._connection: Connection | None = None

    @property
    def is_near(self) -> bool:
        """See Peer."""
        return self._connection is not None

    async def submit(self, lane: str, generation: int, items: list[tuple[int, Any]], cancel: list[int]) -> bool:
        """See Peer."""
        if self._connection is not None:
            return await self._connection.submit(items, cancel)
        return bool(await self._submit.remote(pickle.dumps((lane, generation, items, cancel), 5)))

    async def completions(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[Batch, None]:
        """See Peer."""
        self._connection = connection = None
        if self._may_be_near:
            doorway: Doorway = await self._door.remote()
            self._connection = connection = await connect(doorway, lane, generation, NEAR.within(gap.max_s))
        stream = connection.batches() if connection is not None else self._over_ray(lane, generation, gap)
        try:
            async for batch in stream:
                yield batch
        finally:
            if connection is not None:
                connection.close()
            await stream.aclose()

    async def _over_ray(self, lane: str, generation: int, gap: Gap) -> AsyncGenerator[Batch, None]:
        stream = self._completions.remote(lane, generation, gap)
        # `async for ref in stream: await ref` would wait twice for each batch, in Ray's own code until it is there and then for
        # its bytes: two handovers between threads, and the bytes unpacked twice. So the next ref is looked at, awaited
        # once (which raises when there is none any more), and only then taken off.
        core, name = stream.worker.core_worker, stream.completed()
        try:
            while True:
                ref, _ = core.peek_object_ref_stream(name)
                batch: Batch = pickle.loads(await ref)
                core.try_read_next_object_ref_stream(name)
                yield batch
        finally:
            # Dropping a Ray generator does not stop its producer. The actor may be gone already.
            with contextlib.suppress(Exception):
                self._cancel(stream)


class LaneHost:
    """Base of the actors that serve lanes: a LaneServer's methods, plain and as RayPeer calls them."""

    is_near = True
    """As a Peer within its own process."""
    _server: LaneServer[Any, Any]
    _entrance: Door | None = None

    async def submit(self, lane: str, generation: int, items: list[tuple[int, Any]], cancel: list[int]) -> bool:
        """See LaneServer."""
        return self.take(lane, generation, items, cancel)

    def take(self, lane: str, generation: int, items: list[tuple[int, Any]], cancel: list[int]) -> bool:
        """See LaneServer."""
        return self._server.take(lane, generation, items, cancel)

    async def completions(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[Batch, None]:
        """See LaneServer."""
        async for batch in self._server.completions(lane, generation, gap):
            yield batch

    async def door(self) -> Doorway:
        """Where lanes of this machine connect."""
        if self._entrance is None:
            self._entrance = Door(self)
        one_line_each()
        return await self._entrance.open()

    async def submit_packed(self, block: bytes) -> bool:
        """`submit` with its arguments in one pickle."""
        return await self.submit(*pickle.loads(block))

    async def completions_packed(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[bytes, None]:
        """`completions`, each batch a pickle."""
        one_line_each()
        async for batch in self.completions(lane, generation, gap):
            yield pickle.dumps(batch, 5)
