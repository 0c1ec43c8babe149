"""A folder of files in object storage: read, killed, resumed, and answers for each file put beside it."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from runtime.mock.process import MockProcess
from tests.e2e.jobs import Job, chat, end, wait_until
from tests.storage import s3

ROWS = 300


@pytest.fixture
def storage() -> Iterator[Any]:
    """A bucket `data`."""
    with s3("data") as client:
        yield client


def test_a_folder_in_s3_killed_and_resumed_has_every_row_once(storage: Any, tmp_path: Path) -> None:
    """gz, zst and Parquet in, the same out, SIGKILL in the second file: every row once, in its file, with its answer.

    A custom_id that stands in two files is one row's, and the other's failure says in which file the first stands.
    """
    rows = [chat(number) for number in range(ROWS)]
    twice = {**chat(ROWS), "custom_id": "row-0"}
    lines = [orjson.dumps(row) + b"\n" for row in rows]
    storage.put_object(Bucket="data", Key="in/a.jsonl.gz", Body=gzip.compress(b"".join(lines[:100])))
    storage.put_object(Bucket="data", Key="in/b.jsonl.zst", Body=zstandard.compress(b"".join(lines[100:200])))
    last = [*rows[200:], twice]
    columns = {"custom_id": [row["custom_id"] for row in last], "body": [row["body"] for row in last]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "c.parquet")
    storage.upload_file(str(tmp_path / "c.parquet"), "data", "in/c.parquet")
    with MockProcess({"seed": 3, "tiers": {"slow": {"latency": 0.03}}}) as mock:
        tier = {"name": "slow", "base_url": mock.tier_url("slow"), "concurrency": 4, "timeout_s": 20}
        job = Job(tmp_path, [tier])

        def lines_written() -> int:
            return sum(log.read_bytes().count(b"\n") for log in job.state.glob("outputs/*/answers.jsonl"))

        files = ("-i", "s3://data/in", "-o", "s3://data/out/", "--window", "40")
        process = job.start(*files)
        try:
            wait_until(lambda: lines_written() >= 120, process)
        finally:
            end(process)
        ended = job.run(*files)
        assert ended.returncode == 3, ended.stdout
        assert "3 of 3 files are complete" in ended.stdout
        assert mock.stats()["tiers"]["slow"]["duplicate_bodies"] <= 40 + 64
    got = {}
    for name in ("a.jsonl.gz", "b.jsonl.zst", "c.parquet"):
        storage.download_file("data", f"out/{name}", str(tmp_path / name))
        data = (tmp_path / name).read_bytes()
        if name.endswith(".parquet"):
            got[name] = [line["custom_id"] for line in parquet.read_table(tmp_path / name).to_pylist()]
        else:
            data = (
                gzip.decompress(data)
                if name.endswith(".gz")
                else zstandard.ZstdDecompressor().decompress(data, 1 << 24)
            )
            got[name] = [orjson.loads(line)["custom_id"] for line in data.splitlines()]
    names = [row["custom_id"] for row in rows]
    assert got == {"a.jsonl.gz": names[:100], "b.jsonl.zst": names[100:200], "c.parquet": names[200:]}
    errors = storage.get_object(Bucket="data", Key="out.errors.jsonl")["Body"].read()
    failed = [orjson.loads(line) for line in errors.splitlines()]
    assert [line["error"]["code"] for line in failed] == ["duplicate_custom_id"]
    assert failed[0]["error"]["message"] == (
        "s3://data/in/c.parquet:101: custom_id: expected a custom_id of its own; "
        "'row-0' is that of row 1 of s3://data/in/a.jsonl.gz"
    )
