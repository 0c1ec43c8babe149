"""The writer: output lines as the Batch format has them, and rows that are done only when their line stands."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ConfigError
from runtime.batch import writer as module
from runtime.batch.journal import Journal, scan
from runtime.batch.reader import Row
from runtime.batch.writer import OutputError, OutputWriter, Written

EXTRA = {"tier": "premium", "attempts": 1, "cost_usd": 0.0012}


def row(number: int, custom_id: str | None = None) -> Row:
    return Row(number, "in.jsonl", number + 1, custom_id or f"r{number}", "/chat/completions", {}, None)


class Job:
    """A journal and its writer over one folder."""

    def __init__(self, folder: Path) -> None:
        self.out, self.errors = str(folder / "out.jsonl"), str(folder / "out.errors.jsonl")
        self.journal = Journal.open(self.out, self.errors, "f", "c")
        self.writer = OutputWriter(self.out, self.errors, self.journal)

    def lines(self, errors: bool = False) -> list[dict[str, Any]]:
        data = Path(self.errors if errors else self.out).read_bytes()
        assert data.endswith(b"\n") or not data
        return [orjson.loads(line) for line in data.split(b"\n")[:-1]]

    def close(self) -> None:
        self.writer.close()
        self.journal.close()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    job.journal.close()


# -- format --------------------------------------------------------------------------------------------------------


def test_a_result_line_is_byte_for_byte_the_format(job: Job) -> None:
    """Keys, their order, the upstream body as it came, and `raycade` as the body's last key."""
    body = b'{"id": "c-1", "x": 1.10,  "big": 123456789012345678901234567890}'
    assert job.writer.add_result(row(7, 'a"b'), body, 200, "req_1", {"tier": "t"})
    job.writer.flush()
    assert (
        Path(job.out).read_bytes()
        == (
            b'{"id":"batch_req_%s_7","custom_id":"a\\"b","response":{"status_code":200,"request_id":"req_1","body":'
            b'{"id": "c-1", "x": 1.10,  "big": 123456789012345678901234567890,"raycade":{"tier":"t"}}},"error":null}\n'
        )
        % job.journal.run.encode()
    )


def test_an_error_line_goes_to_the_errors_file(job: Job) -> None:
    """Without a response it is null; a row without a name has null for it; the place stands in the message."""
    job.writer.add_error(3, None, "invalid_json", "in.jsonl:4: expected one JSON object")
    job.writer.add_error(4, "r4", "timeout", "no answer", file="in.jsonl", line=5)
    job.writer.flush()
    first, second = job.lines(errors=True)
    assert list(first) == ["id", "custom_id", "response", "error"]
    assert first["id"] == f"batch_req_{job.journal.run}_3"
    assert (first["custom_id"], first["response"]) == (None, None)
    assert first["error"] == {"code": "invalid_json", "message": "in.jsonl:4: expected one JSON object"}
    assert (second["custom_id"], second["error"]["message"]) == ("r4", "in.jsonl:5: no answer")
    assert job.lines() == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"no"}}', {"error": {"message": "no"}, "raycade": EXTRA}),
        (b"<html>\nBad gateway \xff</html>", "<html>\nBad gateway \ufffd</html>"),
        (b'{"error":{"message":"cut o', '{"error":{"message":"cut o'),
        (b"[1]", "[1]"),
    ],
)
def test_the_last_response_stands_in_the_error_line(job: Job, body: bytes, expected: object) -> None:
    """An object takes the key `raycade`; anything else, a web page or a body cut short, stands there as text."""
    job.writer.add_error(0, "r0", "server", "bad gateway", 502, body, EXTRA, "req_9")
    job.writer.flush()
    [line] = job.lines(errors=True)
    assert line["response"] == {"status_code": 502, "request_id": "req_9", "body": expected}


