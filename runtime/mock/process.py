"""The mock endpoint as a child process, for tests, the demo and benchmarks.

    with MockProcess("flaky") as mock:
        client = OpenAI(base_url=mock.url, api_key="any", max_retries=0)
        ...
        assert mock.stats()["tiers"]["default"]["requests"] == 3

The child holds the read end of a pipe whose write end this process owns: when this process ends, even by SIGKILL, the
pipe closes and the child ends too.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.request import ProxyHandler, Request, build_opener

__all__ = ["MockProcess"]

_ROOT = Path(__file__).resolve().parents[2]
_STOP_S = 5.0


class MockProcess:
    """Starts on entry, stops on exit. `scenario` is a built-in name, a file, or the scenario itself as a dict."""

    def __init__(
        self,
        scenario: str | Path | dict[str, Any] = "ok",
        *,
        port: int = 0,
        latency_s: float | None = None,
        seed: int | None = None,
        start_timeout_s: float = 30.0,
    ) -> None:
        self._scenario, self._asked_port = scenario, port
        self._latency_s, self._seed, self._start_timeout_s = latency_s, seed, start_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._file: Path | None = None
        self.port = 0

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base_url of the tier `default`."""
        return f"{self.root}/v1"

    def tier_url(self, tier: str) -> str:
        """The base_url of a named tier."""
        return f"{self.root}/{tier}/v1"

    @property
    def pid(self) -> int:
        if self._child is None:
            raise RuntimeError("the mock is not running")
        return self._child.pid

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self._call("GET", "/stats")
        return stats

    def reset(self) -> None:
        """As freshly started: counters, request numbers and phases."""
        self._call("POST", "/stats/reset")

    def start(self) -> Self:
        if self._child is not None:
            raise RuntimeError("the mock is running already")
        command = [sys.executable, "-P", "-m", "runtime.mock", "--until-stdin-closes"]
        command += ["--port", str(self._asked_port), "--scenario", self._scenario_file()]
        if self._latency_s is not None:
            command += ["--latency", repr(self._latency_s)]
        if self._seed is not None:
            command += ["--seed", str(self._seed)]
        # A caller's own folder named runtime/ must not hide ours: -P above, and our root in front.
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # a Ctrl-C at the terminal is for the program that is being run
        )
        try:
            self.port = self._read_port()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends the child; calling it again does nothing."""
        child, self._child = self._child, None
        if child is not None:
            child.terminate()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if self._errors is not None:
            self._errors.close()
            self._errors = None
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _scenario_file(self) -> str:
        if not isinstance(self._scenario, dict):
            return str(self._scenario)
        handle, name = tempfile.mkstemp(prefix="raycade-mock-", suffix=".yaml")
        self._file = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(self._scenario, file)  # JSON is YAML
        return name

    def _read_port(self) -> int:
        """From the one line that the mock prints when it listens."""
        child = self._child
        assert child is not None
        assert child.stdout is not None
        deadline = time.monotonic() + self._start_timeout_s
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the mock did not listen within {self._start_timeout_s:g} s: {self._complaint()}")
            data = os.read(child.stdout.fileno(), 4096)
            if not data:
                raise RuntimeError(f"the mock did not start: {self._complaint()}")
            line += data
        address = line.split(b" on http://", 1)[-1].split(b"/", 1)[0]
        return int(address.rsplit(b":", 1)[-1])

    def _complaint(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        return self._errors.read()[-2000:].decode("utf-8", "replace").strip()

    def _call(self, method: str, path: str) -> Any:
        # Never through a proxy that the environment names.
        opener = build_opener(ProxyHandler({}))
        with opener.open(Request(self.root + path, method=method), timeout=30) as response:
            return json.load(response)
