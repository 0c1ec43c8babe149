"""How the faults are made that are more than a setting of the mock: around a job, or to it while it runs."""

import asyncio
import contextlib
import gzip
import os
import resource
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import pytest

from runtime.mock.proxy import FaultProxy, Faults
from tests.e2e.jobs import wait_until
from tests.faults.scene import Scene
from tests.faults.servers import Conn, Fault, hangs, self_signed, serving

__all__ = [
    "address",
    "both",
    "clock_stepped",
    "disk_filled",
    "disk_of",
    "few_files",
    "gossips",
    "half_memory",
    "hangs",
    "killed",
    "lies_at",
    "network_back_after",
    "node_replaced",
    "outage_of",
    "proxied",
    "reset_all",
    "served",
    "stopped",
    "torn_gzip",
    "two_answers",
    "untrusted_tls",
]

Around = Callable[[Scene], AbstractContextManager[None]]
Act = Callable[[Scene], None]


# -- where the first tier lies


def address(base_url: str) -> Around:
    """There instead of at the mock."""

    @contextlib.contextmanager
    def around(scene: Scene) -> Iterator[None]:
        scene.point_first_to(base_url.format(port=scene.bed.mock.port))
        yield

    return around


def proxied(faults: Faults, *, listens: bool = True) -> Around:
    """Behind a proxy with these faults, or where one has ceased to listen."""

    @contextlib.contextmanager
    def around(scene: Scene) -> Iterator[None]:
        proxy = FaultProxy("127.0.0.1", scene.bed.mock.port, faults)
        scene.bed.do(proxy.accept())
        scene.proxy = proxy
        scene.point_first_to(f"http://127.0.0.1:{proxy.port}/{scene.fault.name}/v1")
        if not listens:
            scene.bed.do(proxy.refuse())
        try:
            yield
        finally:
            scene.bed.do(proxy.__aexit__())

    return around


def served(fault: Fault, tls: Callable[[Path], ssl.SSLContext] | None = None) -> Around:
    """At a server of tests/faults/servers.py."""

    @contextlib.contextmanager
    def around(scene: Scene) -> Iterator[None]:
        serves = serving(fault, tls(scene.job.folder) if tls else None)
        server = scene.bed.do(serves.__aenter__())
        scene.server = server
        scene.point_first_to(server.url)
        try:
            yield
        finally:
            scene.bed.do(serves.__aexit__(None, None, None))

    return around


def untrusted_tls(folder: Path) -> ssl.SSLContext:
    return self_signed(folder)[0]


def gossips(status: str, content_type: str) -> Fault:
    """Tells the caller's own key back, as some endpoints and many debug pages do."""

    async def fault(conn: Conn) -> None:
        while True:
            key = (await conn.request()).headers.get("authorization", "")
            html = content_type == "text/html"
            quoted = key.replace("\\", "\\\\").replace('"', '\\"')
            body = f"<h1>Sorry</h1><pre>{key}</pre>" if html else f'{{"error": {{"message": "No such key: {quoted}"}}}}'
            await conn.reply(body.encode(), status, f"Content-Type: {content_type}", f"X-Debug: {key}")

    return fault


def two_answers(later_s: float) -> Around:
    """Before the mock: every answer is sent twice, at one go or a moment later, when the next request is under way."""

    def around(scene: Scene) -> AbstractContextManager[None]:
        name, port = scene.fault.name, scene.bed.mock.port

        async def fault(conn: Conn) -> None:
            while True:
                seen = await conn.request()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                head = f"POST /{name}{seen.target} HTTP/1.1\r\nAuthorization: {seen.headers['authorization']}\r\n"
                writer.write(
                    f"{head}Content-Length: {len(seen.body)}\r\nConnection: close\r\n\r\n".encode() + seen.body
                )
                body = (await reader.read()).partition(b"\r\n\r\n")[2]
                writer.close()
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                await conn.write(answer if later_s else answer + answer)
                if later_s:
                    await asyncio.sleep(later_s)
                    await conn.write(answer)

        return served(fault)(scene)

    return around


# -- while the job runs


def killed(kind: str, rows: int = 100) -> Act:
    """SIGKILL for the first process of that kind, for the driver, or for all workers at once."""

    def act(scene: Scene) -> None:
        scene.until_written(rows)
        for pid in _chosen(scene, kind):
            os.kill(pid, signal.SIGKILL)

    return act


def stopped(kind: str, seconds: float = 4.0, rows: int = 100) -> Act:
    """SIGSTOP, and SIGCONT after some seconds."""

    def act(scene: Scene) -> None:
        scene.until_written(rows)
        chosen = _chosen(scene, kind)
        for pid in chosen:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            for pid in chosen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    return act


def _chosen(scene: Scene, kind: str) -> list[int]:
    assert scene.process is not None
    if kind == "driver":
        return [scene.process.pid]
    if kind == "workers":
        return scene.actors()
    if kind == "raylet of actors":  # not the one that the driver depends on
        raylets = sorted(scene.pids("raylet"))
        parents = {_parent(pid) for pid in scene.actors()}
        chosen = [pid for pid in raylets[1:] if pid in parents]
        assert chosen, "no actor is on the second node"
        return chosen[:1]
    return scene.pids(kind)[:1]