@pytest.mark.parametrize(("status", "body"), [(None, None), (502, b"<html>")])
def test_what_a_failed_row_cost_is_told_without_a_response_too(
    job: Job, status: int | None, body: bytes | None
) -> None:
    """Where no body can take the key `raycade`, the line has it."""
    job.writer.add_error(0, "r0", "timeout", "late", status, body, EXTRA)
    job.writer.flush()
    [line] = job.lines(errors=True)
    assert line["raycade"] == EXTRA


def test_the_prompt_of_an_earlier_line_can_be_asked_for(job: Job) -> None:
    """So that a row shares a line only with its own version; a line that was made by none has none."""
    long = b'{"x":"%s"}' % (b"y" * 20_000)
    job.writer.add_result(row(0), long, 200, "req", {"prompt": "p@2", "parsed": {"prompt": "p@1"}})
    job.writer.add_result(row(1), b"{}", 200, "req", {})
    assert [job.writer.read_prompt(written.offset) for written in job.writer.flush()] == ["p@2", ""]


@pytest.mark.parametrize(
    "body",
    [
        b'{\n  "a": "x\\ny",\r\n  "b": [1,\n 2]\n}\n',
        '{"a":"\u2028\x85","b":1}'.encode(),
        b"{}",
        b" { } ",
        b'{"raycade":{"tier":"upstream"},"a":1}',
        b'{"deep":{"raycade":1}}',
        b'{"a":",\\"raycade\\":{}}"}',
    ],
)
@pytest.mark.parametrize("extra", [EXTRA, {"parsed": {"raycade": {"raycade": {}}, "b": 1}}, {}])
def test_every_body_is_one_line_with_one_more_key(job: Job, body: bytes, extra: dict[str, Any]) -> None:
    """However upstream wrote its JSON, the row is one line, says the same, and ours is the key `raycade` readers see."""
    job.writer.add_result(row(0), body, 200, "req", extra)
    [written] = job.writer.flush()
    [line] = job.lines()
    expected = orjson.loads(body)
    assert line["response"]["body"] == {**expected, **({"raycade": extra} if extra else {})}
    assert json.loads(job.writer.read_line(written.offset)) == expected or not extra


@pytest.mark.parametrize(("body", "value"), [(b"[1,2]", [1, 2]), (b'"x"', "x"), (b"no json", "no json"), (b"", "")])
def test_a_body_that_is_no_object_is_wrapped(job: Job, body: bytes, value: object) -> None:
    """Whatever came, OUT stays JSON lines."""
    job.writer.add_result(row(0), body, 200, "req", EXTRA)
    job.writer.flush()
    assert job.lines()[0]["response"]["body"] == {"value": value, "raycade": EXTRA}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["raycade", "a", "body", "error", '"raycade":']), inner, max_size=3)
    ),
    max_leaves=12,
)
OBJECT = st.dictionaries(st.sampled_from(["raycade", "a", "body", "error", '"raycade":']), JSON, max_size=4)


@given(OBJECT, OBJECT.filter(bool), st.sampled_from([None, 1, "\t"]))
def test_what_is_spliced_comes_apart_again(
    body: dict[str, Any], extra: dict[str, Any], indent: int | str | None
) -> None:
    """A row that shares an earlier call gets the upstream body back as it was, whatever names occur in it."""
    text = json.dumps(body, indent=indent).encode()
    spliced = b"".join(module._spliced(text, extra))
    assert b"\n" not in spliced
    assert orjson.loads(spliced) == {**body, "raycade": extra}
    line = (
        b'{"id":"batch_req_ab_1","custom_id":"x","response":{"status_code":200,"body":' + spliced + b'},"error":null}'
    )
    one_line = text.translate(None, b"\r\n")
    assert module._unspliced(line) == (one_line if body else b"{}")


def test_a_fragment_with_line_breaks_stays_on_the_line(job: Job) -> None:
    """A parsed value is spliced in as bytes as well, and may be indented."""
    job.writer.add_result(row(0), b'{"a":1}', 200, "r", {"parsed": orjson.Fragment(b'{\n "b": 2}')})
    job.writer.flush()
    assert job.lines()[0]["response"]["body"] == {"a": 1, "raycade": {"parsed": {"b": 2}}}


