"""The metrics of a real job, scraped while it runs: they equal the endpoint's own meter and the files it wrote, to the unit,
also after an actor of every kind was killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from runtime.mock.process import MockProcess
from runtime.running import running_jobs
from tests.e2e.jobs import ROOT, Job, actor_pids, chat, end, wait_until

SCENARIO: dict[str, Any] = {
    "seed": 5,
    "tiers": {"flaky": {"latency": 0.3, "errors": [{"fraction": 0.1, "status": 500}]}, "ok": {"latency": 0.3}},
}
ROWS = 2400
CANARY = "sk-canary-51c7a1d0e5"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess(SCENARIO) as process:
        yield process


def free_port() -> int:
    with socket.socket() as free:
        while True:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1]
            if port >= 20_000:
                return port


def program(name: str) -> str:
    """A program of Debian's package prometheus; the test is skipped without it, and fails in continuous integration."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("RAYCADE_TEST_PROMETHEUS") == "require":
            pytest.fail(f"{name} is not installed, and RAYCADE_TEST_PROMETHEUS=require")
        pytest.skip(f"needs {name}, of Debian's package prometheus")
    return found


def get(url: str) -> str:
    with build_opener(ProxyHandler({})).open(url, timeout=5) as reply:
        text: str = reply.read().decode()
    return text


class Scraper:
    """Scrapes a job all along, as Prometheus would, and holds that no counter ever falls."""

    def __init__(self, job: Job, every_s: float = 0.25) -> None:
        self._job, self._every_s = job, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.text = ""
        self.last: Samples = {}
        self.scrapes = self.gaps = 0
        self.fallen: list[str] = []

    def __enter__(self) -> "Scraper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            jobs = running_jobs(str(self._job.state))
            if not jobs or not jobs[0].address:
                continue
            try:
                text = get(f"{jobs[0].address}/metrics")
            except (URLError, OSError):
                self.gaps += bool(self.scrapes)
                continue
            self.scrapes += 1
            seen = parsed(text)
            counters = {key for key in self.last if key[0].endswith(("_total", "_count", "_sum", "_bucket"))}
            self.fallen += [str(key) for key in counters if seen.get(key, -1.0) < self.last[key]]
            self.last, self.text = seen, text


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (found, has), value in samples.items() if found == name and wanted <= set(has))


def micros(dollars: float) -> int:
    return round(dollars * 1e6)


@contextmanager
def started(job: Job, *options: str) -> Iterator["subprocess.Popen[str]"]:
    process = job.start(*options)
    try:
        yield process
    finally:
        end(process)


def check_files(job: Job, samples: Samples) -> None:
    """The metrics equal the sums over the lines that the job has written: rows, tokens and dollars."""
    lines, failed = job.lines(), job.failed()
    ours = [line["response"]["body"]["raycade"] for line in lines]
    shared = sum(extra.get("coalesced", False) for extra in ours)
    assert total(samples, "raycade_requests_total", outcome="ok") == len(lines) - shared
    assert total(samples, "raycade_requests_total", outcome="coalesced") == shared
    assert total(samples, "raycade_coalesced_total") == shared
    assert total(samples, "raycade_requests_total") == len(lines) + len(failed)
    usages = [
        line["response"]["body"]["usage"]
        for line, extra in zip(lines, ours, strict=True)
        if not extra.get("coalesced", False)
    ]
    for kind in ("prompt", "completion"):
        assert total(samples, "llm_tokens_used_total", type=kind) == sum(usage[f"{kind}_tokens"] for usage in usages)
    told = sum(micros(extra["cost_usd"]) for extra in ours)
    assert micros(total(samples, "llm_request_cost_dollars_total")) == told
    answered = total(samples, "raycade_attempts_total", kind="ok")
    assert total(samples, "llm_request_duration_seconds_count") == answered == len(usages)
    by_tier = Counter(extra["tier"] for extra in ours if not extra.get("coalesced"))
    for tier, count in by_tier.items():
        assert total(samples, "raycade_requests_total", tier=tier, outcome="ok") == count


