"""What a request asks for, as far as it can be bounded before it is sent."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.router.measure import TEMPLATE_TOKENS, TOOLS_TOKENS, Measure, measure

CHAT, RESPONSES, TEXT = "/chat/completions", "/responses", "/completions"
DATA = "data:image/png;base64," + "A" * 5_000


def measured(path: str, **body: Any) -> Measure:
    return measure(path, body, orjson.dumps(body))


def chat(*parts: Any, **body: Any) -> Measure:
    return measured(CHAT, messages=[{"role": "user", "content": list(parts)}], **body)


def responses(*items: Any, **body: Any) -> Measure:
    return measured(RESPONSES, input=list(items), **body)


def image(detail: str | None = None, url: str = "https://x/1.png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail else {})}


@given(st.text(max_size=300))
def test_a_prompt_has_no_more_tokens_than_its_body_has_bytes(text: str) -> None:
    """Plus what a chat template adds; multi-byte characters count their bytes, and text is never taken for more."""
    body = {"messages": [{"role": "user", "content": text}]}
    encoded = orjson.dumps(body)
    assert measure(CHAT, body, encoded) == Measure(len(encoded) + TEMPLATE_TOKENS, None)


def test_a_text_that_looks_like_an_image_is_text() -> None:
    """Someone who asks about JSON with images in it sends none."""
    text = orjson.dumps({"messages": [{"content": [image()]}]}).decode()
    found = measured(CHAT, messages=[{"role": "user", "content": text}])
    assert (found.images, found.opaque) == (0, False)


def test_images_are_counted_by_their_detail() -> None:
    """In chats and in responses, whoever said them; a low detail is told apart."""
    found = chat({"type": "text", "text": "look"}, image(), image("high"), image("low"))
    assert (found.images, found.small_images, found.opaque) == (2, 1, False)
    parts = [
        {"type": "input_image", "image_url": "https://x/1"},
        {"type": "input_image", "file_id": "f", "detail": "low"},
    ]
    found = responses(
        {"role": "user", "content": parts}, {"type": "function_call_output", "call_id": "c", "output": parts[:1]}
    )
    assert (found.images, found.small_images, found.opaque) == (2, 1, False)


def test_an_image_in_the_body_is_no_text() -> None:
    """Its base64 is thousands of bytes, and none of them a token."""
    there, elsewhere = chat(image(url=DATA)), chat(image(url=""))
    assert there == elsewhere
    assert there.prompt_bound_tokens < 200


@pytest.mark.parametrize(
    "found",
    [
        chat({"type": "file", "file": {"file_id": "f-1"}}),
        chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        chat({"type": "video_url", "video_url": {"url": "https://x/1.mp4"}}),
        chat({"image": "AAAA"}),
        chat(17),
        measured(CHAT, messages=[{"role": "assistant", "audio": {"id": "a-1"}}, {"role": "user", "content": "and?"}]),
        measured(CHAT, messages=[{"role": "user", "content": "news?"}], web_search_options={}),
        measured(CHAT, messages=[{"role": "user", "content": "news?"}], tools=[{"type": "web_search"}]),
        responses({"role": "user", "content": [{"type": "input_file", "file_url": "https://x/1.pdf"}]}),
        responses({"type": "item_reference", "id": "i-1"}),
        responses({"id": "i-1"}),
        responses({"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "f"}}),
        responses({"type": "reasoning", "id": "rs-1", "summary": []}),
        measured(RESPONSES, input="and then?", previous_response_id="r-1"),
        measured(RESPONSES, input="and then?", conversation="c-1"),
        measured(RESPONSES, input="hi", prompt={"id": "p-1"}),
        *(
            measured(RESPONSES, input="hi", tools=[{"type": kind}])
            for kind in ("web_search", "file_search", "code_interpreter", "mcp", "computer_use_preview", "novel")
        ),
    ],
)
def test_what_nobody_can_see_is_told(found: Measure) -> None:
    """Files, audio, stored content, the provider's own tools, and any kind of content that is not known to be text."""
    assert found.opaque


