"""The mock endpoint's rules: scenarios, decisions, gates, contents. No server here."""

import json
import statistics
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from actors.errors import ConfigError
from runtime.mock import ask as asks
from runtime.mock.ask import Ask, BadRequest, read_ask
from runtime.mock.behaviour import Behaviour, Script
from runtime.mock.content import echo, make_content
from runtime.mock.gates import RateGate, Slots
from runtime.mock.instance import instance
from runtime.mock.load import builtin_names, load_scenario, parse_scenario
from runtime.mock.scenario import Conduct, RateLimit, Scenario, TierScenario


def tier(**fields: Any) -> TierScenario:
    return TierScenario.model_validate(fields)


def outcomes(script: Script, count: int, elapsed_s: float = 0.0) -> list[str]:
    return [script.at(number, elapsed_s).outcome for number in range(count)]


# scenarios


@pytest.mark.parametrize("name", ["ok", "demo", "flaky", "dead", "hang", "ratelimited", "structured"])
def test_builtin_scenarios_load(name: str) -> None:
    """Every promised scenario is shipped, valid, and serves at least one tier."""
    assert name in builtin_names()
    assert load_scenario(name).tier("default") is not None


def test_demo_has_its_three_tiers() -> None:
    """The demo's first tier fails, rate-limits and has an outage; the others are well."""
    demo = load_scenario("demo")
    assert list(demo.tiers) == ["premium", "standard", "basic"]
    premium = Script("premium", demo.tiers["premium"], demo.seed)
    assert 120 <= outcomes(premium, 1000).count("error") <= 280
    assert set(outcomes(premium, 100, elapsed_s=5)) == {"error"}
    assert outcomes(premium, 1000, elapsed_s=60).count("answer") > 700
    assert demo.tiers["premium"].rate_limit is not None
    for name in ("standard", "basic"):
        assert set(outcomes(Script(name, demo.tiers[name]), 200)) == {"answer"}


@pytest.mark.parametrize(
    ("source", "line", "key", "part"),
    [
        ("tiers:\n  a:\n    latncy: 1\n", 3, "tiers.a.latncy", "unknown key"),
        ("tiers:\n  a: {errors: [{fraction: 2, status: 500}]}\n", 2, "tiers.a.errors.0.fraction", "less than or equal"),
        ("tiers:\n  a: {errors: [{fraction: 0.1, status: 200}]}\n", 2, "tiers.a.errors.0.status", "greater than"),
        ("tiers:\n  a: {hang: 0.6, reset: 0.6}\n", 2, "tiers.a", "sum to more than 1"),
        ("seed: 1\ntiers:\n  a:\n    phases: [{}, {until_s: 2}]\n", 3, "tiers.a", "only the last phase"),
        ("tiers: {a: {phases: [{until_s: 2}, {until_s: 1}]}}", 1, "tiers.a", "must grow"),
        ("tiers: {a: {hang: 0.5, phases: [{reset: 0.6}]}}", 1, "tiers.a", "sum to more than 1"),
        ("tiers: {a: {rate_limit: {burst: 3}}}", 1, "tiers.a.rate_limit", "per_second or per_minute"),
        ("tiers: {a: {latency: -1}}", 1, "tiers.a.latency.fixed_s", "greater than"),
        ("tiers: {a: {latency: .inf}}", 1, "tiers.a.latency.fixed_s", "finite"),
        ("tiers: {v1: {}}", 1, "", "cannot be called"),
        ("tiers: {'a/b': {}}", 1, "tiers.a/b.[key]", "pattern"),
        ("seed: [\n", 2, "", ""),
        ("- 1\n", 1, "", "a mapping"),
    ],
)
def test_a_faulty_scenario_is_one_clear_line(source: str, line: int, key: str, part: str) -> None:
    """Each fault names the file, the line, the key and what is wrong, in one line."""
    with pytest.raises(ConfigError) as caught:
        parse_scenario(source, "s.yaml")
    error = caught.value
    assert (error.file, error.line, error.key) == ("s.yaml", line, key)
    assert part in error.message
    assert "\n" not in str(error)


