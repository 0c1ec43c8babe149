"""From an input row to its request."""

from typing import Any

import orjson
import pytest

from actors.settings import StructuredSettings, TierSettings
from runtime.batch.reader import Row, RowError
from runtime.batch.rows import Encoder
from runtime.batch.sharing import Sharing
from runtime.prompts import Rendered

TIERS = [
    TierSettings.model_validate({"name": name, "model": model, "base_url": "http://x", "quality": quality})
    for name, model, quality in (("best", "gpt-a", "high"), ("good", "gpt-b", "medium"), ("cheap", "gpt-b", "basic"))
]
MESSAGES = [{"role": "user", "content": "hé"}]


def encoder(**changes: Any) -> Encoder:
    return Encoder(TIERS, **{"min_quality": 0, "deadline_s": 60.0, "job": "j", "share": True, **changes})


def row(number: int = 0, **body: Any) -> Row:
    return Row(number, "in.jsonl", number + 1, f"r{number}", "/chat/completions", {"messages": MESSAGES, **body}, None)


@pytest.mark.parametrize(
    ("model", "start"), [(None, 0), ("auto", 0), ("best", 0), ("good", 1), ("gpt-b", 1), ("cheap", 2)]
)
def test_a_model_says_where_the_cascade_starts(model: str | None, start: int) -> None:
    """A tier's name or model, `auto` or nothing; of two tiers with one model the first."""
    request = encoder().encode(row(**({} if model is None else {"model": model})))
    assert request.start_tier == start
    assert b"model" not in request.body


def test_an_unknown_model_is_the_rows_error_with_the_names() -> None:
    """The message says which names there are, and where the row stands."""
    with pytest.raises(
        RowError, match=r"in\.jsonl:1: body\.model: expected one of auto, best, good, cheap, gpt-a, gpt-b"
    ):
        encoder().encode(row(model="gpt-99"))


def test_the_bound_of_a_prompt_is_never_below_its_bytes() -> None:
    """Bytes bound tokens; the completion is what the request allows, for each of its choices."""
    request = encoder().encode(row(max_tokens=50, n=3))
    assert request.prompt_bound_tokens >= len(request.body) >= len("hé".encode())
    assert (request.max_tokens, request.choices) == (50, 3)


def test_a_null_limit_does_not_lift_the_tiers_own() -> None:
    """It would stand in the body behind the limit that the tier puts in front, and win."""
    request = encoder().encode(row(max_tokens=None, max_completion_tokens=None))
    assert request.max_tokens is None
    assert b"max_" not in request.body


def test_images_and_hidden_content_are_told_to_the_tiers() -> None:
    """Every tier bounds them in its own way, so the request says how many there are and whether it is all in sight."""
    parts = [{"type": "image_url", "image_url": {"url": "https://x/1"}}, {"type": "file", "file": {"file_id": "f"}}]
    request = encoder().encode(row(messages=[{"role": "user", "content": parts}]))
    assert (request.images, request.small_images, request.opaque) == (1, 0, True)


def test_rows_that_ask_the_same_have_one_key() -> None:
    """Order of keys and who asks do not matter; what is asked, and the quality, do."""
    one = encoder().encode(row(0, temperature=0, user="a"))
    same = encoder().encode(
        Row(1, "f", 1, "r1", "/chat/completions", {"user": "b", "temperature": 0, "messages": MESSAGES}, None)
    )
    assert one.digest == same.digest
    assert encoder(min_quality=1).encode(row(0, temperature=0)).digest != one.digest
    assert encoder().encode(row(0, temperature=1)).digest != one.digest
    assert encoder(share=False).encode(row(0)).digest == b""


def test_the_tier_that_should_answer_is_the_first_good_enough() -> None:
    """From the start of the cascade on, the first tier of the asked quality."""
    asked = encoder(min_quality=1)
    assert asked.first_tier(asked.encode(row())) == "best"
    assert asked.first_tier(asked.encode(row(model="good"))) == "good"


