"""What the gateway costs its callers, beside a direct connection and LiteLLM's proxy, on one mock endpoint.

    python -m benchmarks.gateway [--parts plain streams many whole hangups] [--quick] [--json FILE]

Each part is one kind of load, put in turn on a direct connection, on `raycade serve` and on LiteLLM's proxy, which all run
for the whole time (`make gateway-bench` sets LiteLLM up in an environment of its own; without it, it is left out). The load
comes from a process of its own, benchmarks/gateway_load.py. The mock starts anew with the conduct that a part needs.

    plain     latency at 1, 50 and 500 requests at once, whose demand stays at 500/s; then requests/s at 0 ms
    streams   time to first token and the lag of each chunk, at 1 and at 50 streams
    many      500 streams of 20 chunks/s: chunks/s, also of a program that reads them through AsyncOpenAI without a gateway
    whole     raycade alone: 500 streams of 200 chunks at once, ten rounds: nothing broken, mixed up or out of order; memory
    hangups   raycade alone: 500 clients that hang up at random times: what is left of slots, reservations and open files

`added` is a system's latency less the direct connection's of the same part. Nothing is asserted; aims are printed beside
what was measured. Everything shares the machine's cores, the mock and the load too.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.gateway_systems import PEER, System, direct, litellm, raycade
from runtime.mock.process import MockProcess

__all__ = ["main"]

PARTS = ("plain", "streams", "many", "whole", "hangups")
ROUNDS = 10
LOAD_TIMEOUT_S = 150.0
SETTLED_S = 1.0
"""So long after the last client has gone nothing may be left of it."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Measured = dict[str, Any]


class Phase(NamedTuple):
    """One load on each system."""

    name: str
    conduct: dict[str, Any]
    """Of the mock."""
    load: dict[str, Any]


def phases(parts: list[str], quick: bool) -> Iterator[Phase]:
    seconds = 2.0 if quick else 6.0
    if "streams" in parts:
        one = {"kind": "streams", "workers": 1, "seconds": seconds, "max_tokens": 5}
        yield Phase("1 stream", {"tokens": 5, "tokens_per_s": 100, "stamped": True}, one)
        fifty = {"kind": "streams", "workers": 50, "seconds": seconds + 2, "max_tokens": 40, "spread_s": 2.0}
        yield Phase("50 streams", {"tokens": 40, "tokens_per_s": 20, "stamped": True}, fifty)
    if "plain" in parts:
        for workers, latency in ((1, 0.02), (50, 0.1), (500, 1.0)):
            load = {"kind": "plain", "workers": workers, "seconds": seconds + 2 * latency, "spread_s": latency}
            yield Phase(f"plain, {workers} at once", {"latency": latency, "tokens": 16}, load)
        yield Phase("requests/s", {"tokens": 16}, {"kind": "plain", "workers": 50, "seconds": seconds})
    if "many" in parts:
        many = {"kind": "streams", "workers": 500, "seconds": seconds + 3, "max_tokens": 40, "spread_s": 2.0}
        yield Phase("500 streams", {"tokens": 40, "tokens_per_s": 20, "stamped": True}, many)


