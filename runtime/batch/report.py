"""`--report FILE.html`: one page about a run, for somebody who was not there.

    recorder, tally, journal, ledger -> page() -> report.html.j2 -> FILE

The page is one file without scripts that asks for nothing from anywhere, which its own policy (CSP) holds it to. Every text in
it is escaped by the template engine. What the whole job has done and what this run of it has done are told apart: rows,
failures and the ledger's sums are known for the whole job, times and calls for this run only.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined

from actors.budget.rows import Snapshot
from actors.errors import ConfigError
from runtime.batch.charts import Chart, Row, lines, stacked, timeline
from runtime.batch.recorder import CODES as MOST_CODES
from runtime.batch.recorder import TEXT, Example, Recorder
from runtime.batch.scene import plain
from runtime.batch.summary import CODES, dollars, kinds_in_words, rows, short, span
from runtime.config import Config

__all__ = ["Job", "check_place", "failures_of", "html", "write"]

TEMPLATE = "report.html.j2"
COLOURS = 5
"""Tiers beyond these are drawn together."""
PERIODS = 40
EVENTS = 60
_PARTLY = re.compile(r"\d+ of \d+ (.+)")
STYLES = {"open": "bad", "out": "bad", "asked to pause": "pause", "trying": "trying", "restarting": "off"}


class Job(NamedTuple):
    """What the page is about, beside what the recorder has."""

    told: Mapping[str, Any]
    """What `summary_dict` says."""
    run: str
    config: Config
    recorder: Recorder
    failures: Mapping[str, int]
    """Failed rows of the whole job by code."""
    examples: Mapping[str, Example]
    before: Snapshot | None
    """What the ledger said before this run began: what earlier runs have cost."""
    began: float
    """Unix seconds."""
    total_rows: int | None


def check_place(path: str, others: tuple[str, ...]) -> None:
    """Raises ConfigError where a report cannot be written, before the job that it is about."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.realpath(path) in {os.path.realpath(other) for other in others}:
        raise ConfigError("is the output or the errors file of the job; name another", path, key="--report")
    if not os.path.isdir(folder):
        raise ConfigError("its folder does not exist", path, key="--report")
    if os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise ConfigError("cannot be written", path, key="--report")


def write(path: str, job: Job) -> None:
    """Write the page; whoever reads it meanwhile sees the old one or the new one. Raises OSError."""
    text = html(job).encode("utf-8", "replace")
    with tempfile.NamedTemporaryFile("wb", dir=os.path.dirname(os.path.abspath(path)), delete=False) as file:
        try:
            file.write(text)
            file.flush()
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o666 & ~mask)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def failures_of(errors: str) -> tuple[Counter[str], dict[str, Example]]:
    """Rows by code in an errors file, and the first of each; read line by line, so of any size."""
    codes: Counter[str] = Counter()
    examples: dict[str, Example] = {}
    try:
        with open(errors, "rb") as file:
            for line in file:
                try:
                    told = orjson.loads(line)
                    code = str(told["error"]["code"])
                except (ValueError, KeyError, TypeError):
                    continue
                codes[code] += 1
                if code not in examples and len(examples) < MOST_CODES:
                    examples[code] = Example(
                        str(told.get("custom_id") or "")[:TEXT], str(told["error"]["message"])[:TEXT]
                    )
    except FileNotFoundError:
        pass
    return codes, examples


