"""Rows of a gateway's batch that name registered prompts: the desk as in test_gateway_desk.py, over a real registry."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from runtime.prompts import load_prompts, pick
from runtime.prompts_release import release
from tests.unit.test_flow import answer
from tests.unit.test_gateway_desk import front

SCHEMA = {"type": "object", "required": ["queue"], "properties": {"queue": {"type": "string"}}}


def version(folder: Path, number: int, name: str = "say", **more: Any) -> None:
    place = folder / "prompts" / name
    place.mkdir(parents=True, exist_ok=True)
    text = {"version": number, "user_template": f"v{number}: {{text}}", "defaults": {"max_tokens": 16}, **more}
    (place / f"v{number}.yaml").write_bytes(orjson.dumps(text))


def said(number: int, body: dict[str, Any]) -> Any:
    return answer(body["messages"][-1]["content"])


def row(number: int, prompt: str = "say", **more: Any) -> dict[str, Any]:
    extras = {"prompt": prompt, "variables": {"text": f"number {number}"}, **more.pop("raycade", {})}
    body = {"raycade": extras, **more}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def made_by(line: dict[str, Any]) -> str:
    return str(line["response"]["body"]["raycade"]["prompt"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2):
        version(tmp_path, number)
    release(str(tmp_path / "prompts"), "say", 1, {2: 0.3}, "try")
    return tmp_path


async def test_rows_get_versions_as_rows_of_raycade_batch_do(folder: Path) -> None:
    """By their custom_id, unless they name a version or a unit; what they say beside it goes before the prompt's defaults."""
    rows = [row(number) for number in range(100)]
    rows += [row(100, "say@2", max_tokens=9), row(101, raycade={"unit": "anna"}), row(102, messages=[])]
    plain = {"messages": [{"role": "user", "content": "plain"}], "max_tokens": 16}
    rows.append({**row(103), "body": plain})
    async with front(folder, said) as (desk, endpoint):
        seen = await desk.until(await desk.batch(rows), "completed")
        assert seen["request_counts"] == {"total": 104, "completed": 104, "failed": 0}
        lines = await desk.lines(seen["output_file_id"])
    units = {f"row-{number}": f"row-{number}" for number in range(103)} | {"row-101": "anna"}
    expected = {id: f"say@{pick('say', unit, 1, {2: 0.3})}" for id, unit in units.items()} | {"row-100": "say@2"}
    assert {id: made_by(line) for id, line in lines.items() if id != "row-103"} == expected
    assert set(expected.values()) == {"say@1", "say@2"}
    assert "prompt" not in lines["row-103"]["response"]["body"]["raycade"]
    for id, ref in expected.items():
        content = lines[id]["response"]["body"]["choices"][0]["message"]["content"]
        assert content == f"v{ref[-1]}: number {id[4:]}"
    assert not any("raycade" in body for body in endpoint.bodies)
    assert [body["max_tokens"] for body in endpoint.bodies if "number 100" in str(body["messages"])] == [9]


async def test_a_batch_keeps_the_release_that_it_began_with(folder: Path) -> None:
    """Whatever is released meanwhile, and over a restart of the gateway; the next batch has the new release."""
    rows = [row(number) for number in range(80)]
    async with front(folder, said, latency_s=0.05, batches={"window": 4}) as (desk, _):
        id = await desk.batch(rows)
        await desk.has_done(id, 8)
        release(str(folder / "prompts"), "say", 2, {}, "better")
    async with front(folder, said) as (desk, _):
        seen = await desk.until(id, "completed")
        lines = await desk.lines(seen["output_file_id"])
        expected = {f"row-{number}": f"say@{pick('say', f'row-{number}', 1, {2: 0.3})}" for number in range(80)}
        assert {id: made_by(line) for id, line in lines.items()} == expected
        seen = await desk.until(await desk.batch(rows[:9]), "completed")
        assert {made_by(line) for line in (await desk.lines(seen["output_file_id"])).values()} == {"say@2"}


@pytest.mark.parametrize(
    ("wrong", "code", "said_of_it"),
    [
        (row(1, "sing"), "unknown_prompt", "no prompt 'sing'; there are: draft, say"),
        (row(1, "../say"), "unknown_prompt", "no prompt '../say'"),
        (row(1, ".."), "unknown_prompt", "no prompt '..'"),
        (row(1, "say@7"), "unknown_version", "no version 7"),
        (row(1, "say@x"), "invalid_prompt", "NAME or NAME@VERSION"),
        (row(1, raycade={"variables": {}}), "missing_variable", "needs text"),
        (row(1, raycade={"variables": {"text": "a", "tone": "b"}}), "unknown_variable", "no version of prompt say has"),
        (row(1, messages=[{"role": "user", "content": "hi"}]), "not_allowed", "leave them out"),
        (row(1, raycade={"prompt": "draft"}), "no_release", "ask for draft@1"),
    ],
)
async def test_a_row_that_cannot_be_fails_by_itself(
    folder: Path, wrong: dict[str, Any], code: str, said_of_it: str
) -> None:
    """With the code that the same request would have been refused with, and without a path of ours."""
    version(folder, 1, "draft")
    async with front(folder, said) as (desk, endpoint):
        seen = await desk.until(await desk.batch([wrong, row(2)]), "completed")
        bad = await desk.lines(seen["error_file_id"])
        assert set(await desk.lines(seen["output_file_id"])) == {"row-2"}
    assert bad["row-1"]["error"]["code"] == code
    assert said_of_it in bad["row-1"]["error"]["message"]
    assert str(folder) not in str(bad)
    assert len(endpoint.bodies) == 1


async def test_an_edit_that_went_wrong_takes_no_running_prompt_away(folder: Path) -> None:
    """As over HTTP: what was right before is served on."""
    async with front(folder, said) as (desk, _):
        await desk.until(await desk.batch([row(1, "say@1")]), "completed")
        (folder / "prompts" / "say" / "v3.yaml").write_text("version: 3\nuser_template: '{oops'\n")
        seen = await desk.until(await desk.batch([row(1), row(2, "say@2")]), "completed")
        assert seen["request_counts"]["completed"] == 2


async def test_a_trial_that_a_batch_shows_to_be_worse_is_stopped(folder: Path) -> None:
    """The rows that come after get the stable version, here and everywhere."""
    for number in (1, 2):
        version(folder, number, "sort", schema=SCHEMA, structured={"retries": 0}, system=f"v{number}")
    release(str(folder / "prompts"), "sort", 1, {2: 0.5}, "try")

    def sorted_into(number: int, body: dict[str, Any]) -> Any:
        return answer('{"queue": "printers"}' if "v1" in body["messages"][0]["content"] else "a printer, I think")

    async with front(folder, sorted_into, batches={"window": 4}) as (desk, _):
        rows = [row(number, "sort") for number in range(200)]
        seen = await desk.until(await desk.batch(rows), "completed")
        good, bad = await desk.lines(seen["output_file_id"]), await desk.lines(seen["error_file_id"])
    assert {line["error"]["code"] for line in bad.values()} == {"invalid_output"}
    assert 0 < len(bad) < 50  # of some 100, had it gone on
    assert {made_by(line) for line in good.values()} == {"sort@1"}
    now = load_prompts(str(folder / "prompts")).release("sort")
    assert (now.trial, now.history[-1].action) == ({}, "stopped")
