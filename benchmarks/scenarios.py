"""The scenarios of `benchmarks.page`, each a function that measures and returns what goes into its JSON file.

A result has `columns` (key, heading, digits) and `rows` (a dict each; a value is a text, a number, or a spread: median, least,
most), `measured` (by key of benchmarks.aims.AIMS), `plots`, `notes`, and `runs`: every single one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks.bench import WARMUP_ROWS, Bench, Run, Spread, ratio, shown, spread
from benchmarks.overhead_clients import CLIENTS

__all__ = [
    "WITHOUT_AIM",
    "Result",
    "Setup",
    "bars",
    "duplicates",
    "fields",
    "flaky",
    "low_load",
    "overhead",
    "rate_limited",
    "result",
    "waiting",
]

Result = dict[str, Any]
WITHOUT_AIM = 2
"""What carries no aim runs in so many rounds at most: a page of everything is to take an hour."""
FINDS_S = 10.0
"""So long a tier may take to find an endpoint's rate limit: the aim counts what comes after that."""
RATES = [["client", "client", 0], ["rows_per_s", "rows/s", 0], ["cpu_us_per_row", "CPU us/row", 0]]
TIMES = ["times", "raycade is, as a multiple", 2]


class Setup(NamedTuple):
    """What a scenario runs with."""

    bench: Bench
    folder: Path
    console: Console
    quick: bool
    rounds: int
    peers: bool
    """Whether those run too that have an environment of their own."""
    most_rows: int | None = None
    """Of the longest input; None: a million."""

    def clients(self) -> tuple[list[str], list[str]]:
        """What there is to be compared, raycade last, and a line for each that is left out."""
        names = [name for name, client in CLIENTS.items() if client.is_there()]
        absent = [
            f"{CLIENTS[name].label} is left out: `make peers` sets it up" for name in CLIENTS if name not in names
        ]
        if not self.peers:
            own = CLIENTS["aiohttp"].python
            names, absent = [name for name in names if CLIENTS[name].python == own], ["peers are left out (--no-peers)"]
        for line in absent:
            self.console.print(f"  {line}", highlight=False)
        return names, absent

    def numbers(self) -> Iterator[tuple[int, str]]:
        for number in range(self.rounds):
            yield number, f"round {number + 1} of {self.rounds}"


def result(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Sequence[Any]],
    runs: Any,
    *,
    measured: Mapping[str, Spread] | None = None,
    plots: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    judged: Sequence[Mapping[str, Any]] = (),
) -> Result:
    return {
        "columns": list(columns),
        "rows": list(rows),
        "measured": dict(measured or {}),
        "judged": list(judged),
        "plots": list(plots),
        "notes": list(notes),
        "runs": runs,
    }


def fields(runs: Sequence[Run], *names: str) -> dict[str, Spread]:
    return {name: spread(run[name] for run in runs) for name in names if all(name in run for run in runs)}


def bars(
    title: str, rows: Sequence[Mapping[str, Any]], key: str = "rows_per_s", label: str = "client"
) -> dict[str, Any]:
    return {"kind": "bars", "title": title, "bars": [{"label": row[label], **row[key]} for row in rows]}


def _compared(runs: Mapping[str, list[Run]], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "client": labels[name],
            **fields(of_one, "rows_per_s", "cpu_us_per_row"),
            "times": None if name == "raycade" else ratio(runs["raycade"], of_one),
        }
        for name, of_one in runs.items()
    ]


def _tried(
    setup: Setup,
    names: Sequence[str],
    in_flight: Callable[[str], Sequence[int]],
    counts: Mapping[str, int],
    warmup: int,
    notes: list[str],
) -> dict[str, list[Run]]:
    """For each loop what was tried, best first. `counts`: rows of a try."""
    found = {}
    for name in names:
        with _left_out(setup, name, notes):
            found[name] = setup.bench.choose(name, counts[name], in_flight(name), warmup)
    return found


