"""Parquet as input: the same rows as the JSONL that says the same, and one line for a table that holds none."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from actors.errors import ConfigError, InputError
from runtime.batch.parse import RawRow, Row, RowError, parse_row
from runtime.batch.reader import open_input


def table(path: Path, columns: dict[str, Any], **options: Any) -> str:
    parquet.write_table(pyarrow.table(columns), path, **options)
    return str(path)


def rows(path: str) -> list[Row | RowError]:
    return [parse_row(raw) for chunk in open_input(path).chunks() for raw in chunk]


def raw(path: str) -> list[RawRow]:
    return [row for chunk in open_input(path).chunks() for row in chunk]


CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


@pytest.mark.parametrize(
    "columns",
    [
        {"body": [CHAT]},
        {"body": ['{"messages":[{"role":"user","content":"hi"}],"max_tokens":5}']},
        {"body": [CHAT], "url": ["/v1/chat/completions"], "method": ["POST"], "label": [7]},
        {"body": pyarrow.array(['{"messages":[{"role":"user","content":"hi"}],"max_tokens":5}']).dictionary_encode()},
    ],
)
def test_a_body_is_a_struct_or_json_text(tmp_path: Path, columns: dict[str, Any]) -> None:
    """Either way it is the row that JSONL would hold; columns of another name are nobody's affair."""
    path = table(tmp_path / "in.parquet", {"custom_id": ["a"], **columns})
    assert rows(path) == [Row(0, path, 1, "a", "/chat/completions", CHAT, None)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("messages", [{"role": "user", "content": "hi"}]),
        ("messages", '[{"role":"user","content":"hi"}]'),
        ("prompt", "hi"),
    ],
)
def test_messages_or_a_prompt_are_a_chat(tmp_path: Path, column: str, value: object) -> None:
    """A table of conversations, or of texts, needs no body."""
    path = table(tmp_path / "in.parquet", {"custom_id": ["a"], column: [value]})
    assert rows(path) == [
        Row(0, path, 1, "a", "/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, None)
    ]


def test_variables_are_those_of_a_registered_prompt(tmp_path: Path) -> None:
    """A struct of them has all fields in each row: those that are null are not there."""
    path = table(tmp_path / "in.parquet", {"custom_id": ["a", "b"], "variables": [{"x": 1, "y": "u"}, {"x": 2}]})
    assert [row.variables for row in rows(path) if isinstance(row, Row)] == [{"x": 1, "y": "u"}, {"x": 2}]


def test_rows_that_cannot_be_used_fail_by_themselves(tmp_path: Path) -> None:
    """Text that is no JSON, a null and a missing id each have file, row and field; the row between them is read."""
    path = table(
        tmp_path / "in.parquet",
        {"custom_id": ["a", "b", None, "d"], "body": ["{no", None, "{}", '{"messages":[{"role":"user"}]}']},
    )
    found = rows(path)
    assert [str(row) for row in found[:3]] == [
        f"{path}:1: body: expected an object, found '{{no'",
        f"{path}:2: body: expected an object, found null",
        f"{path}:3: custom_id: expected a text of 1 to 512 characters, found nothing",
    ]
    assert isinstance(found[3], Row)


def test_a_large_row_group_is_read_in_pieces(tmp_path: Path) -> None:
    """Row groups as large as the file are handed on in short lists, numbered through."""
    ids = [f"row-{number}" for number in range(3000)]
    path = table(tmp_path / "in.parquet", {"custom_id": ids, "prompt": ids}, row_group_size=3000)
    source = open_input(path)
    chunks = list(source.chunks())
    assert max(len(chunk) for chunk in chunks) <= 256
    assert [row.line for chunk in chunks for row in chunk] == list(range(1, 3001))
    assert source.read_bytes == source.size_bytes


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": ["a"], "text": ["b"]}, "expected a column custom_id, found id, text"),
        ({"custom_id": ["a"], "text": ["b"]}, "expected a column body, variables, messages or prompt, found custom_id"),
        ({"custom_id": [1], "prompt": ["b"]}, "custom_id: expected text, found int64"),
        ({"custom_id": ["a"], "body": [{"x": b"bytes"}]}, "body: expected what JSON has too, found binary; cast it"),
    ],
)
def test_a_table_without_rows_columns_is_told_before_any_row(
    tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    """One line that names the file, and the column where there is one."""
    path = table(tmp_path / "in.parquet", columns)
    with pytest.raises(ConfigError) as caught:
        open_input(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_damage_is_one_line(tmp_path: Path) -> None:
    """What is no Parquet, or was cut, is told at once; damage inside it when it is met, after the rows before."""
    good = Path(table(tmp_path / "good.parquet", {"custom_id": ["a"] * 3000, "prompt": ["b" * 50] * 3000})).read_bytes()
    for name, data in (("no.parquet", b"{}\n"), ("cut.parquet", good[: len(good) // 2]), ("empty.parquet", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=rf"{name}: cannot be read as Parquet: ") as told:
            open_input(str(tmp_path / name))
        assert "\n" not in str(told.value)
    (tmp_path / "hurt.parquet").write_bytes(good[:4] + b"\xff" * 40 + good[44:])
    with pytest.raises(InputError, match=r"hurt\.parquet:1: cannot be read from here on: "):
        raw(str(tmp_path / "hurt.parquet"))


def test_parquet_under_another_name_is_told(tmp_path: Path) -> None:
    """A million unreadable lines would say it less well."""
    path = Path(table(tmp_path / "in.parquet", {"custom_id": ["a"], "prompt": ["b"]}))
    other = path.rename(tmp_path / "in.jsonl")
    with pytest.raises(ConfigError, match="this is Parquet; give it a name"):
        open_input(str(other))