def test_a_file_name_that_is_no_utf8_can_be_named(job: Job) -> None:
    """A message with undecodable bytes of a path is written, not an error of its own."""
    job.writer.add_error(0, "r", "invalid_json", "bad", file=os.fsdecode(b"in\xff.jsonl"), line=2)
    job.writer.flush()
    assert job.lines(errors=True)[0]["error"]["message"] == "in\\udcff.jsonl:2: bad"


# -- done ----------------------------------------------------------------------------------------------------------


def test_a_row_is_done_when_its_line_is_written_and_not_before(job: Job) -> None:
    """`flush` tells which rows it made done, and where their lines stand."""
    job.writer.add_result(row(1), b'{"a":1}', 200, "r", EXTRA)
    job.writer.add_error(2, "r2", "timeout", "late")
    assert (len(job.journal.done), job.writer.pending_rows) == (0, 2)
    assert job.writer.pending_bytes > 100
    written = job.writer.flush()
    assert written == [
        Written(1, 0, os.path.getsize(job.out), True),
        Written(2, 0, os.path.getsize(job.errors), False),
    ]
    assert (1 in job.journal.done, 2 in job.journal.done, 0 in job.journal.done) == (True, True, False)
    assert (job.journal.succeeded, job.journal.failed) == (1, 1)
    assert (job.writer.pending_rows, job.writer.pending_bytes, job.writer.flush()) == (0, 0, [])


def test_a_row_gets_one_line_only(job: Job) -> None:
    """A second answer or failure for a row, queued or written, is dropped, and the caller told so."""
    assert job.writer.add_result(row(1), b'{"a":1}', 200, "r", EXTRA)
    assert not job.writer.add_result(row(1), b'{"a":2}', 200, "r", EXTRA)
    assert not job.writer.add_error(1, "r1", "timeout", "late")
    job.writer.flush()
    assert not job.writer.add_error(1, "r1", "timeout", "late")
    assert not job.writer.add_result(row(1), b'{"a":3}', 200, "r", EXTRA)
    job.writer.flush()
    assert [line["response"]["body"]["a"] for line in job.lines()] == [1]
    assert job.lines(errors=True) == []


def test_offsets_are_those_that_scan_finds(job: Job, tmp_path: Path) -> None:
    """What `flush` said, what `scan` finds after a resume, and what `read_line` reads are the same lines."""
    told = []
    for number in range(50):
        job.writer.add_result(row(number), b'{"n":%d,"x":"%s"}' % (number, b"y" * number * 1000), 200, "r", EXTRA)
        if number % 7 == 0:
            told += job.writer.flush()
    told += job.writer.flush()
    assert [(number, offset, length) for number, offset, length, _ in told] == list(scan(job.out, job.journal.run))
    job.close()
    again = Job(tmp_path)
    for number, offset, length, _ in told:
        body = b'{"n":%d,"x":"%s"}' % (number, b"y" * number * 1000)
        assert again.writer.read_line(offset) == again.writer.read_line(offset, length) == body
    again.close()


def test_a_resumed_writer_goes_on_behind_the_old_lines(job: Job, tmp_path: Path) -> None:
    """Lines of the earlier run stay byte for byte; new ones follow."""
    job.writer.add_result(row(0), b'{"a":1}', 200, "r", EXTRA)
    job.close()
    before = Path(job.out).read_bytes()
    again = Job(tmp_path)
    assert not again.writer.add_result(row(0), b'{"a":2}', 200, "r", EXTRA)
    again.writer.add_result(row(1), b'{"a":3}', 200, "r", EXTRA)
    again.close()
    assert Path(job.out).read_bytes().startswith(before)
    assert len(again.lines()) == 2


def test_a_checkpoint_in_a_thread_may_lag_behind(job: Job, tmp_path: Path) -> None:
    """Rows written between snapshot and store are found again by the scan."""
    job.writer.add_result(row(0), b'{"a":1}', 200, "r", EXTRA)
    job.writer.flush()
    snapshot = job.writer.snapshot()
    job.writer.add_result(row(1), b'{"a":1}', 200, "r", EXTRA)
    job.writer.flush()
    job.writer.store(snapshot)
    job.journal.close()
    job.writer._out.close()
    job.writer._errors.close()
    again = Job(tmp_path)
    assert (len(again.journal.done), again.journal.succeeded) == (2, 2)
    again.close()