class Bench:
    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self._options, self._console = options, console
        self._runs = 0
        date = datetime.now(UTC).isoformat(timespec="minutes")
        self.report: Measured = {"date": date, "phases": {}, "memory_mb": {}}
        """What has been measured so far."""

    def run(self) -> None:
        options, report = self._options, self.report
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gwb-")))
            with MockProcess("ok") as mock:
                self._port = mock.port
                url = mock.url
            self._base = direct(url)
            self._say("starting raycade")
            self._raycade = stack.enter_context(raycade(url, folder, options.replicas, options.tier_actors))
            systems = [self._base, self._raycade]
            if PEER.exists() and not options.no_litellm:
                self._say("starting LiteLLM's proxy")
                systems.append(stack.enter_context(litellm(url, folder, options.litellm_workers)))
            elif not options.no_litellm:
                self._say("LiteLLM is not set up: `make gateway-bench` does it")
            self._warm_up(systems)
            report["idle_mb"] = {system.name: system.memory_mb() for system in systems[1:]}
            for phase in phases(options.parts, options.quick):
                report["phases"][phase.name] = self._phase(phase, systems)
                report["memory_mb"] = {system.name: system.memory_mb() for system in systems[1:]}
            if "hangups" in options.parts:
                report["hangups"] = self._hangups()
            if "whole" in options.parts:
                self._whole(report.setdefault("whole", {"rounds": []})["rounds"])
            report["memory_mb"] = {system.name: system.memory_mb() for system in systems[1:]}

    def _warm_up(self, systems: list[System]) -> None:
        """What a system loads or opens at its first requests is none of what it costs."""
        with self._mock({"tokens": 4, "stamped": True}):
            for system in systems:
                for kind in ("plain", "streams"):
                    self._load(
                        system,
                        {"kind": kind, "workers": 20, "each": 3, "warmup": 0, "seconds": 30.0, "max_tokens": 4},
                    )

    def _phase(self, phase: Phase, systems: list[System]) -> Measured:
        found: Measured = {}
        with self._mock(phase.conduct):
            for system in systems:
                self._say(f"{phase.name}: {system.name}")
                found[system.name] = self._load(system, phase.load)
            if phase.name == "500 streams":
                self._say(f"{phase.name}: AsyncOpenAI, direct")
                found["AsyncOpenAI, direct"] = self._load(self._base, {**phase.load, "kind": "openai"})
        return found

    def _whole(self, rounds: list[Measured]) -> None:
        conduct = {"tokens": 200, "tokens_per_s": 100, "stamped": True}
        load = {"kind": "streams", "workers": 500, "each": 1, "warmup": 0, "max_tokens": 200, "spread_s": 1.0}
        with self._mock(conduct):
            for number in range(2 if self._options.quick else ROUNDS):
                measured = self._load(self._raycade, {**load, "seconds": 60.0})
                memory = self._raycade.memory_mb()
                rounds.append({"load": measured, "memory_mb": memory})
                self._say(
                    f"round {number + 1}: {measured['answers']} streams whole, {measured['broken']} not; "
                    f"{measured['chunks_per_s']:,.0f} chunks/s; {sum(memory.values()):,.0f} MB"
                )

    def _hangups(self) -> Measured:
        """Who leaves, and what is left of them: at the endpoint, in the ledger, of files, of slots."""
        conduct = {"tokens": 100, "tokens_per_s": 20, "latency": 0.5, "stamped": True}
        hangups = {"kind": "hangups", "workers": 500, "seconds": 3.0, "max_tokens": 100, "spread_s": 2.0}
        all_at_once = {"kind": "plain", "workers": 500, "each": 1, "warmup": 0, "seconds": 30.0}
        with self._mock(conduct) as mock:
            self._load(self._raycade, all_at_once)  # as many connections as there will be
            time.sleep(6.0)  # idle ones are closed meanwhile
            before = self._raycade.descriptors()
            load = self._load(self._raycade, hangups)
            time.sleep(SETTLED_S)
            left = mock.stats()["total"]["in_flight"]
            abandoned = mock.stats()["total"]["abandoned"]
            time.sleep(6.0)
            after = self._raycade.descriptors()
            reserved = self._reserved()
            mock.reset()
            again = self._load(self._raycade, all_at_once)
            peak = mock.stats()["tiers"]["default"]["max_in_flight"]
        return {
            "hung_up": hangups["workers"] - load["answers"],
            "abandoned": abandoned,
            "left_in_flight": left,
            "reserved": reserved,
            "descriptors_before": before,
            "descriptors_after": after,
            "answered_afterwards": again["answers"],
            "broken_afterwards": again["broken"],
            "at_once_afterwards": peak,
        }

    def _reserved(self) -> dict[str, int]:
        """What the ledger holds for nobody knows whom, when nothing is under way."""
        command = [sys.executable, "-m", "runtime", "budget", "show", "--json", "-c"]
        assert self._raycade.folder is not None
        time.sleep(3.0)  # leases that are not needed go back within about a second
        file = self._raycade.folder / "raycade.yaml"
        shown = json.loads(subprocess.run([*command, str(file)], check=True, capture_output=True, text=True).stdout)
        return {f"{row['unit']}": row["reserved"] for row in shown["limits"] if row["scope"] == "all"}

    @contextlib.contextmanager
    def _mock(self, conduct: dict[str, Any]) -> Iterator[MockProcess]:
        with MockProcess({"tiers": {"default": conduct}}, port=self._port) as mock:
            time.sleep(0.2)
            yield mock

    def _load(self, system: System, load: dict[str, Any]) -> Measured:
        self._runs += 1
        settings = {"url": system.url, "key": system.key, "model": system.model, "run": f"run {self._runs}", **load}
        before = system.cpu_by_role()
        command = [sys.executable, "-m", "benchmarks.gateway_load", json.dumps(settings)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=False)
        if done.returncode:
            raise SystemExit(f"the load of {system.name} failed: {done.stderr[-1500:]}")
        measured: Measured = json.loads(done.stdout)
        after = system.cpu_by_role()
        measured["cpu_s_by_role"] = {role: round(spent - before.get(role, 0.0), 2) for role, spent in after.items()}
        return measured

    def _say(self, what: str) -> None:
        self._console.print(f"  {what}", style="dim", highlight=False)


