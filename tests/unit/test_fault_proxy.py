"""The fault proxy does to a connection what it is told, at once, and lets go of everything at its end."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from runtime.mock.proxy import FaultProxy, Faults
from tests.faults.servers import ANSWER, FaultServer, answers, serving

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"


@contextlib.asynccontextmanager
async def proxied(faults: Faults | None = None) -> AsyncIterator[tuple[FaultProxy, FaultServer]]:
    async with serving(answers) as server, FaultProxy("127.0.0.1", server.port, faults) as proxy:
        yield proxy, server
    assert server.open == 0


async def asked(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(REQUEST)
    return reader, writer


async def answered(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(len(ANSWER))


async def test_without_faults_it_is_not_noticed() -> None:
    """Several requests on one connection get their answers, and the server sees each."""
    async with proxied() as (proxy, server):
        reader, writer = await asked(proxy)
        for _ in range(3):
            assert (await answered(reader)).endswith(ANSWER)
            writer.write(REQUEST)
        assert (await answered(reader)).endswith(ANSWER)
        assert len(server.seen) == 4
        assert proxy.connections == 1
        writer.close()


async def test_latency_and_bandwidth_take_their_time() -> None:
    """Latency is there and back; a reply takes its bytes over the bandwidth."""
    async with proxied(Faults(latency_s=0.1)) as (proxy, _):
        started = time.monotonic()
        reader, writer = await asked(proxy)
        await answered(reader)
        assert time.monotonic() - started >= 0.2
        proxy.faults = Faults(bytes_per_s=1000)
        started = time.monotonic()
        writer.write(REQUEST)
        await answered(reader)
        assert time.monotonic() - started >= len(ANSWER) / 1000
        writer.close()


async def test_a_pause_loses_nothing_and_a_black_hole_everything() -> None:
    """What stood still goes on where it was; what fell into the hole is gone, and new connections are swallowed too."""
    async with proxied(Faults(paused=True)) as (proxy, server):
        reader, writer = await asked(proxy)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answered(reader), 0.15)
        assert not server.seen
        proxy.faults = Faults()
        assert await answered(reader)
        proxy.faults = Faults(black_hole=True)
        writer.write(REQUEST)
        other, other_writer = await asked(proxy)
        await asyncio.sleep(0.1)
        assert len(server.seen) == 1
        proxy.faults = Faults()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.read(1), 0.1)
        other_writer.close()
        writer.close()


@pytest.mark.parametrize(
    "faults", [Faults(reset_after_down=60), Faults(cut_after_down=60), Faults(half_close_after_down=60)]
)
async def test_a_reply_breaks_off_where_it_was_told_to(faults: Faults) -> None:
    """60 bytes arrive; then a reset, or an end in good order, after which a half-closed client may still send."""
    async with proxied(faults) as (proxy, _):
        reader, writer = await asked(proxy)
        assert len(await reader.readexactly(60)) == 60
        if faults.reset_after_down is not None:
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
        else:
            assert await reader.read(1) == b""
        writer.close()


async def test_a_reset_in_the_request_keeps_it_from_the_server() -> None:
    """After 20 bytes of the request the client is reset, and the server has seen no whole request."""
    async with proxied(Faults(reset_after_up=20)) as (proxy, server):
        reader, _ = await asked(proxy)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        assert not server.seen


async def test_refusing_resetting_and_accepting_again() -> None:
    """Refused connections are refused by the system; open ones live until they are reset; the port stays the same."""
    async with proxied() as (proxy, _):
        reader, writer = await asked(proxy)
        await answered(reader)
        port = proxy.port
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asked(proxy)
        writer.write(REQUEST)
        await answered(reader)
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        await proxy.accept()
        assert proxy.port == port
        reader, writer = await asked(proxy)
        assert await answered(reader)
        writer.close()


async def test_a_server_that_is_not_there_is_a_reset() -> None:
    """What stands behind the proxy is gone: the client is reset, as by a balancer without members."""
    async with FaultProxy("127.0.0.1", 1) as proxy:
        reader, _ = await asked(proxy)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)


def test_the_command_says_where_it_listens_and_what_is_wrong() -> None:
    """One line with the address; a target without a port is a usage error."""
    command = [sys.executable, "-m", "runtime.mock.proxy"]
    wrong = subprocess.run([*command, "nowhere"], capture_output=True, text=True, timeout=30)
    assert wrong.returncode == 2
    assert "expected HOST:PORT" in wrong.stderr
    with subprocess.Popen([*command, "127.0.0.1:9", "--latency", "1"], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert "fault proxy on http://127.0.0.1:" in running.stdout.readline()
        running.terminate()
