"""Registered prompts over HTTP: which version a request gets, what is refused, and how a bad trial ends by itself."""

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from actors.errors import ConfigError
from actors.messages import Request
from actors.settings import TierSettings
from runtime.config import Config, PromptSettings
from runtime.gateway.asks import Asks
from runtime.gateway.errors import HttpError
from runtime.gateway.keys import Key
from runtime.gateway.prompts import Prompts, Stopped
from runtime.prompts import load_prompts
from runtime.prompts_release import release, rollback
from runtime.serve import with_prompts

TIERS = [
    TierSettings.model_validate({"name": name, "model": f"m-{name}", "base_url": "http://x", "quality": quality})
    for name, quality in (("best", "high"), ("cheap", "basic"))
]
SCHEMA = {"type": "object", "required": ["queue"], "properties": {"queue": {"type": "string"}}}
ME = Key("k")


def write(root: Path, number: int, name: str = "p", **more: Any) -> None:
    place = root / name
    place.mkdir(exist_ok=True)
    text = {"version": number, "user_template": f"v{number}: {{text}}", "system": "Be brief.", **more}
    (place / f"v{number}.yaml").write_bytes(orjson.dumps(text))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2):
        write(tmp_path, number, defaults={"max_tokens": 50, "top_p": 0.5}, temperature=0.25)
    release(str(tmp_path), "p", 1, {}, "first")
    return tmp_path


def made(folder: Path, **trial: Any) -> tuple[Prompts, Asks]:
    prompts = Prompts(PromptSettings.model_validate({"dir": str(folder), "trial": trial}))
    return prompts, Asks(TIERS, min_quality="basic", deadline_s=60.0, share=True, prompts=prompts)


def read(asks: Asks, prompt: str = "p", key: Key = ME, path: str = "/chat/completions", **fields: Any) -> Request:
    extras = {"prompt": prompt, "variables": {"text": "hello"}, **fields.pop("raycade", {})}
    body = {"model": "auto", "raycade": extras, **fields}
    return asks.read("id", path, orjson.dumps(body), {}, key)


def said(ask: Request) -> str:
    text: str = orjson.loads(ask.body)["messages"][-1]["content"]
    return text


def test_a_prompt_makes_the_messages(folder: Path) -> None:
    """With its defaults, except where the caller says otherwise; its version stands in the key of equal requests."""
    _, asks = made(folder)
    ask = read(asks, messages=[], max_completion_tokens=9, top_p=None, temperature=1, user="u")
    assert orjson.loads(ask.body) == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "v1: hello"}],
        "max_completion_tokens": 9,
        "top_p": 0.5,
        "temperature": 1,
        "user": "u",
    }
    assert (ask.prompt, ask.key) == ("p@1", "k")
    other = read(asks, "p@2")
    assert (other.prompt, said(other)) == ("p@2", "v2: hello")
    plain = asks.read("id", "/chat/completions", orjson.dumps(orjson.loads(ask.body) | {"model": "auto"}), {}, ME)
    assert plain.body == ask.body
    assert plain.digest != ask.digest


def test_a_release_and_a_rollback_hold_from_the_next_request_on(folder: Path) -> None:
    """Nothing is waited for and nothing restarted; a prompt that is new is found too."""
    _, asks = made(folder)
    assert read(asks).prompt == "p@1"
    release(str(folder), "p", 2, {}, "")
    assert read(asks).prompt == "p@2"
    rollback(str(folder), "p", "bad")
    assert read(asks).prompt == "p@1"
    write(folder, 1, "q")
    assert read(asks, "q@1").prompt == "q@1"


def test_an_edit_that_went_wrong_takes_nothing_away_and_is_told(folder: Path) -> None:
    prompts, asks = made(folder)
    (folder / "p" / "v3.yaml").write_text("version: 3\nuser_template: '{oops'\n")
    assert read(asks).prompt == "p@1"
    assert "v3.yaml:2" in prompts.trouble[0]
    shutil.rmtree(folder / "p")
    assert read(asks).prompt == "p@1"


