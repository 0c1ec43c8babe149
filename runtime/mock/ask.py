"""What a request asks for: the parsed body of an OpenAI call, reduced to what an answer depends on. Pure.

Tokens are counted so that anyone can check them: a text costs ceil(UTF-8 bytes / 4). A chat prompt costs that for each
message's content, plus 4 per message, plus 3; the other endpoints cost it for each input text. A content that is not a
plain string is counted by its JSON. So a prompt never costs more than its bytes plus 4 per message plus 3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

__all__ = ["Ask", "BadRequest", "Route", "count_tokens", "read_ask"]

MAX_CHOICES = 128
_SPECIAL = frozenset({"response_format", "n", "tool_choice", "logprobs"})
"""A chat without these has a plain answer."""
MAX_DIMENSIONS = 4096
DEFAULT_DIMENSIONS = 16


class BadRequest(Exception):
    """The request's own fault: answered 400, with the parameter that is to blame."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param, code)
        self.message, self.param, self.code = message, param, code


class Ask(NamedTuple):
    model: str
    sources: list[str]
    """What is echoed: the last user message of a chat; each prompt or input elsewhere."""
    prompt_tokens: int
    max_tokens: int | None = None
    choices: int = 1
    stream: bool = False
    include_usage: bool = False
    json: bool = False
    schema: Any = None
    dimensions: int = DEFAULT_DIMENSIONS
    base64: bool = False
    tool: str = ""
    """The function that the request demands a call of; its arguments are the JSON content."""
    logprobs: bool = False


Route = Callable[[dict[str, Any]], Ask]


def read_ask(body: bytes, route: Route) -> Ask:
    """`route` is one of the readers below. Raises BadRequest."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from None
    if type(request) is not dict:
        raise BadRequest("The body of the request must be a JSON object.")
    return route(request)


def count_tokens(text: str) -> int:
    return ((len(text) if text.isascii() else len(text.encode())) + 3) // 4


def chat(request: dict[str, Any]) -> Ask:
    messages = request.get("messages")
    if type(messages) is not list or not messages:
        raise BadRequest("'messages' must be a list with at least one message.", "messages")
    tokens = 3
    source = ""
    asked = False
    for index, message in enumerate(messages):
        if type(message) is not dict or type(message.get("role")) is not str:
            raise BadRequest("A message must be an object with a 'role'.", f"messages[{index}]")
        content = message.get("content")
        text = content if type(content) is str else _text(content)
        tokens += 4 + (count_tokens(text) if text is content else _count_parts(content))
        if message["role"] == "user" or not asked:
            source, asked = text, asked or message["role"] == "user"
    stream = request.get("stream")
    plain = not stream and not request.keys() & _SPECIAL
    limit = _positive(request, "max_completion_tokens", "max_tokens")
    if plain:
        return Ask(_model(request), [source], tokens, limit)
    wanted = request.get("response_format")
    wanted = wanted if isinstance(wanted, dict) else {}
    kind, schema = wanted.get("type"), wanted.get("json_schema")
    tool, parameters = _demanded_tool(request)
    return Ask(
        _model(request),
        [source],
        tokens,
        limit,
        choices=_choices(request),
        stream=bool(stream),
        include_usage=_include_usage(request),
        json=bool(tool) or kind in ("json_schema", "json_object"),
        schema=parameters if tool else schema.get("schema") if isinstance(schema, dict) else None,
        tool=tool,
        logprobs=request.get("logprobs") is True,
    )


def completions(request: dict[str, Any]) -> Ask:
    prompts = _inputs(request, "prompt")
    return Ask(
        _model(request),
        prompts,
        sum(map(count_tokens, prompts)),
        _positive(request, "max_tokens"),
        choices=_choices(request),
        stream=bool(request.get("stream")),
        include_usage=_include_usage(request),
    )


def responses(request: dict[str, Any]) -> Ask:
    given = request.get("input")
    limit = _positive(request, "max_output_tokens")
    wanted = request.get("text")
    wanted = wanted.get("format") if isinstance(wanted, dict) else None
    wanted = wanted if isinstance(wanted, dict) else {}
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if isinstance(request.get("instructions"), str) and isinstance(given, list):
        given = [{"role": "developer", "content": request["instructions"]}, *given]
    if not isinstance(given, list) or not given:
        raise BadRequest("'input' must be a string or a list of items.", "input")
    # Items without a role, such as a tool's output, count but are not what is asked.
    items = [{"role": "tool", **item} if isinstance(item, dict) else item for item in given]
    ask = chat({"model": request.get("model"), "messages": items})
    return ask._replace(
        max_tokens=limit,
        stream=bool(request.get("stream")),
        json=wanted.get("type") in ("json_schema", "json_object"),
        schema=wanted.get("schema"),
    )


def embeddings(request: dict[str, Any]) -> Ask:
    inputs = _inputs(request, "input")
    dimensions = _positive(request, "dimensions") or DEFAULT_DIMENSIONS
    if dimensions > MAX_DIMENSIONS:
        raise BadRequest(f"'dimensions' must be at most {MAX_DIMENSIONS}.", "dimensions")
    tokens = sum(map(count_tokens, inputs))
    return Ask(
        _model(request), inputs, tokens, dimensions=dimensions, base64=request.get("encoding_format") == "base64"
    )


def _model(request: dict[str, Any]) -> str:
    model = request.get("model")
    if type(model) is not str or not model:
        raise BadRequest("you must provide a model parameter", "model")
    return model


def _text(content: Any) -> str:
    """The text of a content that is a list of parts, or of nothing."""
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))


def _count_parts(content: Any) -> int:
    return 0 if content is None else (len(orjson.dumps(content)) + 3) // 4


def _inputs(request: dict[str, Any], name: str) -> list[str]:
    """One or several texts; token ids are taken as the text of their JSON."""
    given = request.get(name)
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(isinstance(text, str) for text in given):
            return given
        if all(isinstance(token, int) for token in given):
            return [orjson.dumps(given).decode()]
        if all(isinstance(tokens, list) for tokens in given):
            return [orjson.dumps(tokens).decode() for tokens in given]
    raise BadRequest(f"'{name}' must be a string, a list of strings or a list of token ids.", name)


def _positive(request: dict[str, Any], *names: str) -> int | None:
    """The smallest of these that is given."""
    smallest: int | None = None
    for name in names:
        value = request.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise BadRequest(f"'{name}' must be an integer of at least 1.", name)
        smallest = value if smallest is None else min(smallest, value)
    return smallest


def _choices(request: dict[str, Any]) -> int:
    choices = _positive(request, "n") or 1
    if choices > MAX_CHOICES:
        raise BadRequest(f"'n' must be at most {MAX_CHOICES}.", "n")
    return choices


def _demanded_tool(request: dict[str, Any]) -> tuple[str, Any]:
    """Name and parameters of the function that `tool_choice` demands. Whether to call one that is only offered is the
    model's to choose, and the mock chooses not to."""
    choice = request.get("tool_choice")
    wanted = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    if not wanted and choice != "required":
        return "", None
    for tool in request.get("tools") or ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and wanted in (None, function.get("name")):
            return str(function.get("name")), function.get("parameters") or {"type": "object"}
    raise BadRequest("'tool_choice' demands a tool that is not among 'tools'.", "tool_choice")


def _include_usage(request: dict[str, Any]) -> bool:
    options = request.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))