@pytest.mark.parametrize(
    "found",
    [
        chat({"type": "text", "text": "hi"}, "and a plain one"),
        measured(CHAT, messages=[{"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}]),
        measured(CHAT, messages=[{"role": "user", "content": "hi"}], tools=[{"type": "function"}, {"type": "custom"}]),
        measured(CHAT, messages=[{"role": "user", "content": "hi"}], response_format={"type": "json_schema"}),
        measured(CHAT, messages=[{"role": "user", "content": "hi"}], web_search_options=None),
        measured(RESPONSES, input="hi", previous_response_id=None),
        responses({"role": "user", "content": "hi"}, {"type": "function_call", "name": "f", "arguments": "{}"}),
        responses({"type": "reasoning", "id": "rs-1", "encrypted_content": "AAAA"}),
        measured(TEXT, prompt=["a", "b"]),
        measured("/embeddings", input=["a", "b"]),
    ],
)
def test_what_stands_in_the_body_is_not_opaque(found: Measure) -> None:
    """Text parts, the caller's own tools and earlier calls of them: their bytes bound them."""
    assert not found.opaque


def test_audio_and_files_in_the_body_are_no_text() -> None:
    """Their bytes would be taken for tokens; the window bounds them instead."""
    whole = "A" * 100_000
    for part in (
        {"type": "input_audio", "input_audio": {"data": whole, "format": "mp3"}},
        {"type": "file", "file": {"file_data": whole, "filename": "a.pdf"}},
    ):
        found = chat(part)
        assert found.opaque
        assert found.prompt_bound_tokens < 300
    found = responses({"role": "user", "content": [{"type": "input_file", "file_data": whole}]})
    assert found.prompt_bound_tokens < 300


def test_tools_bring_their_own_instructions() -> None:
    """What a model's template says around tool definitions is not in the body."""
    plain = chat("hi")
    tool = {"type": "function", "function": {"name": "f"}}
    given = len(orjson.dumps({"tools": [tool]})) - 1
    assert chat("hi", tools=[tool]).prompt_bound_tokens == plain.prompt_bound_tokens + given + TOOLS_TOKENS


@pytest.mark.parametrize(
    ("path", "limits", "max_tokens"),
    [
        (CHAT, {}, None),
        (CHAT, {"max_tokens": 50}, 50),
        (CHAT, {"max_completion_tokens": 70}, 70),
        (CHAT, {"max_completion_tokens": 70, "max_tokens": 90}, 90),
        (CHAT, {"max_tokens": None}, None),
        (CHAT, {"max_output_tokens": 50}, None),
        (TEXT, {"max_tokens": 5}, 5),
        (TEXT, {"max_completion_tokens": 5}, None),
        (RESPONSES, {"max_output_tokens": 5}, 5),
        (RESPONSES, {"max_tokens": 5}, None),
        ("/embeddings", {"max_tokens": 5}, None),
    ],
)
def test_only_a_limit_that_the_endpoint_goes_by_bounds_an_answer(
    path: str, limits: dict[str, int | None], max_tokens: int | None
) -> None:
    """Of two, the larger; a limit under another endpoint's name bounds nothing, so the tier's own is asked for."""
    body = {"messages": [{"role": "user", "content": "hi"}], "input": "hi", "prompt": "hi", **limits}
    assert measured(path, **body).max_tokens == max_tokens


@pytest.mark.parametrize(
    ("path", "body", "choices"),
    [
        (CHAT, {"n": 3}, 3),
        (CHAT, {"n": None}, 1),
        (TEXT, {"prompt": "a", "n": 2, "best_of": 5}, 5),
        (TEXT, {"prompt": "a", "n": 3, "best_of": 2.5}, 3),
        (TEXT, {"prompt": ["a", "b", "c"], "n": 2}, 6),
        (TEXT, {"prompt": [1, 2, 3]}, 1),
        (TEXT, {"prompt": [[1, 2], [3]]}, 2),
        (TEXT, {"prompt": []}, 1),
    ],
)
def test_every_completion_that_is_made_is_counted(path: str, body: dict[str, Any], choices: int) -> None:
    """`n`, the `best_of` that are made to choose from, and each of several prompts."""
    assert measured(path, **body).choices == choices


def test_a_prediction_may_be_charged_as_output() -> None:
    """Its tokens that turn out wrong are, beyond the limit of the answer."""
    assert chat("fix it", prediction={"type": "content", "content": "x" * 400}).predicted_tokens >= 400


@pytest.mark.parametrize("kind", [{}, [], {"a": 1}, ["text"], 5, True, None])
@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
def test_a_type_that_is_no_text_is_no_kind_that_is_known(path: str, kind: object) -> None:
    """It is bounded as what nobody can see, and is no reason to fail: the endpoint says what is wrong with it."""
    field = "messages" if path == "/chat/completions" else "input"
    body = {field: [{"role": "user", "content": [{"type": kind, "text": "hi"}]}], "tools": [{"type": kind}]}
    assert measure(path, body, orjson.dumps(body)).opaque
