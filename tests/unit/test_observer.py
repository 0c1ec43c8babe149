"""The observer as scrapers meet it: over HTTP, with its port taken, after its own death. Without Ray: it is a plain class."""

import asyncio
import socket
from pathlib import Path

import aiohttp
import orjson
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_format

from actors.events import Tally
from actors.messages import Amount, Attempt
from actors.observer.actor import ObserverActor
from actors.observer.exposition import exposed, families
from actors.observer.metrics import METRICS
from actors.observer.reporter import Reporter
from actors.observer.scene import ActorScene, BudgetScene, GatewayScene, JobScene, Report, Scene, Taken, TierScene

OPEN_METRICS = "application/openmetrics-text;version=1.0.0"
ACTOR = ActorScene("0", "open", "open", "HTTP 503", 4.0, 26.0, 3, 2, 20, 1)
SCENE = Scene(
    jobs=(JobScene("run1", "/out.jsonl", 5.0, 40, 100, 0.4, 8.0, 7.5, 1, 2, 10, 999, 1_500_000, 3, ("slow",)),),
    tiers=(TierScene("premium", "gpt", 7, {"server": 2}, (ACTOR, ACTOR._replace(actor="1", state="closed"))),),
    budgets=(BudgetScene("all", "day", "usd", 50_000_000, 1_500_001, 250_000, 0, 60.0),),
    anomalies=("tier:premium",),
    watched=("tier:premium", "key:blue"),
)


def door(name: str = "door", requests: int = 1) -> Tally:
    tally = Tally(name, {"premium": "gpt"})
    for number in range(requests):
        attempt = Attempt(
            "premium", 0, "ok", 200, 0.3, prompt_tokens=10, completion_tokens=5, booked=Amount(15, 250_000)
        )
        tally.request("premium", "ok", (attempt,), "/chat/completions", "", f"req_{number}", 0.5)
    return tally


def observer(folder: Path, port: int = 0) -> ObserverActor:
    return ObserverActor(str(folder / "running" / "x.sums"), port)


async def get(address: str, path: str, accept: str = "") -> tuple[str, str]:
    async with aiohttp.ClientSession() as session, session.get(f"{address}{path}", headers={"Accept": accept}) as reply:
        assert reply.status == 200
        return await reply.text(), reply.headers["Content-Type"]


