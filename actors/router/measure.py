"""What a request asks of a model, measured in what can be bounded before it is sent. Pure; used by whoever makes a Request.

    text        its tokens are at most the UTF-8 bytes of the JSON body: a byte-level tokenizer (BPE over bytes, as GPT,
                Llama 3, Qwen and most others have) never makes more tokens than bytes, and SentencePiece with byte
                fallback makes at most a word mark more. The JSON around each message is longer than the few tokens that
                a chat template adds for it; `TEMPLATE_TOKENS` covers what a template adds once.
    tools       their definitions stand in the body. What a model's template says around them is not in it:
                `TOOLS_TOKENS`, once a request.
    images      counted here, bounded by the tier (cost.py), since every family of models cuts them up differently. An
                image that stands in the body as a `data:` address counts as an image and not as text.
    opaque      content whose size nobody here can see: files and audio, stored prompts and conversations, tools that the
                provider runs itself. A model reads no more than its window, so the tier's window bounds it (cost.py).
    completion  what the request allows, for each choice of each prompt.

Whatever is not known to be plain text is taken as opaque: a new kind of content may be bounded too high, never too low.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

__all__ = ["LIMIT_FIELDS", "TEMPLATE_TOKENS", "TOOLS_TOKENS", "Measure", "measure"]

TEMPLATE_TOKENS = 32
TOOLS_TOKENS = 600
"""Anthropic documents up to 530 tokens for its tool prompt; those of Qwen, Llama and Hermes models have about 150."""

LIMIT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/completions": ("max_tokens",),
    "/responses": ("max_output_tokens",),
}
"""By path, what bounds a completion there. A limit by another path's name is ignored by the endpoint, so it bounds nothing."""

TEXT_PARTS = frozenset({"text", "input_text", "output_text", "summary_text", "refusal"})
IMAGE_PARTS = frozenset({"image_url", "input_image"})
TEXT_ITEMS = frozenset({"function_call", "custom_tool_call"})
"""Items of a `/responses` input that are text as they stand."""
OUTPUT_ITEMS = frozenset({"function_call_output", "custom_tool_call_output"})
OWN_TOOLS = frozenset({"function", "custom"})
"""Tools that the caller runs. All others the provider runs, and their results go into the prompt."""
ELSEWHERE = ("web_search_options", "previous_response_id", "conversation")
"""Fields that bring content from elsewhere into the prompt."""
RARE = frozenset({*ELSEWHERE, "tools", "functions", "prediction", "n", "best_of"})
"""Fields that make a chat more than its messages."""


class Measure(NamedTuple):
    """The fields of a Request that bound what an attempt can cost."""

    prompt_bound_tokens: int
    max_tokens: int | None
    choices: int = 1
    predicted_tokens: int = 0
    images: int = 0
    small_images: int = 0
    opaque: bool = False


def measure(path: str, body: Mapping[str, Any], encoded: bytes) -> Measure:
    """Measure a request. `encoded` is the JSON that is sent, compact, and may hold more than `body` (a schema, say)."""
    max_tokens = _largest(body, LIMIT_FIELDS.get(path, ()))  # which of two an endpoint goes by is its own affair
    # Quotes within a text are escaped, so these are keys. Most rows have none of them and are done here.
    parts = b'"content":[' in encoded or b'"type":' in encoded or b'"audio":' in encoded
    if not parts and path == "/chat/completions" and RARE.isdisjoint(body):
        return Measure(len(encoded) + TEMPLATE_TOKENS, max_tokens)
    look = _Look()
    look.body(path, body)
    tools = body.get("tools") or body.get("functions")
    predicted = body.get("prediction")
    return Measure(
        len(encoded) - look.inline_bytes + TEMPLATE_TOKENS + (TOOLS_TOKENS if tools else 0),
        max_tokens,
        _choices(path, body),
        len(orjson.dumps(predicted)) if predicted is not None else 0,
        look.images,
        look.small_images,
        look.opaque,
    )