def html(job: Job) -> str:
    """The page."""
    engine = Environment(
        loader=PackageLoader("runtime.batch", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"dollars": dollars, "span": _span, "short": short, "count": lambda number: f"{number:,}"}
    engine.filters |= {"percent": _percent, "plain": lambda text: plain(str(text), 400)}
    return engine.get_template(TEMPLATE).render(**_page(job))


def _page(job: Job) -> dict[str, Any]:
    told, recorder = job.told, job.recorder
    tally_rows = told["rows"]
    answered, failed = tally_rows["succeeded"], tally_rows["failed"]
    bands, axes = _timeline(job)
    tokens = told["tokens"]["total"]
    usd_micros = round(told["cost_usd"] * 1e6)
    earlier = [
        row.spent
        for row in (job.before.limits if job.before else ())
        if (row.scope, row.window, row.unit) == (f"job:{job.run}", "total", "usd")
    ]
    return {
        "name": os.path.basename(told["files"]["out"]),
        "told": told,
        "run": job.run,
        "began": _moment(job.began),
        "ended": _moment(job.began + told["duration_s"]),
        "headline": _headline(told),
        "resumed": tally_rows["earlier"] > 0,
        "total_rows": job.total_rows,
        "done": answered + failed,
        "usd_micros": usd_micros,
        "whole_usd_micros": usd_micros + sum(earlier) if earlier else None,
        "p50": recorder.latencies.quantile(0.5),
        "p95": recorder.latencies.quantile(0.95),
        "failures": _failures(job),
        "tiers": _tiers(job),
        "dearest": max((1, *(tier.usd_micros for tier in recorder.tiers.values()))),
        "saved_usd_micros": round(told["coalesced"]["saved_tokens"] * usd_micros / tokens) if tokens else 0,
        "throughput": _throughput(job),
        "latency": _latency(recorder),
        "slices": list(_table(recorder)),
        "bands": bands,
        "axes_of": axes,
        "periods": [
            {
                "tier": each.tier,
                "word": each.word,
                "detail": each.detail,
                "began": each.began,
                "took": each.ended - each.began,
            }
            for each in recorder.periods[:PERIODS]
        ],
        "periods_left_out": recorder.periods_left_out + max(0, len(recorder.periods) - PERIODS),
        "slowest": [row._replace(outcome=CODES.get(row.outcome, row.outcome)) for row in recorder.slowest()],
        "versions": _versions(recorder),
        "events": list(recorder.events)[-EVENTS:],
        "events_left_out": max(0, recorder.events_in_all - EVENTS),
        "kinds_in_words": kinds_in_words,
        "rows": rows,
    }


def _headline(told: Mapping[str, Any]) -> tuple[str, str]:
    """How it ended, as a sentence, and as good, partly or stopped."""
    failed, message = told["all_runs"]["failed"], told["ending"]["message"]
    match told["ending"]["stop"]:
        case "":
            if not failed:
                return "Finished: every row has its answer.", "good"
            return f"Finished: every row is done, {failed:,} of them without an answer.", "partly"
        case "budget":
            return f"Stopped by a budget: {message}.", "stopped"
        case "interrupted" | "killed":
            return "Interrupted before its end.", "stopped"
        case _:
            return f"Stopped: {message}", "stopped"


def _failures(job: Job) -> list[dict[str, Any]]:
    most = max(job.failures.values(), default=1)
    return [
        {
            "code": code,
            "words": CODES.get(code, code.replace("_", " ")),
            "count": count,
            "share": count / most,
            "example": job.examples.get(code),
        }
        for code, count in sorted(job.failures.items(), key=lambda each: (-each[1], each[0]))
    ]


def _tiers(job: Job) -> list[dict[str, Any]]:
    found = []
    for number, tier in enumerate(job.told["tiers"]):
        sums = job.recorder.tiers.get(tier["name"])
        found.append(
            {
                **tier,
                "style": f"t{min(number, COLOURS)}",
                "usd_micros": sums.usd_micros if sums else 0,
                "all_tokens": sums.tokens if sums else 0,
                "p50": sums.latencies.quantile(0.5) if sums else None,
                "p95": sums.latencies.quantile(0.95) if sums else None,
            }
        )
    return found


def _throughput(job: Job) -> Chart:
    recorder, width = job.recorder, job.recorder.width_s
    names = [tier.name for tier in job.config.tiers]
    groups = [(name, f"t{number}", [name]) for number, name in enumerate(names[:COLOURS])]
    if names[COLOURS:]:
        groups.append(("other tiers", f"t{COLOURS}", names[COLOURS:]))
    series: list[tuple[str, str, list[float]]] = []
    for label, style, members in groups:
        values = [sum(each.tiers[name] for name in members) / width for each in recorder.slices]
        series.append((label, style, values))
    series.append(("shared another row's answer", "shared", [each.shared / width for each in recorder.slices]))
    series.append(("failed", "failed", [each.failed / width for each in recorder.slices]))
    drawn = [one for number, one in enumerate(series) if any(one[2]) or number < len(groups)]
    return stacked(drawn, width, recorder.ended)


def _latency(recorder: Recorder) -> Chart:
    series = [
        (label, style, [each.latencies.quantile(share) for each in recorder.slices])
        for label, style, share in (("median", "p50", 0.5), ("95th percentile", "p95", 0.95))
    ]
    return lines(series, recorder.width_s, recorder.ended)


def _table(recorder: Recorder) -> Iterator[dict[str, Any]]:
    """Both charts in numbers, in at most twenty lines."""
    each = max(1, -(-len(recorder.slices) // 20))
    for start in range(0, len(recorder.slices), each):
        first, *others = recorder.slices[start : start + each]
        counts = [sum(one.tiers.values()) for one in (first, *others)]
        slowest = [one.latencies.quantile(0.95) for one in (first, *others)]
        medians = sorted(value for one in (first, *others) if (value := one.latencies.quantile(0.5)) is not None)
        yield {
            "from": start * recorder.width_s,
            "answered": sum(counts),
            "shared": sum(one.shared for one in (first, *others)),
            "failed": sum(one.failed for one in (first, *others)),
            "p50": medians[len(medians) // 2] if medians else None,
            "p95": max((value for value in slowest if value is not None), default=None),
        }


def _timeline(job: Job) -> tuple[tuple[Row, ...], Chart]:
    recorder = job.recorder
    found = []
    for tier in job.config.tiers:
        bands = []
        for period in recorder.periods:
            if period.tier == tier.name:
                partly = _PARTLY.fullmatch(period.word)
                style = STYLES.get(partly[1] if partly else period.word, "off")
                title = f"{period.word} from {_span(period.began)} for {_span(period.ended - period.began)}"
                bands.append((period.began, period.ended, f"{style} part" if partly else style, title))
        found.append((tier.name, bands))
    return timeline(found, recorder.ended)


def _versions(recorder: Recorder) -> list[dict[str, Any]]:
    found = []
    for name, sums in sorted(recorder.versions.items()):
        own = sums.rows - sums.shared
        found.append(
            {
                "name": name,
                "rows": sums.rows,
                "shared": sums.shared,
                "failed": sums.failed / own if own else None,
                "refused": sums.refused_replies,
                "tokens": sums.tokens / own if own else None,
                "usd_micros": round(sums.usd_micros / own) if own else None,
                "p50": sums.latencies.quantile(0.5),
            }
        )
    return found


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "none"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else span(round(seconds, 1))


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
