"""A Grafana dashboard out of the table of metrics (actors/observer/metrics.py): every metric has its panel.

What a panel asks follows from the kind of its metric: a counter's rate, a histogram's median and 95th percentile, a gauge as
it is. Here stand only the order, and what people ask that is not one metric: dollars an hour, what share fails, how much
of a budget is used. A metric that nobody has put in order comes under "Everything else", so none can be forgotten.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from actors.observer.metrics import METRICS, Metric

__all__ = ["Panel", "dashboard", "sections"]

WIDTH, HEIGHT = 24, 8
STAT_HEIGHT = 4
WITHIN = '{job=~"$job", instance=~"$instance"}'
"""What every series is narrowed to; the variables are chosen above the dashboard."""
RATE = "$__rate_interval"
UNITS = {"seconds": "s", "dollars": "currencyUSD", "tokens": "short", "": "short"}


class Panel(NamedTuple):
    title: str
    queries: tuple[tuple[str, str], ...]
    """PromQL and the legend of each."""
    unit: str = "short"
    about: str = ""
    stat: bool = False
    """One number instead of a curve."""
    stacked: bool = False


class Section(NamedTuple):
    title: str
    panels: tuple[Panel, ...]


def _named(key: str) -> Metric:
    return next(metric for metric in METRICS if metric.key == key)


def _sum(key: str, *by: str, function: str = "rate", over: str = RATE, only: str = "") -> str:
    """Of a counter: its rate, or increase, summed by labels."""
    within = f"{WITHIN[:-1]}, {only}}}" if only else WITHIN
    inner = f"{function}({_named(key).name}{within}[{over}])"
    return f"sum by ({', '.join(by)}) ({inner})" if by else f"sum({inner})"


def _quantile(quantile: float, metric: Metric) -> str:
    by = ", ".join((*metric.labels, "le"))
    return f"histogram_quantile({quantile:g}, sum by ({by}) (rate({metric.name}_bucket{WITHIN}[{RATE}])))"


def _legend(labels: Iterable[str], also: str = "") -> str:
    return " ".join([*(f"{{{{{label}}}}}" for label in labels), *([also] if also else [])])


def panel_of(metric: Metric) -> Panel:
    """The panel that follows from the table alone."""
    title = metric.name.removeprefix("raycade_").removeprefix("llm_").removesuffix("_total").replace("_", " ")
    unit = UNITS[metric.unit]
    match metric.kind:
        case "counter":
            legend = _legend(metric.labels) or title
            rate = _sum(metric.key, *metric.labels)
            return Panel(f"{title} per second".capitalize(), ((rate, legend),), unit, metric.help, stacked=True)
        case "gauge":
            expr = f"max by ({', '.join(metric.labels)}) ({metric.name}{WITHIN})"
            expr = expr if metric.labels else f"max({metric.name}{WITHIN})"
            return Panel(title.capitalize(), ((expr, _legend(metric.labels) or title),), unit, metric.help)
        case "histogram":
            queries = tuple(
                (_quantile(share, metric), _legend(metric.labels, f"p{share * 100:g}")) for share in (0.5, 0.95)
            )
            return Panel(title.capitalize(), queries, unit, metric.help)


REFUSED = 'kind="rate_limited"'
FAILED = 'outcome!~"ok|coalesced"'


def _budget_share(unit: str) -> tuple[str, str]:
    spent, limit = (f"raycade_budget_{what}_{unit}{WITHIN}" for what in ("spent", "limit"))
    by = "scope, window"
    return f"max by ({by}) ({spent}) / max by ({by}) ({limit})", "{{scope}} {{window}} " + unit


AT_A_GLANCE = (
    Panel("Dollars an hour", ((f"3600 * {_sum('tier_cost')}", "all tiers"),), "currencyUSD", stat=True),
    Panel("Dollars in 24 hours", ((_sum("tier_cost", function="increase", over="24h"), ""),), "currencyUSD", stat=True),
    Panel("Requests a second", ((_sum("requests"), ""),), "reqps", stat=True),
    Panel(
        "Requests that fail",
        ((f"({_sum('requests', only=FAILED)} or vector(0)) / {_sum('requests')}", ""),),
        "percentunit",
        stat=True,
    ),
    Panel("Breakers open", ((f"count(raycade_breaker_state{WITHIN} == 2) or vector(0)", ""),), stat=True),
    Panel("Tokens a second", ((_sum("tier_tokens"), ""),), stat=True),
)
ASKED = {
    "cost rate": Panel(
        "Dollars an hour by tier", ((f"3600 * {_sum('tier_cost', 'tier')}", "{{tier}}"),), "currencyUSD", stacked=True
    ),
    "refused": Panel(
        "Refused for their rate (429) per second", ((_sum("attempts", "tier", only=REFUSED), "{{tier}}"),)
    ),
    "budgets used": Panel(
        "Budgets used", (_budget_share("dollars"), _budget_share("tokens")), "percentunit", "Spent, of the limit."
    ),
    "misfits": Panel(
        "Answers that do not fit their schema",
        (
            (
                f"{_sum('structured_failures', 'prompt', 'version')} / {_sum('structured_answers', 'prompt', 'version')}",
                "{{prompt}} v{{version}}",
            ),
        ),
        "percentunit",
    ),
}
"""What is asked of more than one metric."""

ORDER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Money", ("cost rate", "cost", "spend_anomaly", "key_spend_anomaly", "unknown_cost", "overrun_cost")),
    ("Budgets", ("budgets used", "budget_spent_usd", "budget_reserved_usd", "budget_limit_usd", "budget_window_left")),
    (
        "Requests",
        (
            "requests",
            "attempts",
            "refused",
            "request_duration",
            "duration",
            "first_token",
            "per_token",
            "malformed_events",
            "tier_tokens",
            "gateway_requests",
        ),
    ),
    ("Tiers", ("breaker_state", "actor_up", "in_flight", "queued", "concurrency_limit")),
    ("Batches", ("batch_progress", "batch_rows", "waiting_for_budget", "coalesced", "redone", "runaway")),
    (
        "Prompts",
        ("misfits", "structured_failures", "structured_answers", "prompt_requests", "prompt_cost", "prompt_tokens"),
    ),
)
"""Sections, and what they show: keys of the table, or of `ASKED`."""


def sections() -> Iterator[Section]:
    """All panels in their order; a metric of the table that has no place comes at the end."""
    table = {metric.key: metric for metric in METRICS}
    yield Section("At a glance", AT_A_GLANCE)
    for title, keys in ORDER:
        yield Section(title, tuple(ASKED[key] if key in ASKED else panel_of(table.pop(key)) for key in keys))
    if table:
        yield Section("Everything else", tuple(map(panel_of, table.values())))


def dashboard() -> str:
    """The JSON that Grafana imports; the same bytes for the same table."""
    panels: list[dict[str, Any]] = []
    y = 0
    for section in sections():
        panels.append(_row(section.title, y))
        y += 1
        stats = section.panels[0].stat
        width, height = (WIDTH // 6, STAT_HEIGHT) if stats else (WIDTH // 3, HEIGHT)
        x = 0
        for panel in section.panels:
            if x + width > WIDTH:
                x, y = 0, y + height
            panels.append(_drawn(panel, x, y, width, height))
            x += width
        y += height
    for number, each in enumerate(panels, 1):
        each["id"] = number
    return json.dumps(_frame(panels), indent=2) + "\n"


def _row(title: str, y: int) -> dict[str, Any]:
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _place(0, y, WIDTH, 1)}


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _drawn(panel: Panel, x: int, y: int, width: int, height: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    custom = {"fillOpacity": 20 if panel.stacked else 5, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    options: dict[str, Any] = (
        {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"}
        if panel.stat
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    )
    return {
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": _place(x, y, width, height),
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, **({} if panel.stat else {"custom": custom})},
            "overrides": [],
        },
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": source, "expr": expr, "legendFormat": legend}
            for number, (expr, legend) in enumerate(panel.queries)
        ],
    }


def _frame(panels: list[dict[str, Any]]) -> dict[str, Any]:
    def chosen(name: str) -> dict[str, Any]:
        query = f"label_values(raycade_observer_sources, {name})"
        return {
            "name": name,
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }

    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "raycade",
        "title": "Raycade",
        "description": "Made by `raycade metrics dashboard` from the table of metrics.",
        "tags": ["raycade", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, chosen("job"), chosen("instance")]},
        "annotations": {"list": []},
        "panels": panels,
    }
