"""A resumed run knows the rows that are done as if it had done them itself."""

from pathlib import Path
from typing import Any

import orjson

from actors.messages import Request
from actors.settings import TierSettings
from runtime.batch.journal import Journal
from runtime.batch.parse import Row, RowError, parse_row
from runtime.batch.reader import open_input
from runtime.batch.recall import Recall
from runtime.batch.rows import Encoder
from runtime.batch.writer import OutputWriter

TIERS = [TierSettings.model_validate({"name": "one", "model": "m", "base_url": "http://x", "quality": "high"})]


def encoder(**changes: Any) -> Encoder:
    return Encoder(TIERS, **{"min_quality": 0, "deadline_s": 60.0, "job": "j", "share": True, **changes})


def line(name: str, text: str) -> bytes:
    body = {"messages": [{"role": "user", "content": text}]}
    return orjson.dumps({"custom_id": name, "url": "/v1/chat/completions", "body": body}) + b"\n"


def done(tmp_path: Path, lines: list[bytes], numbers: set[int]) -> tuple[str, Journal]:
    """An input of these lines, and the journal of a job in which these rows were done."""
    place, out = tmp_path / "in.jsonl", str(tmp_path / "out.jsonl")
    place.write_bytes(b"".join(lines))
    journal = Journal.open(out, str(tmp_path / "errors.jsonl"), "in", "c")
    with OutputWriter(out, journal.errors, journal) as writer:
        for chunk in open_input(str(place)).chunks():
            for raw in chunk:
                row = parse_row(raw)
                if raw.number in numbers and isinstance(row, Row):
                    writer.add_result(row, b'{"said":%d}' % raw.number, 200, "r", {})
    journal.close()
    return str(place), Journal.open(out, str(tmp_path / "errors.jsonl"), "in", "c")


async def rest(recall: Recall) -> list[Any]:
    """What becomes of each row that the recall hands on."""
    return [recall.row(raw) async for chunk in recall.start() for raw in chunk]


async def test_done_rows_are_not_handed_on_but_remembered(tmp_path: Path) -> None:
    """1,000 rows are done; behind them stand one with an old custom_id, one that asks what was asked, and a new one."""
    lines = [line(f"r{number}", f"text {number}") for number in range(1000)]
    lines += [line("r7", "other"), line("again", "text 3"), line("new", "new")]
    place, journal = done(tmp_path, lines, set(range(1000)))
    with journal:
        recall = Recall(open_input(place), encoder(), journal, share=True, limit=None)
        twice, again, new = (each for each in await rest(recall) if each is not None)
        assert recall.skipped == 1000
        assert isinstance(twice, RowError)
        assert "'r7' is that of row 8 of the input" in str(twice)
        assert recall.sharing is not None
        with OutputWriter(journal.out, journal.errors, journal) as writer:
            offset = recall.sharing.offset(again[1].digest)
            assert offset is not None
            assert writer.read_line(offset) == b'{"said":3}'
        assert recall.sharing.offset(new[1].digest) is None


async def test_rows_that_are_open_among_done_ones_are_handed_on(tmp_path: Path) -> None:
    """Wherever they stand: what a killed run had in flight."""
    lines = [line(f"r{number}", f"text {number}") for number in range(900)]
    open_rows = {5, 300, 899}
    place, journal = done(tmp_path, lines, set(range(900)) - open_rows)
    with journal:
        recall = Recall(open_input(place), encoder(share=False), journal, share=False, limit=None)
        assert [each[0].number for each in await rest(recall) if each is not None] == sorted(open_rows)
        assert recall.skipped == 897


async def test_a_limit_ends_the_recall(tmp_path: Path) -> None:
    """Rows behind it are the run's to pass over, done or not."""
    lines = [line(f"r{number}", "same") for number in range(600)]
    place, journal = done(tmp_path, lines, set(range(600)))
    with journal:
        recall = Recall(open_input(place), encoder(), journal, share=True, limit=300)
        chunks = [chunk async for chunk in recall.start()]
        assert chunks[0][0].number == 256


def test_the_key_is_the_digest_of_the_request() -> None:
    """However the row is said: what a resumed run remembers is what a new row is looked up by."""
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    for body in ({}, {"temperature": 0}, {"response_format": schema}, {"model": "one", "max_tokens": None}):
        row = Row(0, "f", 1, "a", "/chat/completions", {"messages": [{"role": "user", "content": "x"}], **body}, None)
        for asked in (encoder(), encoder(schema=b'{"type":"object"}'), encoder(share=False)):
            request: Request = asked.encode(row)
            assert asked.key(row) == request.digest