def test_an_unknown_scenario_lists_the_known_ones(tmp_path: Path) -> None:
    """A name that is neither built in nor a file says what there is; a folder says that it cannot be read."""
    with pytest.raises(ConfigError, match="built in: dead, demo"):
        load_scenario("nothing-like-that")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_scenario(tmp_path)


def test_a_scenario_file_is_read(tmp_path: Path) -> None:
    """A user's own file works like a built-in name; an empty one is a well-behaved endpoint."""
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\ntiers: {default: {latency: 0.5}}\n")
    assert load_scenario(file).tiers["default"].latency.fixed_s == 0.5
    file.write_text("# nothing\n")
    assert load_scenario(file).tier("default") == TierScenario()
    assert load_scenario(file).tier("other") is None


def test_latency_from_the_command_line_wins_everywhere() -> None:
    """One latency replaces that of every tier and phase and leaves the rest alone."""
    calm = load_scenario("demo").with_latency(0.01)
    script = Script("premium", calm.tiers["premium"], calm.seed)
    assert {script.at(number, 5.0).latency_s for number in range(20)} == {0.01}
    assert set(outcomes(script, 20, elapsed_s=5.0)) == {"error"}
    assert Scenario().with_latency(2).tiers["default"].latency.fixed_s == 2


# decisions


def test_decisions_follow_from_seed_tier_and_number_alone() -> None:
    """The same question gets the same decision in any order; another seed or tier name gets others."""
    conduct = tier(errors=[{"fraction": 0.5, "status": 500}], latency={"lognormal": {"median_s": 1}})
    forward = [Script("a", conduct, 1).at(number, 0) for number in range(200)]
    script = Script("a", conduct, 1)
    assert [script.at(number, 0) for number in reversed(range(200))][::-1] == forward
    assert [Script("a", conduct, 2).at(number, 0) for number in range(200)] != forward
    assert [Script("b", conduct, 1).at(number, 0) for number in range(200)] != forward


def test_each_mishap_takes_its_share() -> None:
    """Fractions of mishaps and errors come out as asked, and exclude each other."""
    shares = dict.fromkeys(("hang", "reset", "reset_mid_body", "malformed", "truncated", "html"), 0.1)
    errors = [{"fraction": 0.1, "status": 500}, {"fraction": 0.2, "status": 429, "retry_after_s": 3}]
    script = Script("a", tier(**shares, errors=errors))
    made = [script.at(number, 0) for number in range(10_000)]
    for name in shares:
        assert 850 < sum(behaviour.outcome == name for behaviour in made) < 1150
    statuses = [behaviour.error.status for behaviour in made if behaviour.error is not None]
    assert 850 < statuses.count(500) < 1150
    assert 1800 < statuses.count(429) < 2200
    assert 850 < sum(behaviour.outcome == "answer" for behaviour in made) < 1150


def test_latencies_are_spread_as_asked() -> None:
    """Lognormal latencies have the median asked for; outliers replace their share of them."""
    script = Script(
        "a", tier(latency={"lognormal": {"median_s": 2, "sigma": 0.5}, "outlier": {"fraction": 0.05, "s": 99}})
    )
    latencies = [script.at(number, 0).latency_s for number in range(10_000)]
    assert 400 < latencies.count(99) < 600
    assert 1.9 < statistics.median(latency for latency in latencies if latency != 99) < 2.1
    assert Script("a", tier(latency=0.25)).at(7, 0).latency_s == 0.25