def test_the_same_request_and_the_same_unit_get_the_same_version(folder: Path) -> None:
    """About as many as the weight says are on trial, and a request that is sent again is not on another side."""
    release(str(folder), "p", 1, {2: 0.3}, "")
    _, asks = made(folder)
    texts = [{"raycade": {"variables": {"text": str(number)}}} for number in range(400)]
    first = [read(asks, **each).prompt for each in texts]
    assert first == [read(asks, **each).prompt for each in texts]
    assert 80 <= first.count("p@2") <= 160
    of_one = {read(asks, raycade={"unit": "anna", "variables": {"text": str(number)}}).prompt for number in range(50)}
    assert len(of_one) == 1


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": "nobody"}, "unknown_prompt", "raycade.prompt"),
        ({"prompt": "p@7"}, "unknown_version", "raycade.prompt"),
        ({"prompt": "p@x"}, "invalid_prompt", "raycade.prompt"),
        ({"prompt": "../p"}, "unknown_prompt", "raycade.prompt"),
        ({"prompt": "draft"}, "no_release", "raycade.prompt"),
        ({"raycade": {"variables": {}}}, "missing_variable", "raycade.variables.text"),
        ({"raycade": {"variables": {"text": "a", "txet": "b"}}}, "unknown_variable", "raycade.variables.txet"),
        ({"raycade": {"variables": ["a"]}}, "invalid_field", "raycade.variables"),
        ({"raycade": {"prompt": None}}, "missing_field", "raycade.prompt"),
        ({"raycade": {"unit": ""}}, "invalid_field", "raycade.unit"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "not_allowed", "messages"),
        ({"path": "/completions"}, "not_supported", "raycade.prompt"),
        ({"prompt": "form", "response_format": {"type": "json_object"}}, "not_allowed", "response_format"),
        ({"prompt": "form", "n": 2}, "not_allowed", "n"),
        ({"prompt": "dear", "key": Key("poor", ("cheap",))}, "not_allowed", "raycade.prompt"),
        ({"prompt": "lost"}, "not_allowed", "raycade.prompt"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(folder: Path, fields: dict[str, Any], code: str, param: str) -> None:
    """400 in OpenAI's shape, before anything is spent; and nothing is told of tiers that the key may not use."""
    write(folder, 1, "draft")
    for name, more in (("form", {"schema": SCHEMA}), ("dear", {"model": "best"}), ("lost", {"model": "gone"})):
        write(folder, 1, name, **more)
        release(str(folder), name, 1, {}, "")
    _, asks = made(folder)
    with pytest.raises(HttpError) as refused:
        read(asks, **fields)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)
    assert "best" not in refused.value.message


def test_a_variable_that_only_another_version_uses_is_no_mistake(folder: Path) -> None:
    """Else a rollback would make callers wrong who give what the newer version wants."""
    write(folder, 3, user_template="v3: {text} {tone}")
    _, asks = made(folder)
    assert said(read(asks, raycade={"variables": {"text": "a", "tone": "b"}})) == "v1: a"


def test_a_prompt_with_a_schema_asks_for_it_streamed_or_not(folder: Path) -> None:
    """Both share a call, since what is streamed is judged first."""
    write(folder, 1, "form", schema=SCHEMA, min_quality="high", structured={"retries": 1, "escalate": True})
    _, asks = made(folder)
    plain, stream = read(asks, "form@1"), read(asks, "form@1", stream=True, stream_options={"include_usage": True})
    for ask in (plain, stream):
        assert orjson.loads(ask.schema) == SCHEMA
        assert (ask.reply_retries, ask.escalate, ask.min_quality) == (1, True, 2)
    assert (plain.stream, stream.stream) == (False, True)
    assert plain.digest == stream.digest


def test_without_a_folder_no_prompts_are_served_until_there_is_one(tmp_path: Path) -> None:
    """A replica that starts while a draft is broken serves the others, and tells of it."""
    _, asks = made(tmp_path / "prompts")
    with pytest.raises(HttpError, match="no prompts are served here"):
        read(asks)
    (tmp_path / "prompts").mkdir()
    write(tmp_path / "prompts", 1)
    assert read(asks, "p@1").prompt == "p@1"
    write(tmp_path / "prompts", 2, user_template="{oops")
    write(tmp_path / "prompts", 1, "q")
    prompts, asks = made(tmp_path / "prompts")
    assert read(asks, "q@1").prompt == "q@1"
    assert "v2.yaml" in prompts.trouble[0]