def _rounds(
    setup: Setup, names: Iterable[str], one: Callable[[str, str], Run], notes: list[str], most: Mapping[str, int]
) -> dict[str, list[Run]]:
    """Runs of all in turn: A B C A B C. `most`: in how many rounds some run at most; the others run in every one."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number, what in setup.numbers():
        for name in list(runs):
            if number >= most.get(name, setup.rounds):
                continue
            with _left_out(setup, name, notes, runs):
                runs[name].append(one(name, what))
    return runs


@contextmanager
def _left_out(setup: Setup, name: str, notes: list[str], runs: dict[str, list[Run]] | None = None) -> Iterator[None]:
    """A peer that fails costs its own line, not the whole scenario."""
    try:
        yield
    except (SystemExit, TimeoutExpired) as error:
        if name in ("aiohttp", "raycade", "auto"):
            raise
        (runs or {}).pop(name, None)
        notes.append(f"{CLIENTS[name].label} is left out, since it failed: {str(error).strip().splitlines()[-1][:200]}")
        setup.console.print(f"  {notes[-1]}", markup=False, highlight=False)


# -- throughput ----------------------------------------------------------------------------------------------------


def overhead(setup: Setup) -> Result:
    """An endpoint that answers at once: what a client itself costs. Each with what serves it best."""
    bench, rows, warmup = setup.bench, 600 if setup.quick else 20_000, 60 if setup.quick else WARMUP_ROWS
    names, notes = setup.clients()
    with bench.endpoint():
        counts = {name: max(rows // CLIENTS[name].share, min(rows, 1_000)) for name in names}
        loops = [name for name in names if name != "raycade"]
        tried = _tried(setup, loops, lambda name: CLIENTS[name].in_flight, counts, warmup, notes)
        settings = {name: trials[0]["settings"] for name, trials in tried.items()} | {"raycade": {}}

        def one(name: str, what: str) -> Run:
            return bench.run(name, counts[name], warmup, what, settings[name])

        most = {name: WITHOUT_AIM for name in names if name not in ("aiohttp", "openai", "litellm", "raycade")}
        runs = _rounds(setup, settings, one, notes, most)
    labels = {name: f"{CLIENTS[name].label} ({shown(settings[name])})" for name in tried}
    table = _compared(runs, {**labels, "raycade": f"{CLIENTS['raycade'].label} (2,000 in flight)"})
    measured = {
        f"over {name}": ratio(runs["raycade"], runs[name]) for name in ("aiohttp", "openai", "litellm") if name in runs
    }
    measured["over aiohttp, further"] = measured["over aiohttp"]
    measured["cpu"] = spread(run["cpu_us_per_row"] / 1000 for run in runs["raycade"])
    measured["actor calls"] = spread(run["rows_per_actor_call"] for run in runs["raycade"])
    roles = [
        {"label": role, **spread(run["cpu_us_per_row_by_role"].get(role, 0.0) for run in runs["raycade"])}
        for role in _roles(runs)
    ]
    plots = [bars("rows/s", table), {"kind": "bars", "title": "CPU us/row of raycade, by process", "bars": roles}]
    notes = [
        *notes,
        "Actor calls are those of all processes from when the actors are ready to the end. On one machine rows cross over sockets, without any.",
    ]
    return result(table, [*RATES, TIMES], {"tried": tried, **runs}, measured=measured, plots=plots, notes=notes)


def _roles(runs: Mapping[str, list[Run]]) -> list[str]:
    return sorted({role for run in runs["raycade"] for role in run["cpu_us_per_row_by_role"]})


def waiting(setup: Setup) -> Result:
    """An endpoint that takes 200 ms: whoever holds the most calls at little cost is the quickest. All may hold as many."""
    bench, latency_s = setup.bench, 0.2
    names, notes = setup.clients()
    table, runs, measured, plots = [], {}, {}, []
    with bench.endpoint(latency_s):
        for window in (50,) if setup.quick else (500, 2_000):
            warmup, rows = max(100, window), 200 if setup.quick else (30_000 if window == 2_000 else 15_000)
            counts = {name: max(rows // CLIENTS[name].share, min(rows, 2 * window)) for name in names}
            config = {"tiers": [bench.tier(concurrency=window // 2)]}
            loops = [name for name in names if name != "raycade"]
            fewer = {name: min(count, 5 * window) for name, count in counts.items()}
            tried = _tried(setup, loops, lambda name: [window], fewer, warmup, notes)  # noqa: B023 - used at once
            settings = {name: trials[0]["settings"] for name, trials in tried.items()}
            settings |= {"raycade": {"window": window}, "auto": {"window": window}}

            def one(name: str, what: str) -> Run:
                client, own = ("raycade", {}) if name == "auto" else (name, config)  # noqa: B023
                said = f"{window:,} in flight, {what}{', auto' if name == 'auto' else ''}"  # noqa: B023
                return bench.run(client, counts.get(name, rows), warmup, said, settings[name], own)  # noqa: B023

            most = dict.fromkeys(settings, 1) | dict.fromkeys(("aiohttp", "raycade", "auto"), WITHOUT_AIM)
            if window == 2_000:  # the aim is about these
                most = {name: rounds for name, rounds in most.items() if rounds == 1}
            found = _rounds(setup, settings, one, notes, most)
            labels = {
                name: f"{CLIENTS[name].label} ({'uvloop' if settings[name]['uvloop'] else 'asyncio'})" for name in tried
            }
            labels |= {
                "raycade": f"{CLIENTS['raycade'].label}",
                "auto": "raycade, which is not told the number (concurrency: auto)",
            }
            lines = [{"in_flight": f"{window:,}", **line} for line in _compared(found, labels)]
            table += lines
            runs[str(window)] = found
            plots.append(bars(f"rows/s, {window:,} in flight; {window / latency_s:,.0f} are possible", lines))
    if "2000" in runs:
        measured["waiting"] = ratio(runs["2000"]["raycade"], runs["2000"]["aiohttp"])
    columns = [["in_flight", "in flight", 0], *RATES, TIMES]
    notes = [
        *notes,
        "The slow clients ran in one round.",
        "The cookbook script's approach bounds what is in flight by aiohttp's 100 connections, not by the number given.",
    ]
    return result(table, columns, runs, measured=measured, plots=plots, notes=notes)


def low_load(setup: Setup) -> Result:
    """16 rows in flight at an endpoint that takes 100 ms: what raycade adds to the time of a row, beside the plain loop."""
    bench, rows, warmup = setup.bench, 160 if setup.quick else 3_000, 32
    settings = {
        "aiohttp": {"in_flight": 16, "uvloop": True},
        "raycade": {"window": 16, "timed": True},
    }
    runs: dict[str, list[Run]] = {name: [] for name in settings}
    with bench.endpoint(0.1):
        for _, what in setup.numbers():
            for name, of_one in runs.items():
                bench.mock.reset()
                run = bench.run(name, rows, warmup, what, settings[name])
                of_one.append(run | {"at_once": bench.mock.stats()["tiers"]["default"]["max_in_flight"]})
    added = {
        share: spread(
            ours[f"{share}_ms"] - theirs[f"{share}_ms"]
            for ours, theirs in zip(runs["raycade"], runs["aiohttp"], strict=True)
        )
        for share in ("p50", "p99")
    }
    table = [
        {"client": CLIENTS[name].label, **fields(of_one, "rows_per_s", "p50_ms", "p99_ms", "at_once", "cpu_us_per_row")}
        for name, of_one in runs.items()
    ]
    columns = [
        RATES[0],
        ["p50_ms", "p50, ms", 1],
        ["p99_ms", "p99, ms", 1],
        ["at_once", "most calls at once", 0],
        *RATES[1:],
    ]
    notes = ["A row's time is from its request being made to its line being handed to the writer."]
    measured = {f"added {share}": of_one for share, of_one in added.items()}
    plots = [bars("p99 of a row's time, ms", table, "p99_ms")]
    return result(table, columns, runs, measured=measured, plots=plots, notes=notes)


# -- endpoints that are not kind -----------------------------------------------------------------------------------


def rate_limited(setup: Setup) -> Result:
    """An endpoint that takes 400 calls/s (a bucket of 40) and refuses the rest with 429; 50 ms."""
    bench, allowed, rows = setup.bench, 400.0, 800 if setup.quick else 10_000
    limit = {"per_second": allowed, "burst": 40}
    told = {"requests_per_minute": int(60 * allowed)}
    with bench.endpoint(tiers={"default": {"latency": 0.05, "rate_limit": limit}}):
        variants: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
            "raycade, which finds it out": ("raycade", {}, {}),
            "raycade, told the limit": ("raycade", {}, {"tiers": [bench.tier(**told)]}),
            "approach of OpenAI's cookbook script, told the limit": (
                "cookbook",
                {"in_flight": 0, "uvloop": False, "may_fail": True, **told},
                {},
            ),
        }
        aims = ("raycade, which finds it out",)
        runs = _counted(setup, variants, rows, int(FINDS_S * allowed) if not setup.quick else 100, aims, allowed)
    table = [
        {"client": name, **fields(of_one, "share", "refused", "answered_share", "rows_per_s", "cpu_us_per_row")}
        for name, of_one in runs.items()
    ]
    first = runs["raycade, which finds it out"]
    measured = {"allowed": spread(run["share"] for run in first), "refused": spread(run["refused"] for run in first)}
    columns = [
        RATES[0],
        ["share", "of the allowed rate", 2],
        ["refused", "of calls refused", 3],
        ["answered_share", "of rows answered", 4],
    ]
    notes = [
        f"The warm-up is {FINDS_S:g} s of the limit's rows; its calls are in the share that was refused. The script begins with a minute's "
        "worth of its limit, and pauses for 15 s after a refusal; it has a twentieth of the rows, and that many to warm up."
    ]
    return result(table, [*columns, *RATES[1:]], runs, measured=measured, notes=notes)


def _counted(
    setup: Setup,
    variants: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]],
    rows: int,
    warmup: int,
    aims: Sequence[str],
    allowed: float = 1.0,
    copies: int = 1,
) -> dict[str, list[Run]]:
    """Runs in turn, each with what the endpoint counted. `aims`: those that an aim is about, which run in every round."""
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    for number, what in setup.numbers():
        for name, (client, settings, config) in variants.items():
            if number >= WITHOUT_AIM and name not in aims:
                continue
            setup.bench.mock.reset()
            if client == "cookbook":
                count = first = rows // 20
            else:
                count, first = rows, warmup
            run = setup.bench.run(client, count, first, f"{name}, {what}"[:44], settings, config, copies)
            stats = setup.bench.mock.stats()
            calls = stats["total"]["requests"]
            refused = sum(tier["by_status"].get("429", 0) for tier in stats["tiers"].values())
            counted = {"calls": calls, "refused": refused / calls, "share": run["rows_per_s"] / allowed}
            runs[name].append(run | counted | {"answered_share": run["answered"] / (count + first), "endpoint": stats})
    return runs


def flaky(setup: Setup) -> Result:
    """A first tier that answers a fifth of the calls with 500 and is down (503) for two seconds; a second one is well. 50 ms."""
    bench, rows, warmup = setup.bench, 600 if setup.quick else 20_000, 100 if setup.quick else WARMUP_ROWS
    well = {"latency": 0.05}
    wrong = [{"fraction": 0.2, "status": 500}]
    phases = [{"until_s": 3, "errors": wrong}, {"until_s": 5, "status": 503}, {"errors": wrong}]
    with bench.endpoint(tiers={"default": {**well, "phases": phases}, "second": well, "well": well}):
        slots = {"concurrency": 200, "timeout_s": 20}
        second = bench.tier(name="second", model="second", base_url=bench.mock.tier_url("second"), **slots)
        healthy = [bench.tier(base_url=bench.mock.tier_url("well"), **slots), second]
        may_fail: dict[str, Any] = {"may_fail": True}
        variants = {
            "raycade, first tier flaky": ("raycade", may_fail, {"tiers": [bench.tier(**slots), second]}),
            "raycade, first tier well": ("raycade", may_fail, {"tiers": healthy}),
            "plain aiohttp loop, flaky endpoint": ("aiohttp", {"in_flight": 400, "uvloop": True, **may_fail}, {}),
        }
        runs = _counted(setup, variants, rows, warmup, ("raycade, first tier flaky",))
    ours, base = runs["raycade, first tier flaky"], runs["raycade, first tier well"]
    table = [
        {
            "client": name,
            **fields(of_one, "answered_share", "rows_per_s", "cpu_us_per_row", "calls"),
            "times": ratio(of_one, base) if of_one is ours else None,
        }
        for name, of_one in runs.items()
    ]
    columns = [
        RATES[0],
        ["answered_share", "of rows answered", 4],
        ["calls", "calls", 0],
        *RATES[1:],
        ["times", "of the rate when it is well", 2],
    ]
    measured = {"flaky rows": spread(run["answered_share"] for run in ours)}
    notes = ["Rows that the plain loop loses are in its rate."]
    return result(table, columns, runs, measured=measured, plots=[bars("rows/s", table)], notes=notes)


def duplicates(setup: Setup) -> Result:
    """Each prompt stands ten times in the file, far apart: calls at the endpoint, with and without sharing. 0 ms."""
    bench, rows, warmup, copies = setup.bench, 600 if setup.quick else 20_000, 100 if setup.quick else WARMUP_ROWS, 10
    with bench.endpoint():
        variants: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
            "raycade": ("raycade", {}, {}),
            "raycade --no-dedupe": ("raycade", {"dedupe": False}, {}),
        }
        runs = _counted(setup, variants, rows, warmup, ("raycade",), copies=copies)
    for of_one in runs.values():
        for run in of_one:
            run["calls_per_distinct"] = run["calls"] / -(-(rows + warmup) // copies)
    table = [
        {"client": name, **fields(of_one, "calls_per_distinct", "rows_per_s", "cpu_us_per_row"), "times": times}
        for (name, of_one), times in zip(
            runs.items(), (ratio(runs["raycade"], runs["raycade --no-dedupe"]), None), strict=True
        )
    ]
    columns = [
        RATES[0],
        ["calls_per_distinct", "calls for each distinct row", 3],
        *RATES[1:],
        ["times", "of the rate without sharing", 2],
    ]
    measured = {"duplicates": spread(run["calls_per_distinct"] for run in runs["raycade"])}
    return result(table, columns, runs, measured=measured, plots=[bars("rows/s", table)])
