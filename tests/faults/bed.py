"""What the matrix' jobs share: a Ray of our own, the mock endpoint, and a loop for servers and proxies that misbehave.

Starting Ray costs a job most of its time, so one Ray serves the rows one after the other, and their jobs join it with
`--address`. What is done to actors there is done by process id. Rows that spoil Ray itself start their own.
"""

import asyncio
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from runtime.mock.process import MockProcess
from tests.e2e.jobs import ROOT, descendants, wait_gone
from tests.faults.leaks import CANARIES

__all__ = ["Bed", "Clock", "PrivateRay"]

T = TypeVar("T")

ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "5f" * 32,
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "PYTHONPATH": str(ROOT),
}
CLUSTER = """
import subprocess
import sys
import time
import ray
from ray.cluster_utils import Cluster

nodes, folder = int(sys.argv[1]), sys.argv[2]
if nodes == 1:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             object_store_memory=100 << 20, _temp_dir=folder)
    print(ray.get_runtime_context().gcs_address, flush=True)
else:
    size = {"num_cpus": 2, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "temp_dir": folder, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(**size)
    print(cluster.address, flush=True)
for line in sys.stdin:
    what, _, pid = line.strip().partition(" ")
    if what == "add":
        cluster.add_node(**size)
    else:
        [lost] = [n for n in cluster.worker_nodes if n.all_processes["raylet"][0].process.pid == int(pid)]
        if what == "drain":
            reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
            at = ["--address", cluster.address, "--node-id", lost.node_id, "--deadline-remaining-seconds", "3"]
            subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *reason, *at], check=True)
            time.sleep(3)
        cluster.remove_node(lost, allow_graceful=False)
    print("done", flush=True)
"""


class PrivateRay:
    """A Ray cluster that nobody else uses and that ends with this process, however that ends."""

    def __init__(self, folder: Path, nodes: int = 1, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.env = {**ENV, **CANARIES, **(env or {})}
        self._child = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(nodes), str(folder)],
            env={**os.environ, **self.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "cluster.err").open("wb"),
            text=True,
            start_new_session=True,
        )
        assert self._child.stdout is not None
        self.address = self._child.stdout.readline().strip()
        if not self.address:
            self.close()
            raise RuntimeError((folder / "cluster.err").read_text()[-2000:])

    @property
    def pid(self) -> int:
        return self._child.pid

    def lose_node(self, raylet: int, how: str) -> None:
        """The node of that raylet goes: `remove`, as if it had been switched off, or `drain`, as clouds announce it."""
        self._have_done(f"{how} {raylet}")

    def add_node(self) -> None:
        self._have_done("add")

    def _have_done(self, line: str) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(line, file=self._child.stdin, flush=True)
        while said := self._child.stdout.readline():
            if said == "done\n":
                return
        raise RuntimeError((self.folder / "cluster.err").read_text()[-2000:])

    def close(self) -> None:
        below = descendants(self._child.pid)
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        wait_gone(below, 10.0)


class Clock:
    """The wall clock of the processes that are started with `env`: it can be set. Needs a C compiler."""

    def __init__(self, folder: Path) -> None:
        self._library, self._offset = folder / "clock.so", folder / "clock.offset"
        self._offset.write_bytes(bytes(8))
        compiler = shutil.which("cc") or shutil.which("gcc")
        self.works = compiler is not None
        self.env: dict[str, str] = {}
        if compiler is not None:
            source = Path(__file__).with_name("clock.c")
            subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", self._library, source, "-ldl"], check=True)
            self.env = {"LD_PRELOAD": str(self._library), "FAULTS_CLOCK": str(self._offset)}

    def set(self, offset_s: int) -> None:
        """So many seconds ahead of the true time, or behind it, from now on."""
        with self._offset.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
            shared[:] = offset_s.to_bytes(8, "little", signed=True)


class Bed:
    """Made once for all rows of a test run; a context manager."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rcf"))  # short: Ray puts sockets below it
        self.clock = Clock(self.folder)
        self.mock = MockProcess(scenario)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._ray: PrivateRay | None = None
        self.searched: dict[Path, int] = {}
        """How far Ray's files have been searched for secrets."""
        self.read: set[Path] = set()
        """Logs of actors that have been looked through."""

    @property
    def ray(self) -> PrivateRay:
        """The shared one, started when first needed."""
        if self._ray is None:
            folder = self.folder / "r"
            folder.mkdir()
            self._ray = PrivateRay(folder, env=self.clock.env)
        return self._ray

    def do(self, work: Coroutine[Any, Any, T], timeout_s: float = 30.0) -> T:
        """Run a coroutine on the loop of servers and proxies, and wait for it."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(timeout_s)

    def __enter__(self) -> Self:
        self._thread.start()
        self.mock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ray is not None:
            self._ray.close()
        self.mock.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        shutil.rmtree(self.folder, ignore_errors=True)
