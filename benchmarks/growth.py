"""How raycade's rate and CPU a row grow with rows in flight, tiers, tier actors, routers, rows and drivers. A scenario of `benchmarks.page`.

One thing is varied at a time; all runs of a round share the one that has every default. 0 ms, every guard on.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.bench import WARMUP_ROWS, Run, ratio, spread
from benchmarks.scenarios import Result, Setup, fields, result

__all__ = ["growth"]

IN_FLIGHT = (10, 30, 100, 300, 1_000, 2_000, 3_000, 10_000)
LENGTHS = (1_000, 5_000, 20_000, 100_000, 200_000, 500_000, 1_000_000)
LONGEST_S = 60.0
USUAL: dict[str, int] = {
    "rows in flight": 2_000,
    "tiers": 1,
    "tier actors": 2,
    "routers": 1,
    "rows": 20_000,
    "drivers": 1,
}

Point = tuple[str, int]
"""What is varied, and its value."""


def growth(setup: Setup) -> Result:
    """How rate and CPU a row change with rows in flight, tiers, tier actors, routers, length of the input, and drivers over shards."""
    usual = {**USUAL, "rows": 1_000} if setup.quick else USUAL
    with setup.bench.endpoint():
        base = [_run(setup, usual, "warm")]  # its rate says how many rows take a minute; it is counted nowhere
        points = _points(setup, usual, base[0]["rows_per_s"])
        runs: dict[Point, list[Run]] = {point: [] for point in points}
        usual_runs: list[Run] = []
        for _, what in setup.numbers():
            usual_runs.append(_run(setup, usual, f"as usual, {what}"))
            for (varied, value), of_one in runs.items():
                if usual[varied] == value:
                    of_one.append(usual_runs[-1])
                else:
                    of_one.append(_run(setup, {**usual, varied: value}, f"{value:,} {varied}, {what}"))
    table = [
        {"what": varied, "value": f"{value:,}", **fields(of_one, "rows_per_s", "cpu_us_per_row", "rows_per_actor_call")}
        for (varied, value), of_one in runs.items()
    ]
    columns = [
        ["what", "varied", 0],
        ["value", "", 0],
        ["rows_per_s", "rows/s", 0],
        ["cpu_us_per_row", "CPU us/row", 0],
    ]
    columns.append(["rows_per_actor_call", "rows for each actor call", 0])
    measured = {}
    if ("drivers", 2) in runs:
        measured["two drivers"] = ratio(runs["drivers", 2], usual_runs)
    lengths = [value for varied, value in runs if varied == "rows"]
    if len(lengths) > 1:
        flat = ratio(runs["rows", lengths[-1]], runs["rows", lengths[0]], "cpu_us_per_row")
        measured["flat"] = flat | {"note": f"{lengths[-1]:,} rows"}
    plots = [
        plot
        for varied in ("rows in flight", "rows")
        for plot in (
            _curve(f"rows/s against {varied}", varied, "rows_per_s", runs),
            _curve(f"CPU us/row against {varied}", varied, "cpu_us_per_row", runs),
        )
    ]
    for varied in ("tiers", "tier actors", "routers", "drivers"):
        of_it = [
            {"label": f"{value} {varied}", **spread(run["rows_per_s"] for run in of_one)}
            for (name, value), of_one in runs.items()
            if name == varied
        ]
        plots.append({"kind": "bars", "title": f"rows/s, {varied}", "bars": of_it})
    notes = [
        f"What is not varied: {', '.join(f'{value:,} {name}' for name, value in usual.items())}.",
        "Two drivers have a file, a Ray, a router and tier actors each, and one ledger; the row counts are those of each.",
        "CPU of a run of 1,000 rows is known to some 10% at best: /proc counts in 10 ms.",
    ]
    kept = {f"{value} {varied}": of_one for (varied, value), of_one in runs.items()}
    return result(table, columns, kept, measured=measured, plots=plots, notes=notes)


def _points(setup: Setup, usual: Mapping[str, int], rows_per_s: float) -> list[Point]:
    longest = setup.most_rows or int(rows_per_s * LONGEST_S)
    lengths = [length for length in LENGTHS if length <= longest]
    if setup.most_rows and setup.most_rows not in lengths:
        lengths.append(setup.most_rows)
    values: dict[str, list[int]] = {
        "rows in flight": list(IN_FLIGHT),
        "tiers": [1, 3],
        "tier actors": [1, 2, 4],
        "routers": [1, 2],
        "rows": lengths,
        "drivers": [1, 2],
    }
    if setup.quick:
        values |= {
            "rows in flight": [10, 2_000],
            "tiers": [1],
            "tier actors": [2],
            "routers": [1],
            "rows": [1_000, 2_000],
        }
    return [(varied, value) for varied, of_it in values.items() for value in of_it]


def _run(setup: Setup, values: Mapping[str, int], what: str) -> Run:
    bench = setup.bench
    rows, warmup, settings = (
        values["rows"],
        WARMUP_ROWS,
        {"window": values["rows in flight"]},
    )
    if values["drivers"] > 1:
        return bench.drivers(values["drivers"], rows, warmup, what, settings)
    names = ("main", "second", "third")[: values["tiers"]]  # those after the first are there and have nothing to do
    config: dict[str, Any] = {
        "tiers": [bench.tier(name=name, model=name, replicas=values["tier actors"]) for name in names],
        "router": {"replicas": values["routers"]},
    }
    return bench.run("raycade", rows, warmup, what, settings, config)


def _curve(title: str, varied: str, key: str, runs: Mapping[Point, list[Run]]) -> dict[str, Any]:
    points = [
        {"x": value, **spread(run[key] for run in of_one)} for (name, value), of_one in runs.items() if name == varied
    ]
    return {"kind": "curve", "title": title, "x": varied, "points": points}
