"""Asking for structure: each tier in its own way, again with what was wrong, and never an answer that is none."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from actors.messages import Failure, Request, Result
from actors.router.failures import FailureLog
from actors.router.structured import Validator
from tests.unit.test_flow import Endpoint, answer, error, house, timed

SCHEMA = b'{"type":"object","properties":{"queue":{"type":"string"}},"required":["queue"]}'
RIGHT = '{"queue": "billing"}'
PROSE = "I think it is billing."


def said(body: dict[str, Any]) -> str:
    """The system message."""
    return "".join(message["content"] for message in body["messages"] if message["role"] == "system")


def logged(folder: Path, name: str = "failures.jsonl") -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / name).read_bytes().splitlines()]


@timed
async def test_each_tier_is_asked_in_its_own_way(tmp_path: Path) -> None:
    """One request falls from a native tier to one that needs words: each gets its own demand and not the other's."""
    endpoints = {"a": Endpoint(lambda n, b: error(500)), "b": Endpoint(lambda n, b: answer(RIGHT))}
    async with house(tmp_path, endpoints, structured={"a": "native"}) as made:
        done = await made.ask(schema=SCHEMA)
    assert isinstance(done, Result)
    native, words = endpoints["a"].bodies[0], endpoints["b"].bodies[0]
    assert native["response_format"]["json_schema"]["schema"] == orjson.loads(SCHEMA)
    assert not said(native)
    assert SCHEMA.decode() in said(words)
    assert "response_format" not in words


@timed
async def test_a_tier_that_does_not_know_response_format_gets_words_from_then_on(tmp_path: Path) -> None:
    """Its 400 costs one call and no row; the next row is asked in words at once."""

    def reply(number: int, body: dict[str, Any]) -> Any:
        return error(400, "response_format is not supported") if "response_format" in body else answer(RIGHT)

    endpoint = Endpoint(reply)
    async with house(tmp_path, {"a": endpoint}, structured={"a": "native"}) as made:
        both = [made.ask(number, schema=SCHEMA) for number in range(2)]  # both are sent before either has an answer
        done = [*[await one for one in both], await made.ask(2, schema=SCHEMA)]
    assert all(isinstance(one, Result) for one in done)
    assert ["response_format" in body for body in endpoint.bodies] == [True, True, False, False, False]


@timed
async def test_a_wrong_schema_is_the_requests_own_fault(tmp_path: Path) -> None:
    """One bad schema does not take the native way from every other request of the tier."""
    endpoint = Endpoint(lambda n, b: error(400, "Invalid schema for response_format 'answer': In context=()"))
    async with house(tmp_path, {"a": endpoint}, structured={"a": "native"}) as made:
        done = [await made.ask(number, schema=SCHEMA) for number in range(2)]
    assert [one.kind for one in done if isinstance(one, Failure)] == ["bad_request", "bad_request"]
    assert all("response_format" in body for body in endpoint.bodies)


@timed
async def test_a_requests_own_format_goes_on_as_it_came(tmp_path: Path) -> None:
    """Its name and `strict` are its own; at a tier without it the schema is put in words."""
    own = b'{"type":"json_schema","json_schema":{"name":"mine","schema":%s,"strict":true}}' % SCHEMA
    endpoints = {"a": Endpoint(lambda n, b: error(500)), "b": Endpoint(lambda n, b: answer(RIGHT))}
    async with house(tmp_path, endpoints, structured={"a": "native"}) as made:
        done = await made.ask(schema=SCHEMA, response_format=own)
    assert isinstance(done, Result)
    assert endpoints["a"].bodies[0]["response_format"] == orjson.loads(own)
    assert "response_format" not in endpoints["b"].bodies[0]


