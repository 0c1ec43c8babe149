"""`raycade status` and the entries that it reads: who runs, who only left files behind, and what is told of them."""

import fcntl
import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from actors.observer.scene import ActorScene, BudgetScene, GatewayScene, JobScene, Scene, TierScene, plain
from runtime.running import Entry, Running, running_jobs, sums_file
from runtime.status import drawn, status

ENTRY = Entry("job-1", "run1", 4711, "/data/out.jsonl", 1000.0, "http://127.0.0.1:1")
OPEN = ActorScene("0", "open", "open", "HTTP 503, \x1b[31mno", 4.0, 26.0, 0, 0, 20, 1)
WELL = ActorScene("1", "closed", "closed", "", 65.0, None, 12, 3, 20, 0)


def config(folder: Path) -> str:
    file = folder / "raycade.yaml"
    tier = {"name": "a", "model": "m", "base_url": "http://127.0.0.1:1/v1", "price": {"prompt": 1, "completion": 1}}
    file.write_text(yaml.safe_dump({"state_dir": str(folder / "state"), "tiers": [tier]}))
    return str(file)


def _words(line: str) -> list[str]:
    return line.split()


def told(scene: Scene, age_s: float = 1.0) -> dict[str, object]:
    return {"age_s": age_s, **plain(scene)}


def text(scene: Scene, age_s: float = 1.0) -> str:
    console = Console(width=160, record=True, file=io.StringIO(), color_system=None)
    for part in drawn(ENTRY, told(scene, age_s), 1065.0):
        console.print(part)
    return console.export_text()


SCENE = Scene(
    jobs=(
        JobScene(
            "run1", "/out", 65.0, 40, 100, 0.4, 8.0, 7.5, 1, 2, 10, 999, 1_500_000, 3, ("no row has ended for 12 s",)
        ),
    ),
    tiers=(TierScene("premium", "gpt", 7, {"server": 2}, (OPEN, WELL)), TierScene("basic", "small", 0, {}, ())),
    budgets=(
        BudgetScene("all", "day", "usd", 50_000_000, 1_500_000, 250_000, 0, 61.0),
        BudgetScene("all", "hour", "tokens", None, 999, 0, 0, 61.0),
    ),
    halts=(("tier:premium", "by hand"),),
)


def test_a_gateway_is_told_with_the_sum_of_its_replicas() -> None:
    """What it does, and what its operator should know."""
    one = GatewayScene("one", 5.0, 7, 2, 1000, 1000, 1, 2, 3.5, 999, 1_500_000, 0, ("stopped the trial of p@2",))
    told = {"age_s": 1.0, **plain(SCENE._replace(jobs=())), "gateways": [plain(one), plain(one)]}
    entry = ENTRY._replace(kind="gateway", run="serve-1", output="http://127.0.0.1:8000/v1")
    console = Console(width=200, record=True, file=io.StringIO(), color_system=None)
    for part in drawn(entry, told, 1065.0):
        console.print(part)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[0] == "gateway serve-1  http://127.0.0.1:8000/v1, running 1 min 5 s, pid 4711"
    assert lines[1] == (
        "  7.0 requests/s over 2 replicas, 14 in hand (4 streams), 2,000 answered, 2 failed, 4 coalesced, 1,998 tokens, $3.00"
    )
    assert lines.count("  stopped the trial of p@2") == 1


def test_a_job_is_told_with_progress_tiers_and_budgets() -> None:
    lines = [line.rstrip() for line in text(SCENE).splitlines()]
    assert lines[0] == "job run1  /data/out.jsonl, running 1 min 5 s, pid 4711"
    assert lines[1] == (
        "  40 of 100 rows done (40%), 8 rows/s, 1 failed, 2 coalesced, 10 in flight, 999 tokens, $1.50, "
        "done in about 7.5 s, 3 wait for budget"
    )
    assert lines[2] == "  no row has ended for 12 s"
    assert lines[4].split() == _words("premium 0 open 5 s in 25 s 0/20 7 500s: 2 HTTP 503, [31mno")
    assert lines[5].split() == _words("1 closed 1 min 6 s 12/20 +3")
    assert lines[6].split() == ["basic", "starting", "0", "0"]
    assert "tier:premium is stopped (by hand)" in lines[7]
    assert lines[8] == "  all today: $1.50 of $50.00 (3%), $0.25 reserved, turns in 1 min"
    assert len(lines) == 10, "a budget without limit has no line"


def test_a_job_that_has_fallen_silent_is_said_to() -> None:
    assert "all of this was so 30 s ago" in text(SCENE, 30.0)


def test_nothing_running_is_one_line_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(config(tmp_path), as_json=False) == 0
    assert capsys.readouterr().out == f"nothing is running with state_dir {tmp_path / 'state'}\n"
    assert status(config(tmp_path), as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": []}


def test_a_job_whose_observer_is_away_is_still_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config(tmp_path)
    with Running(str(tmp_path / "state"), ENTRY) as running:
        running.found_at("http://127.0.0.1:9")
        assert status(file, as_json=False) == 0
        said = capsys.readouterr().out
        assert "job run1" in said
        assert "does not answer" in said
        assert status(file, as_json=True) == 0
        (job,) = json.loads(capsys.readouterr().out)["jobs"]
        assert (job["address"], job["status"]) == ("http://127.0.0.1:9", None)
    assert running_jobs(str(tmp_path / "state")) == []
    assert list((tmp_path / "state" / "running").iterdir()) == []


def test_what_a_dead_job_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "running"
    folder.mkdir()
    (folder / "job-0.json").write_text(json.dumps(ENTRY._replace(name="job-0")._asdict()))
    Path(sums_file(str(tmp_path), "job-0")).write_text("{}")
    with Running(str(tmp_path), ENTRY):
        assert [each.name for each in running_jobs(str(tmp_path))] == ["job-1"]
        assert sorted(path.name for path in folder.iterdir()) == ["job-1.json"]


def test_an_entry_is_locked_for_as_long_as_the_job_lives(tmp_path: Path) -> None:
    with (
        Running(str(tmp_path), ENTRY),
        open(tmp_path / "running" / "job-1.json") as file,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_state_dir_that_cannot_be_written_stops_no_job(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with Running(str(tmp_path / "state"), ENTRY) as running:
        running.found_at("http://127.0.0.1:9")
    assert running_jobs(str(tmp_path / "state")) == []