def test_phases_by_time_and_by_requests() -> None:
    """A phase holds until its time or count is reached, overrides only what it names, and the last goes on for ever."""
    by_time = Script("a", tier(tokens=5, phases=[{"until_s": 3}, {"until_s": 7, "status": 503}, {"tokens": 9}]))
    assert [by_time.at(0, at).outcome for at in (0, 2.9, 3, 6.9, 7, 1e9)] == [
        "answer",
        "answer",
        "error",
        "error",
        "answer",
        "answer",
    ]
    assert [by_time.at(0, at).conduct.tokens for at in (0, 5, 7)] == [5, 5, 9]
    by_count = Script("a", tier(status=500, phases=[{"until_requests": 2}, {"until_requests": 4, "status": None}]))
    assert outcomes(by_count, 6) == ["error", "error", "answer", "answer", "answer", "answer"]


# gates


def test_a_rate_limit_lets_its_burst_and_then_its_rate_through() -> None:
    """The bucket starts full, refuses with a whole-second Retry-After when empty, and refills with time."""
    gate = RateGate(RateLimit(per_second=2, burst=3))
    assert [gate.take(100.0).admitted for _ in range(4)] == [True, True, True, False]
    refused = gate.take(100.1)
    assert not refused.admitted
    assert b"Retry-After: 1\r\n" in refused.headers
    assert b"x-ratelimit-limit-requests: 3\r\n" in refused.headers
    assert [gate.take(101.0).admitted for _ in range(3)] == [True, True, False]
    slow = RateGate(RateLimit(per_minute=1, retry_after_s=0.5))
    assert slow.take(1).admitted
    assert b"Retry-After: 0.5\r\n" in slow.take(2).headers
    silent = RateGate(RateLimit(per_second=1, tells="nothing"))
    assert [silent.take(3.0) for _ in range(2)] == [(True, b""), (False, b"")]
    terse = RateGate(RateLimit(per_second=1, tells="retry_after"))
    assert [terse.take(3.0) for _ in range(2)] == [(True, b""), (False, b"Retry-After: 1\r\n")]


def test_slots_work_in_order_and_skip_who_left() -> None:
    """At most `size` run at once; those waiting start first come, first served; a waiter that left takes no slot."""
    slots, begun = Slots(2), []

    def start(name: str, stays: bool = True) -> None:
        slots.enter(lambda: begun.append(name) is None if stays else False)

    for name in "ab":
        start(name)
    start("left", stays=False)
    for name in "cd":
        start(name)
    assert begun == ["a", "b"]
    slots.leave()
    assert begun == ["a", "b", "c"]
    slots.resize(3)
    assert begun == ["a", "b", "c", "d"]


def test_slots_bear_a_long_queue_of_instant_work() -> None:
    """Work that ends within its own start does not pile up on the stack."""
    slots, done = Slots(1), []
    slots.enter(lambda: True)
    for number in range(5000):
        slots.enter(lambda number=number: (done.append(number), slots.leave()) is not None)
    slots.leave()
    assert done == list(range(5000))


# requests and contents


def ask_for(**body: Any) -> Ask:
    return read_ask(json.dumps({"model": "m", **body}).encode(), asks.chat)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"model":"m"}',
        b'{"model":"m","messages":[]}',
        b'{"model":"m","messages":[1]}',
        b'{"messages":[{"role":"user","content":"a"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"max_tokens":0}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"n":1000}',
        b'{"model":"m","messages":[{"role":"user","content":NaN}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
    ],
)
def test_a_wrong_body_is_the_requests_own_fault(body: bytes) -> None:
    """Whatever is wrong with a body is told as a bad request, never as a crash."""
    with pytest.raises(BadRequest):
        read_ask(body, asks.chat)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "x"}],
        [{"role": "system", "content": "é" * 100}, {"role": "user", "content": "日本語" * 33}],
        [{"role": "user", "content": [{"type": "text", "text": "hello"}]}, {"role": "assistant", "content": None}],
    ],
)
def test_prompt_tokens_never_pass_the_bytes_and_the_template(messages: list[dict[str, Any]]) -> None:
    """A budget that reserves UTF-8 bytes plus 4 a message plus 3 is never surprised."""
    bound = sum(len(json.dumps(m["content"] or "", ensure_ascii=False).encode()) + 4 for m in messages) + 3
    assert 0 < ask_for(messages=messages).prompt_tokens <= bound