# -- the report ------------------------------------------------------------------------------------------------------


def show(report: Measured, console: Console) -> None:
    table = Table(title="latency in ms (added: less the direct connection's)", title_justify="left")
    for name in ("load", "system", "answers/s", "p50", "p99", "added p50", "added p99", "broken"):
        table.add_column(name, justify="left" if name in ("load", "system") else "right")
    lags = Table(title="streams, ms: to the first token, and each chunk's lag", title_justify="left")
    for name in ("load", "system", "first p50", "p99", "added p50", "p99", "lag p50", "p99", "chunks/s", "broken"):
        lags.add_column(name, justify="left" if name in ("load", "system") else "right")
    for phase, found in report["phases"].items():
        base = found["direct"]
        for system, run in found.items():
            if "stream" in phase:
                first, lag = run.get("first_ms") or {}, run.get("lag_ms") or {}
                lags.add_row(
                    phase,
                    system,
                    *(_ms(first, q) for q in ("p50", "p99")),
                    *(_ms(first, q, base["first_ms"]) for q in ("p50", "p99")),
                    *(_ms(lag, q) for q in ("p50", "p99")),
                    f"{run['chunks_per_s']:,.0f}",
                    str(run["broken"]),
                )
            else:
                table.add_row(
                    phase,
                    system,
                    f"{run['answers_per_s']:,.0f}",
                    *(_ms(run["took_ms"], q) for q in ("p50", "p99")),
                    *(_ms(run["took_ms"], q, base["took_ms"]) for q in ("p50", "p99")),
                    str(run["broken"]),
                )
    for each in (table, lags):
        if each.row_count:
            console.print(each)
    for system, roles in report["memory_mb"].items():
        parts = ", ".join(f"{role} {mb:,.0f}" for role, mb in sorted(roles.items(), key=lambda part: -part[1]))
        console.print(f"memory of {system}: {sum(roles.values()):,.0f} MB ({parts})", highlight=False)
    for phase, found in report["phases"].items():
        run = found.get("raycade")
        if run:
            count = run["chunks"] or run["answers"]
            cpu = {role: 1e6 * spent / count for role, spent in run["cpu_s_by_role"].items() if spent} if count else {}
            told = ", ".join(f"{role} {us:,.0f}" for role, us in sorted(cpu.items(), key=lambda part: -part[1]))
            what = "chunk" if run["chunks"] else "request"
            console.print(
                f"{phase}: {sum(cpu.values()):,.0f} us of CPU a {what}: {told}; the load itself "
                f"{1e6 * run['cpu_s'] / max(1, count):,.0f}; {run['chunks_a_read']:.1f} chunks a read",
                highlight=False,
            )
            if run["why"]:
                console.print(f"  broken: {run['why']}", highlight=False, markup=False)
    for aim, met in aims(report):
        console.print(f"{'met    ' if met else 'NOT met'}  {aim}", highlight=False)


