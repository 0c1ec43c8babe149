"""The desk with its real shelf, engine, router, budget and tiers, in one process: only the endpoint is scripted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from actors.budget.rows import Snapshot
from actors.observer.scene import Report, Taken
from runtime.config import Config
from runtime.gateway.asks import Asks
from runtime.gateway.batch_rules import Page, read_batch_ask
from runtime.gateway.desk import Desk
from runtime.gateway.errors import HttpError
from runtime.gateway.shelf import Shelf
from tests.unit.test_flow import Endpoint, House, answer, error

ALL = Page(None, 100)


def row(number: int, **body: Any) -> dict[str, Any]:
    content = {"messages": [{"role": "user", "content": f"number {number}"}], "max_tokens": 16, **body}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": content}


def echoed(number: int, body: dict[str, Any]) -> Any:
    if body["messages"][0]["content"] == "number 13":
        return error(400, "thirteen")
    return answer(body["messages"][0]["content"])


class Front:
    """What a replica asks of the desk, as the key `me` unless it says otherwise."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def ask(self, method: str, *arguments: Any, owner: str = "me") -> Any:
        return await self.desk.ask(method, owner, *arguments)

    async def upload(self, data: bytes, owner: str = "me", filename: str = "in.jsonl") -> str:
        id = await self.ask("begin_upload", owner=owner)
        for start in range(0, len(data), 1000):
            await self.ask("append", id, data[start : start + 1000], owner=owner)
        file = await self.ask("keep_upload", id, filename, "batch", None, owner=owner)
        return str(file["id"])

    async def batch(self, rows: list[dict[str, Any]] | bytes, owner: str = "me") -> str:
        data = rows if isinstance(rows, bytes) else b"".join(orjson.dumps(one) + b"\n" for one in rows)
        asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
        id = await self.upload(data, owner)
        made = await self.ask("create_batch", read_batch_ask({**asked, "input_file_id": id}), owner=owner)
        assert made["status"] == "validating"
        return str(made["id"])

    async def until(self, id: str, *states: str, owner: str = "me") -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                seen: dict[str, Any] = await self.ask("batch", id, owner=owner)
                if seen["status"] in states:
                    return seen
                await asyncio.sleep(0.02)

    async def has_done(self, id: str, rows: int) -> None:
        async with asyncio.timeout(20):
            while (await self.ask("batch", id))["request_counts"]["completed"] < rows:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def lines(self, file_id: str | None) -> dict[str, dict[str, Any]]:
        if file_id is None:
            return {}
        data, file = b"", await self.ask("file", file_id)
        while len(data) < file["bytes"]:
            data += await self.ask("read", file_id, len(data), 700)
        lines = [orjson.loads(line) for line in data.splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        return {line["custom_id"]: line for line in lines}


@contextlib.asynccontextmanager
async def front(
    folder: Path,
    reply: Callable[[int, dict[str, Any]], Any] = echoed,
    keys: str = "me\nother\n",
    watch: Callable[[], Any] | None = None,
    **config: Any,
) -> AsyncIterator[tuple[Front, Endpoint]]:
    """A desk that works, over tiers `a` and `b`; `watch` reaches its observer."""
    endpoint = Endpoint(reply, config.pop("latency_s", 0.01))
    folder.mkdir(exist_ok=True)
    keyfile = folder / "keys"
    keyfile.write_text("".join(f"{name} sha256:{number:064x}\n" for number, name in enumerate(keys.split())))
    house = House(folder, {"a": endpoint, "b": endpoint})
    tiers = [{"name": name, "model": f"model-{name}", "base_url": "http://x"} for name in ("a", "b")]
    gateway = {"keys_file": str(keyfile), **config}
    settings = Config.model_validate(
        {"state_dir": str(folder), "tiers": tiers, "gateway": gateway, "prompts": {"dir": str(folder / "prompts")}}
    )
    asks = Asks(settings.tiers, min_quality="basic", deadline_s=30.0, share=True)
    desk = Desk(settings, str(folder / "gateway"), lambda: asks, partial(house.another_router, "desk"), "set", watch)
    working = asyncio.create_task(desk.run())
    try:
        yield Front(desk), endpoint
    finally:
        await desk.close(0.05)
        await working
        for tier in house.tiers:
            await tier.close()


async def test_a_batch_from_upload_to_both_files(tmp_path: Path) -> None:
    """Every row has its line in one of two files, each with OpenAI's shape and our own key; rows that are equal share a call."""
    rows = [row(number) for number in range(20)]
    rows[7] = {**row(6), "custom_id": "row-7"}
    async with front(tmp_path) as (desk, endpoint):
        id = await desk.batch(rows)
        seen = await desk.until(id, "completed")
        assert seen["request_counts"] == {"total": 20, "completed": 19, "failed": 1}
        good, bad = await desk.lines(seen["output_file_id"]), await desk.lines(seen["error_file_id"])
        assert (len(good), list(bad)) == (19, ["row-13"])
        line = good["row-3"]
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        assert line["response"]["body"]["choices"][0]["message"]["content"] == "number 3"
        assert line["response"]["body"]["raycade"]["tier"] == "a"
        assert bad["row-13"]["error"]["code"] == "bad_request"
        assert len(endpoint.bodies) == 19
        listed = await desk.ask("files", ALL, "batch_output")
        assert {file["id"] for file in listed["data"]} == {seen["output_file_id"], seen["error_file_id"]}
        assert not list((tmp_path / "gateway" / "batches").iterdir())


@pytest.mark.parametrize(
    ("data", "faults"),
    [
        (b"", [("empty_file", None)]),
        (b"\n \n", [("empty_file", None)]),
        (b"{nonsense\n" + orjson.dumps(row(1)), [("invalid_json_line", 1)]),
        (orjson.dumps(row(1)) + b"\n\n" + orjson.dumps(row(1)), [("duplicate_custom_id", 3)]),
        (orjson.dumps({**row(1), "url": "/v1/embeddings", "body": {"input": "x"}}), [("url_mismatch", 1)]),
        (orjson.dumps({**row(1), "url": "/v1/files"}), [("url_mismatch", 1)]),
        (orjson.dumps({**row(1), "custom_id": 5}), [("missing_custom_id", 1)]),
        (b"\n".join(orjson.dumps(row(number)) for number in range(60)), [("too_many_tasks", None)]),
        (b"\xff\xfe{\x00", [("invalid_json_line", None)]),
        (b"[]\n" * 150, [("invalid_json_line", line) for line in range(1, 101)]),
    ],
)
async def test_a_wrong_file_calls_nothing(tmp_path: Path, data: bytes, faults: list[tuple[str, int | None]]) -> None:
    """The batch fails as a whole, with the lines that are to blame, and no path of ours in what is told."""
    async with front(tmp_path, batches={"max_rows": 50} if b"59" in data else {}) as (desk, endpoint):
        seen = await desk.until(await desk.batch(data), "failed")
        assert [(fault["code"], fault["line"]) for fault in seen["errors"]["data"]] == faults
        assert str(tmp_path) not in str(seen)
        assert endpoint.bodies == []


async def test_what_a_key_may_not_do_fails_row_by_row(tmp_path: Path) -> None:
    """Models that are not there, addresses of the client's own: lines in the error file, and the others go on."""
    rows = [row(1), row(2, model="gpt-99"), row(3, api_base="http://evil"), row(4, model="b")]
    async with front(tmp_path) as (desk, endpoint):
        seen = await desk.until(await desk.batch(rows), "completed")
        bad = await desk.lines(seen["error_file_id"])
        assert {id: line["error"]["code"] for id, line in bad.items()} == {
            "row-2": "model_not_found",
            "row-3": "not_allowed",
        }
        assert str(tmp_path) not in str(bad)
        assert set(await desk.lines(seen["output_file_id"])) == {"row-1", "row-4"}
        assert sorted(body["model"] for body in endpoint.bodies) == ["model-a", "model-b"]


async def test_what_is_another_keys_is_not_there(tmp_path: Path) -> None:
    """404 for every way to ask, and nothing in lists."""
    async with front(tmp_path) as (desk, _):
        id = await desk.batch([row(1)])
        seen = await desk.until(id, "completed")
        output = seen["output_file_id"]
        asked: list[tuple[Any, ...]] = [("file", output), ("delete_file", output), ("read", output, 0, 10)]
        for call in [*asked, ("batch", id), ("cancel_batch", id)]:
            with pytest.raises(HttpError) as refused:
                await desk.ask(*call, owner="other")
            assert refused.value.status == 404
        assert (await desk.ask("files", ALL, None, owner="other"))["data"] == []
        assert (await desk.ask("batches", ALL, owner="other"))["data"] == []
        with pytest.raises(HttpError, match="after"):
            await desk.ask("batches", Page(id, 5), owner="other")
        assert len(await desk.lines(output)) == 1


async def test_cancelling_keeps_what_was_finished(tmp_path: Path) -> None:
    """Within seconds, though answers would take far longer; the rows that were not done say so. Twice is once."""

    rows = [row(number) for number in range(300)]
    async with front(tmp_path, latency_s=0.05, batches={"window": 2}) as (desk, endpoint):
        id = await desk.batch(rows)
        await desk.until(id, "in_progress")
        await desk.has_done(id, 10)
        endpoint.latency_s = 60.0
        assert (await desk.ask("cancel_batch", id))["status"] == "cancelling"
        await desk.ask("cancel_batch", id)
        seen = await desk.until(id, "cancelled")
        good, bad = await desk.lines(seen["output_file_id"]), await desk.lines(seen["error_file_id"])
        assert 10 <= len(good) < 300
        assert len(good) + len(bad) == 300
        assert {line["error"]["code"] for line in bad.values()} <= {"batch_cancelled", "bad_request"}
        assert seen["request_counts"] == {"total": 300, "completed": len(good), "failed": len(bad)}
        assert (await desk.ask("cancel_batch", id))["status"] == "cancelled"


async def test_a_window_that_ends(tmp_path: Path) -> None:
    """What was finished is kept, the rest says that it expired; one that never began expires too."""
    async with front(tmp_path, latency_s=0.05, batches={"window": 2, "at_once": 1}) as (desk, endpoint):
        ids = [await desk.batch([row(number) for number in range(200)]) for _ in range(2)]
        await desk.until(ids[0], "in_progress")
        await desk.has_done(ids[0], 5)
        endpoint.latency_s = 60.0
        shelf = desk.desk._shelf
        for batch in shelf.live():
            shelf.change(batch, lambda one: one._replace(expires_at=0))
        for id, least in zip(ids, (5, 0), strict=True):
            seen = await desk.until(id, "expired")
            good, bad = await desk.lines(seen["output_file_id"]), await desk.lines(seen["error_file_id"])
            assert len(good) >= least
            assert len(good) + len(bad) == 200 == seen["request_counts"]["total"]
            assert "batch_expired" in {line["error"]["code"] for line in bad.values()}


async def test_the_next_gateway_goes_on(tmp_path: Path) -> None:
    """Rows that were done are not done again, and the input may have been deleted meanwhile."""
    rows = [row(number) for number in range(100)]
    async with front(tmp_path, latency_s=0.05, batches={"window": 5}) as (desk, _):
        id = await desk.batch(rows)
        waiting = await desk.batch(b"nonsense")
        await desk.has_done(id, 20)
        input = (await desk.ask("batch", id))["input_file_id"]
        await desk.ask("delete_file", input)
    shelf = Shelf(str(tmp_path / "gateway"))
    shelf.open()
    done = shelf.batch("me", id)
    shelf.close()
    assert done.completed >= 20
    async with front(tmp_path) as (desk, second):
        seen = await desk.until(id, "completed")
        assert seen["request_counts"] == {"total": 100, "completed": 99, "failed": 1}
        assert len(await desk.lines(seen["output_file_id"])) == 99
        assert len(second.bodies) == 100 - done.completed - done.failed
        await desk.until(waiting, "failed")


async def test_a_key_that_is_gone_spends_nothing_more(tmp_path: Path) -> None:
    """Its batch ends as cancelled when the key is taken out of the file."""
    async with front(tmp_path, latency_s=0.05, batches={"window": 2}) as (desk, _):
        id = await desk.batch([row(number) for number in range(500)])
        await desk.until(id, "in_progress")
    async with front(tmp_path, keys="other", batches={"window": 2}) as (desk, endpoint):
        seen = await desk.until(id, "cancelled")
        assert seen["request_counts"]["completed"] < 500
        assert endpoint.bodies == []


async def test_bounds(tmp_path: Path) -> None:
    """Batches of a key that have not ended, what its files take together, compressed files, and pages of a list."""
    async with front(tmp_path, latency_s=5.0, batches={"per_key": 2}, files={"max_total_mb": 0.01}) as (desk, _):
        ids = [await desk.batch([row(1)]) for _ in range(2)]
        with pytest.raises(HttpError) as refused:
            await desk.batch([row(1)])
        assert (refused.value.status, refused.value.code) == (429, "too_many_batches")
        await desk.batch([row(1)], owner="other")
        with pytest.raises(HttpError) as refused:
            await desk.upload(b"x" * 20_000)
        assert refused.value.status == 413
        with pytest.raises(HttpError, match="compressed"):
            await desk.upload(b"\x1f\x8b\x08", owner="other")
        first = await desk.ask("batches", Page(None, 1))
        assert (first["has_more"], first["last_id"]) == (True, ids[1])
        second = await desk.ask("batches", Page(ids[1], 1))
        assert (second["has_more"], [one["id"] for one in second["data"]]) == (False, ids[:1])


async def test_files_of_one_key(tmp_path: Path) -> None:
    """In either order, page by page; what is deleted is gone, and its room is free again."""
    async with front(tmp_path) as (desk, _):
        ids = [await desk.upload(b"%d" % number * 100) for number in range(5)]
        assert len(set(ids)) == 5
        up = await desk.ask("files", Page(ids[1], 2, newest_first=False), None)
        assert ([one["id"] for one in up["data"]], up["has_more"]) == (ids[2:4], True)
        down = await desk.ask("files", Page(None, 10), "batch")
        assert [one["id"] for one in down["data"]] == ids[::-1]
        assert (await desk.ask("file", ids[0]))["bytes"] == 100
        assert await desk.ask("delete_file", ids[0]) == {"id": ids[0], "object": "file", "deleted": True}
        with pytest.raises(HttpError):
            await desk.ask("file", ids[0])
        assert len(list((tmp_path / "gateway" / "files").iterdir())) == 4


class Watched:
    """The observer and the ledger: what the desk has told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    async def report(self, report: Report) -> Taken:
        self.reports.append(report)
        return Taken("http://127.0.0.1:1", True)

    async def budget(self) -> Snapshot:
        return Snapshot((), 1)

    def counted(self, *key: str) -> int:
        """By the counters whose names begin so, in the last report."""
        counters = self.reports[-1].totals.counters
        return sum(count for name, count in counters.items() if name[: len(key)] == key)


async def test_rows_are_in_the_metrics_as_the_endpoint_has_seen_them(tmp_path: Path) -> None:
    """Each row once, by its outcome, and every call; no custom_id is told, and while it runs how far it is."""
    watched = Watched()
    async with front(tmp_path, latency_s=0.3, watch=lambda: watched) as (desk, endpoint):
        id = await desk.batch([row(number) for number in range(100)] + [row(100, model="gpt-99")])
        seen = await desk.until(id, "completed")
        good = await desk.lines(seen["output_file_id"])
    assert watched.counted("requests") == 101
    assert watched.counted("requests", "a", "ok") == len(good) == 99
    assert watched.counted("requests", "none", "model_not_found") == 1
    assert watched.counted("attempts") == len(endpoint.bodies) == 100
    used = sum(line["response"]["body"]["usage"]["total_tokens"] for line in good.values())
    assert watched.counted("tier_tokens", "a") == used
    told = [job for report in watched.reports for job in report.scene.jobs]
    assert {(job.run, job.output, job.total) for job in told if job.total} == {(id, "key me", 101)}
    assert any(0 < job.done < 101 for job in told)
    assert {tier.name for tier in watched.reports[-1].scene.tiers} == {"a", "b"}
    ids = {line["response"]["request_id"] for line in good.values()}
    calls = [one for key, one in watched.reports[-1].totals.distributions.items() if key[0] == "duration"]
    assert {each[0] for one in calls for each in one.exemplars if each is not None} <= ids


async def test_what_a_cancelled_batch_has_cost_is_in_the_metrics(tmp_path: Path) -> None:
    """Calls that were given up on are booked whole, and counted so; those among them that still waited for a slot too."""
    watched = Watched()
    async with front(tmp_path, latency_s=0.05, watch=lambda: watched, batches={"window": 2}) as (desk, endpoint):
        id = await desk.batch([row(number) for number in range(300)])
        await desk.has_done(id, 10)
        endpoint.latency_s = 60.0
        await desk.ask("cancel_batch", id)
        await desk.until(id, "cancelled")
    assert watched.counted("attempts", "a", "cancelled") > 0
    assert watched.counted("attempts") >= len(endpoint.bodies)
    assert watched.counted("unknown_tokens", "a") > 0


async def test_two_gateways_share_a_state_dir(tmp_path: Path) -> None:
    """One carries out; the other takes batches on, shows how they are, and takes over when the first is gone."""
    async with contextlib.AsyncExitStack() as staying, contextlib.AsyncExitStack() as leaving:
        first, _ = await leaving.enter_async_context(front(tmp_path, latency_s=0.2, batches={"window": 2}))
        await first.until(await first.batch([row(1)]), "completed")
        second, endpoint = await staying.enter_async_context(front(tmp_path))
        id = await second.batch([row(number) for number in range(600)])
        await second.has_done(id, 3)
        assert endpoint.bodies == []
        await leaving.aclose()
        seen = await second.until(id, "completed")
        assert seen["request_counts"] == {"total": 600, "completed": 599, "failed": 1}
        assert endpoint.bodies
