"""The table of metrics: every name that `/metrics` serves, with its kind, help, labels and unit.

It is data: the exposition is made from it, and dashboards, rules and documents can be. `key` is the metric's short name
in `events.Tally` and in `scene.gauges`. Counters and histograms are sums over a runtime's life and never fall; gauges
are what was last seen.
"""

from typing import Literal, NamedTuple

__all__ = ["METRICS", "Metric"]

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["", "seconds", "tokens", "dollars"]


class Metric(NamedTuple):
    key: str
    name: str
    """As Prometheus has it: `_total` at the end of a counter."""
    kind: Kind
    labels: tuple[str, ...]
    help: str
    unit: Unit = ""
    """Dollars are counted in micro-dollars and served in dollars."""


def _pair(what: str, help: str) -> tuple[Metric, Metric]:
    """A budget's figure, in tokens and in dollars."""
    labels = ("scope", "window")
    return (
        Metric(
            f"budget_{what}_tokens", f"raycade_budget_{what}_tokens", "gauge", labels, f"{help}, in tokens.", "tokens"
        ),
        Metric(
            f"budget_{what}_usd",
            f"raycade_budget_{what}_dollars",
            "gauge",
            labels,
            f"{help}, in US dollars.",
            "dollars",
        ),
    )


METRICS: tuple[Metric, ...] = (
    # what ended at the doors
    Metric(
        "duration",
        "llm_request_duration_seconds",
        "histogram",
        ("model", "endpoint"),
        "Duration of calls that the model answered, from sending to the whole answer.",
        "seconds",
    ),
    Metric(
        "tokens",
        "llm_tokens_used_total",
        "counter",
        ("model", "type"),
        "Tokens as the endpoints reported them, failed and repeated calls included.",
        "tokens",
    ),
    Metric(
        "cost",
        "llm_request_cost_dollars_total",
        "counter",
        ("model",),
        "US dollars charged, with the whole reservation for calls whose usage nobody saw.",
        "dollars",
    ),
    Metric(
        "requests",
        "raycade_requests_total",
        "counter",
        ("tier", "outcome"),
        "Requests that ended: ok, coalesced, or the code of their error, by the tier that answered or was asked last.",
    ),
    Metric(
        "request_duration",
        "raycade_request_duration_seconds",
        "histogram",
        ("outcome",),
        "Time from the door to the answer, waits, retries and fallback included.",
        "seconds",
    ),
    Metric(
        "attempts",
        "raycade_attempts_total",
        "counter",
        ("tier", "kind"),
        "Calls to a tier's endpoints by how they ended: ok or the kind of failure.",
    ),
    Metric(
        "tier_tokens",
        "raycade_tier_tokens_total",
        "counter",
        ("tier", "type"),
        "Tokens as the endpoints reported them, by tier.",
        "tokens",
    ),
    Metric(
        "tier_cost",
        "raycade_tier_cost_dollars_total",
        "counter",
        ("tier",),
        "US dollars charged by tier, with the whole reservation for calls whose usage nobody saw.",
        "dollars",
    ),
    Metric(
        "unknown_tokens",
        "raycade_unknown_tokens_total",
        "counter",
        ("tier",),
        "Tokens booked for calls whose usage nobody saw.",
        "tokens",
    ),
    Metric(
        "unknown_cost",
        "raycade_unknown_cost_dollars_total",
        "counter",
        ("tier",),
        "The part of the cost that was booked for calls whose usage nobody saw, in US dollars.",
        "dollars",
    ),
    Metric(
        "coalesced",
        "raycade_coalesced_total",
        "counter",
        (),
        "Requests that shared another request's answer.",
    ),
    Metric("runaway", "raycade_runaway_total", "counter", (), "Requests refused as runaway loops."),
    Metric(
        "redone",
        "raycade_redone_total",
        "counter",
        (),
        "Requests sent again because an actor died with them; what they had cost by then is unknown.",
    ),
    Metric(
        "structured_failures",
        "raycade_structured_failures_total",
        "counter",
        ("prompt", "version", "tier"),
        "Answers that did not satisfy their schema.",
    ),
    Metric(
        "structured_answers",
        "raycade_structured_answers_total",
        "counter",
        ("prompt", "version", "tier"),
        "Answers that were held against a schema, by the version of the prompt that asked for them.",
    ),
    Metric(
        "first_token",
        "raycade_time_to_first_token_seconds",
        "histogram",
        ("model",),
        "Time from sending to the first token of a stream.",
        "seconds",
    ),
    Metric(
        "per_token",
        "raycade_time_per_token_seconds",
        "histogram",
        ("model",),
        "Time of each token of a stream after the first, on average over the stream.",
        "seconds",
    ),
    Metric(
        "malformed_events",
        "raycade_stream_malformed_events_total",
        "counter",
        ("tier",),
        "Events of good streams that could not be read, and were passed over.",
    ),
    Metric(
        "prompt_requests",
        "raycade_prompt_version_requests_total",
        "counter",
        ("prompt", "version", "outcome"),
        "Requests made by a registered prompt that ended, by its version: ok, coalesced, or the code of their error.",
    ),
    Metric(
        "prompt_tokens",
        "raycade_prompt_version_tokens_total",
        "counter",
        ("prompt", "version"),
        "Tokens charged for requests of a prompt version, failed and repeated calls included.",
        "tokens",
    ),
    Metric(
        "prompt_cost",
        "raycade_prompt_version_cost_dollars_total",
        "counter",
        ("prompt", "version"),
        "US dollars charged for requests of a prompt version, failed and repeated calls included.",
        "dollars",
    ),
    Metric(
        "overrun_tokens",
        "raycade_budget_overrun_tokens_total",
        "counter",
        ("tier",),
        "Tokens used above their reservations.",
        "tokens",
    ),
    Metric(
        "overrun_cost",
        "raycade_budget_overrun_dollars_total",
        "counter",
        ("tier",),
        "US dollars spent above their reservations.",
        "dollars",
    ),
    # what is so now
    Metric(
        "breaker_state",
        "raycade_breaker_state",
        "gauge",
        ("tier", "actor"),
        "Circuit breaker of a tier actor: 0 closed, 1 half-open, 2 open.",
    ),
    Metric(
        "actor_up",
        "raycade_tier_actor_up",
        "gauge",
        ("tier", "actor"),
        "Whether a tier actor can take calls: 0 while it restarts, is told to pause, is open or is out.",
    ),
    Metric("in_flight", "raycade_in_flight", "gauge", ("tier",), "Calls that wait for the tier's endpoints."),
    Metric("queued", "raycade_queued", "gauge", ("tier",), "Calls that wait for a free slot of the tier."),
    Metric(
        "concurrency_limit",
        "raycade_concurrency_limit",
        "gauge",
        ("tier",),
        "Calls that the tier may have in flight.",
    ),
    Metric(
        "spend_anomaly",
        "raycade_spend_anomaly",
        "gauge",
        ("tier",),
        "1 while the tier spends far more than usual, or is stopped for it.",
    ),
    Metric(
        "key_spend_anomaly",
        "raycade_key_spend_anomaly",
        "gauge",
        ("key",),
        "1 while a configured key spends far more than usual, or is stopped for it.",
    ),
    *_pair("limit", "Limit of a scope's window"),
    *_pair("spent", "Spent in a scope's window, with what is unknown"),
    *_pair("reserved", "Reserved or granted in a scope's window and not yet spent"),
    *_pair("unknown", "The part of what is spent whose usage nobody saw"),
    Metric(
        "budget_window_left",
        "raycade_budget_window_left_seconds",
        "gauge",
        ("scope", "window"),
        "Time until a scope's window turns and its spend begins at zero again.",
        "seconds",
    ),
    Metric(
        "waiting_for_budget",
        "raycade_waiting_for_budget",
        "gauge",
        (),
        "Requests that wait for budget.",
    ),
    Metric(
        "gateway_requests",
        "raycade_gateway_requests",
        "gauge",
        ("kind",),
        "Requests that the gateway's replicas have in hand: plain and stream.",
    ),
    Metric(
        "batch_rows",
        "raycade_batch_rows",
        "gauge",
        ("batch", "state"),
        "Rows of a batch, by its run's id: done, failed and coalesced so far (earlier runs included in done), in_flight, and total if known.",
    ),
    Metric(
        "batch_progress",
        "raycade_batch_progress_ratio",
        "gauge",
        ("batch",),
        "How much of a batch is done, from 0 to 1.",
    ),
    Metric(
        "sources",
        "raycade_observer_sources",
        "gauge",
        (),
        "Processes whose counts are in these sums.",
    ),
)
