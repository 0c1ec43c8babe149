"""Parquet as input: every row of the table becomes the JSONL line that says the same, so that one set of rules reads both.

    custom_id   text
    body        the request, as a struct or as JSON text; or `variables` (for --prompt) likewise; or, for chat completions,
                `messages` (a list of structs, or JSON text), or `prompt`, the text of one message
    url, method as in JSONL; without a column `url` it is /v1/chat/completions

A struct has every field in every row, so fields that are null are left out. pyarrow is optional.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from actors.errors import ConfigError
from runtime.batch.decode import in_one_line

__all__ = ["check", "lines", "need_pyarrow", "without_nulls"]

CONTENTS = ("body", "variables", "messages", "prompt")
COLUMNS = ("custom_id", "method", "url", *CONTENTS)
CHAT = "/v1/chat/completions"
ROWS = 256
BUFFER_BYTES = 1 << 20
"""Columns are read in pieces of this size: a row group may be larger than the memory."""


def check(file: BinaryIO, name: str) -> None:
    """Raises ConfigError when pyarrow is missing, this is no Parquet, or the columns are not those of rows."""
    schema = _table(file, name).schema_arrow
    found = f"found {', '.join(schema.names[:12])}{' and more' if len(schema.names) > 12 else ''}"
    if "custom_id" not in schema.names:
        raise ConfigError(f"expected a column custom_id, {found}", file=name)
    contents = [column for column in CONTENTS if column in schema.names]
    if not contents:
        raise ConfigError(f"expected a column body, variables, messages or prompt, {found}", file=name)
    if not _is_text(schema.field("custom_id").type):
        raise ConfigError(f"expected text, found {schema.field('custom_id').type}", file=name, key="custom_id")
    for column in (set(COLUMNS) & set(schema.names)) - set(contents[1:]):
        if (odd := _odd(schema.field(column).type)) is not None:
            raise ConfigError(f"expected what JSON has too, found {odd}; cast it", file=name, key=column)


def lines(file: BinaryIO, name: str) -> Iterator[tuple[float, list[bytes]]]:
    """Lines, in lists, each with the share of the table's rows that is through then. Raises EOFError for damage."""
    table = _table(file, name)
    names = table.schema_arrow.names
    content = next(column for column in CONTENTS if column in names)
    columns = [column for column in ("custom_id", "method", "url") if column in names] + [content]
    done = 0
    try:
        for batch in table.iter_batches(ROWS, columns=columns, use_threads=False):
            rows = batch.to_pylist()
            done += len(rows)
            yield done / table.metadata.num_rows, [_line(row, content) for row in rows]
    except (OSError, ValueError) as error:  # Arrow's errors are among them
        raise EOFError(in_one_line(str(error), error)) from None


def _line(row: dict[str, Any], content: str) -> bytes:
    value = without_nulls(row.pop(content))
    line = {key: each for key, each in row.items() if each is not None}
    line.setdefault("url", CHAT)
    match content:
        case "body" | "variables":
            line[content] = _value(value)
        case "messages":
            line["body"] = {"messages": _value(value)}
        case _:
            line["body"] = {"messages": [{"role": "user", "content": value}]}
    return orjson.dumps(line)


def _value(value: Any) -> Any:
    """JSON text as what it says. What is no JSON stays text, and is refused with the row."""
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def without_nulls(value: Any) -> Any:
    """The value without the fields of structs that are null: a struct of Arrow has all fields of all rows."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


def need_pyarrow(name: str) -> None:
    """Raises ConfigError when it is not there."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'raycade[data]'", file=name) from None


def _table(file: BinaryIO, name: str) -> Any:
    need_pyarrow(name)
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"cannot be read as Parquet: {in_one_line(str(error), error)}", file=name) from None


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _odd(kind: Any) -> str | None:
    """The first type in here that JSON has no like of."""
    from pyarrow import types

    if types.is_struct(kind):
        return next((odd for field in kind if (odd := _odd(field.type)) is not None), None)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _odd(kind.value_type)
    plain = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind)
    return None if plain or _is_text(kind) else str(kind)