def _ms(values: dict[str, float], quantile: str, base: dict[str, float] | None = None) -> str:
    if quantile not in values or (base is not None and quantile not in base):
        return ""
    return f"{values[quantile] - (base[quantile] if base else 0.0):,.1f}"


def aims(report: Measured) -> Iterator[tuple[str, bool]]:
    """What was aimed for, with what was measured."""
    found = report["phases"]

    def first(phase: str, quantile: str) -> float:
        return float(found[phase]["raycade"]["first_ms"][quantile] - found[phase]["direct"]["first_ms"][quantile])

    rates = found.get("requests/s", {})
    other = next((name for name in rates if name.startswith("LiteLLM") and rates[name]["answers"]), None)
    if other is not None:
        ours, theirs = (found["requests/s"][name]["answers_per_s"] for name in ("raycade", other))
        yield (
            f"requests/s: {ours / theirs:.1f} times {other}'s ({ours:,.0f} and {theirs:,.0f}); aim 5",
            ours >= 5 * theirs,
        )
        for phase in [name for name in found if name.startswith("plain") and found[name][other]["answers"]]:
            base = found[phase]["direct"]["took_ms"]["p50"]
            ours, theirs = (found[phase][name]["took_ms"]["p50"] - base for name in ("raycade", other))
            said = f"{phase}: p50 added {ours:.1f} ms, {ours / theirs:.2f} of {other}'s {theirs:.1f} ms; aim 0.1"
            yield said, ours <= 0.1 * theirs
    if "1 stream" in found:
        ms = first("1 stream", "p50")
        yield f"first token at 1 stream: {ms:.1f} ms later than direct (p50); aim 6", ms <= 6
    if "50 streams" in found:
        for quantile, most in (("p50", 10), ("p99", 30)):
            ms = first("50 streams", quantile)
            yield f"first token at 50 streams: {ms:.1f} ms later ({quantile}); aim {most}", ms <= most
        lag = found["50 streams"]["raycade"]["lag_ms"]["p99"]
        yield f"chunk lag at 50 streams: {lag:.1f} ms (p99); aim 10", lag <= 10
    if "500 streams" in found:
        ours, loop = (found["500 streams"][name]["chunks_per_s"] for name in ("raycade", "AsyncOpenAI, direct"))
        yield f"chunks/s at 500 streams: {ours:,.0f}, an AsyncOpenAI loop {loop:,.0f}; aim as many", ours >= loop
    if rounds := report.get("whole", {}).get("rounds"):
        broken = sum(each["load"]["broken"] for each in rounds)
        whole = sum(each["load"]["answers"] for each in rounds)
        yield f"{whole} streams of 200 chunks whole and in order, {broken} not; aim none", not broken
        sums = [sum(each["memory_mb"].values()) for each in rounds]
        grown = sums[-1] - sums[min(2, len(sums) - 1)]
        yield f"memory from the third round to the last: {grown:+,.0f} MB of {sums[-1]:,.0f}; aim flat", grown < 30
    if "hangups" in report:
        left = report["hangups"]
        opened = {
            role: left["descriptors_after"].get(role, 0) - count for role, count in left["descriptors_before"].items()
        }
        said = (
            f"{left['hung_up']} of 500 hung up: {left['left_in_flight']} calls left at the endpoint after {SETTLED_S:g} s, "
            f"reserved {left['reserved']}, open files {opened}, then {left['answered_afterwards']} of 500 answered, "
            f"{left['at_once_afterwards']} at once; aim no trace"
        )
        clean = not left["left_in_flight"] and not any(left["reserved"].values()) and max(opened.values()) <= 5
        yield said, clean and left["answered_afterwards"] == 500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="to see that it works; too short to quote")
    parser.add_argument("--replicas", type=int, default=1, help="of the gateway")
    parser.add_argument("--tier-actors", type=int, default=1)
    parser.add_argument("--litellm-workers", type=int, default=1)
    parser.add_argument("--no-litellm", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    console = Console(width=max(120, Console().width))
    bench = Bench(options, console)
    try:
        bench.run()
    finally:  # a run that is cut short tells what it has
        if options.json:
            options.json.write_text(json.dumps(bench.report, indent=1))
        show(bench.report, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