def test_equal_rows_wait_for_the_first_and_later_ones_find_its_line() -> None:
    """One leads, the others follow in order; once the line is written, the key leads to it."""
    sharing, asked = Sharing(), encoder()
    rows = [row(number) for number in range(3)]
    requests = [asked.encode(one) for one in rows]
    assert not sharing.follow(rows[0], requests[0])
    assert sharing.follow(rows[1], requests[1])
    assert sharing.follow(rows[2], requests[2])
    assert [follower.number for follower, _ in sharing.end(0)] == [1, 2]
    assert sharing.offset(requests[0].digest) is None
    sharing.remember(requests[0].digest, 4711)
    assert sharing.offset(requests[1].digest) == 4711
    assert sharing.offset(b"") is None


SCHEMA = b'{"type":"object"}'
OWN = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def test_a_schema_is_demanded_by_the_tier_and_not_by_the_body() -> None:
    """The body has no demand in it, the bound has room for one, and a format that the row had gives way."""
    plain = encoder().encode(row())
    request = encoder(schema=SCHEMA).encode(row(response_format=OWN))
    assert (request.schema, request.response_format, request.body) == (SCHEMA, b"", plain.body)
    assert request.prompt_bound_tokens > plain.prompt_bound_tokens + len(SCHEMA)
    assert request.digest != plain.digest


def test_a_rows_own_response_format_is_validated_too() -> None:
    """It travels beside the body, as it came, for the tiers that take it."""
    request = encoder().encode(row(response_format=OWN))
    assert request.schema == SCHEMA
    assert orjson.loads(request.response_format) == OWN
    assert b"response_format" not in request.body
    for other in ({"type": "json_object"}, {"type": "text"}):
        request = encoder().encode(row(response_format=other))
        assert request.schema == b""
        assert orjson.loads(request.body)["response_format"] == other
    several = encoder().encode(row(response_format=OWN, n=2))
    assert several.schema == b""
    assert b"response_format" in several.body


def test_a_schema_that_cannot_be_checked_is_the_rows_error() -> None:
    """A wrong schema, and a row that is no chat, are refused before anything is paid for."""
    wrong = {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}
    with pytest.raises(RowError, match=r"body\.response_format: not a JSON Schema: \$\.type"):
        encoder().encode(row(response_format=wrong))
    embedding = Row(0, "in.jsonl", 1, "r", "/embeddings", {"input": "x"}, None)
    with pytest.raises(RowError, match="a schema needs a request to /v1/chat/completions"):
        encoder(schema=SCHEMA).encode(embedding)
    assert encoder().encode(embedding).schema == b""


def test_what_follows_a_wrong_answer_is_the_prompts_or_the_configurations() -> None:
    """A version's own word counts before raycade.yaml's."""
    settings = StructuredSettings(retries=5, escalate=True)
    request = encoder(schema=SCHEMA, structured=settings).encode(row())
    assert (request.reply_retries, request.escalate) == (5, True)
    rendered = Rendered({"messages": MESSAGES}, "p@1", 0, SCHEMA, 0, None)
    asked = encoder(structured=settings, render=lambda unit, variables: rendered)
    request = asked.encode(Row(0, "in.jsonl", 1, "r", "/chat/completions", {}, {}))
    assert (request.reply_retries, request.escalate, request.schema, request.prompt) == (0, True, SCHEMA, "p@1")


@pytest.mark.parametrize(
    ("url", "said", "native"),
    [
        ("https://api.openai.com/v1", None, True),
        ("https://mine.openai.azure.com/openai/v1", None, True),
        ("https://api.openai.com.evil.example/v1", None, False),
        ("http://10.0.0.5:8000/v1", None, False),
        ("http://10.0.0.5:8000/v1", "native", True),
        ("https://api.openai.com/v1", "instruction", False),
    ],
)
def test_which_tiers_take_a_schema_natively(url: str, said: str | None, native: bool) -> None:
    """Those known for it, unless the configuration says otherwise."""
    tier = TierSettings.model_validate({"name": "t", "model": "m", "base_url": url, "structured": said})
    assert tier.native_schema is native