@timed
async def test_a_tool_call_is_an_answer_only_to_whom_asked_for_tools(tmp_path: Path) -> None:
    """With a format of its own a request may have tools too; a prompt's schema is not satisfied by one."""
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]}
    whole = answer()
    called = whole._replace(
        body=orjson.dumps(
            {**orjson.loads(whole.body), "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
        )
    )
    endpoint = Endpoint(lambda n, b: called)
    async with house(tmp_path, {"a": endpoint}) as made:
        theirs = await made.ask(schema=SCHEMA, response_format=b'{"type":"json_schema"}')
        ours = await made.ask(schema=SCHEMA)
    assert isinstance(theirs, Result)
    assert theirs.parsed == b""
    assert isinstance(ours, Failure)
    assert ours.kind == "invalid_output"


@timed
async def test_again_at_the_same_tier_and_then_up(tmp_path: Path) -> None:
    """A row that begins at the cheap tier: twice there, then one better at a time, and at the best it stays."""
    asked: list[str] = []

    def wrong(name: str) -> Endpoint:
        return Endpoint(lambda n, b: (asked.append(name), answer(PROSE))[1])

    endpoints = {name: wrong(name) for name in ("best", "good", "cheap")}
    async with house(tmp_path, endpoints) as made:
        await made.ask(schema=SCHEMA, start_tier=2, reply_retries=4, escalate=True)
        assert asked == ["cheap", "cheap", "good", "best", "best"]
        asked.clear()
        await made.ask(1, schema=SCHEMA, start_tier=2, reply_retries=3)
        assert asked == ["cheap"] * 4
        asked.clear()
        await made.ask(2, schema=SCHEMA, reply_retries=0)
        assert asked == ["best"]


@timed
async def test_what_was_refused_is_counted_paid_for_and_on_record(tmp_path: Path) -> None:
    """The answer says how many replies came before it; the log has each with its reasons, without keys."""
    secret = "sk-" + "a1B2" * 8
    replies = [f"my key is {secret}", '{"queue": 5}', RIGHT]
    endpoint = Endpoint(lambda n, b: answer(replies[n - 1]))
    async with house(tmp_path, {"a": endpoint}) as made:
        done = await made.ask(schema=SCHEMA, prompt="sort@3")
    assert isinstance(done, Result)
    assert (done.refused_replies, done.cost.tokens, done.parsed) == (2, 45, RIGHT.encode())
    lines = logged(tmp_path)
    assert [(line["prompt"], line["tier"], line["id"]) for line in lines] == [("sort@3", "a", "r0")] * 2
    assert lines[0]["errors"] == ["the reply holds no JSON object or list"]
    assert lines[1]["errors"][0].startswith('$.queue: the value is not of type "string", found 5')
    assert secret not in (tmp_path / "failures.jsonl").read_text()


@timed
async def test_no_time_for_another_try_is_told_with_the_reasons(tmp_path: Path) -> None:
    """The deadline ends the asking; the row's error is what was wrong with its last reply."""
    endpoint = Endpoint(lambda n, b: answer(PROSE), latency_s=0.7)
    async with house(tmp_path, {"a": endpoint}) as made:
        done = await made.ask(schema=SCHEMA, deadline_s=1.0)
    assert isinstance(done, Failure)
    assert done.kind == "invalid_output"
    assert "no JSON object" in done.message
    assert "not asked again" in done.message
    assert PROSE.encode() in done.body
    assert done.cost.tokens >= 15


@timed
async def test_the_limit_of_one_request_ends_the_asking_too(tmp_path: Path) -> None:
    """Re-asking is paid for by the same request, so its budget bounds it."""
    endpoint = Endpoint(lambda n, b: answer(PROSE, prompt=100, completion=10))
    async with house(tmp_path, {"a": endpoint}, budget={"tokens": {"per_request": 500}}) as made:
        done = await made.ask(schema=SCHEMA, reply_retries=9, prompt_bound_tokens=150)
    assert isinstance(done, Failure)
    assert done.kind == "invalid_output"
    assert "not asked again" in done.message
    assert len(endpoint.bodies) < 5
    assert done.cost.tokens <= 500


CYCLE = [
    f"```json\n{RIGHT}\n```",
    f"Sure, here is the JSON:\n{RIGHT}\nAnything else?",
    RIGHT[:12],
    '{"queue": 7}',
    RIGHT,
]


@timed
async def test_of_answers_right_and_wrong_in_turn_every_right_one_is_taken(tmp_path: Path) -> None:
    """Fenced, prefixed, truncated, wrong-typed, right: with no retries three of five rows succeed, with them all do."""
    endpoint = Endpoint(lambda n, b: answer(CYCLE[(n - 1) % 5]))
    async with house(tmp_path, {"a": endpoint}) as made:
        once = [await made.ask(number, schema=SCHEMA, reply_retries=0) for number in range(100)]
        assert [isinstance(one, Result) for one in once] == [True, True, False, False, True] * 20
        again = [await made.ask(number, schema=SCHEMA) for number in range(100)]
    for one in [*once, *again]:
        if isinstance(one, Result):
            assert Validator(SCHEMA).errors(one.parsed) == []
            assert orjson.loads(one.parsed) == orjson.loads(RIGHT)
    assert all(isinstance(one, Result) for one in again)


class TestFailureLog:
    """The log by itself."""

    REQUEST = Request("r", "/chat/completions", b"{}", b"\x01", 1, None, prompt="p@1")

    def test_it_is_bounded(self, tmp_path: Path) -> None:
        """Never more than two files of the bound, and the newest lines are there."""
        log = FailureLog(str(tmp_path / "state"), max_bytes=10_000)
        for number in range(500):
            log.write(self.REQUEST, "t", f"reply {number} " + "x" * 100, ["e"])
        sizes = [(tmp_path / "state" / name).stat().st_size for name in ("failures.jsonl", "failures.1.jsonl")]
        assert max(sizes) <= 10_000
        newest = logged(tmp_path / "state")
        older = logged(tmp_path / "state", "failures.1.jsonl")
        numbers = [int(line["reply"].split()[1]) for line in [*older, *newest]]
        assert numbers == list(range(numbers[0], 500))
        assert len(numbers) > 50

    def test_two_routers_that_rotate_lose_nothing_of_the_last_files(self, tmp_path: Path) -> None:
        """Lines of both stand whole, whoever turned the file over."""
        logs = [FailureLog(str(tmp_path), max_bytes=20_000) for _ in range(2)]
        for number in range(300):
            logs[number % 2].write(self.REQUEST, "t", f"reply {number}", ["e"])
        numbers = [int(line["reply"].split()[1]) for line in [*logged(tmp_path, "failures.1.jsonl"), *logged(tmp_path)]]
        assert numbers == list(range(numbers[0], 300))

    @pytest.mark.parametrize("reply", ["half \ud800 a character", "", "x" * 100_000, "\x00\n"])
    def test_any_reply_is_one_line(self, tmp_path: Path, reply: str) -> None:
        """Of bounded length, and JSON."""
        FailureLog(str(tmp_path)).write(self.REQUEST, "t", reply, [reply])
        [line] = logged(tmp_path)
        assert len(line["reply"]) <= 4000

    def test_a_folder_that_cannot_be_written_costs_no_row(self, tmp_path: Path) -> None:
        """The log is a help, not a condition."""
        (tmp_path / "state").write_text("a file")
        FailureLog(str(tmp_path / "state")).write(self.REQUEST, "t", "x", ["e"])
