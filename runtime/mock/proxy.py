"""A TCP proxy that makes the network's faults, between any client and any host and port.

    async with FaultProxy("127.0.0.1", 8080) as proxy:      # listens on proxy.port
        ...
        proxy.faults = Faults(latency_s=0.2)                # holds at once, for open connections too
        proxy.reset_all()
        await proxy.refuse()                                # connection refused, until `await proxy.accept()`

`python -m runtime.mock.proxy HOST:PORT --port 20080 --latency 0.2` is the same from a shell, with one setting for all time.
It knows nothing of HTTP: bytes up (from the client) and down (to it) are delayed, slowed, held, swallowed or cut.
"""

import argparse
import asyncio
import contextlib
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Self

__all__ = ["FaultProxy", "Faults"]

_PIECE = 16 * 1024
_LOOK_S = 0.02
_RST_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Faults:
    """What is wrong with the network now. Byte counts are of one connection."""

    latency_s: float = 0.0
    """Added to each direction; order is kept."""
    bytes_per_s: float | None = None
    """Of each direction of each connection."""
    paused: bool = False
    """Nothing moves, nothing is lost."""
    black_hole: bool = False
    """Connections are accepted and what is sent up is thrown away."""
    reset_after_up: int | None = None
    """A TCP reset once so many bytes have come from the client."""
    reset_after_down: int | None = None
    """A TCP reset after so many bytes of the reply."""
    cut_after_down: int | None = None
    """The connection is closed in good order after so many bytes of the reply."""
    half_close_after_down: int | None = None
    """The reply ends after so many bytes, and what the client sends is still read."""


class FaultProxy:
    """Listens between `async with` and its end. `faults` may be replaced at any time, from any thread."""

    def __init__(self, host: str, port: int, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.port = 0
        self.connections = 0
        """How many were ever accepted."""
        self._host, self._to = host, port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def accept(self, port: int = 0) -> None:
        """Listen; after `refuse` on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port or port, backlog=4096)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """No longer listen: new connections are refused, open ones go on."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def reset_all(self) -> None:
        """A TCP reset to every client now, as when a firewall loses its table."""
        for client in list(self._clients):
            _reset(client)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections += 1
        self._open.add(task)
        self._clients.add(writer)
        try:
            await _Link(self, reader, writer).run(self._host, self._to)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # either side may go at any time, and so may the proxy
        finally:
            self._open.discard(task)
            self._clients.discard(writer)
            writer.close()


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy, self._reader, self._writer = proxy, reader, writer

    async def run(self, host: str, port: int) -> None:
        if self._proxy.faults.black_hole:
            await self._swallow()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(host, port)
        except OSError:
            _reset(self._writer)
            return
        try:
            async with asyncio.TaskGroup() as group:
                up = group.create_task(self._pump(self._reader, up_writer, down=False))
                await self._pump(up_reader, self._writer, down=True)
                up.cancel()
        except* OSError:
            pass
        finally:
            up_writer.close()

    async def _swallow(self) -> None:
        while await self._reader.read(_PIECE):
            pass

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, down: bool) -> None:
        """Carry one direction to its end. What was read waits for its time in a queue, so that latency costs no bandwidth."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)
        carried = 0

        async def read() -> None:
            while True:
                data = await reader.read(_PIECE)
                await queue.put((time.monotonic(), data))
                if not data:
                    return

        reading = asyncio.create_task(read())
        try:
            while True:
                due, data = await self._next(queue, reading)
                faults = self._proxy.faults
                while (pause := due + faults.latency_s - time.monotonic()) > 0 or faults.paused:
                    await asyncio.sleep(_LOOK_S if faults.paused else min(pause, 1.0))
                    faults = self._proxy.faults
                if not data:
                    if not down and writer.can_write_eof():
                        writer.write_eof()
                    return
                if faults.black_hole:
                    continue
                end = _limit(faults, down)
                if end is not None and carried + len(data) >= end:
                    await self._end(faults, down, writer, data[: max(0, end - carried)])
                    return
                carried += len(data)
                await _write(writer, data, faults.bytes_per_s)
        finally:
            reading.cancel()

    async def _next(
        self, queue: "asyncio.Queue[tuple[float, bytes]]", reading: "asyncio.Task[None]"
    ) -> tuple[float, bytes]:
        get = asyncio.ensure_future(queue.get())
        try:
            await asyncio.wait({get, reading}, return_when=asyncio.FIRST_COMPLETED)
            if not get.done() and queue.empty():
                reading.result()  # it has failed: the peer was reset
            return await get
        finally:
            get.cancel()

    async def _end(self, faults: Faults, down: bool, writer: asyncio.StreamWriter, last: bytes) -> None:
        """Break off as asked, after `last`."""
        if down and last:
            await _write(writer, last, faults.bytes_per_s)
        if not down or faults.reset_after_down is not None:
            await asyncio.sleep(_LOOK_S)  # or the reset would overtake what was written
            _reset(self._writer)
        elif faults.half_close_after_down is not None:
            self._writer.write_eof()
            await self._swallow()


def _limit(faults: Faults, down: bool) -> int | None:
    if not down:
        return faults.reset_after_up
    limits = (faults.reset_after_down, faults.cut_after_down, faults.half_close_after_down)
    return next((limit for limit in limits if limit is not None), None)


async def _write(writer: asyncio.StreamWriter, data: bytes, bytes_per_s: float | None) -> None:
    if bytes_per_s is None:
        writer.write(data)
        await writer.drain()
        return
    step = max(1, int(bytes_per_s * _LOOK_S))
    for at in range(0, len(data), step):
        writer.write(data[at : at + step])
        await writer.drain()
        await asyncio.sleep(step / bytes_per_s)


def _reset(writer: asyncio.StreamWriter) -> None:
    """With SO_LINGER at 0 the kernel sends RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
    writer.transport.abort()