def test_the_token_count_is_as_documented() -> None:
    """ceil(bytes / 4) and 4 for each message, and 3."""
    messages = [{"role": "system", "content": "12345"}, {"role": "user", "content": "1234"}]
    assert ask_for(messages=messages).prompt_tokens == (2 + 4) + (1 + 4) + 3


def test_the_echo_is_of_the_last_user_message() -> None:
    """Later messages of other roles do not change what is echoed; parts of a message are joined."""
    messages = [{"role": "user", "content": "first"}, {"role": "user", "content": [{"type": "text", "text": "last"}]}]
    assert ask_for(messages=[*messages, {"role": "assistant", "content": "so"}]).sources == ["last"]


def test_contents_carry_echo_and_tags_at_any_length() -> None:
    """However few tokens are wanted the answer is recognisable; the finish reason tells whether it was cut."""
    source = "Sort this [[tag:row-17]] and [[tag:é]]"
    for limit in (1, 5, 16, 400, None):
        asked = Ask("m", [source], 1, max_tokens=limit)
        for tokens in (1, 16, 300):
            made = make_content(asked, source, 0, Behaviour("answer", 0, Conduct(tokens=tokens), 0))
            assert made.text.startswith(echo(source))
            assert "row-17" in made.text
            assert "é" in made.text
            assert made.tokens == min(tokens, limit or tokens)
            assert made.cut == (limit is not None and limit < tokens)
    long = make_content(Ask("m", ["x"], 1), "x", 0, Behaviour("answer", 0, Conduct(tokens=1000), 0))
    assert 3990 <= len(long.text) <= 4000


def test_scripted_replies_take_turns() -> None:
    """Replies follow the request number; JSON ones are sent as JSON; `{echo}` stands for the echo; max_tokens cuts."""
    conduct = Conduct(replies=("say {echo}", {"a": 1}))

    def reply(number: int, limit: int | None = None) -> tuple[str, bool]:
        made = make_content(Ask("m", ["q"], 1, max_tokens=limit), "q", 0, Behaviour("answer", 0, conduct, number))
        return made.text, made.cut

    assert reply(0) == (f"say {echo('q')}", False)
    assert reply(3) == ('{"a":1}', False)
    assert reply(1, limit=1) == ('{"a"', True)


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}, "b": {"type": "integer", "minimum": 3}}},
    {
        "type": "object",
        "required": ["kind", "score", "tags"],
        "additionalProperties": False,
        "properties": {
            "kind": {"enum": ["bug", "question"]},
            "score": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}, "minItems": 2},
            "more": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "$defs": {"Tag": {"type": "object", "properties": {"name": {"type": "string", "minLength": 40}}}},
    },
    {
        "$ref": "#/$defs/Node",
        "$defs": {
            "Node": {
                "type": "object",
                "required": ["value", "next"],
                "properties": {
                    "value": {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                },
            }
        },
    },
    {"allOf": [{"type": "object", "properties": {"a": {"const": 4}}}, {"required": ["a"]}]},
    {"type": "array", "items": {"type": "integer", "multipleOf": 7, "minimum": 1}, "minItems": 1},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_value_made_from_a_schema_satisfies_it(schema: dict[str, Any]) -> None:
    """The mock's JSON answers pass the validation that a user's schema asks for, the same value every time."""
    for seed in (0, 1, 2**31):
        value = instance(schema, "echo 0123456789abcdef", seed)
        jsonschema_rs.validate(schema, value)
        assert value == instance(schema, "echo 0123456789abcdef", seed)


def test_a_schema_that_goes_in_circles_ends() -> None:
    """References without an end, even branching ones, do not hang the mock."""
    assert instance({"$ref": "#"}, "x", 0) is not None
    branches = {name: {"$ref": "#/$defs/A"} for name in "abcdefgh"}
    endless = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "required": [*branches], "properties": branches}}}
    assert "a" in instance(endless, "x", 0)
