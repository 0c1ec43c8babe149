"""OpenTelemetry spans of a router's requests, by the GenAI conventions: only where `telemetry.otlp_endpoint` is set.

    raycade.request                      door to answer; a child of the caller's span where it sent a `traceparent`
      raycade.claim                      until it leads, or has the answer of the one that does (then with a link to that one)
      chat MODEL, embeddings MODEL ...   one call each (with its second copy, if it had one), with a link to the call
                                         before it, of which it is a retry or a fallback
      raycade.not_sent                   a tier that had no room for it, or a budget nothing left: why, and for how long

It stands around `Router`'s own steps and reads what they return, so a router without it does nothing for it. Spans are sent
in batches by a thread of the SDK; when a collector is away or slow, spans are lost and requests are not. No text of a
prompt or an answer is ever in a span; `raycade.request.id` is a row's custom_id. How many requests are sampled is the SDK's to say: OTEL_TRACES_SAMPLER and _ARG.
Needs the extra `otel`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from actors.messages import Amount, Answer, Failure, Refusal, Request, Result
from actors.router.attempts import RouterTier
from actors.router.plan import Past

__all__ = ["Tracing", "otlp"]

Made = tuple[Answer | Failure | Refusal | None, Amount]
Run = Callable[[Request], Coroutine[Any, Any, Result | Failure]]
OPERATIONS = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}
TIMEOUT_S = 3.0
ID = 128
"""Characters of an id; a custom_id may be of any length."""


class _Trail:
    """Of one request: its last attempt."""

    __slots__ = ("attempts", "last", "tier")

    def __init__(self) -> None:
        self.attempts = 0
        self.last: SpanContext | None = None
        self.tier = ""


_trail: ContextVar[_Trail] = ContextVar("_trail")


def otlp(endpoint: str) -> SpanExporter:
    """Sends spans to a collector's OTLP/HTTP endpoint, such as http://127.0.0.1:4318."""
    address = endpoint.rstrip("/")
    return OTLPSpanExporter(
        endpoint=address if address.endswith("/v1/traces") else f"{address}/v1/traces", timeout=TIMEOUT_S
    )