async def _run(host: str, to: int, port: int, faults: Faults) -> int:
    proxy = FaultProxy(host, to, faults)
    try:
        await proxy.accept(port)
    except OSError as error:
        print(f"proxy: cannot listen on 127.0.0.1:{port}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"fault proxy on http://127.0.0.1:{proxy.port} before {host}:{to}", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await proxy.__aexit__()
    return 0


def main() -> int:
    """`python -m runtime.mock.proxy HOST:PORT`: until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m runtime.mock.proxy", description="A TCP proxy that makes faults.")
    parser.add_argument("to", metavar="HOST:PORT", help="where the connections go")
    parser.add_argument("--port", type=int, default=0, help="to listen on; 0 chooses a free one")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="seconds, each way")
    parser.add_argument("--bytes-per-s", type=float, help="bandwidth of each direction of a connection")
    parser.add_argument("--black-hole", action="store_true", help="accept, and swallow what is sent")
    parser.add_argument("--reset-after-up", type=int, metavar="N", help="reset after N bytes of the request")
    parser.add_argument("--reset-after-down", type=int, metavar="N", help="reset after N bytes of the reply")
    parser.add_argument("--cut-after-down", type=int, metavar="N", help="close after N bytes of the reply")
    parser.add_argument("--half-close-after-down", type=int, metavar="N", help="end the reply after N bytes, read on")
    options = parser.parse_args()
    host, _, port = options.to.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"expected HOST:PORT, found {options.to!r}")
    faults = Faults(
        latency_s=options.latency,
        bytes_per_s=options.bytes_per_s,
        black_hole=options.black_hole,
        reset_after_up=options.reset_after_up,
        reset_after_down=options.reset_after_down,
        cut_after_down=options.cut_after_down,
        half_close_after_down=options.half_close_after_down,
    )
    try:
        return asyncio.run(_run(host, int(port), options.port, faults))
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