def known_dollars(samples: Samples) -> int:
    """Micro-dollars for calls whose usage was seen."""
    unknown = total(samples, "raycade_unknown_cost_dollars_total")
    return micros(total(samples, "llm_request_cost_dollars_total") - unknown)


def test_totals_equal_the_endpoint_and_the_files_whatever_was_killed(mock: MockProcess, tmp_path: Path) -> None:
    """A job with two actors at its first tier, scraped all along.

    The observer, the budget and the coalescer are killed first: nothing may differ by then. Then a tier actor and the router,
    with calls in flight: what the endpoint answered them and nobody took is all that may be missing.
    """
    job = Job(
        tmp_path,
        [
            {"name": "flaky", "base_url": mock.tier_url("flaky"), "replicas": 2, "concurrency": 25},
            {"name": "ok", "base_url": mock.tier_url("ok"), "concurrency": 25},
        ],
        budget={"tokens": {"per_day": 50_000_000}, "usd": {"per_day": 100}},
        telemetry={"metrics_port": 0},
        router={"replicas": 2},  # a lone one keeps the coalescer's table itself
    )
    for tier in (tiers := yaml.safe_load(job.config.read_text()))["tiers"]:
        tier["api_key_env"] = "CANARY_KEY"
    job.config.write_text(yaml.safe_dump(tiers))
    job.env |= {"CANARY_KEY": CANARY, "RAYCADE_LOG": "debug,json"}
    job.rows(chat(number, f"[[tag:row-{number % (ROWS - 100):05d}]] What is it?") for number in range(ROWS))
    mock.reset()
    with Scraper(job) as scraper, started(job, "--window", "100") as process:
        rows = 150
        for kind in ("ObserverActor", "BudgetActor", "CoalescerActor", "TierActor", "RouterActor"):
            wait_until(lambda rows=rows: job.written() >= rows and scraper.scrapes > 2, process, 120)  # type: ignore[misc]
            scrapes = scraper.scrapes
            (pid, *_) = actor_pids(process.pid, kind)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda scrapes=scrapes: scraper.scrapes > scrapes + 2, process, 60)  # type: ignore[misc]
            rows = job.written() + 100
        status = json.loads(command("status", "--json", "-c", str(job.config)).stdout)["jobs"][0]
        said, _ = process.communicate(timeout=90)
        last = dict(scraper.last)
    assert process.returncode == 0, said
    assert "metrics at http://127.0.0.1:" in said
    logged = [json.loads(line) for line in said.splitlines() if line.startswith('{"time"')]
    assert {"metrics_served", "rows_sent_again"} <= {line["event"] for line in logged}
    assert scraper.gaps, "the observer was away for a moment"
    assert scraper.fallen == []
    assert sorted(int(line["custom_id"][4:]) for line in job.lines()) == list(range(ROWS))
    check_files(job, last)
    assert total(last, "raycade_coalesced_total") == 100
    # the endpoint's meter: what it answered beyond that reached nobody, since the actor that had asked was dead
    tiers = mock.stats()["tiers"]
    (tokens_each,) = {line["response"]["body"]["usage"]["total_tokens"] for line in job.lines()}
    for name in ("flaky", "ok"):
        orphans = tiers[name]["by_status"]["200"] - total(last, "raycade_attempts_total", tier=name, kind="ok")
        tokens = total(last, "raycade_tier_tokens_total", tier=name)
        assert tiers[name]["total_tokens"] - tokens == orphans * tokens_each
    lost = total(last, "raycade_attempts_total", kind="lost") + total(last, "raycade_redone_total")
    answers = sum(tiers[name]["by_status"]["200"] for name in ("flaky", "ok"))
    assert 0 <= answers - total(last, "raycade_attempts_total", kind="ok") <= lost <= 200
    assert known_dollars(last) == sum(
        total(last, "llm_tokens_used_total", type=kind) * price for kind, price in (("prompt", 1), ("completion", 2))
    )
    assert [len(tier["actors"]) for tier in status["status"]["tiers"]] == [2, 1]
    for text in (said, scraper.text, json.dumps(status)):
        assert CANARY not in text
    assert list((job.state / "running").iterdir()) == []