# ---- trials


def shares(prompts: Prompts, asks: Asks, worse: int = 2, most: int = 400) -> list[Stopped]:
    """Requests whose answers are refused when they are of version `worse`, until a trial is to be stopped."""
    for number in range(most):
        ref = read(asks, raycade={"variables": {"text": f"{number}"}}).prompt
        if stopped := prompts.ended(ref, int(ref == f"p@{worse}"), "", 0.001):
            return stopped
    return []


def test_a_trial_that_is_worse_is_stopped(folder: Path) -> None:
    """From that moment on nobody gets it here, though release.yaml does not say so yet; then it does, with the reason."""
    release(str(folder), "p", 1, {2: 0.5}, "try")
    prompts, asks = made(folder)
    (stopped,) = shares(prompts, asks)
    assert (stopped.name, stopped.version) == ("p", 2)
    assert shares(prompts, asks) == []
    assert {read(asks, raycade={"unit": str(number)}).prompt for number in range(50)} == {"p@1"}
    assert read(asks, "p@2").prompt == "p@2", "who asks for the version by its number gets it"
    assert prompts.stop(stopped).startswith("stopped the trial of p@2: its answers were refused in ")
    now = load_prompts(str(folder)).release("p")
    assert (now.stable, now.trial, now.history[-1].action) == (1, {}, "stopped")


def test_where_release_yaml_cannot_be_written_the_trial_ends_in_this_gateway(folder: Path) -> None:
    """And somebody who releases it again is obeyed: what was seen before is not held against it."""
    release(str(folder), "p", 1, {2: 0.5}, "try")
    prompts, asks = made(folder)
    (stopped,) = shares(prompts, asks)
    away = folder.with_name("away")
    folder.rename(away)
    assert "in this gateway only" in prompts.stop(stopped)
    assert {read(asks, raycade={"unit": str(number)}).prompt for number in range(50)} == {"p@1"}
    away.rename(folder)
    release(str(folder), "p", 1, {2: 0.4}, "again")
    assert {read(asks, raycade={"unit": str(number)}).prompt for number in range(50)} == {"p@1", "p@2"}
    assert prompts.ended("p@2", 0, "", 0.001) == []


def test_what_was_seen_of_a_version_stays_while_its_weight_grows(folder: Path) -> None:
    """Half of the evidence before and half after the change: enough together, as without the change."""
    release(str(folder), "p", 1, {2: 0.5}, "try")
    alone, asks = made(folder)
    read(asks)
    needed = 0
    while not alone.ended("p@2", 1, "", 0.0) and not alone.ended("p@1", 0, "", 0.0):
        needed += 1
    prompts, asks = made(folder)
    read(asks)
    for seen in range(needed):
        if seen == needed // 2:
            release(str(folder), "p", 1, {2: 0.6}, "more")
            read(asks)
        assert prompts.ended("p@2", 1, "", 0.0) == prompts.ended("p@1", 0, "", 0.0) == []
    assert prompts.ended("p@2", 1, "", 0.0) or prompts.ended("p@1", 0, "", 0.0)


@pytest.mark.parametrize("trial", [{"stop": False}, {"alpha": 1e-300}])
def test_a_trial_goes_on_where_it_is_told_to_or_nobody_can_be_sure(folder: Path, trial: dict[str, Any]) -> None:
    release(str(folder), "p", 1, {2: 0.5}, "try")
    assert shares(*made(folder, **trial), most=200) == []


# ---- where they are


def test_a_gateway_starts_with_prompts_that_it_was_told_of_only_if_they_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that merely has the usual name is told of and no hindrance; every process gets the same place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts" / "notes").mkdir(parents=True)
    config = Config(tiers=TIERS)
    assert with_prompts(config).prompts.dir == str(tmp_path / "prompts")
    assert "has no version" in capsys.readouterr().err
    for named in ("prompts", "nowhere"):
        with pytest.raises(ConfigError, match=r"no version|no such folder"):
            with_prompts(config.model_copy(update={"prompts": PromptSettings(dir=named)}))
