"""Reading a batch's input: files to rows, rows to something that can be sent, and what is said when they can't."""

import gzip
import os
import pickle
import random
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ConfigError, InputError
from runtime.batch import decode
from runtime.batch.reader import PATHS, InputSet, RawRow, Row, RowError, open_input, parse_row


def rows_of(source: InputSet, **options: int) -> list[RawRow]:
    return [row for chunk in source.chunks(**options) for row in chunk]


def data_of(source: InputSet) -> list[bytes]:
    return [row.data for row in rows_of(source)]


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def until_error(source: InputSet) -> tuple[list[bytes], InputError]:
    got: list[bytes] = []

    def read() -> None:
        for chunk in source.chunks():
            got.extend(row.data for row in chunk)

    with pytest.raises(InputError) as caught:
        read()
    return got, caught.value


# -- splitting -----------------------------------------------------------------------------------------------------


def test_splits_at_the_newline_byte_only(tmp_path: Path) -> None:
    """U+2028, U+0085, a form feed or a carriage return inside a row do not end it."""
    rows = ['{"a":"\u2028"}', '{"a":"\x85"}', '{"a":"x\ry"}', '{"a":"\x0b\x0c\x1c"}']
    source = open_input(write(tmp_path / "in.jsonl", "\n".join(rows).encode() + b"\n"))
    assert data_of(source) == [row.encode() for row in rows]


def test_numbers_rows_and_lines_apart(tmp_path: Path) -> None:
    """Blank lines get no row number but count as lines, so that an error names the line an editor shows."""
    source = open_input(write(tmp_path / "in.jsonl", b"\n1\n  \t\n\r\n2\r\n\n3"))
    assert [(row.number, row.line, row.data) for row in rows_of(source)] == [(0, 2, b"1"), (1, 5, b"2"), (2, 7, b"3")]


def test_drops_a_byte_order_mark_at_the_start_only(tmp_path: Path) -> None:
    """The mark some editors put before the first row is not part of it; further in it is data."""
    source = open_input(write(tmp_path / "in.jsonl", b"\xef\xbb\xbf1\n\xef\xbb\xbf2\n"))
    assert data_of(source) == [b"1", b"\xef\xbb\xbf2"]
    packed = open_input(write(tmp_path / "in.jsonl.gz", gzip.compress(b"\xef\xbb\xbf1\n2")))
    assert data_of(packed) == [b"1", b"2"]


def test_refuses_utf16_before_any_row(tmp_path: Path) -> None:
    """A file in UTF-16 gets one line that says so, instead of an error for every row."""
    with pytest.raises(ConfigError, match=r"in\.jsonl: this is UTF-16; save the input as UTF-8"):
        open_input(write(tmp_path / "in.jsonl", '{"a":1}'.encode("utf-16")))


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_rows(tmp_path: Path, data: bytes) -> None:
    """Nothing, or only blank lines, is no error here: it is no rows."""
    assert data_of(open_input(write(tmp_path / "in.jsonl", data))) == []


def test_a_row_too_long_is_cut_and_the_next_one_whole(tmp_path: Path) -> None:
    """An oversized line is told apart without being held; a line of exactly the limit is not oversized."""
    lines = [b"a" * 100, b"b" * 101, b"c" * 900_000, b"d", b"e" * 900_000]
    rows = rows_of(open_input(write(tmp_path / "in.jsonl", b"\n".join(lines)), max_row_bytes=100))
    assert [row.oversized for row in rows] == [False, True, True, False, True]
    assert [row.data[:1] for row in rows] == [b"a", b"b", b"c", b"d", b"e"]
    assert max(len(row.data) for row in rows) <= 4096


def test_a_prompt_of_ten_megabytes_is_read_whole(tmp_path: Path) -> None:
    """Whether a large prompt can be sent is judged elsewhere; the reader hands it on."""
    row = b'{"x":"%s"}' % (b"y" * 10_000_000)
    assert data_of(open_input(write(tmp_path / "in.jsonl", b"1\n" + row + b"\n2\n"))) == [b"1", row, b"2"]


@given(
    lines=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=30),
    block=st.integers(1, 40),
    limit=st.integers(1, 20),
)
def test_block_borders_change_nothing(lines: list[bytes], block: int, limit: int) -> None:
    """Wherever the blocks of a file end, the lines, and which of them are too long, are the same."""
    data = b"\n".join(lines)
    blocks = iter([data[at : at + block] for at in range(0, len(data), block)])
    got = [line for ended in decode.lines(blocks, limit) for line in ended]
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert got == [(line, len(line) > limit) for line in expected]


