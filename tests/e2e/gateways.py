"""A gateway as a user runs it: the real command in a process of its own, behind Ray Serve and HAProxy."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.jobs import ROOT, end

__all__ = ["GatewayProcess"]

START_S = 150.0


class GatewayProcess:
    """`raycade serve` in a folder of its own; use as a context."""

    def __init__(self, folder: Path, tiers: list[dict[str, Any]], **config: object) -> None:
        self.folder = folder
        self.port = _free_port()
        for tier in tiers:
            tier.setdefault("model", f"model-{tier['name']}")
            tier.setdefault("price", {"prompt": 1, "completion": 2})
        (folder / "raycade.yaml").write_text(yaml.safe_dump({"state_dir": "state", "tiers": tiers, **config}))
        self.process: subprocess.Popen[str] | None = None
        self.said = ""

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base_url for clients."""
        return f"{self.root}/v1"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "serve", "--port", str(self.port)],
            cwd=self.folder,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        end_at = time.monotonic() + START_S
        while "serves:" not in self.said:
            if self.process.poll() is not None or time.monotonic() > end_at:
                raise AssertionError(f"the gateway did not start: {self.said}")
            time.sleep(0.1)

    def _listen(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(timeout=120)
        self._listening.join(timeout=10)
        return code

    def __enter__(self) -> "GatewayProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.stop()
            end(self.process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
