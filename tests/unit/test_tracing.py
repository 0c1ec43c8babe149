"""Spans of a router's requests, as an OTLP collector gets them: over HTTP, from real actors, with no text of a user's."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from actors.messages import Request, Result
from actors.router.tracing import Tracing, otlp
from tests.unit.test_flow import PROMPT, Endpoint, Heard, answer, error, house
from tests.unit.test_streaming import ScriptedStream

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> list[Span]:
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


class InOnePiece(Endpoint):
    """Whoever asks for a stream gets the answer as a whole."""

    async def stream(self, path: str, body: bytes, first_byte_timeout_s: float, stall_timeout_s: float) -> Any:
        reply = await self.send(path, body, first_byte_timeout_s)
        return ScriptedStream(reply.body, {"content-type": "application/json"})


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def told(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


async def test_a_request_its_claim_and_its_attempts_are_one_trace(collector: Collector, tmp_path: Path) -> None:
    """The first tier fails, and fails its retry; the second answers: three attempts, each linked to the one before."""
    down = Endpoint(lambda number, body: error(500, "SECRET-REPLY"), 0.01)
    well = Endpoint(lambda number, body: answer("SECRET-ANSWER", 10, 5), 0.01)
    async with house(tmp_path, {"a": down, "b": well}) as made:
        made.router = made.another_router("router/x", tracing=Tracing("x", otlp(collector.address)))
        await made.router.open()
        done = await made.ask(7, digest=b"d" * 32, trace=CALLER, interactive=True)
        await made.router.close()
    assert isinstance(done, Result)
    spans = collector.spans()
    (request,), (claim,) = named(spans, "raycade.request"), named(spans, "raycade.claim")
    attempts = [span for span in spans if span.name.startswith("chat ")]
    assert {span.trace_id.hex() for span in spans} == {CALLER.split("-")[1]}
    assert request.parent_span_id.hex() == CALLER.split("-")[2]
    assert {span.parent_span_id for span in (claim, *attempts)} == {request.span_id}
    assert told(claim)["raycade.claim.outcome"] == "lead"
    assert [told(span)["raycade.tier"] for span in attempts] == [each.tier for each in done.attempts]
    assert attempts[-1].name == "chat model-b"
    for before, span in pairwise(attempts):
        assert [link.span_id for link in span.links] == [before.span_id]
    last = told(attempts[-1])
    assert (last["gen_ai.operation.name"], last["gen_ai.request.model"]) == ("chat", "model-b")
    assert (last["gen_ai.usage.input_tokens"], last["gen_ai.usage.output_tokens"]) == (10, 5)
    assert told(attempts[0])["error.type"] == "server"
    assert told(request)["raycade.attempts"] == len(attempts) >= 2
    assert told(request)["raycade.request.id"] == "r7"
    assert told(request)["raycade.cost_usd"] == pytest.approx(sum(told(span)["raycade.cost_usd"] for span in attempts))
    for text in (b"SECRET", b"hi", PROMPT):
        assert not [span for span in spans if text in span.SerializeToString()]


async def test_who_shares_an_answer_is_linked_to_the_request_that_got_it(collector: Collector, tmp_path: Path) -> None:
    slow = Endpoint(lambda number, body: answer(), 0.1)
    async with house(tmp_path, {"a": slow}) as made:
        made.router = made.another_router("router/x", tracing=Tracing("x", otlp(collector.address)))
        await made.router.open()
        asks = [made.ask(number, digest=b"d" * 32) for number in range(3)]
        done = [await ask for ask in asks]
        await made.router.close()
    assert sum(isinstance(each, Result) and each.coalesced for each in done) == 2
    spans = collector.spans()
    assert len(named(spans, "chat model-a")) == len(slow.bodies) == 1
    claims = named(spans, "raycade.claim")
    (lead,) = [span for span in claims if told(span)["raycade.claim.outcome"] == "lead"]
    shared = [span for span in claims if told(span)["raycade.claim.outcome"] == "shared"]
    assert len(shared) == 2
    assert {link.span_id for span in shared for link in span.links} == {lead.parent_span_id}
    assert len({span.trace_id for span in claims}) == 3


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_link_leads_to_another_routers_request(collector: Collector, tmp_path: Path, streamed: bool) -> None:
    """Whoever shares an answer, whole or as it comes, may have asked elsewhere: the link is to the one that made the call."""
    slow = InOnePiece(lambda number, body: answer(), 0.2)
    body = b'{"messages":[{"role":"user","content":"hi"}]}'
    request = Request("r", "/chat/completions", body, b"d" * 32, 100, 16, stream=streamed)
    async with house(tmp_path, {"a": slow}) as made:
        routers = [
            made.another_router(f"router/{name}", tracing=Tracing(name, otlp(collector.address))) for name in "xy"
        ]
        for router in routers:
            await router.open()
        asked = [router.stream(request, Heard()) if streamed else router.run(request) for router in routers]
        done = await asyncio.gather(*asked)
        for router in routers:
            await router.close()
    assert [isinstance(each, Result) and each.coalesced for each in done].count(True) == 1
    claims = named(collector.spans(), "raycade.claim")
    (lead,) = [span for span in claims if told(span)["raycade.claim.outcome"] == "lead"]
    (shared,) = [span for span in claims if told(span)["raycade.claim.outcome"] == "shared"]
    assert [link.span_id for link in shared.links] == [lead.parent_span_id]
    assert len(slow.bodies) == 1


async def test_what_was_never_sent_is_no_call(collector: Collector, tmp_path: Path) -> None:
    """A tier that asks for time is not called again; the trace says so, and calls are those that the endpoint saw."""
    busy = Endpoint(lambda number, body: error(429, **{"retry-after": "9"}), 0.01)
    well = Endpoint(lambda number, body: answer(), 0.01)
    async with house(tmp_path, {"a": busy, "b": well}, tier={"a": {"concurrency": 1}}) as made:
        made.router = made.another_router("router/x", tracing=Tracing("x", otlp(collector.address)))
        await made.router.open()
        for ask in [made.ask(number) for number in range(8)]:
            assert isinstance(await ask, Result)
        await made.router.close()
    spans = collector.spans()
    assert len(named(spans, "chat model-a")) == len(busy.bodies) < 8
    assert len(named(spans, "chat model-b")) == len(well.bodies) == 8
    assert {told(span)["raycade.tier"] for span in named(spans, "raycade.not_sent")} == {"a"}


async def test_a_collector_that_is_away_costs_spans_and_no_request(tmp_path: Path) -> None:
    async with house(tmp_path, {"a": Endpoint(lambda number, body: answer(), 0.01)}) as made:
        made.router = made.another_router("router/x", tracing=Tracing("x", otlp("http://127.0.0.1:9")))
        await made.router.open()
        assert isinstance(await made.ask(), Result)
        await made.router.close()