def test_chunks_are_bounded_by_rows_and_bytes(tmp_path: Path) -> None:
    """No list has more rows than asked for, and one ends as soon as it holds enough bytes."""
    path = write(tmp_path / "in.jsonl", b"x" * 10 + b"\n" + b"yy\n" * 20)
    assert [len(chunk) for chunk in open_input(path).chunks(rows=8)] == [8, 8, 5]
    assert [len(chunk) for chunk in open_input(path).chunks(rows=8, max_bytes=6)] == [1, *[3] * 6, 2]


# -- where it comes from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("in.jsonl.gz", gzip.compress),
        ("in.jsonl.zst", zstandard.ZstdCompressor().compress),
        ("in.jsonl", gzip.compress),
        ("in.jsonl", zstandard.ZstdCompressor().compress),
    ],
)
def test_reads_compressed_files(tmp_path: Path, name: str, pack: Any) -> None:
    """.gz and .zst are read as text, whatever the name, also when they are several members or frames one after the other."""
    text = b"".join(b"%d %s\n" % (n, random.Random(n).randbytes(200).hex().encode()) for n in range(5000))
    for data in (pack(text), pack(text[:1001]) + pack(text[1001:]), pack(b"") + pack(text)):
        assert data_of(open_input(write(tmp_path / name, data))) == text.splitlines()


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_compression_bomb_is_read_in_pieces(tmp_path: Path, pack: Any) -> None:
    """A small file that unpacks to 100 MB of one line is one oversized row, and never lies in memory as a whole."""
    path = write(tmp_path / "in.jsonl", pack(b"x" * 100_000_000))
    with open(path, "rb") as file:
        assert max(len(block) for block in decode.text(iter(partial(file.read, 1 << 18), b""), path)) < 17 << 20
    assert [row.oversized for row in rows_of(open_input(path))] == [True]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)])
