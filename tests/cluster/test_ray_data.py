"""`complete` in real Ray Data pipelines against the mock endpoint: Parquet in, Parquet out."""

import os
import signal
import threading
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
from tests.e2e.jobs import descendants

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.filterwarnings("ignore")]

ROWS = 400
TWINS = 50


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    tiers = {"a": {"latency": 0.3, "tokens": 8}, "b": {"latency": 0.05, "tokens": 8}}
    with MockProcess({"tiers": tiers}) as process:
        yield process


@pytest.fixture(scope="module")
def asked(mock: MockProcess, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One configuration for all, so that their pipelines use one set of actors."""
    tiers = [
        {"name": name, "model": f"m-{name}", "base_url": mock.tier_url(name), "price": {"prompt": 1, "completion": 2}}
        for name in ("a", "b")
    ]
    state = str(tmp_path_factory.mktemp("data") / "state")
    telemetry = {"metrics_port": None}
    return Config.model_validate(
        {"state_dir": state, "tiers": tiers, "telemetry": telemetry, "coalesce": {"keep_s": 60}}
    )


def piped(folder: Path, table: pa.Table, asked: Config, workers: int = 1, **fields: Any) -> pa.Table:
    """What a pipeline writes for a table that it reads from two files."""
    import ray

    source, target = folder / "in", folder / "out"
    source.mkdir()
    half = table.num_rows // 2
    pq.write_table(table.slice(0, half), source / "0.parquet")
    pq.write_table(table.slice(half), source / "1.parquet")
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_parquet(str(source)).map_batches(
        complete,
        fn_constructor_kwargs={"config": asked, **fields},
        compute=ray.data.ActorPoolStrategy(size=workers, max_concurrent_calls_per_actor=4),
        batch_size=64,
        num_cpus=0.2,
    ).write_parquet(str(target))
    tables = [pq.read_table(file) for file in sorted(target.glob("*.parquet"))]
    for each in tables:
        assert [each.schema.field(name).type for name in ANSWERED.names] == ANSWERED.types
    return pa.concat_tables(tables)


def questions(number: int) -> list[str]:
    return [f"[[tag:row-{n}]] hello {n}" for n in range(number)]


def test_two_workers_answer_every_row_once_and_share_calls(mock: MockProcess, asked: Config, tmp_path: Path) -> None:
    """Each row keeps its columns and has its own answer; twins, in one worker or in two, cost one call."""
    mock.reset()
    texts = questions(ROWS)
    texts = [*texts, *texts[:TWINS], *texts[-TWINS:]]
    number = list(range(len(texts)))
    messages = [[{"role": "user", "content": text}] if n % 2 else None for n, text in enumerate(texts)]
    prompts = [None if n % 2 else text for n, text in enumerate(texts)]
    table = pa.table({"number": number, "prompt": prompts, "messages": messages})
    out = piped(tmp_path, table, asked, 2, temperature=0)
    assert out.schema.field("messages").type == table.schema.field("messages").type
    rows = sorted(out.to_pylist(), key=lambda row: row["number"])
    assert [row["number"] for row in rows] == number
    assert [(row["prompt"], row["messages"]) for row in rows] == list(zip(prompts, messages, strict=True))
    assert {row["error"] for row in rows} == {None}
    assert all(row["answer"].startswith(echo(text)) for row, text in zip(rows, texts, strict=True))
    assert {(row["tier"], row["completion_tokens"]) for row in rows} == {("a", 8)}
    seen = mock.stats()["total"]
    assert seen["requests"] == ROWS == sum(row["cost_usd"] > 0 for row in rows)
    usd = (seen["prompt_tokens"] + 2 * seen["completion_tokens"]) / 1e6
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(usd)


def test_what_fails_is_a_row(mock: MockProcess, asked: Config, tmp_path: Path) -> None:
    """Rows that a budget refuses, and rows that nobody can send, stand among the others; two workers share the budget."""
    mock.reset()
    texts = [f"poor {text}" for text in questions(200)]
    most_usd = 0.004
    columns: dict[str, list[Any]] = {
        "number": list(range(203)),
        "prompt": [*texts, None, "hi", "hi"],
        "tier": [*["b"] * 200, None, "c", "b"],
        "max_tokens": [*[16] * 202, 0],
    }
    out = piped(tmp_path, pa.table(columns), asked, 2, max_usd=most_usd, job="poor").to_pylist()
    rows = {row["number"]: row for row in out}
    assert sorted(rows) == list(range(203)) == sorted(row["number"] for row in out)
    assert "found none in the columns number, prompt" in rows[200]["error"]
    assert rows[201]["error"] == "unknown_model: tier: expected one of auto, a, b, m-a, m-b; found 'c'"
    assert rows[202]["error"] == "invalid_body: max_tokens: expected a whole number above 0, found 0"
    answered = [row for row in out if row["error"] is None]
    refused = [row for row in out if row["number"] < 200 and row["error"] is not None]
    assert answered
    assert refused
    assert {row["error"].split(":")[0] for row in refused} == {"budget_exceeded"}
    assert all("job:poor" in row["error"] and row["answer"] is None for row in refused)
    assert {row["tier"] for row in answered} == {"b"}
    spent = mock.stats()["total"]
    assert len(answered) == spent["requests"]
    assert spent["prompt_tokens"] + 2 * spent["completion_tokens"] <= most_usd * 1e6


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_rows_are_paid_once(
    mock: MockProcess, asked: Config, tmp_path: Path
) -> None:
    """Ray Data runs its tasks again; what was answered is kept, what was under way is the most that is asked again."""
    import ray

    mock.reset()
    texts = [f"again {text}" for text in questions(600)]
    written: list[pa.Table] = []
    table = pa.table({"number": list(range(600)), "prompt": texts})
    piping = threading.Thread(target=lambda: written.append(piped(tmp_path, table, asked, 1)))
    piping.start()
    while mock.stats()["tiers"]["a"]["by_status"].get("200", 0) < 200:
        assert piping.is_alive()
        time.sleep(0.02)
    [worker] = [pid for pid, title in descendants(os.getpid()).items() if title.startswith("ray::MapWorker")]
    os.kill(worker, signal.SIGKILL)
    piping.join(60)
    [out] = written
    assert sorted(out["number"].to_pylist()) == list(range(600))
    assert out["error"].null_count == 600
    seen = mock.stats()["tiers"]["a"]
    print(seen)
    assert seen["requests"] - seen["abandoned"] <= 600
    until = time.monotonic() + 90
    while any("/keeper" in each["name"] for each in ray.util.list_named_actors(all_namespaces=True)):
        assert time.monotonic() < until, "its actors stay when nobody uses them"
        time.sleep(0.5)
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    assert not [name for name in names if name.startswith("data-")]
