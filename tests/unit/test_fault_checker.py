"""The matrix' checker sees what it is there to see: keys in any disguise, and rows that are lost, doubled or another's."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, quote_plus

import orjson
import pytest

from runtime.mock.content import echo
from tests.e2e.jobs import Job, chat
from tests.faults.checker import rows_wrong
from tests.faults.leaks import CANARIES, leaks
from tests.faults.scene import Fault

KEY = next(iter(CANARIES.values()))


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    (tmp_path / "job").mkdir()
    job = Job(tmp_path / "job", [{"name": "first", "base_url": "http://127.0.0.1:9/v1"}])
    job.rows(chat(number) for number in range(4))
    return SimpleNamespace(
        fault=Fault("any", "endpoint", rows=4), job=job, said="", codes=[0], ray_folder=tmp_path / "ray"
    )


@pytest.mark.parametrize(
    "disguise",
    [
        lambda text: text,
        json.dumps,
        lambda text: json.dumps(json.dumps(text)),
        quote,
        quote_plus,
        lambda text: base64.b64encode(f"Bearer {text}".encode()).decode(),
        lambda text: base64.b64encode(f"xBearer {text}, and more".encode()).decode(),
        lambda text: base64.urlsafe_b64encode(f"xxBearer {text}!".encode()).decode(),
        lambda text: text.encode().hex(),
        lambda text: repr(text.encode()),
        lambda text: text.replace('"', "&quot;"),
    ],
)
def test_a_key_is_found_in_any_disguise(scene: Any, disguise: Any) -> None:
    """In a job's file, in a log of Ray and in what was printed; and not where there is none."""
    log = scene.ray_folder / "session" / "worker-1.err"
    log.parent.mkdir(parents=True)
    log.write_text("all is well\n")
    searched: dict[Path, int] = {}
    assert leaks(scene, searched) == []
    with log.open("a") as file:
        file.write(f"Authorization: {disguise(f'{KEY}')}\n")
    assert any("worker-1.err" in place for place in leaks(scene, searched))
    scene.said = f"oops {disguise(KEY)}"
    assert any("standard output" in place for place in leaks(scene, searched))


def line(number: int, to: int | None = None) -> bytes:
    """An answer line of row `number`; `to`: the row whose question it answers."""
    question = chat(number if to is None else to)["body"]["messages"][-1]["content"]
    body = {"choices": [{"message": {"content": f"{echo(question)} and so on"}}]}
    return orjson.dumps({"custom_id": f"row-{number}", "response": {"body": body}, "error": None}) + b"\n"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([line(0), line(1), line(2), line(3)], ""),
        ([line(0), line(1), line(2)], "1 rows are lost"),
        ([line(0), line(1), line(2), line(3), line(3)], "1 rows stand twice"),
        ([line(0), line(1), line(2), line(3, to=2)], "1 rows have another's answer"),
    ],
)
def test_lost_doubled_and_mixed_up_rows_are_found(scene: Any, lines: list[bytes], words: str) -> None:
    """Each is told; a job that did all its rows is not complained of."""
    scene.job.out.write_bytes(b"".join(lines))
    wrong = rows_wrong(scene)
    assert any(words in each for each in wrong) if words else not wrong


def test_a_row_that_may_not_fail_is_found(scene: Any) -> None:
    """An error line is only right with a code that the table allows."""
    scene.job.out.write_bytes(b"".join([line(0), line(1), line(2)]))
    failed = {"custom_id": "row-3", "response": None, "error": {"code": "timeout", "message": "m"}}
    scene.job.errors.write_bytes(orjson.dumps(failed) + b"\n")
    assert any("rows failed" in each for each in rows_wrong(scene))
    scene.fault = Fault("any", "endpoint", rows=4, failed=("timeout",))
    assert not rows_wrong(scene)
