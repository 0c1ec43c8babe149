"""One fault and the job that suffers it: what a fault may do to the job, and what was seen meanwhile."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.request import ProxyHandler, build_opener

from runtime.mock.proxy import FaultProxy
from tests.e2e.jobs import Job, chat, descendants, end, wait_until
from tests.faults.bed import Bed, PrivateRay
from tests.faults.leaks import CANARIES, KEY_OF
from tests.faults.servers import FaultServer

__all__ = ["Fault", "Scene", "played"]

LIMIT_TOKENS = 5_000_000
SAMPLE_S = 0.25
JOB_S = 120.0
KINDS = ("RouterActor", "TierActor", "BudgetActor", "CoalescerActor", "ObserverActor")
METRICS = re.compile(r"metrics at (http://\S+)/metrics")


@dataclass(frozen=True)
class Fault:
    """A row of the matrix: how the fault is made, and what must hold beside what always holds (see checker)."""

    name: str
    of: Literal["endpoint", "network", "process", "calls", "machine", "input"]

    # -- how it is made
    mock: dict[str, Any] = field(default_factory=dict)
    """What the first tier's endpoint does: the conduct of a tier of the mock."""
    second: dict[str, Any] | None = field(default_factory=dict)
    """The same for the second tier; None: there is none."""
    around: Callable[["Scene"], contextlib.AbstractContextManager[None]] | None = None
    """Entered before the job starts, left after it has ended. May change the job and where its first tier lies."""
    act: Callable[["Scene"], None] | None = None
    """Done while the job runs."""
    again: bool = False
    """The job is started once more, without the fault, and must then finish."""

    # -- the job
    rows: int = 200
    lines: tuple[bytes, ...] = ()
    """Rows of the input that are no good, after the good ones."""
    tier: dict[str, Any] = field(default_factory=dict)
    """Settings of the first tier, over those in Scene."""
    config: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    ray: Literal["shared", "own", "two nodes", "three nodes"] = "shared"
    env: dict[str, str] = field(default_factory=dict)

    # -- what must hold
    exit: int | tuple[int, ...] = 0
    """The exit code, or any of these; of the first run where there are two."""
    failed: tuple[str, ...] = ()
    """Codes that error lines may have, and some line has; with none, every row succeeds."""
    may_fail: tuple[str, ...] = ()
    """Codes that error lines may have as well, depending on who is quicker."""
    calls: int | None = None
    """At most so many calls reach the first tier's endpoint."""
    recovers_s: float | None = None
    """The first tier answers again within so many seconds after its fault has ended."""
    known: bool = False
    """No outcome is unknown: the ledger has exactly what the endpoint metered."""
    strays: bool = False
    """Answers may be other rows' answers, since nobody could tell."""
    cut_short: bool = False
    """The input ends early, so that rows may be missing."""
    says: tuple[str, ...] = ()
    """What the job tells its user."""
    driver_mb: int = 400
    actor_mb: int = 400
    slow: bool = False
    """Not for every run of the tests."""


class Sample(NamedTuple):
    at: float
    calls: int
    answered: int
    """200s of the first tier's endpoint."""


