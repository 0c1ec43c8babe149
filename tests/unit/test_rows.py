"""From an input row to its request."""

from typing import Any

import pytest

from actors.settings import TierSettings
from runtime.batch.reader import Row, RowError
from runtime.batch.rows import Encoder
from runtime.batch.sharing import Sharing

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