def test_no_failures_leave_no_errors_file(job: Job, tmp_path: Path) -> None:
    """An errors file that was never needed is gone at the end; an empty one that was there before stays."""
    job.writer.add_result(row(0), b'{"a":1}', 200, "r", EXTRA)
    job.close()
    assert not os.path.exists(job.errors)
    Path(job.errors).write_bytes(b"")
    again = Job(tmp_path)
    again.close()
    assert os.path.exists(job.errors)


# -- trouble -------------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from runtime.batch.journal import Journal
from runtime.batch.reader import Row
from runtime.batch.writer import OutputError, OutputWriter

out, errors, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
journal = Journal.open(out, errors, "f", "c")
writer = OutputWriter(out, errors, journal)
for number in range(20):
    writer.add_result(Row(number, "in", 1, f"r{number}", "/c", {}, None), b'{"x":"' + b"y" * 400 + b'"}', 200, "r", {})
writer.add_error(20, "r20", "timeout", "late")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    writer.flush()
except OutputError as error:
    print(error)
print([row for row in range(30) if row in journal.done], journal.succeeded, writer.pending_rows)
open(out + ".seen", "wb").write(open(out, "rb").read())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print([written.number for written in writer.flush()])
writer.close()
"""


@pytest.mark.parametrize("limit", [300, 4000, 4700, 8192])
def test_a_full_disk_leaves_whole_lines_and_open_rows(tmp_path: Path, limit: int) -> None:
    """What fitted counts, the half line is cut off again, the rest is not done and can be written once there is room."""
    out, errors = str(tmp_path / "out.jsonl"), str(tmp_path / "e.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, out, errors, str(limit)], capture_output=True, text=True, check=True
    )
    said, state, later = done.stdout.splitlines()
    assert said.startswith(f"{out}: cannot write: File too large; ")
    assert said.endswith("the job can be resumed")
    seen = Path(f"{out}.seen").read_bytes()
    assert not seen or seen.endswith(b"\n")
    whole = seen.count(b"\n")
    assert limit - 600 < len(seen) <= limit or not whole
    assert state == f"{[*range(whole), 20]} {whole} {20 - whole}"
    assert later == str(list(range(whole, 20)))
    lines = [orjson.loads(line) for line in Path(out).read_bytes().split(b"\n")[:-1]]
    assert [line["custom_id"] for line in lines] == [f"r{number}" for number in range(20)]
    assert Path(out).read_bytes().startswith(seen)


def test_a_disk_error_at_the_checkpoint_is_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """When fsync fails nothing is claimed: the old checkpoint stays, and the error is one line."""
    job.writer.add_result(row(0), b'{"a":1}', 200, "r", EXTRA)
    job.writer.flush()

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OutputError, match=r"out\.jsonl: cannot write: Input/output error"):
        job.writer.checkpoint()
    assert not os.path.exists(f"{job.out}.journal/checkpoint")


def test_two_jobs_cannot_share_an_errors_file(job: Job, tmp_path: Path) -> None:
    """Two OUTs have two journals; the errors file they were both given is refused to the second."""
    other = str(tmp_path / "other.jsonl")
    with (
        Journal.open(other, job.errors, "f", "c") as journal,
        pytest.raises(ConfigError, match=r"out\.errors\.jsonl: another job is writing it"),
    ):
        OutputWriter(other, job.errors, journal)


def test_an_out_that_cannot_be_opened_is_refused_before_any_call(tmp_path: Path) -> None:
    """A name too long for the file system, say: one line, at the start."""
    out, errors = str(tmp_path / "out.jsonl"), str(tmp_path / ("e" * 300))
    with pytest.raises(ConfigError, match="File name too long"):
        Journal.open(out, errors, "f", "c")
