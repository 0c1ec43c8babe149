"""Prompts and structured answers with the real command, a real Ray, and an endpoint that answers as models do."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from actors.router.structured import Validator
from runtime.mock.process import MockProcess
from runtime.prompts_job import prompt_of_line
from runtime.prompts_release import release
from tests.e2e.jobs import ROOT, Job

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["queue", "urgent"],
    "properties": {"queue": {"type": "string"}, "urgent": {"type": "boolean"}},
}
SCENARIO: dict[str, Any] = {
    "seed": 3,
    "tiers": {
        "turns": {"reply": "json", "dress": ["fenced", "prefixed", "truncated", "mistyped", "plain"]},
        "prose": {"tokens": 20},
    },
}


def version(folder: Path, number: int, **more: object) -> None:
    place = folder / "prompts" / "sort"
    place.mkdir(parents=True, exist_ok=True)
    text = {
        "version": number,
        "user_template": "Sort {text}.",
        "schema": SCHEMA,
        "defaults": {"max_tokens": 64},
        **more,
    }
    (place / f"v{number}.yaml").write_bytes(orjson.dumps(text))


def prompts(folder: Path, *words: str) -> str:
    """What `raycade prompts ...` says in a job's folder."""
    command = [sys.executable, "-m", "runtime", "prompts", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ticket(number: int) -> dict[str, Any]:
    return {"custom_id": f"row-{number}", "variables": {"text": f"ticket {number}, [[tag:{number}]]"}}


def test_a_trial_over_answers_of_every_kind(tmp_path: Path) -> None:
    """1,000 rows over an 80/20 release, answers fenced, prefixed, truncated, wrong-typed and right in turn: every row ends
    with a right answer of its version, none with a wrong one, and the report and the failure log say how it was."""
    with MockProcess(SCENARIO) as mock:
        job = Job(tmp_path, [{"name": "turns", "base_url": mock.tier_url("turns"), "structured": "native"}])
        version(tmp_path, 1)
        version(tmp_path, 2, system="Be careful.")
        release(str(tmp_path / "prompts"), "sort", 1, {2: 0.2}, "try")
        job.rows(ticket(number) for number in range(1000))
        job.configure(
            [{"name": "turns", "base_url": mock.tier_url("turns"), "structured": "native"}], structured={"retries": 9}
        )
        ended = job.run("--prompt", "sort")
    assert ended.returncode == 0, ended.stdout
    lines = [line["response"]["body"]["raycade"] for line in job.lines()]
    assert len(lines) == 1000
    versions = Counter(line["prompt"] for line in lines)
    assert 150 < versions["sort@2"] < 250
    valid = Validator(orjson.dumps(SCHEMA))
    assert all(valid.errors(orjson.dumps(line["parsed"])) == [] for line in lines)
    calls = sum(line["attempts"] for line in lines)
    refused = sum(line.get("refused_replies", 0) for line in lines)
    assert calls == 1000 + refused
    assert 0.35 < refused / calls < 0.45  # two of five kinds are wrong
    report = orjson.loads(prompts(tmp_path, "report", "out.jsonl", "--json"))
    assert {ref: f["rows"] for ref, f in report.items()} == dict(versions)
    assert all(f["cost_usd"]["low"] < f["cost_usd"]["value"] and f["latency_s"]["value"] > 0 for f in report.values())
    reasons = orjson.loads(prompts(tmp_path, "failures", "sort", "--json", "-c", "raycade.yaml"))
    assert sum(reason["replies"] for reason in reasons) == refused


@pytest.mark.slow
def test_a_bad_trial_is_stopped_and_its_rows_are_done_again(tmp_path: Path) -> None:
    """A version whose rows go to an endpoint that answers prose: each is refused after its tries (exit 3) with the reasons on
    record; the trial stops by itself; --redo does just its rows again, all other lines stay byte for byte."""
    with MockProcess(SCENARIO) as mock:
        tiers = [
            {"name": "prose", "base_url": mock.tier_url("prose")},
            {"name": "turns", "base_url": mock.tier_url("turns"), "structured": "native"},
        ]
        job = Job(tmp_path, tiers, structured={"retries": 9})
        version(tmp_path, 1, model="turns")
        version(tmp_path, 2, model="prose", structured={"retries": 1})
        release(str(tmp_path / "prompts"), "sort", 1, {2: 0.5}, "try")
        job.rows(ticket(number) for number in range(600))
        first = job.run("--prompt", "sort", "--window", "40")
        assert first.returncode == 3, first.stdout
        assert first.stdout.count("stopped the trial of sort@2") == 1
        bad, good = job.failed(), job.out.read_bytes()
        assert 10 < len(bad) < 200  # half of 600, had it gone on
        assert {prompt_of_line(line) for line in bad} == {"sort@2"}
        assert {line["error"]["code"] for line in bad} == {"invalid_output"}
        assert all("no JSON object or list" in line["error"]["message"] for line in bad)
        assert all(line["response"]["body"]["raycade"]["refused_replies"] == 2 for line in bad)
        assert "stopped by itself" in prompts(tmp_path, "log", "sort")
        [reason] = orjson.loads(prompts(tmp_path, "failures", "sort@2", "--json", "-c", "raycade.yaml"))
        assert reason["replies"] == 2 * len(bad)

        again = job.run("--prompt", "sort", "--redo", "prompt=sort@2")
    assert again.returncode == 0, again.stdout
    assert f"doing {len(bad)} rows again" in again.stdout
    assert job.out.read_bytes().startswith(good)
    assert {prompt_of_line(line) for line in job.lines()} == {"sort@1"}
    assert sorted(line["custom_id"] for line in job.lines()) == sorted(f"row-{number}" for number in range(600))
    assert job.failed() == []