def test_a_truncated_file_gives_the_rows_before_and_its_name(tmp_path: Path, suffix: str, pack: Any) -> None:
    """The rows before the cut are read, the half row is not, and the error names file and line."""
    text = b"".join(b"%d %s\n" % (n, random.Random(n).randbytes(200).hex().encode()) for n in range(5000))
    data = pack(text)
    got, error = until_error(open_input(write(tmp_path / f"in.jsonl{suffix}", data[: len(data) // 2])))
    assert 1000 < len(got) < 4000
    assert got == text.splitlines()[: len(got)]
    assert str(error) == f"{tmp_path}/in.jsonl{suffix}:{len(got) + 1}: cannot be read from here on: " + (
        "the compressed data ends early"
    )
    assert error.code == "unreadable_input"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, pack: Any) -> None:
    """A file that is no gz or zst, or has rubbish in its middle or behind it, ends in an error that names it."""
    text = b"".join(b"%d %s\n" % (n, random.Random(n).randbytes(200).hex().encode()) for n in range(5000))
    good = pack(text)
    middle = len(good) // 2
    for data in (b'{"plain":1}\n', good[:middle] + b"\xff" * 64 + good[middle:], good + b"rubbish behind it"):
        got, error = until_error(open_input(write(tmp_path / f"in.jsonl{suffix}", data)))
        assert f"in.jsonl{suffix}:{len(got) + 1}: cannot be read from here on: " in str(error)
        assert "\n" not in str(error)
    assert got == text.splitlines()


def test_a_file_is_what_its_path_says_whatever_it_is_called(tmp_path: Path) -> None:
    """Of an upload the name is a stranger's word: it stands in messages and decides nothing."""
    path = write(tmp_path / "in.jsonl", b'{"a":1}')
    for name in ("x.parquet", "x.gz"):
        assert data_of(open_input(path, name=name)) == [b'{"a":1}']


def test_a_folder_is_its_jsonl_files_by_name(tmp_path: Path) -> None:
    """All .jsonl, .jsonl.gz and .jsonl.zst of a folder, in the order of their names, numbered through."""
    write(tmp_path / "b.jsonl.gz", gzip.compress(b"3\n4"))
    write(tmp_path / "a.jsonl", b"1\n2")
    write(tmp_path / "c.jsonl.zst", zstandard.compress(b"5\n"))
    write(tmp_path / "notes.txt", b"no")
    (tmp_path / "d.jsonl").mkdir()
    source = open_input(str(tmp_path))
    assert [os.path.basename(name) for name in source.files] == ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst"]
    rows = rows_of(source)
    assert [(row.number, row.line, row.data) for row in rows] == [
        (0, 1, b"1"),
        (1, 2, b"2"),
        (2, 1, b"3"),
        (3, 2, b"4"),
        (4, 1, b"5"),
    ]


def test_a_glob_is_what_it_matches(tmp_path: Path) -> None:
    """A pattern means its files, sorted; a file that is really called like that is itself."""
    for name in ("s-2.jsonl", "s-1.jsonl", "t.jsonl"):
        write(tmp_path / name, name.encode())
    assert data_of(open_input(f"{tmp_path}/s-*.jsonl")) == [b"s-1.jsonl", b"s-2.jsonl"]
    assert data_of(open_input(write(tmp_path / "odd[1].jsonl", b"odd"))) == [b"odd"]


def test_the_jobs_own_outputs_are_not_its_input(tmp_path: Path) -> None:
    """Results that were written into the input's folder are left out; input and output in one file are refused."""
    write(tmp_path / "in.jsonl", b"1")
    out = write(tmp_path / "out.jsonl", b"2")
    assert data_of(open_input(str(tmp_path), exclude=[out])) == [b"1"]
    assert data_of(open_input(f"{tmp_path}/*.jsonl", exclude=[f"{tmp_path}/./out.jsonl"])) == [b"1"]
    with pytest.raises(ConfigError, match="input and output are the same file"):
        open_input(out, exclude=[out])


def test_reads_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`-` is standard input, compressed or not, and asking for its fingerprint first loses nothing of it."""
    text = b"".join(b"%d\n" % n for n in range(60_000))
    for data in (text, gzip.compress(text)):
        (tmp_path / "in").write_bytes(data)
        with open(tmp_path / "in") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            source = open_input("-")
            assert source.size_bytes is None
            assert "sha256" in source.fingerprint()
            assert data_of(source) == text.splitlines()


def test_a_named_pipe_is_read_once_and_as_it_comes(tmp_path: Path) -> None:
    """`<(zcat ...)` works: the pipe is opened once, and rows are handed on when the writer pauses."""
    path, more = tmp_path / "pipe", threading.Event()
    os.mkfifo(path)

    def feed() -> None:
        with open(path, "wb", buffering=0) as pipe:
            pipe.write(b"1\n2\n")
            assert more.wait(20)
            pipe.write(b"3\n")

    writer = threading.Thread(target=feed)
    writer.start()
    chunks = open_input(str(path)).chunks()
    assert [row.data for row in next(chunks)] == [b"1", b"2"]
    more.set()
    assert [row.data for chunk in chunks for row in chunk] == [b"3"]
    writer.join()


def test_missing_input_is_one_clear_line(tmp_path: Path) -> None:
    """A file that is not there, a glob that matches nothing and an empty folder each say so."""
    (tmp_path / "empty").mkdir()
    for spec, message in (
        (f"{tmp_path}/no.jsonl", "no.jsonl: cannot read the input: No such file or directory"),
        (f"{tmp_path}/*.jsonl", "*.jsonl: no file matches"),
        (f"{tmp_path}/empty", "empty: the folder holds no *.jsonl, *.jsonl.gz, *.jsonl.zst, *.parquet"),
    ):
        with pytest.raises(ConfigError) as caught:
            open_input(spec)
        assert str(caught.value).endswith(message)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    """The rows of the files before it are read, then the error says which file is gone."""
    write(tmp_path / "a.jsonl", b"1\n")
    second = write(tmp_path / "b.jsonl", b"2\n")
    source = open_input(str(tmp_path))
    os.remove(second)
    got, error = until_error(source)
    assert got == [b"1"]
    assert str(error).endswith("b.jsonl:1: cannot be read from here on: No such file or directory")


def test_progress_is_known_in_bytes(tmp_path: Path) -> None:
    """`read_bytes` ends at `size_bytes`, for compressed files too."""
    write(tmp_path / "a.jsonl", b"1\n")
    write(tmp_path / "b.jsonl.gz", gzip.compress(b"2\n"))
    source = open_input(str(tmp_path))
    rows_of(source)
    assert source.read_bytes == source.size_bytes


# -- fingerprint ---------------------------------------------------------------------------------------------------


def test_the_fingerprint_survives_a_move_and_sees_an_edit(tmp_path: Path) -> None:
    """The same files elsewhere are the same input; another name, size, start or end is another input."""
    data = bytes(range(256)) * 1000
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    original = open_input(write(tmp_path / "one" / "in.jsonl", data)).fingerprint()
    assert original == open_input(write(tmp_path / "two" / "in.jsonl", data)).fingerprint()
    assert original.startswith("in.jsonl (256,000 bytes, sha256 ")
    for other in (data + b"x", b"x" + data[1:], data[:-1] + b"x"):
        assert open_input(write(tmp_path / "two" / "in.jsonl", other)).fingerprint() != original
    assert open_input(write(tmp_path / "two" / "ni.jsonl", data)).fingerprint() != original


def test_the_fingerprint_of_several_files_depends_on_all(tmp_path: Path) -> None:
    """A change in any file of a folder, or one file more, makes another input."""
    write(tmp_path / "a.jsonl", b"1\n")
    write(tmp_path / "b.jsonl", b"2\n")
    seen = {open_input(str(tmp_path)).fingerprint()}
    write(tmp_path / "b.jsonl", b"3\n")
    seen.add(open_input(str(tmp_path)).fingerprint())
    write(tmp_path / "c.jsonl", b"")
    seen.add(open_input(str(tmp_path)).fingerprint())
    assert len(seen) == 3
    assert any(text.startswith("a.jsonl and 2 more (4 bytes, ") for text in seen)


# -- rows ----------------------------------------------------------------------------------------------------------

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
GOOD = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}


def parse(value: object, **fields: Any) -> Row | RowError:
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return parse_row(RawRow(16, "in.jsonl", 17, data, **fields))


def refusal(value: object, **fields: Any) -> RowError:
    row = parse(value, **fields)
    assert isinstance(row, RowError)
    assert "\n" not in str(row)
    assert str(row).startswith("in.jsonl:17: ")
    return row


def test_a_good_row() -> None:
    """The row carries its place, its name, the path below the base url and its body as it stood."""
    assert parse(GOOD) == Row(16, "in.jsonl", 17, "r1", "/chat/completions", CHAT, None)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "n": 2, "max_tokens": 5, "max_completion_tokens": None, "stream": False}),
        ("/v1/embeddings", {"model": "e", "input": ["a", "b"]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 9}),
    ],
)
def test_every_url_of_the_batch_format(url: str, body: dict[str, Any]) -> None:
    """All four urls pass, without a method too, and what an API allows to be null may be null."""
    row = parse({"custom_id": "r1", "url": url, "body": body})
    assert isinstance(row, Row)
    assert (row.path, row.body) == (PATHS[url], body)


def test_a_prompt_row() -> None:
    """A row with variables needs no url; its values are texts, numbers and booleans."""
    variables = {"name": "Ada", "age": 36, "share": 0.5, "member": True}
    row = parse({"custom_id": "r1", "variables": variables})
    assert row == Row(16, "in.jsonl", 17, "r1", "/chat/completions", {}, variables)


BAD: list[tuple[object, str, str, str]] = [
    ([1, 2], "invalid_json", "", "expected one JSON object, found a list of 2"),
    ({**GOOD, "custom_id": ""}, "missing_custom_id", "custom_id", "expected a text of 1 to 512 characters, found ''"),
    ({"url": "/v1/embeddings"}, "missing_custom_id", "custom_id", "found nothing"),
    ({**GOOD, "custom_id": 7}, "missing_custom_id", "custom_id", "found 7"),
    ({**GOOD, "method": "GET"}, "invalid_method", "method", "expected POST or nothing, found 'GET'"),
    ({**GOOD, "url": "/v1/images"}, "unknown_url", "url", "/v1/responses, found '/v1/images'"),
    ({**GOOD, "url": ["/v1/embeddings"]}, "unknown_url", "url", "found a list of 1"),
    ({"custom_id": "r1", "body": CHAT}, "unknown_url", "url", "found nothing"),
    ({**GOOD, "body": "text"}, "invalid_body", "body", "expected an object, found 'text'"),
    ({**GOOD, "body": {}}, "invalid_body", "body.messages", "a list of at least one message, found nothing"),
    ({**GOOD, "body": {"messages": []}}, "invalid_body", "body.messages", "found an empty list"),
    ({**GOOD, "body": {"messages": [*CHAT["messages"], 3]}}, "invalid_body", "body.messages[1]", "an object, found 3"),
    ({**GOOD, "body": {"messages": [{}]}}, "invalid_body", "body.messages[0].role", "a text, found nothing"),
    ({**GOOD, "body": {**CHAT, "model": 4}}, "invalid_body", "body.model", "expected a text or nothing, found 4"),
    ({**GOOD, "body": {**CHAT, "stream": True}}, "invalid_body", "body.stream", "a batch does not stream), found true"),
    ({**GOOD, "body": {**CHAT, "max_tokens": 0}}, "invalid_body", "body.max_tokens", "above 0, found 0"),
    ({**GOOD, "body": {**CHAT, "n": True}}, "invalid_body", "body.n", "above 0, found true"),
    ({**GOOD, "body": {**CHAT, "n": 1.0}}, "invalid_body", "body.n", "above 0, found 1.0"),
    ({**GOOD, "url": "/v1/embeddings"}, "invalid_body", "body.input", "expected a text or a list, found nothing"),
    ({**GOOD, "url": "/v1/completions"}, "invalid_body", "body.prompt", "expected a text or a list, found nothing"),
    ({**GOOD, "variables": {}}, "invalid_body", "variables", "expected either body or variables, found both"),
    ({"custom_id": "r1", "variables": [1]}, "invalid_body", "variables", "expected an object, found a list of 1"),
    ({"custom_id": "r1", "variables": {"a": None}}, "invalid_body", "variables.a", "a boolean, found null"),
    ({"custom_id": "r1", "variables": {}, "url": "/v1/embeddings"}, "unknown_url", "url", "found '/v1/embeddings'"),
]


@pytest.mark.parametrize(("value", "code", "field", "message"), BAD)
def test_a_bad_row_is_one_clear_line(value: object, code: str, field: str, message: str) -> None:
    """Code, place, field, what was expected and what was found; and the row's name when it has one."""
    error = refusal(value)
    assert (error.code, error.field) == (code, field)
    assert str(error).endswith(message)
    named = code not in ("missing_custom_id", "invalid_json")
    assert error.custom_id == ("r1" if named else None)


@pytest.mark.parametrize("data", [b"{", b'{"a":1} {"b":2}', b"not json", b'{"a":NaN}', b'"\\ud800"', b"[" * 3000])
def test_a_row_that_is_no_json(data: bytes) -> None:
    """Cut rows, two objects on a line, NaN, lone surrogates and endless nesting are refused as no JSON."""
    error = refusal(data)
    assert error.code == "invalid_json"
    assert "expected one JSON object" in error.message


def test_truncated_utf8_is_told_by_its_byte() -> None:
    """A character cut in half is named with the byte where it stands."""
    error = refusal(b'{"custom_id":"r1","body":"\xe2\x82')
    assert error.code == "invalid_utf8"
    assert "unexpected end of data at byte 26" in error.message
    assert error.custom_id == "r1"


def test_the_name_of_a_broken_row_is_found_when_it_comes_first() -> None:
    """A custom_id at the start of a broken or oversized row goes into its error line; one further in might be a prompt's."""
    assert refusal(b'{"custom_id": "a\\u0062c", "body": {').custom_id == "abc"
    assert refusal(b' { "custom_id" : "x" , "body"', oversized=True).custom_id == "x"
    assert refusal(b'{"body": {"custom_id": "inner"').custom_id is None
    assert refusal(b'{"custom_id": "\\ud800", ').custom_id is None
    assert refusal(b'{"custom_id": "%s", ' % (b"x" * 600)).custom_id is None


def test_an_oversized_row_is_named() -> None:
    """A row that was not read whole has a code of its own."""
    assert refusal(b'{"custom_id":"r1","bod', oversized=True).code == "row_too_large"


@given(st.text(max_size=500))
def test_what_was_found_is_bounded_and_on_one_line(text: str) -> None:
    """Whatever a row holds, its message shows at most 80 characters of it and no line break of any kind."""
    try:
        data = orjson.dumps({**GOOD, "url": text})
    except TypeError:
        return
    error = parse(data)
    if isinstance(error, RowError):
        found = error.message.partition("found ")[2]
        assert len(found) <= 80
        assert len(error.message.splitlines()) == 1


def test_a_row_error_is_an_input_error_and_survives_pickling() -> None:
    """It can be caught as InputError and keeps number and name on its way through a pickle."""
    error = refusal({**GOOD, "url": 1})
    assert isinstance(error, InputError)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.number, again.custom_id, again.code, again.field) == (16, "r1", "unknown_url", "url")
