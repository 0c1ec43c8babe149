"""runtime/client_parse.py: an answer is asked for until the caller's own class takes it, by the rules of every reply."""

from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from pydantic import BaseModel, field_validator

from actors.errors import RequestFailed
from actors.messages import Amount, Attempt, Request, Result, Usage
from actors.router.failures import FailureLog
from runtime.client_parse import parse
from runtime.schemas import schema_of


class City(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _there(cls, name: str) -> str:
        if name == "Atlantis":
            raise ValueError("it has sunk")
        return name


BODY = orjson.dumps({"messages": [{"role": "user", "content": "Which city?"}]})


class Router:
    """Answers from a list: the tier, the city it names, and how many replies it has refused before."""

    def __init__(self, *answers: tuple[str, str, int]) -> None:
        self.answers = list(answers)
        self.asked: list[Request] = []

    async def __call__(self, request: Request) -> Result:
        self.asked.append(request)
        tier, city, refused = self.answers.pop(0)
        value = orjson.dumps({"name": city})
        message = {"role": "assistant", "content": value.decode()}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
        body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        attempts = (Attempt(tier, 0, "ok", 200, 0.1),) * (refused + 1)
        cost = Amount(10, 5)
        return Result(orjson.dumps(body), 200, tier, attempts, Usage(5, 5), cost, parsed=value, refused_replies=refused)


def asking(retries: int, escalate: bool = False) -> Request:
    return Request(
        "id",
        "/chat/completions",
        BODY,
        b"digest",
        prompt_bound_tokens=100,
        max_tokens=16,
        start_tier=0,
        min_quality=0,
        deadline_s=60.0,
        schema=schema_of(City),
        reply_retries=retries,
        escalate=escalate,
    )


async def ask(router: Router, request: Request, folder: Path, tiers: Sequence[str] = ("best", "good", "cheap")) -> City:
    completion = await parse(City, request, router, tiers, FailureLog(str(folder)))
    city = completion.choices[0].message.parsed
    assert city is not None
    return city


async def test_a_reply_that_the_class_refuses_is_asked_for_again_with_the_reason(tmp_path: Path) -> None:
    """At the tier that answered, as an ask of its own, which costs what it costs; what was refused is on record."""
    router = Router(("good", "Atlantis", 0), ("good", "Bonn", 0))
    completion = await parse(City, asking(2), router, ["best", "good"], FailureLog(str(tmp_path)))
    assert completion.choices[0].message.parsed == City(name="Bonn")
    told = completion.model_extra["raycade"]  # type: ignore[index]
    assert (told["attempts"], told["refused_replies"], told["cost_usd"]) == (2, 1, pytest.approx(10e-6))
    second = router.asked[1]
    assert (second.start_tier, second.digest) == (1, b"")
    said = orjson.loads(second.body)["messages"]
    assert said[1]["content"] == '{"name":"Atlantis"}'
    assert "name: Value error, it has sunk" in said[2]["content"]
    [line] = [orjson.loads(line) for line in (tmp_path / "failures.jsonl").read_bytes().splitlines()]
    assert (line["tier"], line["errors"]) == ("good", ["name: Value error, it has sunk"])


async def test_tries_are_counted_together_whoever_refused(tmp_path: Path) -> None:
    """Two refused by the router and one by the class: of three retries that leaves the last, and of two none."""
    router = Router(("best", "Atlantis", 2), ("best", "Bonn", 0))
    assert (await ask(router, asking(3), tmp_path)).name == "Bonn"
    assert [request.reply_retries for request in router.asked] == [3, 0]
    router = Router(("best", "Atlantis", 2))
    with pytest.raises(RequestFailed, match=r"asked 3 times: name: Value error, it has sunk") as refused:
        await ask(router, asking(2), tmp_path)
    assert (refused.value.kind, len(refused.value.attempts)) == ("invalid_output", 3)


async def test_once_at_the_same_tier_and_then_up(tmp_path: Path) -> None:
    """With `escalate`, as for what a schema refuses."""
    router = Router(("cheap", "Atlantis", 0), ("cheap", "Atlantis", 0), ("good", "Atlantis", 0), ("best", "Bonn", 0))
    await ask(router, asking(5, escalate=True), tmp_path)
    assert [request.start_tier for request in router.asked] == [0, 2, 1, 0]