def samples(text: str) -> dict[str, float]:
    """Values by name and labels, as a scrape has them."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_format(text)
        for sample in family.samples
    }


# -- what is served


def test_every_metric_is_served_with_its_help_and_type_before_anything_has_happened() -> None:
    body, _ = exposed(lambda: families({}, {}, {}), "")
    told = {family.name: (family.type, family.documentation) for family in text_format(body.decode())}
    for metric in METRICS:
        name = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        assert told[name] == (metric.kind, metric.help)
    assert samples(body.decode())["raycade_coalesced_total[]"] == 0


def test_names_follow_the_conventions() -> None:
    """What promtool would say, for machines without it; the end-to-end test asks promtool itself."""
    assert len({metric.name for metric in METRICS}) == len({metric.key for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        words = metric.name.split("_")
        assert [word for word in words if word in ("seconds", "tokens", "dollars")] == [metric.unit][
            : bool(metric.unit)
        ]
        assert metric.help.endswith("."), metric.name


async def test_a_scrape_has_the_sums_and_the_gauges(tmp_path: Path) -> None:
    actor = observer(tmp_path)
    address = (await actor.report(Report(door("a", 2).totals(), SCENE))).address
    await actor.report(Report(door("b", 3).totals(), Scene()))
    text, kind = await get(address, "/metrics")
    assert kind.startswith("text/plain; version=0.0.4")
    told = samples(text)
    assert told["llm_tokens_used_total[('model', 'gpt'), ('type', 'prompt')]"] == 50
    assert told["llm_request_cost_dollars_total[('model', 'gpt')]"] == 1.25
    assert told["raycade_requests_total[('outcome', 'ok'), ('tier', 'premium')]"] == 5
    assert told["llm_request_duration_seconds_count[('endpoint', '/v1/chat/completions'), ('model', 'gpt')]"] == 5
    assert told["llm_request_duration_seconds_sum[('endpoint', '/v1/chat/completions'), ('model', 'gpt')]"] == 1.5
    assert told["raycade_breaker_state[('actor', '0'), ('tier', 'premium')]"] == 2
    assert told["raycade_in_flight[('tier', 'premium')]"] == 6
    assert told["raycade_spend_anomaly[('tier', 'premium')]"] == 1
    assert told["raycade_key_spend_anomaly[('key', 'blue')]"] == 0
    assert told["raycade_budget_spent_dollars[('scope', 'all'), ('window', 'day')]"] == 1.500001
    assert told["raycade_batch_rows[('batch', 'run1'), ('state', 'total')]"] == 100
    assert told["raycade_budget_window_left_seconds[('scope', 'all'), ('window', 'day')]"] == 60
    assert told["raycade_observer_sources[]"] == 2
    await actor.close()


async def test_open_metrics_has_exemplars_with_our_request_ids(tmp_path: Path) -> None:
    actor = observer(tmp_path)
    address = (await actor.report(Report(door(requests=2).totals(), SCENE))).address
    text, kind = await get(address, "/metrics", OPEN_METRICS)
    assert kind.startswith("application/openmetrics-text")
    found = [
        sample.exemplar.labels
        for family in open_metrics(text)
        for sample in family.samples
        if sample.exemplar and family.name == "llm_request_duration_seconds"
    ]
    assert found == [{"request_id": "req_1"}]
    await actor.close()


async def test_status_tells_what_is_so_now(tmp_path: Path) -> None:
    actor = observer(tmp_path)
    address = (await actor.report(Report(door().totals(), SCENE))).address
    async with aiohttp.ClientSession() as session, session.get(f"{address}/status") as reply:
        told = await reply.json()
    assert told["jobs"][0]["done"] == 40
    assert told["tiers"][0]["actors"][0] == ACTOR._asdict()
    assert told["budgets"][0]["limit"] == 50_000_000
    assert told["age_s"] < 5
    await actor.close()


async def test_a_gateways_replicas_are_told_together(tmp_path: Path) -> None:
    """Gauges are their sum, calls are those of all of them, and what they have to tell is found; a gateway passes the
    scrape on."""
    actor = observer(tmp_path)
    one = GatewayScene("one", 5.0, 7, 2, 1000, 10, 1, 2, 3.5, 999, 1_500_000, 1, ("stopped a trial",))
    scene = SCENE._replace(jobs=(), gateway=one)
    await actor.report(Report(door("a", 2).totals(), scene))
    address = (
        await actor.report(Report(door("b", 3).totals(), scene._replace(gateway=one._replace(replica="two"))))
    ).address
    scraped, kind = await actor.scrape(OPEN_METRICS)
    assert kind.startswith("application/openmetrics-text")
    assert "raycade_gateway_requests" in scraped.decode()
    told = samples((await get(address, "/metrics"))[0])
    assert told["raycade_gateway_requests[('kind', 'plain')]"] == 10
    assert told["raycade_gateway_requests[('kind', 'stream')]"] == 4
    assert told["raycade_waiting_for_budget[]"] == 2
    status = orjson.loads((await get(address, "/status"))[0])
    assert [each["replica"] for each in status["gateways"]] == ["one", "two"]
    assert (status["jobs"], status["tiers"][0]["answered"], status["tiers"][0]["kinds"]) == ([], 5, {})
    taken, notices, (happened,) = await actor.look()
    assert (taken, notices) == (Taken(address, True), ("stopped a trial",))
    assert happened.text == "premium keeps failing (HTTP 503): its circuit breaker opened"
    assert [text for _, text in status["events"]] == [happened.text]
    await actor.close()


# -- its port


async def test_a_port_that_is_taken_is_replaced_and_said(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        actor = observer(tmp_path, port)
        taken = await actor.report(Report(door().totals(), SCENE))
        assert not taken.wanted_port
        assert taken.address != f"http://127.0.0.1:{port}"
        assert "raycade_requests_total" in (await get(taken.address, "/metrics"))[0]
        await actor.close()


async def test_it_listens_on_this_machine_alone(tmp_path: Path) -> None:
    actor = observer(tmp_path)
    taken = await actor.report(Report(door().totals(), SCENE))
    assert taken.address.startswith("http://127.0.0.1:")
    assert actor._runner is not None
    assert {host for host, _ in actor._runner.addresses} == {"127.0.0.1"}
    await actor.close()


# -- its death


async def test_after_its_death_nothing_is_less_and_nothing_is_doubled(tmp_path: Path) -> None:
    """A new observer over the same file: the same port, what dead doors counted, and the living ones once."""
    first, living = observer(tmp_path), door("living", 2)
    address = (await first.report(Report(living.totals(), SCENE))).address
    await first.report(Report(door("dead", 3).totals(), SCENE))
    assert first._runner is not None
    await first._runner.cleanup()  # what the kernel does for a process that is killed
    second = observer(tmp_path)
    assert (await second.report(Report(living.totals(), SCENE))).address == address
    told = samples((await get(address, "/metrics"))[0])
    assert told["raycade_requests_total[('outcome', 'ok'), ('tier', 'premium')]"] == 5
    late = Tally("dead", {})  # a message of a door that ended, late: older than what is known of it
    await second.report(Report(late.totals(), SCENE))
    told = samples((await get(address, "/metrics"))[0])
    assert told["raycade_requests_total[('outcome', 'ok'), ('tier', 'premium')]"] == 5
    await second.close()
    assert list((tmp_path / "running").iterdir()) == [], "its file ends with the runtime"


async def test_a_file_that_cannot_be_read_or_written_stops_nothing(tmp_path: Path) -> None:
    file = tmp_path / "running" / "x.sums"
    file.parent.mkdir()
    file.write_bytes(b'{"port": 1, "sources": [[1')
    actor = observer(tmp_path)
    address = (await actor.report(Report(door().totals(), SCENE))).address
    file.unlink()
    file.parent.rmdir()
    await actor.report(Report(door("b").totals(), SCENE))
    assert samples((await get(address, "/metrics"))[0])["raycade_observer_sources[]"] == 2
    await actor.close()


# -- the end of a job


async def test_the_end_waits_for_a_regular_scraper_and_for_nobody_else(tmp_path: Path) -> None:
    actor = observer(tmp_path)
    address = (await actor.report(Report(door().totals(), SCENE))).address
    assert await actor.last_scrape(20.0), "for nobody"
    for _ in range(3):
        await get(address, "/metrics")
        await asyncio.sleep(0.05)
    waiting = asyncio.create_task(actor.last_scrape(20.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    await get(address, "/metrics")
    assert await waiting
    assert await actor.last_scrape(0.01), "the next is due too late: nobody is waited for"
    assert not await actor.last_scrape(20.0), "it never came back"
    await actor.close()


# -- the reporter


async def test_what_was_not_taken_is_in_the_next_report(tmp_path: Path) -> None:
    """An observer that is away, or whose answer is lost: told again, and counted once."""
    actor, tally = observer(tmp_path), door(requests=2)
    faults = iter(["before", "after", ""])

    async def report(told: Report) -> Taken:
        fault = next(faults)
        if fault == "before":
            raise ConnectionError("away")
        taken = await actor.report(told)
        if fault == "after":
            raise ConnectionError("the answer is lost")
        return taken

    found: list[Taken] = []
    reporter = Reporter(lambda: Report(tally.totals(), SCENE), report, found.append)
    assert not await reporter.say()
    assert reporter.trouble == "ConnectionError: away"
    tally.request("premium", "coalesced")
    assert await reporter.close()
    assert reporter.trouble == ""
    told = samples((await get(found[0].address, "/metrics"))[0])
    assert told["raycade_requests_total[('outcome', 'ok'), ('tier', 'premium')]"] == 2
    assert told["raycade_coalesced_total[]"] == 1
    await actor.close()


# -- several processes of one runtime


async def test_what_several_processes_see_is_put_together(tmp_path: Path) -> None:
    """A gateway, a batch and a program at once: the newest word of each thing counts, and nothing comes and goes."""
    actor = observer(tmp_path)
    job = BudgetScene("job:x", "total", "usd", 1_000_000, 5, 0, 0, None)
    batch = SCENE._replace(budgets=(*SCENE.budgets, job), halts=(("tier:a", "by hand"),), events=((9.0, "began"),))
    newcomer = Scene(tiers=(TierScene("premium", "gpt", 0, {}, ()),), events=((2.0, "later"),))
    spent = SCENE.budgets[0]._replace(spent=1_600_000)
    gateway = SCENE._replace(jobs=(), budgets=(spent,), halts=batch.halts, events=())
    for name, scene in (("batch", batch), ("gateway", gateway), ("program", newcomer)):
        address = (await actor.report(Report(door(name).totals(), scene))).address
    status = orjson.loads((await get(address, "/status"))[0])
    await actor.close()
    assert [job["run"] for job in status["jobs"]] == ["run1"]
    assert [len(tier["actors"]) for tier in status["tiers"]] == [2], "who has just come has heard of no actor yet"
    assert {row["scope"]: row["spent"] for row in status["budgets"]} == {"all": 1_600_000, "job:x": 5}
    assert status["halts"] == [["tier:a", "by hand"]]
    assert [text for _, text in status["events"]] == ["began", "later"]


async def test_rows_that_wait_are_counted_with_the_requests_that_do(tmp_path: Path) -> None:
    """A gateway on the same actors must not hide that a batch waits for its budget."""
    gateway = GatewayScene("one", 5.0, 7, 2, 1000, 10, 1, 2, 3.5, 999, 1_500_000, 1, ())
    actor = observer(tmp_path)
    await actor.report(Report(door("batch").totals(), SCENE))
    address = (await actor.report(Report(door("gateway").totals(), SCENE._replace(jobs=(), gateway=gateway)))).address
    told = samples((await get(address, "/metrics"))[0])
    await actor.close()
    assert told["raycade_waiting_for_budget[]"] == 4
