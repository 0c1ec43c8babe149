"""Lanes over a socket: real sockets within one process. Between processes: tests/cluster/test_lane.py."""

import asyncio
import logging
import os
import pickle
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from actors.lane import NEAR, Gap, Lane, LaneServer
from actors.lane_peers import LaneHost
from actors.lane_socket import Connection, Door, Doorway, connect


class Echo(LaneHost):
    """Completes each item at once with itself."""

    def __init__(self) -> None:
        self.cancelled: list[Any] = []
        self.taken = 0
        self._server: LaneServer[Any, Any] = LaneServer(self._start, weigh=len)

    def _start(self, lane: str, item: Any, complete: Any) -> Any:
        self.taken += 1
        if item == "for ever":
            return lambda: self.cancelled.append(item)
        complete(item)
        return None


class NearPeer:
    """RayPeer's way over the socket, without Ray."""

    is_near = True

    def __init__(self, doorway: Doorway) -> None:
        self.doorway = doorway
        self.connection: Connection | None = None

    async def submit(self, lane: str, generation: int, items: list[tuple[int, Any]], cancel: list[int]) -> bool:
        assert self.connection is not None
        return await self.connection.submit(items, cancel)

    async def completions(self, lane: str, generation: int, gap: Gap = NEAR) -> AsyncIterator[Any]:
        self.connection = await connect(self.doorway, lane, generation, gap)
        assert self.connection is not None
        async for batch in self.connection.batches():
            yield batch


@pytest.fixture
async def host() -> AsyncIterator[Echo]:
    host = Echo()
    yield host
    host._server.close()


async def test_items_of_any_size_come_back_whole_and_once(host: Echo) -> None:
    """Frames are cut by the kernel wherever it likes: a megabyte is many reads, and many small ones are one."""
    items = [
        bytes([number % 256]) * size
        for number, size in enumerate([0, 1, 10_000_000, 3] + [700] * 2_000 + [300_000] * 20)
    ]
    lane: Lane[Any, Any] = Lane("test", NearPeer(await host.door()))  # type: ignore[arg-type]
    await lane.open(5.0)
    back = await asyncio.gather(*(lane.call(item, 30.0) for item in items))
    assert back == items
    await lane.close()


async def test_the_end_of_the_calling_half_ends_its_work(host: Echo) -> None:
    """A caller that dies leaves nothing running."""
    connection = await connect(await host.door(), "test", 1, NEAR)
    assert connection is not None
    batches = connection.batches()
    await anext(batches)
    assert await connection.submit([(1, "for ever")], [])
    connection.close()
    async with asyncio.timeout(5.0):
        while not host.cancelled:  # noqa: ASYNC110 - it is told by the kernel
            await asyncio.sleep(0.01)
    assert [batch async for batch in batches] == []
    assert not await connection.submit([(2, "x")], [])


async def test_the_end_of_the_serving_half_ends_the_lane(host: Echo) -> None:
    """Who waits for an acknowledgement or for completions then is told at once."""
    connection = await connect(await host.door(), "test", 1, NEAR)
    assert connection is not None
    batches = connection.batches()
    await anext(batches)
    host._server.close()
    async with asyncio.timeout(5.0):
        assert [batch async for batch in batches] == []
        assert not await connection.submit([(1, "x")], [])


async def test_a_reader_that_is_slow_bounds_what_is_written_for_it(host: Echo) -> None:
    """The serving half waits with its next batch, so that memory does not grow with what a stopped caller misses."""
    connection = await connect(await host.door(), "test", 1, NEAR)
    assert connection is not None
    await anext(connection.batches())
    connection._transport.pause_reading()
    big = b"x" * 100_000
    for number in range(200):
        connection.say(([(number, big)], []))
    async with asyncio.timeout(5.0):
        while host.taken < 200:  # noqa: ASYNC110 - they are on their way through the kernel
            await asyncio.sleep(0.01)
    waiting = sum(len(box.finished) for box in host._server._lanes.values())
    assert waiting > 100, "most of it waits in the outbox, where the lane's own bound holds it"


class _Mark:
    """What would happen if somebody's frame were read who has no key."""

    reached = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _reach, ()


def _reach() -> None:
    _Mark.reached = True


async def test_nobody_without_the_key_is_read(host: Echo) -> None:
    """The door's name can be seen in /proc/net/unix by every process there; a pickle from a stranger is code."""
    doorway = await host.door()
    frame = pickle.dumps(_Mark(), 5)
    for proof in (b"\0" * 32, Doorway(doorway.name, b"another").proof(b"calling"), doorway.proof(b"serving"), b""):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.setblocking(False)
        stranger.connect(doorway.name)
        reader, writer = await asyncio.open_unix_connection(sock=stranger)
        writer.write(proof + len(frame).to_bytes(4, "little") + frame)
        if len(proof) < 32:
            writer.write(b"\0" * 64)
        async with asyncio.timeout(5.0):
            told = await reader.read()
        assert len(told) <= 32, "nothing but its own proof is told"
        writer.close()
    assert not _Mark.reached


async def test_an_impostor_at_the_door_is_not_read_either() -> None:
    """Who takes over the name of an actor that has died has no key."""
    doorway = Doorway(f"\0raycade-test/{os.getpid()}", b"key")
    frame = pickle.dumps(_Mark(), 5)
    ended = asyncio.Event()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0" * 32 + len(frame).to_bytes(4, "little") + frame)
        await reader.read()
        writer.close()
        ended.set()

    async with await asyncio.start_unix_server(impostor, doorway.name):
        connection = await connect(doorway, "test", 1, NEAR)
        assert connection is not None
        async with asyncio.timeout(5.0):
            assert [batch async for batch in connection.batches()] == []
            await ended.wait()
    assert not _Mark.reached


async def test_who_cannot_be_reached_here_is_left_to_ray(host: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's door, and that of a process that could not open one, are None; not an error."""
    assert await connect(Doorway("\0raycade/not/here", b""), "test", 1, NEAR) is None

    def none_left(*_: object) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_server", none_left)
    assert await connect(await Door(host).open(), "test", 1, NEAR) is None


async def test_an_error_within_a_callback_is_one_line_in_the_log(host: Echo, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a traceback, nor the error's text, in which a key may stand."""

    def breaks() -> None:
        raise MemoryError("Bearer sk-canary")

    await host.door()
    asyncio.get_running_loop().call_soon(breaks)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (record,) = (record for record in caplog.records if record.name == "raycade.loop")
    said = logging.Formatter().format(record)
    assert "MemoryError (" in said
    assert "test_lane_socket.py:" in said
    assert "\n" not in said
    assert "canary" not in said