@pytest.mark.slow
def test_totals_equal_the_endpoint_to_the_unit_while_every_outcome_is_seen(mock: MockProcess, tmp_path: Path) -> None:
    """In a real Prometheus, after deaths that lose no call: metrics, endpoint and files all say the same at the job's end."""
    port = free_port()
    job = Job(
        tmp_path,
        [
            {"name": "flaky", "base_url": mock.tier_url("flaky"), "replicas": 2, "concurrency": 40},
            {"name": "ok", "base_url": mock.tier_url("ok"), "concurrency": 40},
        ],
        telemetry={"metrics_port": port},
        router={"replicas": 2},
    )
    job.rows(chat(number) for number in range(900))
    mock.reset()
    with (
        prometheus(tmp_path / "prometheus", port) as address,
        Scraper(job) as scraper,
        started(job, "--window", "80") as process,
    ):
        wait_until(lambda: job.written() > 100 and scraper.scrapes > 2, process, 120)
        for kind in ("ObserverActor", "BudgetActor", "CoalescerActor"):
            os.kill(actor_pids(process.pid, kind)[0], signal.SIGKILL)
        said, _ = process.communicate(timeout=90)
        last = last_samples(address)
    assert process.returncode == 0, said
    assert scraper.fallen == []
    check_files(job, last)
    meter = mock.stats()["tiers"]
    for name in ("flaky", "ok"):
        assert total(last, "raycade_attempts_total", tier=name) == meter[name]["requests"]
        assert total(last, "raycade_attempts_total", tier=name, kind="server") == meter[name]["by_status"].get("500", 0)
        for kind in ("prompt", "completion"):
            assert total(last, "raycade_tier_tokens_total", tier=name, type=kind) == meter[name][f"{kind}_tokens"]
    whole = mock.stats()["total"]
    assert (
        micros(total(last, "llm_request_cost_dollars_total")) == whole["prompt_tokens"] + 2 * whole["completion_tokens"]
    )
    assert total(last, "raycade_unknown_cost_dollars_total") == 0
    checked = subprocess.run([program("promtool"), "check", "metrics"], input=scraper.text, text=True)
    assert checked.returncode == 0


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "runtime", *words],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@contextmanager
def prometheus(folder: Path, target: int, rules: str = "") -> Iterator[str]:
    """A real Prometheus that scrapes a port each second and goes by these rules; its address."""
    folder.mkdir()
    scrape = {
        "job_name": "raycade",
        "scrape_interval": "1s",
        "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
    }
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [scrape], "rule_files": ["rules.yml"]}))
    port = free_port()
    options = ("--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program("prometheus"), *options], cwd=folder, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def last_samples(address: str) -> Samples:
    """The last samples that a Prometheus has of every series of ours."""
    query = urlencode({"query": 'last_over_time({__name__=~"(llm|raycade)_.+"}[10m])'})
    told = json.loads(get(f"{address}/api/v1/query?{query}"))["data"]["result"]
    return {
        (
            each["metric"]["__name__"],
            tuple(sorted((k, v) for k, v in each["metric"].items() if k not in ("__name__", "instance", "job"))),
        ): float(each["value"][1])
        for each in told
    }


def firing(address: str) -> dict[str, str]:
    """The alerts that fire in a Prometheus by name, and the tier of each."""
    try:
        told = json.loads(get(f"{address}/api/v1/alerts"))["data"]["alerts"]
    except OSError:  # it has just been started
        return {}
    return {each["labels"]["alertname"]: each["labels"].get("tier", "") for each in told if each["state"] == "firing"}