def _choices(path: str, body: Mapping[str, Any]) -> int:
    """So many completions are paid for: `n`, or the `best_of` from which they are picked, for each prompt."""
    choices = _largest(body, ("n", "best_of")) or 1
    prompts = body.get("prompt") if path == "/completions" else None
    if not isinstance(prompts, list) or all(type(token) is int for token in prompts):  # token ids: one prompt
        return choices
    return choices * len(prompts)


def _largest(body: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    largest = 0
    for name in names:
        value = body.get(name)
        if type(value) is int and value > largest:
            largest = value
    return largest or None


class _Look:
    """A walk over a body's content."""

    def __init__(self) -> None:
        self.images = self.small_images = self.inline_bytes = 0
        self.opaque = False

    def body(self, path: str, body: Mapping[str, Any]) -> None:
        self.opaque = any(body.get(name) is not None for name in ELSEWHERE)
        tools = body.get("tools")
        for tool in tools if isinstance(tools, list) else ():
            if not isinstance(tool, dict) or _kind(tool, "function") not in OWN_TOOLS:
                self.opaque = True
        if path == "/chat/completions":
            messages = body.get("messages")
            for message in messages if isinstance(messages, list) else ():
                if isinstance(message, dict):
                    self._content(message.get("content"))
                    if message.get("audio") is not None:  # an earlier answer that was spoken, by its id
                        self.opaque = True
        elif path == "/responses":
            if isinstance(body.get("prompt"), dict):
                self.opaque = True
            given = body.get("input")
            for item in given if isinstance(given, list) else ():
                self._item(item)
        else:
            given = body.get("prompt" if path == "/completions" else "input")
            if isinstance(given, list) and any(isinstance(each, dict) for each in given):
                self.opaque = True

    def _item(self, item: object) -> None:
        """One item of a `/responses` input."""
        if not isinstance(item, dict):
            self._part(item)
            return
        kind = _kind(item, "") or ("message" if "role" in item else "item_reference")
        if kind == "message":
            self._content(item.get("content"))
        elif kind in OUTPUT_ITEMS:
            self._content(item.get("output"))
        elif kind == "reasoning":
            # Given whole, though encrypted, it stands in the body; otherwise the provider looks it up.
            self.opaque = self.opaque or not isinstance(item.get("encrypted_content"), str)
        elif kind not in TEXT_ITEMS:
            self._part(item)

    def _content(self, content: object) -> None:
        for part in content if isinstance(content, list) else ():
            self._part(part)

    def _part(self, part: object) -> None:
        kind = _kind(part, "") if isinstance(part, dict) else ""
        if isinstance(part, str) or kind in TEXT_PARTS:
            return
        if not isinstance(part, dict):
            self.opaque = True
        elif kind in IMAGE_PARTS:
            given = part.get("image_url")
            address, detail = given, part.get("detail")
            if isinstance(given, dict):
                address, detail = given.get("url"), given.get("detail")
            if detail == "low":
                self.small_images += 1
            else:
                self.images += 1
            if isinstance(address, str) and address.startswith("data:"):
                self.inline_bytes += len(address)
        else:
            self.opaque = True
            self.inline_bytes += _inline_bytes(kind, part)


def _kind(value: Mapping[str, Any], absent: str) -> str:
    """The `type` of a tool, an item or a part. What is no text is no kind that anybody knows."""
    kind = value.get("type", absent)
    return kind if isinstance(kind, str) else "?" if kind else ""


def _inline_bytes(kind: str, part: dict[str, Any]) -> int:
    """Of audio or a file that stands in the body: these bytes are not text, and the window bounds what they become."""
    if kind == "input_audio":
        audio = part.get("input_audio")
        data = audio.get("data") if isinstance(audio, dict) else None
    else:
        file = part.get("file") if kind == "file" else part
        data = file.get("file_data") if isinstance(file, dict) and kind in ("file", "input_file") else None
    return len(data) if isinstance(data, str) else 0
