"""One line of the input: what it may say, and what is told about it when it can't be used. Pure.

    RawRow (a line of a file) -> parse_row -> Row | RowError

A row that cannot be used is a value (`RowError`), since one bad row must not end a job of a million.
"""

import re
from typing import Any, NamedTuple

import orjson

from actors.errors import InputError

__all__ = ["MAX_CUSTOM_ID", "PATHS", "RawRow", "Row", "RowError", "body_error", "parse_row"]

MAX_CUSTOM_ID = 512
PATHS = {f"/v1{path}": path for path in ("/chat/completions", "/embeddings", "/completions", "/responses")}
"""The urls a row may name -> the path below a tier's base_url."""


class RawRow(NamedTuple):
    """A line of the input that is not blank."""

    number: int
    """Running number over all files, from 0: the row's name in the journal."""
    file: str
    line: int
    data: bytes
    """The line without its end. Only its first bytes when `oversized`."""
    oversized: bool = False


class Row(NamedTuple):
    """A row that can be sent, as far as its own shape can tell."""

    number: int
    file: str
    line: int
    custom_id: str
    path: str
    """Path below a tier's base_url: `/chat/completions`."""
    body: dict[str, Any]
    """Empty for a row that brings `variables`."""
    variables: dict[str, Any] | None


class RowError(InputError):
    """One row that cannot be used. Its error line carries `code`, `str(self)` and, where it could be read, `custom_id`."""

    def __init__(
        self, number: int, code: str, message: str, file: str, line: int, field: str = "", custom_id: str | None = None
    ) -> None:
        super().__init__(code, message, file, line, field)
        self.args = (number, code, message, file, line, field, custom_id)  # what pickle calls __init__ with
        self.number, self.custom_id = number, custom_id


_COUNTS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n")
_FIRST_KEY_ID = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*("(?:[^"\\]|\\.){1,4096}")')
_Wrong = tuple[str, str, object]
"""Field, what was expected there, what was found."""


class _Absent:
    """Stands for a key that is not there."""


def parse_row(raw: RawRow) -> Row | RowError:
    """The row, or what is wrong with it: one line that names file, line, field, what was expected and what was found."""
    if raw.oversized:
        return _refused(raw, "row_too_large", "the row is too large to be read", custom_id=_first_key_id(raw.data))
    try:
        value = orjson.loads(raw.data)
    except orjson.JSONDecodeError as error:
        return _not_json(raw, error)
    if type(value) is not dict:
        return _refused(raw, "invalid_json", f"expected one JSON object, found {_show(value)}")
    get = value.get
    custom_id = get("custom_id", _Absent)
    if type(custom_id) is not str or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        expected = f"expected a text of 1 to {MAX_CUSTOM_ID} characters, found {_show(custom_id)}"
        return _refused(raw, "missing_custom_id", expected, "custom_id")
    if get("method", "POST") != "POST":
        message = f"expected POST or nothing, found {_show(get('method'))}"
        return _refused(raw, "invalid_method", message, "method", custom_id)
    if "variables" in value:
        return _prompt_row(raw, value, custom_id)
    url = get("url", _Absent)
    path = PATHS.get(url) if type(url) is str else None
    if path is None:
        message = f"expected one of {', '.join(PATHS)}, found {_show(url)}"
        return _refused(raw, "unknown_url", message, "url", custom_id)
    body = get("body", _Absent)
    if type(body) is not dict:
        return _refused(raw, "invalid_body", f"expected an object, found {_show(body)}", "body", custom_id)
    wrong = _wrong_body(path, body, path == "/chat/completions" and _names_prompt(body))
    if wrong:
        field, expected, found = wrong
        return _refused(raw, "invalid_body", f"expected {expected}, found {_show(found)}", f"body.{field}", custom_id)
    return Row(raw.number, raw.file, raw.line, custom_id, path, body, None)


def body_error(path: str, body: dict[str, Any]) -> InputError | None:
    """What is wrong with a body that stands in no file."""
    wrong = _wrong_body(path, body)
    if wrong is None:
        return None
    field, expected, found = wrong
    return InputError("invalid_body", f"expected {expected}, found {_show(found)}", field=field)


def _names_prompt(body: dict[str, Any]) -> bool:
    """Whether the messages are to be made by a registered prompt: no endpoint's affair, but the gateway's."""
    extras = body.get("raycade")
    return type(extras) is dict and type(extras.get("prompt")) is str and not body.get("messages")