def _parent(pid: int) -> int:
    """Of an actor's process: the raylet of its node."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def node_replaced(how: Literal["remove", "drain"]) -> Act:
    """A node with a router and tier actors goes, another joins; the actors come back elsewhere, and rows go on."""

    def act(scene: Scene) -> None:
        scene.until_written(100)
        assert scene.ray is not None
        assert scene.process is not None
        raylets = set(scene.pids("raylet"))
        routers, tiers, kept = (
            [_parent(pid) for kind in kinds for pid in scene.pids(kind)]
            for kinds in (("RouterActor",), ("TierActor",), ("BudgetActor", "CoalescerActor", "ObserverActor"))
        )
        assert set(tiers) == set(routers) == raylets, f"on {tiers} and {routers}, of {raylets}"
        assert len(set(kept)) == 1, "what there is once is on one node"
        lost = max(raylets - {min(raylets), *kept})  # nor the head
        scene.ray.lose_node(lost, how)
        scene.ray.add_node()
        for kind, number in (("RouterActor", len(routers)), ("TierActor", len(tiers))):
            wait_until(lambda kind=kind, number=number: len(scene.pids(kind)) == number, scene.process)  # type: ignore[misc]
        assert {_parent(pid) for pid in scene.actors()} <= set(scene.pids("raylet")) - {lost}
        scene.until_written(scene.job.written() + 500)

    return act


def outage_of(seconds: float) -> Act:
    """Says when the outage is over that the mock's own phases make."""

    def act(scene: Scene) -> None:
        scene.until_called(1)
        scene.fault_ended = time.monotonic() + seconds

    return act


def network_back_after(seconds: float, faults: Faults | None = None, rows: int = 60) -> Act:
    """In mid-run the proxy has these faults for a while, or refuses every connection."""

    def act(scene: Scene) -> None:
        scene.until_written(rows)
        if faults is None:
            scene.bed.do(scene.proxy.refuse())
            scene.bed.loop.call_soon_threadsafe(scene.proxy.reset_all)
        else:
            scene.proxy.faults = faults
        time.sleep(seconds)
        if faults is None:
            scene.bed.do(scene.proxy.accept())
        scene.proxy.faults = Faults()
        scene.fault_ended = time.monotonic()

    return act


def reset_all(times: int) -> Act:
    """Every connection is reset, several times."""

    def act(scene: Scene) -> None:
        for time_ in range(1, times + 1):
            scene.until_written(100 * time_)
            scene.bed.loop.call_soon_threadsafe(scene.proxy.reset_all)

    return act


# -- the machine


def few_files(kind: str, spare: int, seconds: float = 2.0) -> Act:
    """The processes of a kind may open only so many files more, for a while."""

    def act(scene: Scene) -> None:
        assert scene.process is not None
        scene.until_called(1)
        pids = [scene.process.pid] if kind == "driver" else scene.pids(kind)
        before = {}
        for pid in pids:
            opened = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            before[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (opened + spare, before[pid][1]))
        scene.bed.loop.call_soon_threadsafe(scene.proxy.reset_all)  # so that connections have to be made anew
        time.sleep(seconds)
        for pid, limit in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)

    return act


def half_memory(kind: str, spare_mb: int) -> Act:
    """The processes of a kind get only so much more memory; what then dies is started again without a limit."""

    def act(scene: Scene) -> None:
        scene.until_called(1)
        for pid in scene.pids(kind):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + (spare_mb << 20)
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))

    return act


@contextlib.contextmanager
def disk_of(scene: Scene, size: str, holds: str) -> Iterator[None]:
    """`out` or `state` lies on a file system of that size; it grows when the first run is over."""
    disk = scene.job.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs to be root")
    try:
        if holds == "out":
            scene.job.out, scene.job.errors = disk / "out.jsonl", disk / "out.errors.jsonl"
        else:
            scene.job.state = disk
            scene.point_first_to(scene.first["base_url"])
        yield
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        scene.at_end.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
    except BaseException:
        subprocess.run(["umount", "-l", str(disk)], check=False)
        raise


def disk_filled(scene: Scene) -> None:
    """In mid-run something else takes all that was left on the disk."""
    scene.until_written(100)
    with contextlib.suppress(OSError), (scene.job.folder / "disk" / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def clock_stepped(seconds: int) -> Act:
    """The wall clock of everything is set in mid-run, and stays so to the end of the job."""

    def act(scene: Scene) -> None:
        if not scene.bed.clock.works:
            pytest.skip("setting a clock for some processes needs a C compiler")
        scene.until_written(100)
        scene.bed.clock.set(seconds)
        scene.at_end.callback(scene.bed.clock.set, 0)

    return act


# -- the input


@contextlib.contextmanager
def torn_gzip(scene: Scene) -> Iterator[None]:
    """The input is compressed, and its end is missing."""
    whole = gzip.compress(scene.job.input.read_bytes())
    scene.job.input = scene.job.folder / "in.jsonl.gz"
    scene.job.input.write_bytes(whole[: len(whole) // 2])
    yield


def lies_at(name: str, text: bytes) -> Around:
    """A file of the job holds this instead."""

    @contextlib.contextmanager
    def around(scene: Scene) -> Iterator[None]:
        (scene.job.folder / name).write_bytes(text)
        yield

    return around


def both(*arounds: Around) -> Around:
    @contextlib.contextmanager
    def around(scene: Scene) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for each in arounds:
                stack.enter_context(each(scene))
            yield

    return around