class Tracing:
    """One a router. `name`: the router's."""

    def __init__(self, name: str, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "raycade", "service.instance.id": name}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("raycade")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left. Blocks for some seconds at most."""
        self._provider.shutdown()

    async def request(self, request: Request, run: Run) -> Result | Failure:
        """`run`, as a span that attempts find as their parent."""
        parent = self._propagator.extract({"traceparent": request.trace}) if request.trace else None
        attributes = {"raycade.request.id": request.id[:ID], "gen_ai.operation.name": _operation(request)}
        for name, value in (("job", request.job), ("key", request.key), ("prompt", request.prompt)):
            if value:
                attributes[f"raycade.{name}"] = value
        with self._tracer.start_as_current_span(
            "raycade.request",
            context=parent,
            kind=SpanKind.SERVER if request.interactive else SpanKind.INTERNAL,
            attributes=attributes,
        ) as span:
            _trail.set(_Trail())
            done = await run(request)
            self._ended(span, done)
            return done

    async def claim(
        self,
        request: Request,
        share: Callable[[Request, Callable[..., Any]], Awaitable[Result | Failure]],
        answer: Callable[..., Coroutine[Any, Any, Result | Failure]],
    ) -> Result | Failure:
        """`share`, with the time that the claim took as a span. `answer`: what the lead does, as `share` calls it.

        Who leads says so in its result, so that others find its span wherever they have asked.
        """
        span = self._tracer.start_span("raycade.claim")
        leader = trace.get_current_span().get_span_context()

        async def lead(request: Request, *more: Any) -> Result | Failure:
            span.set_attribute("raycade.claim.outcome", "lead")
            span.end()
            done = await answer(request, *more)
            return done._replace(trace=_told(leader)) if isinstance(done, Result) else done

        try:
            done = await share(request, lead)
            if span.is_recording():
                shared = done if isinstance(done, Result) and done.coalesced else None
                span.set_attribute("raycade.claim.outcome", "refused" if shared is None else "shared")
                if shared is not None and (other := self._context(shared.trace)) is not None:
                    span.add_link(other)
            return done
        finally:
            if span.is_recording():
                span.end()

    def _context(self, told: str) -> SpanContext | None:
        """The span that a `traceparent` names."""
        context = trace.get_current_span(self._propagator.extract({"traceparent": told}, Context())).get_span_context()
        return context if context.is_valid else None

    async def attempt(
        self,
        make: Callable[..., Awaitable[Made]],
        request: Request,
        tier: RouterTier,
        index: int,
        past: Past,
        spent: Amount,
        **options: Any,
    ) -> Made:
        """`make`, as a span. Made when it has ended, since only then it is known whether anything was sent."""
        began = time.time_ns()
        try:
            done, cost = await make(request, tier, index, past, spent, **options)
        except asyncio.CancelledError:
            span = self._call(request, tier, index, began)
            span.set_status(Status(StatusCode.ERROR, "cancelled"))
            span.end()
            raise
        if done is None or isinstance(done, Refusal):
            reason = "budget or deadline" if done is None else done.reason
            about: dict[str, str | int] = {"raycade.tier": tier.state.settings.name, "raycade.reason": reason}
            self._tracer.start_span("raycade.not_sent", start_time=began, attributes=about).end()
            return done, cost
        span = self._call(request, tier, index, began)
        span.set_attribute("raycade.cost_usd", cost.usd_micros / 1e6)
        if isinstance(done, Failure):
            _failed(span, done)
        else:
            span.set_attribute("http.response.status_code", done.status)
            if done.model:
                span.set_attribute("gen_ai.response.model", done.model)
            if done.usage is not None:
                span.set_attribute("gen_ai.usage.input_tokens", done.usage.prompt_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", done.usage.completion_tokens)
        span.end()
        return done, cost

    def _call(self, request: Request, tier: RouterTier, index: int, began: int) -> Span:
        """The span of a call, linked to the one before it."""
        settings, trail = tier.state.settings, _trail.get(None) or _Trail()
        operation = _operation(request)
        trail.attempts += 1
        links = []
        if trail.last is not None:
            why = "retry" if trail.tier == settings.name else "fallback"
            links.append(Link(trail.last, {"raycade.reason": why}))
        address = urlsplit(settings.base_url[0])
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "openai",  # the API that is spoken, whoever answers
            "gen_ai.request.model": settings.model,
            "server.address": address.hostname or "",
            "raycade.tier": settings.name,
            "raycade.actor": index,
            "raycade.attempt": trail.attempts,
        }
        if address.port:
            attributes["server.port"] = address.port
        span = self._tracer.start_span(
            f"{operation} {settings.model}", kind=SpanKind.CLIENT, attributes=attributes, links=links, start_time=began
        )
        trail.last, trail.tier = span.get_span_context(), settings.name
        return span

    def _ended(self, span: Span, done: Result | Failure) -> None:
        span.set_attribute("raycade.attempts", len(done.attempts))
        span.set_attribute("raycade.cost_usd", done.cost.usd_micros / 1e6)
        if isinstance(done, Failure):
            _failed(span, done)
        else:
            span.set_attribute("raycade.tier", done.tier)
            span.set_attribute("raycade.coalesced", done.coalesced)


def _told(context: SpanContext) -> str:
    """A span as a `traceparent`."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _failed(span: Span, failure: Failure) -> None:
    """The kind alone: a message may quote what was asked."""
    span.set_attribute("error.type", failure.kind)
    if failure.status:
        span.set_attribute("http.response.status_code", failure.status)
    span.set_status(Status(StatusCode.ERROR, failure.kind))


def _operation(request: Request) -> str:
    return OPERATIONS.get(request.path, "chat")
