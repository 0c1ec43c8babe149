"""`raycade prompts ...` as a user sees it, and the figures of a report."""

import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from actors.errors import ConfigError
from actors.messages import Request
from actors.router.failures import FailureLog
from runtime.cli import app
from runtime.prompts import load_prompts
from runtime.prompts_report import Mean, figures, mean_interval, wilson


def line(number: int, prompt: str, failed: bool = False, **extra: Any) -> bytes:
    made = {"prompt": prompt, "attempts": 1, "cost_usd": 0.001, "latency_s": 0.5, **extra}
    body = {"usage": {"total_tokens": 100}, "raycade": made}
    error = {"code": "invalid_output", "message": "x"} if failed else None
    response = {"status_code": 200, "request_id": "r", "body": body}
    return orjson.dumps({"id": f"i_{number}", "custom_id": f"r{number}", "response": response, "error": error}) + b"\n"


class TestFigures:
    """What is counted, and how sure it is."""

    @pytest.mark.parametrize(
        ("count", "of", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 50, 0.0435, 0.2136)]
    )
    def test_wilson_as_in_the_books(self, count: int, of: int, low: float, high: float) -> None:
        """Tabled values; never outside of 0 and 1, and nothing of nothing."""
        found = wilson(count, of)
        assert found is not None
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
        assert wilson(0, 0) is None

    @pytest.mark.parametrize(("n", "t"), [(2, 12.706), (4, 3.182), (6, 2.571), (11, 2.228), (31, 2.042), (1001, 1.962)])
    def test_students_t_as_in_the_books(self, n: int, t: float) -> None:
        """The half width over the standard error is the tabled quantile."""
        values = Mean()
        for number in range(n):
            values.add(number % 2)
        found = mean_interval(values)
        assert found is not None
        error = (values.squares / (n - 1) / n) ** 0.5
        assert (found.high - found.value) / error == pytest.approx(t, abs=0.005)
        assert mean_interval(Mean(1, 5.0)) is None

    def test_intervals_cover_what_they_should(self) -> None:
        """Of 400 samples of 30, about 95% of the intervals hold the true mean and share."""
        rng = random.Random(3)
        means = shares = 0
        for _ in range(400):
            values = Mean()
            hits = 0
            for _ in range(30):
                values.add(rng.gauss(5, 2))
                hits += rng.random() < 0.2
            mean, share = mean_interval(values), wilson(hits, 30)
            assert mean is not None
            assert share is not None
            means += mean.low <= 5 <= mean.high
            shares += share.low <= 0.2 <= share.high
        assert 0.91 < means / 400 < 0.99
        assert 0.91 < shares / 400 < 0.99

    def test_each_version_has_its_own(self, tmp_path: Path) -> None:
        """Shared rows cost and prove nothing; re-asked replies count with all their tokens; unsent rows have no rates."""
        out = tmp_path / "out.jsonl"
        unsent = {"id": "i", "custom_id": "x", "response": None, "error": {"code": "deadline", "message": ""}}
        out.write_bytes(
            line(0, "p@1")
            + line(1, "p@1", coalesced=True, cost_usd=0)
            + line(2, "p@2", attempts=3, refused_replies=2, tokens=300, cost_usd=0.003)
            + line(3, "p@2", failed=True, attempts=3, refused_replies=3, tokens=310)
            + orjson.dumps({**unsent, "raycade": {"prompt": "p@2", "attempts": 0, "cost_usd": 0}})
            + b"\n"
            + orjson.dumps(unsent)
            + b'\n{"torn'
        )
        found = figures([str(out), str(tmp_path / "none")])
        one, two = found["p@1"], found["p@2"]
        assert (one.rows, one.shared, one.cost_usd.count, one.tokens.mean) == (2, 1, 1, 100)
        assert (two.rows, two.failed, two.parse_failures, two.retried, two.attempts.count) == (3, 2, 2, 2, 2)
        assert two.tokens.mean == 305


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A command, in a folder with a prompt and no raycade.yaml: exit code and what was said."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        place = tmp_path / "prompts" / "p"
        place.mkdir(parents=True, exist_ok=True)
        text = f"version: {number}\ndescription: greets\nsystem: Be kind.\nuser_template: 'Say {{word}} {number}.'\n"
        (place / f"v{number}.yaml").write_text(text)

    def command(*words: str) -> str:
        result = CliRunner().invoke(app, ["prompts", *words])
        if isinstance(result.exception, ConfigError):
            return str(result.exception)
        assert result.exit_code == 0, result.output
        return result.output

    return command


