"""What is aimed for, all in one place, and how what was measured stands to it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["AIMS", "Aim", "Verdict", "verdicts"]


class Aim(NamedTuple):
    scenario: str
    what: str
    """What is measured."""
    bound: float
    most: bool = False
    """Whether the bound is the most, not the least, that it may be."""
    unit: str = ""
    digits: int = 2

    def met(self, measured: float) -> bool:
        return measured <= self.bound if self.most else measured >= self.bound

    def shown(self) -> str:
        return f"at {'most' if self.most else 'least'} {self.bound:g}{self.unit}"


AIMS: dict[str, Aim] = {
    "over aiohttp": Aim("overhead", "rows/s over a plain aiohttp loop, 0 ms", 0.8),
    "over aiohttp, further": Aim("overhead", "the same, what is hoped for", 1.0),
    "over openai": Aim("overhead", "rows/s over AsyncOpenAI with its aiohttp transport, 0 ms", 7),
    "over litellm": Aim("overhead", "rows/s over LiteLLM Router, 0 ms", 30),
    "cpu": Aim("overhead", "CPU-s a 1,000 rows, all processes of raycade", 0.25, most=True, digits=3),
    "actor calls": Aim("overhead", "rows for each actor call", 16, digits=1),
    "over llm": Aim("ray-data", "rows/s over Ray Data's HTTP processor, 0 ms", 5),
    "waiting": Aim("waiting", "rows/s over a plain aiohttp loop, 200 ms, 2,000 in flight", 1.3),
    "added p50": Aim("low-load", "added latency, p50, 100 ms, 16 in flight", 4, most=True, unit=" ms", digits=1),
    "added p99": Aim("low-load", "added latency, p99, 100 ms, 16 in flight", 15, most=True, unit=" ms", digits=1),
    "two drivers": Aim("growth", "rows/s of two drivers over one, 0 ms", 1.3),
    "flat": Aim("growth", "CPU a row of 1,000,000 rows, or the longest input here, over 1,000 rows'", 1.1, most=True),
    "allowed": Aim("rate-limited", "share of the allowed rate, which it has to find out", 0.85),
    "refused": Aim("rate-limited", "share of calls refused meanwhile", 0.1, most=True, digits=3),
    "flaky rows": Aim("flaky", "share of rows answered, first tier failing", 1.0, digits=4),
    "duplicates": Aim("duplicates", "calls for each distinct row", 1.0, most=True, digits=3),
}


class Verdict(NamedTuple):
    """One line of the summary."""

    scenario: str
    what: str
    measured: str
    aim: str
    met: bool | None
    """None: not measured."""


def verdicts(results: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """Every aim, in the order of the scenarios, with what the results have of it."""
    found = [_verdict(key, aim, results.get(aim.scenario)) for key, aim in AIMS.items()]
    for name, result in results.items():
        found += [Verdict(name, each["what"], each["measured"], each["aim"], each["met"]) for each in result["judged"]]
    return found


def _verdict(key: str, aim: Aim, result: Mapping[str, Any] | None) -> Verdict:
    measured = (result or {}).get("measured", {}).get(key)
    if measured is None:
        return Verdict(aim.scenario, aim.what, "not measured", aim.shown(), None)
    return Verdict(
        aim.scenario, aim.what, shown(measured, aim.digits, aim.unit), aim.shown(), aim.met(measured["median"])
    )


def shown(value: Any, digits: int = 2, unit: str = "") -> str:
    """A number, or a spread as its median with least and most."""
    if not isinstance(value, Mapping):
        return value if isinstance(value, str) else "" if value is None else f"{value:,.{digits}f}{unit}"
    median, least, most = (f"{value[name]:,.{digits}f}" for name in ("median", "least", "most"))
    between = "" if least == most else f" ({least} to {most})"
    note = f", {value['note']}" if value.get("note") else ""
    return f"{median}{unit}{between}{note}"


def judged(lines: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
    """What `gateway.aims` says ("what: measured; aim X"), taken apart."""
    found = []
    for said, met in lines:
        told, _, aim = said.rpartition("; aim ")
        what, _, measured = told.partition(": ")
        found.append({"what": what, "measured": measured or what, "aim": aim, "met": met})
    return found
