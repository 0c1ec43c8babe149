"""`complete` in real Ray Data pipelines against the mock endpoint: Parquet in, Parquet out."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime.config import Config
from runtime.mock.content import echo
from runtime.mock.process import MockProcess
from runtime.ray_data import ANSWERED, complete

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.filterwarnings("ignore")]

ROWS = 600
TWINS = 50


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess({"tiers": {"a": {"latency": 0.3, "tokens": 8}, "b": {"latency": 0.05, "tokens": 8}}}) as process:
        yield process


def config(mock: MockProcess, folder: Path, **more: Any) -> Config:
    tiers = [
        {"name": name, "model": f"model-{name}", "base_url": mock.tier_url(name), "price": {"prompt": 1, "completion": 2}}
        for name in ("a", "b")
    ]
    rest = {"state_dir": str(folder / "state"), "telemetry": {"metrics_port": None}, **more}
    return Config.model_validate({"tiers": tiers, **rest})


def piped(folder: Path, table: pa.Table, asked: Config, workers: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """The rows that come out of a pipeline from Parquet to Parquet."""
    import ray

    source, target = folder / "in", folder / "out"
    source.mkdir(parents=True)
    for number, part in enumerate((table.slice(0, table.num_rows // 2), table.slice(table.num_rows // 2))):
        pq.write_table(part, source / f"{number}.parquet")
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_parquet(str(source)).map_batches(
        complete,
        fn_constructor_kwargs={"config": asked, **fields},
        concurrency=workers,
        batch_size=64,
        num_cpus=0.2,
        max_concurrency=4,
    ).write_parquet(str(target))
    tables = [pq.read_table(file) for file in sorted(target.glob("*.parquet"))]
    assert len({tuple(each.schema.names) for each in tables}) == 1
    for each in tables:
        assert [each.schema.field(name).type for name in ANSWERED.names] == ANSWERED.types
    return pa.concat_tables(tables).to_pylist()


def test_two_workers_answer_every_row_once_and_share_all_guards(mock: MockProcess, tmp_path: Path) -> None:
    """Each row keeps its columns and has its own answer; twins in different workers share a call."""
    mock.reset()
    texts = [f"[[tag:row-{n}]] hello {n}" for n in range(ROWS)]
    texts += texts[:TWINS]  # in the other file, so in the other worker
    table = pa.table({"custom_id": [f"row-{n}" for n in range(len(texts))], "prompt": texts, "floor": list(range(len(texts)))})
    began = time.monotonic()
    rows = piped(tmp_path, table, config(mock, tmp_path, coalesce={"keep_s": 60}), 2, temperature=0)
    print(time.monotonic() - began)
    assert sorted(row["floor"] for row in rows) == list(range(len(texts)))
    for row in rows:
        assert row["error"] is None
        assert row["answer"].startswith(echo(row["prompt"]))
        assert (row["tier"], row["completion_tokens"]) == ("a", 8)
        assert row["custom_id"] == f"row-{row['floor']}"
    assert mock.stats()["tiers"]["a"]["requests"] == ROWS
    spent = mock.stats()["total"]
    assert sum(row["cost_usd"] > 0 for row in rows) == ROWS
    usd = (spent["prompt_tokens"] + 2 * spent["completion_tokens"]) / 1e6
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(usd, abs=1e-6 * ROWS)