class Scene:
    """A fault with its job. `around` and `act` get it."""

    def __init__(self, fault: Fault, bed: Bed, folder: Path) -> None:
        self.fault, self.bed = fault, bed
        mock = bed.mock
        first = {
            "name": "first",
            "base_url": mock.tier_url(fault.name),
            "api_key_env": KEY_OF["first"],
            "timeout_s": 2,
            **fault.tier,
        }
        tiers = [first]
        if fault.second is not None:
            url = mock.tier_url(f"{fault.name}-second")
            tiers.append({"name": "second", "base_url": url, "api_key_env": KEY_OF["second"], "timeout_s": 10})
        self.first = first
        budget = {"tokens": {"per_day": LIMIT_TOKENS}}
        telemetry = {"metrics_port": 0}
        self._config = {"budget": budget, "router": {"deadline_s": 60}, "telemetry": telemetry, **fault.config}
        self._tiers = tiers
        folder.mkdir(parents=True, exist_ok=True)
        self.job = Job(folder, tiers, **self._config)
        self.job.env |= CANARIES | fault.env
        self.ray: PrivateRay | None = None
        self.said = ""
        self._observer = ""
        self.codes: list[int] = []
        self.late = False
        """A run did not come to its end."""
        self.rss_mb: dict[str, int] = defaultdict(int)
        self.samples: list[Sample] = []
        self.fault_ended = 0.0
        """When the fault was over, where it says so itself; of time.monotonic."""
        self.process: subprocess.Popen[str] | None = None
        self.proxy: FaultProxy
        self.server: FaultServer | None = None
        self.at_end = contextlib.ExitStack()
        """What is undone when the job has ended and was looked at."""

    # -- for faults

    def point_first_to(self, base_url: str, **settings: object) -> None:
        """The first tier lies there."""
        self.first |= {"base_url": base_url, **settings}
        self.job.configure(self._tiers, **self._config)

    def until_written(self, rows: int) -> None:
        assert self.process is not None
        wait_until(lambda: self.job.written() >= rows, self.process)

    def until_called(self, calls: int) -> None:
        """So many calls have reached the first tier's endpoint."""
        assert self.process is not None
        wait_until(lambda: self.seen(self.fault.name)["requests"] >= calls, self.process)

    def pids(self, kind: str) -> list[int]:
        """Processes of the actors of a class, or of what else below Ray has `kind` in its command."""
        below = self.below()
        return [pid for pid, title in below.items() if title.startswith(f"ray::{kind}")] or [
            pid for pid, title in below.items() if kind in title.partition(" ")[0]
        ]

    def actors(self) -> list[int]:
        return [pid for kind in KINDS for pid in self.pids(kind)]

    def below(self) -> dict[int, str]:
        root = self.ray.pid if self.ray is not None else self.process.pid if self.process is not None else 0
        return descendants(root) if root else {}

    def seen(self, tier: str) -> dict[str, Any]:
        counts: dict[str, Any] = self.bed.mock.stats()["tiers"][tier]
        return counts

    @property
    def ray_folder(self) -> Path:
        return self.ray.folder if self.ray is not None else self.job.folder / "t"

    # -- the run

    def play(self) -> None:
        fault = self.fault
        self.bed.mock.reset()
        rows = [chat(number) for number in range(fault.rows)]
        self.job.rows([*rows, *fault.lines])
        self.ray = self._ray()
        try:
            with contextlib.ExitStack() as stack:
                if fault.around is not None:
                    stack.enter_context(fault.around(self))
                self._run(fault.act)
            if fault.again:
                self._settled()
                self._run(None)
        finally:
            self._settled()
            if self.ray is not None and self.ray is not self.bed._ray:
                self.ray.close()

    def _ray(self) -> PrivateRay | None:
        match self.fault.ray:
            case "shared":
                return self.bed.ray
            case "two nodes" | "three nodes":
                self.ray_folder.mkdir()
                nodes = 2 if self.fault.ray == "two nodes" else 3
                return PrivateRay(self.ray_folder, nodes, self.fault.env)
            case "own":
                self.ray_folder.mkdir()
                self.job.env["RAY_TMPDIR"] = str(self.ray_folder)
                return None

    def _run(self, act: Callable[["Scene"], None] | None) -> None:
        address: tuple[str, ...] = ()
        if self.ray is not None:
            address = ("--address", self.ray.address)
            self.job.env |= self.ray.env | self.fault.env
        process = self.process = self.job.start(*address, *self.fault.options)
        assert process.stdout is not None
        said = process.stdout
        reading = threading.Thread(target=lambda: [self._hear(line) for line in said], daemon=True)
        reading.start()
        stop = threading.Event()
        watching = threading.Thread(target=self._watch, args=(process.pid, stop), daemon=True)
        watching.start()
        try:
            if act is not None:
                act(self)
            process.wait(JOB_S)
        except subprocess.TimeoutExpired:
            self.late = True
        finally:
            stop.set()
            watching.join()
            end(process)
            reading.join(10)
            self.codes.append(process.returncode)

    def _hear(self, line: str) -> None:
        self.said += line
        if found := METRICS.search(line):
            self._observer = found[1]

    def _scrape(self) -> None:
        """What the observer tells is kept among the job's files, where keys are looked for."""
        if self._observer:
            for path in ("metrics", "status"):
                with build_opener(ProxyHandler({})).open(f"{self._observer}/{path}", timeout=1) as answer:
                    (self.job.folder / f"{path}.seen").write_bytes(answer.read())

    def _watch(self, driver: int, stop: threading.Event) -> None:
        """Memory of all processes of the job, and what the first tier's endpoint sees."""
        while not stop.wait(SAMPLE_S):
            with contextlib.suppress(OSError, KeyError):
                counts = self.seen(self.fault.name)
                self.samples.append(Sample(time.monotonic(), counts["requests"], counts["by_status"].get("200", 0)))
            with contextlib.suppress(OSError):
                self._scrape()
            found = {driver: "driver"} | {
                pid: title.split("::")[1].split(".")[0].split(":")[0].strip()
                for pid, title in self.below().items()
                if title.startswith("ray::") and any(kind in title for kind in KINDS)
            }
            for pid, kind in found.items():
                with contextlib.suppress(OSError):
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    self.rss_mb[kind] = max(self.rss_mb[kind], pages * os.sysconf("SC_PAGE_SIZE") >> 20)

    def _settled(self) -> None:
        """The job's actors are gone, those too whose driver could not end them."""
        if self.ray is None:
            return
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            left = self.actors()
            if not left:
                return
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def played(fault: Fault, bed: Bed) -> Iterator[Scene]:
    """The job of a fault, run to its end; what it left is there until the block ends."""
    scene = Scene(fault, bed, bed.folder / fault.name)
    with scene.at_end:
        scene.play()
        yield scene


def scenario(faults: "tuple[Fault, ...]") -> dict[str, Any]:
    """The mock's scenario with a tier, and maybe a second, for every fault."""
    tiers: dict[str, Any] = {"redirected": {}}
    for fault in faults:
        tiers[fault.name] = fault.mock
        if fault.second is not None:
            tiers[f"{fault.name}-second"] = fault.second
    return {"seed": 3, "require_key": True, "tiers": tiers}
