"""Lanes between processes of one machine go over a socket: Ray's own calls would cost more than all else that a row needs.

A block of rows over Ray passes the threads, protobuf and bookkeeping of two processes, about a millisecond of CPU in sum; over a
Unix socket it is one write and one read. With it, one machine carries 1.4 times the rows, and a token of a stream is not held up.
Ray still makes the actors, restarts them, and is how the two ends find each other: a calling half asks the actor for its door
(an actor call), and if it is on the same machine connects to it:

    proof, hello (lane, generation, gap) ───────────────►  completions() ...
    ◄──────────────────────────────────────────── proof
    block (items, cancel) ──────────────────────────────►  take()
    ◄──────────────────────────────────── True or False, for each block in turn
    ◄───────────────────────────── (note, completions), as completions() yields

Either end closes the connection to end the lane. An actor that dies closes it too, so its callers know at once.

The door is a socket in Linux's abstract namespace: it leaves no file behind, and nothing outside this machine (strictly, this
network namespace) reaches it. Its name can be seen by others there, and frames are pickles; so both ends first prove that
they have the key which the actor told through Ray, and neither reads a frame of one who has not. Whoever is on another
machine or in another container, or gets no connection for any other reason, keeps to Ray's calls.
"""

import asyncio
import contextlib
import hmac
import os
import pickle
import secrets
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol

__all__ = ["Connection", "Door", "Doorway", "Served", "connect"]

_LENGTH: Final = struct.Struct("<I")
_PROOF_BYTES: Final = 32


class Doorway(NamedTuple):
    """Where an actor is reached on its own machine, and the key to it. The empty name: nowhere."""

    name: str
    key: bytes

    def proof(self, end: bytes) -> bytes:
        """What an end shows; it tells nobody the key, nor what the other end shows."""
        return hmac.digest(self.key, end, sha256)


class Served(Protocol):
    """The serving half, as a door needs it."""

    def take(self, lane: str, generation: int, items: list[tuple[int, Any]], cancel: list[int]) -> bool:
        """See LaneServer."""
        ...

    def completions(self, lane: str, generation: int, gap: Any) -> AsyncGenerator[Any, None]:
        """See LaneServer."""
        ...


class _Frames(asyncio.Protocol):
    """One end of a connection: pickles, each behind its length, once the other end has shown its proof."""

    def __init__(self, shown: bytes, expected: bytes) -> None:
        self._shown = shown
        self._expected = expected
        self._trusted = False
        self._transport: Any = None  # a WriteTransport, which uvloop's is without saying so
        self._read = bytearray()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._shown)

    def data_received(self, data: bytes) -> None:
        read = self._read
        read += data
        if not self._trusted:
            if len(read) < _PROOF_BYTES:
                return
            if not hmac.compare_digest(bytes(read[:_PROOF_BYTES]), self._expected):
                self.close()
                return
            self._trusted = True
            del read[:_PROOF_BYTES]
        at, size = 0, len(read)
        while size - at >= _LENGTH.size:
            begin = at + _LENGTH.size
            end = begin + _LENGTH.unpack_from(read, at)[0]
            if end > size:
                break
            with memoryview(read) as all_of_it, all_of_it[begin:end] as frame:
                value = pickle.loads(frame)
            at = end
            self.heard(value)
        if at:
            del read[:at]

    def heard(self, value: Any) -> None:
        """A frame has come."""
        raise NotImplementedError

    def say(self, value: Any) -> None:
        """Send a frame; what cannot leave any more is dropped."""
        if not self._transport.is_closing():
            frame = pickle.dumps(value, 5)
            self._transport.write(b"".join((_LENGTH.pack(len(frame)), frame)))

    async def drained(self) -> None:
        """Wait until the other end has taken most of what was said, or is gone."""
        if not self._writable.is_set():
            await self._writable.wait()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._writable.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


# -- the serving half ----------------------------------------------------------------------------------------------


class _Visitor(_Frames):
    """One lane, in the actor that serves it."""

    def __init__(self, served: Served, shown: bytes, expected: bytes) -> None:
        super().__init__(shown, expected)
        self._served = served
        self._lane = ("", 0)
        self._serving: asyncio.Task[None] | None = None

    def heard(self, value: Any) -> None:
        if self._serving is None:
            name, generation, gap = value
            self._lane = name, generation
            self._serving = asyncio.get_running_loop().create_task(self._serve(name, generation, gap))
        else:
            items, cancel = value
            self.say(self._served.take(*self._lane, items, cancel))

    async def _serve(self, name: str, generation: int, gap: Any) -> None:
        batches = self._served.completions(name, generation, gap)
        try:
            async for batch in batches:
                self.say(batch)
                await self.drained()
        except Exception as error:  # the caller sees that the lane is lost, and this process' log why
            context = {"message": f"lane {name} ended", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
        finally:
            self.close()
            await batches.aclose()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._serving is not None:
            self._serving.cancel()


class Door:
    """The way into an actor from its own machine. `served` is what carries its lanes."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._server: asyncio.Server | None = None
        self._doorway = Doorway("", secrets.token_bytes(32))

    async def open(self) -> Doorway:
        """Where it is. Idempotent; a process that has no descriptors left has no door."""
        if self._server is None:
            name = f"\0raycade/{os.getpid()}/{secrets.token_hex(8)}"
            with contextlib.suppress(OSError):
                self._server = await asyncio.get_running_loop().create_unix_server(self._visitor, name)
                self._doorway = self._doorway._replace(name=name)
        return self._doorway

    def _visitor(self) -> _Visitor:
        return _Visitor(self._served, self._doorway.proof(b"serving"), self._doorway.proof(b"calling"))


# -- the calling half ----------------------------------------------------------------------------------------------


class Connection(_Frames):
    """One lane, in the process that calls."""

    def __init__(self, shown: bytes, expected: bytes) -> None:
        super().__init__(shown, expected)
        self._acknowledgements: deque[asyncio.Future[bool]] = deque()
        self._batches: list[Any] = []
        self._reader: asyncio.Future[None] | None = None
        self._lost = False

    async def submit(self, items: list[tuple[int, Any]], cancel: list[int]) -> bool:
        """Hand over a block; False when the lane is not open there (any more)."""
        if self._lost:
            return False
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._acknowledgements.append(taken)
        self.say((items, cancel))
        return await taken

    async def batches(self) -> AsyncGenerator[Any, None]:
        """What the other end yields; ends when the lane is lost."""
        while True:
            while not self._batches:
                if self._lost:
                    return
                self._reader = asyncio.get_running_loop().create_future()
                await self._reader
            batches, self._batches = self._batches, []
            for batch in batches:
                yield batch

    def heard(self, value: Any) -> None:
        if isinstance(value, bool):
            _resolve(self._acknowledgements.popleft(), value)
        else:
            self._batches.append(value)
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._lost = True
        for taken in self._acknowledgements:
            _resolve(taken, False)
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None:
            _resolve(self._reader, None)


def _resolve(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)


async def connect(doorway: Doorway, lane: str, generation: int, gap: Any) -> Connection | None:
    """Open a lane there. None: it cannot be reached from here."""
    if not doorway.name:
        return None
    calling = socket.socket(socket.AF_UNIX)
    try:
        calling.setblocking(False)
        calling.connect(doorway.name)  # at once, or not at all
        _, connection = await asyncio.get_running_loop().create_unix_connection(
            lambda: Connection(doorway.proof(b"calling"), doorway.proof(b"serving")), sock=calling
        )
    except OSError:
        calling.close()
        return None
    connection.say((lane, generation, gap))
    return connection
