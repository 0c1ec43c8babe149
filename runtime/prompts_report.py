"""`raycade prompts report RUN`: the versions of a run side by side, each number with its 95% confidence interval.

Read from the lines of OUT and ERRORS alone, one after the other, so that a run of any size can be looked at, also while it
goes on. Shares have Wilson intervals, means those of Student's t. Rows that share another row's answer are counted as
rows and nowhere else: they cost nothing and say nothing new about their version.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from actors.errors import ConfigError
from runtime.batch.journal import journal_folder
from runtime.prompts_job import prompt_of_line

__all__ = ["Interval", "Mean", "VersionFigures", "draw", "figures", "mean_interval", "report", "wilson"]

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def wilson(count: int, of: int) -> Interval | None:
    """A share, and between what it may truly lie; None of nothing."""
    if not of:
        return None
    share, z2 = count / of, _Z * _Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z * sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


@dataclass
class Mean:
    """A mean as it grows (Welford)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        distance = value - self.mean
        self.mean += distance / self.count
        self.squares += distance * (value - self.mean)


def mean_interval(values: Mean) -> Interval | None:
    """None for fewer than two values, which say nothing about how far they spread."""
    if values.count < 2:
        return None
    half = _student(values.count - 1) * sqrt(values.squares / (values.count - 1) / values.count)
    return Interval(values.mean, values.mean - half, values.mean + half)


def _student(freedom: int) -> float:
    """The quantile of Student's t by its Cornish-Fisher expansion; exact where that is too rough."""
    if freedom <= 4:
        return (12.7062, 4.3027, 3.1824, 2.7764)[freedom - 1]
    z, n = _Z, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


@dataclass
class VersionFigures:
    """What a run shows of one version."""

    rows: int = 0
    shared: int = 0
    failed: int = 0
    parse_failures: int = 0
    """Rows of which a reply was refused by the schema, in the end answered or not."""
    retried: int = 0
    """Rows with more than one attempt."""
    attempts: Mean = field(default_factory=Mean)
    tokens: Mean = field(default_factory=Mean)
    cost_usd: Mean = field(default_factory=Mean)
    latency_s: Mean = field(default_factory=Mean)
    """Of rows with an answer: how long the endpoint took."""

    @property
    def own(self) -> int:
        """Rows that made calls of their own."""
        return self.rows - self.shared

    def add(self, line: dict[str, Any]) -> None:
        response = line.get("response") or {}
        held = response.get("body")
        body: dict[str, Any] = held if isinstance(held, dict) else {}
        extra = body.get("raycade") or line.get("raycade") or {}
        self.rows += 1
        failed = line.get("error") is not None
        self.failed += failed
        if extra.get("coalesced"):
            self.shared += 1
            return
        if failed and not extra.get("attempts"):
            return  # never sent: no budget, no tier
        attempts = extra.get("attempts", 1)
        self.attempts.add(attempts)
        self.retried += attempts > 1
        self.parse_failures += bool(extra.get("refused_replies"))
        self.cost_usd.add(extra.get("cost_usd", 0.0))
        tokens = extra.get("tokens", (body.get("usage") or {}).get("total_tokens"))
        if isinstance(tokens, int):
            self.tokens.add(tokens)
        if "latency_s" in extra:
            self.latency_s.add(extra["latency_s"])


def report(run: str, as_json: bool, console: Console) -> int:
    """Print the report of a run; exit code. `run`: OUT or its journal. Raises ConfigError."""
    out, errors = _files(run)
    found = figures([out, errors])
    if not found:
        raise ConfigError("no line here was made with a prompt of the registry", out)
    if as_json:
        plain = {ref: {name: _plain(value) for name, value in _numbers(f)} for ref, f in sorted(found.items())}
        print(orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode())
    else:
        console.print(draw(found))
        console.print(
            f"In brackets: {CONFIDENCE:.0%} confidence. Rates and means are of rows that made calls of their own."
        )
    return 0


def figures(paths: list[str]) -> dict[str, VersionFigures]:
    """By `name@version`. Raises ConfigError for a file that holds anything but lines of a batch."""
    found: dict[str, VersionFigures] = {}
    for path in paths:
        for line in _lines(path):
            ref = prompt_of_line(line)
            if ref:
                found.setdefault(ref, VersionFigures()).add(line)
    return found


def _lines(path: str) -> Iterator[dict[str, Any]]:
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                return  # torn, or being written
            try:
                line = orjson.loads(text)
            except orjson.JSONDecodeError:
                line = None
            if not isinstance(line, dict) or "custom_id" not in line:
                raise ConfigError("is no line of a batch's output", path, number)
            yield line


def _files(run: str) -> tuple[str, str]:
    """OUT and ERRORS of a run, as its journal knows them."""
    run = run.rstrip("/")
    out = run.removesuffix(".journal")
    try:
        meta = orjson.loads((journal_folder(out) / "meta.json").read_bytes())
        folder = os.path.dirname(out)
        return out, os.path.normpath(os.path.join(folder, meta["errors"]))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError("the journal is damaged", run) from None
    if not os.path.isfile(out):
        raise ConfigError("there is no such run; give the output of a batch job, or its journal", run)
    return out, f"{out.removesuffix('.jsonl')}.errors.jsonl"


# -- what is shown -------------------------------------------------------------------------------------------------


def _numbers(f: VersionFigures) -> Iterator[tuple[str, int | Interval | None]]:
    yield "rows", f.rows
    yield "shared", f.shared
    yield "failed", wilson(f.failed, f.rows)
    yield "parse_failures", wilson(f.parse_failures, f.attempts.count)
    yield "retried", wilson(f.retried, f.attempts.count)
    yield "attempts", mean_interval(f.attempts)
    yield "tokens", mean_interval(f.tokens)
    yield "cost_usd", mean_interval(f.cost_usd)
    yield "latency_s", mean_interval(f.latency_s)


_TITLES = {
    "rows": ("rows", "{:,}"),
    "shared": ("of them sharing a call", "{:,}"),
    "failed": ("failed", "{:.1%}"),
    "parse_failures": ("parse failures", "{:.1%}"),
    "retried": ("retried", "{:.1%}"),
    "attempts": ("attempts a row", "{:.2f}"),
    "tokens": ("tokens a row", "{:,.0f}"),
    "cost_usd": ("cost a row, USD", "{:.6f}"),
    "latency_s": ("latency, s", "{:.2f}"),
}


def draw(found: dict[str, VersionFigures]) -> Table:
    """A column for each version."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for ref in sorted(found):
        table.add_column(ref, justify="right")
    columns = [dict(_numbers(found[ref])) for ref in sorted(found)]
    for name, (title, form) in _TITLES.items():
        table.add_row(title, *(_cell(column[name], form) for column in columns))
    return table


def _cell(value: int | Interval | None, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, Interval):
        return f"{form.format(value.value)} ({form.format(value.low)} to {form.format(value.high)})"
    return form.format(value)


def _plain(value: int | Interval | None) -> Any:
    return value._asdict() if isinstance(value, Interval) else value