class TestCommands:
    """raycade prompts list, show, diff, release, rollback, log, failures, report."""

    def test_a_prompts_life(self, run) -> None:
        """Released, tried, rolled back; each step in one line, all of them in the log."""
        assert "no release.yaml" in run("show", "p")
        assert run("release", "p", "--stable", "1", "--reason", "first") == "p: stable is version 1, nothing on trial\n"
        said = run("release", "p", "--trial", "2=10%", "--reason", "kinder words")
        assert said == "p: stable is version 1, on trial: 2 (0.1)\n"
        assert load_prompts("prompts").release("p").trial == {2: 0.1}
        [listed] = [row for row in run("list").splitlines() if row.lstrip().startswith("p ")]
        assert listed.split() == ["p", "1", "2", "(0.1)", "1,", "2", "greets"]
        assert run("rollback", "p", "--reason", "unkind") == "p: stable is version 1, nothing on trial\n"
        last, middle, first = run("log", "p").splitlines()
        assert last.endswith("rollback  stable 1: unkind")
        assert middle.endswith("release   stable 1, 2 on trial (0.1): kinder words")
        assert first.endswith("release   stable 1: first")

    def test_versions_are_shown_and_compared(self, run) -> None:
        """Texts as they will be sent, and only what differs."""
        assert "[system]\nBe kind.\n\n[user]\nSay {word} 2." in run("show", "p@2")
        changed = [row for row in run("diff", "p", "1", "2").splitlines() if row[:1] in "+-" and "digest" not in row]
        assert changed == ["--- p@1", "+++ p@2", "-version: 1", "+version: 2", "-Say {word} 1.", "+Say {word} 2."]

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["show", "q"], "there is no prompt 'q'; there are: p"),
            (["show", "../p"], "a prompt's name has letters"),
            (["show", "p@9"], "has no version 9; there are: 1, 2"),
            (["diff", "p", "1", "9"], "has no version 9"),
            (["release", "p"], "say what is to be live"),
            (["release", "p", "--stable", "1", "--trial", "2"], "expected VERSION=SHARE such as 3=0.1"),
            (["release", "p", "--stable", "1", "--trial", "2=1.5"], "expected VERSION=SHARE"),
            (["release", "p", "--stable", "1", "--trial", "2=.1", "--trial", "2=.2"], "each version once"),
            (["rollback", "p"], "no earlier release"),
            (["log", "p"], "no release.yaml"),
            (["report", "nothing.jsonl"], "there is no such run"),
            (["list", "-c", "nothing.yaml"], "there is no such file"),
        ],
    )
    def test_mistakes_are_one_line(self, run, words: list[str], expected: str) -> None:
        """And change nothing."""
        said = run(*words)
        assert expected in said
        assert "\n" not in said
        assert not Path("prompts/p/release.yaml").exists()

    def test_a_report_stands_side_by_side(self, run) -> None:
        """The versions in columns, with what they may truly be."""
        Path("out.jsonl").write_bytes(
            b"".join(line(n, f"p@{1 + n % 2}", refused_replies=n % 4 == 1) for n in range(40))
        )
        said = run("report", "out.jsonl")
        [failures] = [row for row in said.splitlines() if "parse failures" in row]
        assert failures.split() == [
            "parse",
            "failures",
            "0.0%",
            "(0.0%",
            "to",
            "16.1%)",
            "50.0%",
            "(29.9%",
            "to",
            "70.1%)",
        ]
        plain = orjson.loads(run("report", "out.jsonl", "--json"))
        assert plain["p@2"]["parse_failures"]["value"] == 0.5
        Path("out.jsonl").write_bytes(b'{"custom_id": 1}\nnot JSON\n')
        assert run("report", "out.jsonl") == "out.jsonl:2: is no line of a batch's output"

    def test_failures_are_grouped_by_reason(self, run) -> None:
        """However the values differ; the most frequent first, each with its last reply."""
        log = FailureLog(".raycade")
        for number in range(6):
            request = Request(f"r{number}", "/c", b"{}", b"", 1, None, prompt=f"p@{1 + number % 2}")
            log.write(request, "cheap", f"reply {number}", [f'$.n[{number}]: the value is too long, found "v{number}"'])
        log.write(request._replace(prompt="q@1"), "cheap", "prose", ["the reply holds no JSON object or list"])
        said = run("failures", "p")
        assert said.count(" x ") == 1
        assert "6 x $.n[5]: the value is too long" in said
        assert "p@1 3, p@2 3; tiers cheap" in said
        assert "reply 5" in said
        assert "prose" not in said
        assert "3 x" in run("failures", "p@2")
        assert [reason["replies"] for reason in orjson.loads(run("failures", "--json"))] == [6, 1]