def _wrong_body(path: str, body: dict[str, Any], names_prompt: bool = False) -> _Wrong | None:
    """The first thing that no endpoint of this kind would take. Null counts as absent where the API says so."""
    get = body.get
    if names_prompt:
        pass  # whoever makes the messages looks at them
    elif path == "/chat/completions":
        messages = get("messages", _Absent)
        if type(messages) is not list or not messages:
            return "messages", "a list of at least one message", messages
        for index, message in enumerate(messages):
            if type(message) is not dict:
                return f"messages[{index}]", "an object", message
            if type(message.get("role")) is not str:
                return f"messages[{index}].role", "a text", message.get("role", _Absent)
    else:
        field = "prompt" if path == "/completions" else "input"
        content = get(field, _Absent)
        if type(content) is not str and type(content) is not list:
            return field, "a text or a list", content
    if type(get("model", "")) is not str:
        return "model", "a text or nothing", body["model"]
    if get("stream"):
        return "stream", "false or nothing (a batch does not stream)", body["stream"]
    for field in _COUNTS:
        count = get(field)
        if count is not None and (type(count) is not int or count <= 0):
            return field, "a whole number above 0", count
    return None


def _prompt_row(raw: RawRow, value: dict[str, Any], custom_id: str) -> Row | RowError:
    """A row that brings the values of a registered prompt's fields instead of a body."""
    if "body" in value:
        return _refused(raw, "invalid_body", "expected either body or variables, found both", "variables", custom_id)
    url = value.get("url", "/v1/chat/completions")
    if url != "/v1/chat/completions":
        message = f"expected /v1/chat/completions or nothing in a row with variables, found {_show(url)}"
        return _refused(raw, "unknown_url", message, "url", custom_id)
    variables = value["variables"]
    if type(variables) is not dict:
        message = f"expected an object, found {_show(variables)}"
        return _refused(raw, "invalid_body", message, "variables", custom_id)
    for name, scalar in variables.items():
        if type(scalar) not in (str, int, float, bool):
            message = f"expected a text, a number or a boolean, found {_show(scalar)}"
            return _refused(raw, "invalid_body", message, f"variables.{_printable(name)}", custom_id)
    return Row(raw.number, raw.file, raw.line, custom_id, "/chat/completions", {}, variables)


def _not_json(raw: RawRow, error: orjson.JSONDecodeError) -> RowError:
    data, custom_id = raw.data, _first_key_id(raw.data)
    try:
        text = data.decode()
    except UnicodeDecodeError as undecodable:
        near = _show(data[max(0, undecodable.start - 20) : undecodable.start + 20].decode(errors="backslashreplace"))
        message = f"expected UTF-8, found {undecodable.reason} at byte {undecodable.start}: {near}"
        return _refused(raw, "invalid_utf8", message, custom_id=custom_id)
    near = _show(text[max(0, error.pos - 20) : error.pos + 20])
    message = f"expected one JSON object, found an error at character {error.pos} ({error.msg}): {near}"
    return _refused(raw, "invalid_json", message, custom_id=custom_id)


def _first_key_id(data: bytes) -> str | None:
    """The custom_id of a row that is no JSON, when it comes first, as it mostly does. Further in, it could be anyone's."""
    found = _FIRST_KEY_ID.match(data)
    try:
        custom_id = orjson.loads(found[1]) if found else None
    except orjson.JSONDecodeError:
        return None
    return custom_id if custom_id is None or len(custom_id) <= MAX_CUSTOM_ID else None


def _refused(raw: RawRow, code: str, message: str, field: str = "", custom_id: str | None = None) -> RowError:
    return RowError(raw.number, code, message, raw.file, raw.line, field, custom_id)


def _show(value: object) -> str:
    """What was found, on one line and never more than 80 characters."""
    match value:
        case str():
            return repr(value) if len(value) <= 60 and len(repr(value)) <= 78 else f"{repr(value[:60])[:75]}..."
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case dict():
            return f"an object with {len(value)} keys" if value else "an empty object"
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case type():
            return "nothing"
        case _:
            return repr(value)[:80]


def _printable(name: str) -> str:
    return name if name.isprintable() and len(name) <= 60 else _show(name)
