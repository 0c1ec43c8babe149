"""What `benchmarks.gateway` puts load on: a direct connection to the mock, `raycade serve`, LiteLLM's proxy.

Each is started once and lives through the whole run. Its processes are found by a mark in their environment, which all that
they start inherit, so that memory and CPU count everything: Ray's own processes and HAProxy too.
"""

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["MODEL", "PEER", "Process", "System", "direct", "litellm", "raycade"]

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "build" / "peers" / "litellm" / "bin"
MODEL = "mock-model"
MARK = "RAYCADE_BENCHMARK"
START_S = 180.0
STOP_S = 30.0
CONCURRENCY = 2_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ROLES = {
    "ServeReplica": "replica",
    "TierActor": "tier",
    "CoalescerActor": "coalescer",
    "BudgetActor": "budget",
    "ObserverActor": "observer",
    "haproxy": "haproxy",
    "litellm": "litellm",
}


class Process(NamedTuple):
    role: str
    cpu_s: float
    pss_mb: float
    """Its share of memory that several processes hold in common."""
    descriptors: int


class System:
    """Something that answers at `url` to `key`."""

    def __init__(self, name: str, url: str, key: str, model: str, mark: str = "", folder: Path | None = None) -> None:
        self.name, self.url, self.key, self.model = name, url, key, model
        self.folder = folder
        self._mark = f"{MARK}={mark}".encode() if mark else b""

    def processes(self, memory: bool = False) -> list[Process]:
        """All of it, now. PSS takes the kernel some milliseconds a process."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")) if self._mark else ():
            with contextlib.suppress(OSError):  # it has ended
                folder = Path("/proc", pid)
                if self._mark not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:400]
                fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
                cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
                pss = _pss_mb(folder) if memory else 0.0
                found.append(Process(_role(command), cpu_s, pss, len(os.listdir(folder / "fd"))))
        return found

    def cpu_by_role(self) -> dict[str, float]:
        spent: dict[str, float] = {}
        for process in self.processes():
            spent[process.role] = spent.get(process.role, 0.0) + process.cpu_s
        return spent

    def memory_mb(self) -> dict[str, float]:
        """PSS by role."""
        held: dict[str, float] = {}
        for process in self.processes(memory=True):
            held[process.role] = held.get(process.role, 0.0) + process.pss_mb
        return held

    def descriptors(self) -> dict[str, int]:
        """Open files of what carries requests."""
        held: dict[str, int] = {}
        for process in self.processes():
            if process.role in ("replica", "tier", "haproxy", "coalescer"):
                held[process.role] = held.get(process.role, 0) + process.descriptors
        return held


def _role(command: str) -> str:
    return next(
        (role for word, role in _ROLES.items() if word in command), "rest of Ray" if "ray" in command else "other"
    )


def _pss_mb(folder: Path) -> float:
    for line in (folder / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def direct(url: str) -> System:
    return System("direct", url, "none", MODEL)


@contextlib.contextmanager
def raycade(url: str, folder: Path, replicas: int, tier_actors: int) -> Iterator[System]:
    """`raycade serve` with its guards on: a keys file, budgets that are counted and never reached, breaker, coalescing."""
    key = f"rk-{secrets.token_hex(24)}"
    (folder / "keys").write_text(f"bench sha256:{hashlib.sha256(key.encode()).hexdigest()}\n")
    tier = {
        "name": "main",
        "model": MODEL,
        "base_url": url,
        "price": {"prompt": 1, "completion": 2},
        "concurrency": CONCURRENCY,
        "replicas": tier_actors,
        "timeout_s": 60,
    }
    config = {
        "state_dir": str(folder / "state"),
        "tiers": [tier],
        "budget": {"usd": {"per_day": 1_000_000}, "tokens": {"per_day": 10**12}},
        "gateway": {"keys_file": str(folder / "keys"), "max_queued": 4_000, "replicas": replicas, "drain_s": 5},
    }
    (folder / "raycade.yaml").write_text(json.dumps(config))  # JSON is YAML
    port = _free_port()
    command = [sys.executable, "-m", "runtime", "serve", "-c", str(folder / "raycade.yaml"), "--port", str(port)]
    with _running("raycade", command, folder, f"http://127.0.0.1:{port}/readyz", {"PYTHONPATH": str(ROOT)}) as mark:
        yield System("raycade", f"http://127.0.0.1:{port}/v1", key, MODEL, mark, folder)


@contextlib.contextmanager
def litellm(url: str, folder: Path, workers: int) -> Iterator[System]:
    """LiteLLM's proxy with its defaults and a master key; no database, no logging of its own."""
    key = f"sk-{secrets.token_hex(24)}"
    deployment = {
        "model_name": MODEL,
        "litellm_params": {
            "model": f"openai/{MODEL}",
            "api_base": url,
            "api_key": "none",
            "input_cost_per_token": 1e-6,
            "output_cost_per_token": 2e-6,
        },
    }
    (folder / "config.yaml").write_text(json.dumps({"model_list": [deployment]}))
    port = _free_port()
    command = [str(PEER / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", str(workers)]
    if workers > 1:
        command += ["--timeout_worker_healthcheck", "120"]
    environ = {
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "PYTHONPATH": "",
    }
    with _running("litellm", command, folder, f"http://127.0.0.1:{port}/health/liveliness", environ) as mark:
        if workers > 1:
            time.sleep(8)  # the first worker answers before the others are up
        yield System(f"LiteLLM, {workers} worker{'s' * (workers > 1)}", f"http://127.0.0.1:{port}/v1", key, MODEL, mark)


@contextlib.contextmanager
def _running(name: str, command: list[str], folder: Path, ready: str, more: dict[str, str]) -> Iterator[str]:
    """A program and all that it starts, found by its mark; ended afterwards, the last of it by force."""
    mark = f"{name}-{os.getpid()}"
    environ: dict[str, Any] = {**os.environ, **more, MARK: mark, "RAY_USAGE_STATS_ENABLED": "0"}
    with open(folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + START_S
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > until:
                said = (folder / f"{name}.log").read_text(errors="replace")[-1500:]
                raise SystemExit(f"{name} did not start: {said}")
            time.sleep(0.2)
        yield mark
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through the environment's proxy
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
