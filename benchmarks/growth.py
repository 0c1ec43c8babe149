"""How raycade's rate and CPU a row grow with rows in flight, tiers, tier actors, routers, nodes, rows and drivers. A scenario of `benchmarks.page`.

One thing is varied at a time; all runs of a round share the one that has every default. 0 ms, every guard on.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.bench import WARMUP_ROWS, Run, pooled, ratio, spread
from benchmarks.scenarios import WITHOUT_AIM, Result, Setup, fields, result

__all__ = ["growth"]

SHORT, LONG = 1_000, 1_000_000
"""Rows of the inputs whose CPU a row is compared."""
ONCE = 200_000
"""An input of so many rows or more runs once, since it takes minutes."""
SHORT_RUNS = 2
"""In each round: the CPU of a run of 1,000 rows is a fifth of a second."""
NODE_ACTORS = 3
"""Tier actors of all runs over nodes: enough for one on each."""
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
    """How rate and CPU a row change with rows in flight, tiers, tier actors, routers, nodes, length of the input, and drivers over shards."""
    usual = {**USUAL, "rows": 1_000} if setup.quick else USUAL
    runs: dict[Point, list[Run]] = {point: [] for point in _points(setup)}
    usual_runs: list[Run] = []
    with setup.bench.endpoint():
        _run(setup, {**usual, "rows": SHORT}, "warm")  # counted nowhere
        for number, what in setup.numbers():
            usual_runs.append(_run(setup, usual, f"as usual, {what}"))
            for point, of_one in runs.items():
                varied, value = point
                if usual.get(varied) == value:
                    of_one.append(usual_runs[-1])
                    continue
                for _ in range(_times(point, number)):
                    of_one.append(_run(setup, _values(usual, point), f"{value:,} {varied}, {what}"))
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
        measured["flat"] = _flat(runs["rows", lengths[-1]], runs["rows", lengths[0]])
    plots = [
        plot
        for varied in ("rows in flight", "rows")
        for plot in (
            _curve(f"rows/s against {varied}", varied, "rows_per_s", runs),
            _curve(f"CPU us/row against {varied}", varied, "cpu_us_per_row", runs),
        )
    ]
    for varied in ("tiers", "tier actors", "routers", "nodes", "drivers"):
        of_it = [
            {"label": f"{value} {varied}", **spread(run["rows_per_s"] for run in of_one)}
            for (name, value), of_one in runs.items()
            if name == varied
        ]
        plots.append({"kind": "bars", "title": f"rows/s, {varied}", "bars": of_it})
    notes = [
        f"What is not varied: {', '.join(f'{value:,} {name}' for name, value in usual.items())}.",
        "Two drivers have a file, a Ray, a router and tier actors each, and one ledger; the row counts are those of each.",
        f"Nodes are simulated: so many of Ray's nodes on this machine and its cores, with {NODE_ACTORS} tier actors spread over them and the "
        "same input. With two and three all rows cross through Ray's calls, as between machines. They show what it costs that rows cross from node to node, not what more machines would bring.",
        f"An input of {ONCE:,} rows or more runs once. One of {SHORT:,} rows runs {SHORT_RUNS} times a round, and the CPU of all of these "
        "is added up before it is compared. What has no aim runs in two rounds.",
    ]
    kept = {f"{value} {varied}": of_one for (varied, value), of_one in runs.items()}
    return result(table, columns, kept, measured=measured, plots=plots, notes=notes)


def _points(setup: Setup) -> list[Point]:
    """In the order in which a round runs them: what is compared with the usual run comes soon after it."""
    longest = setup.most_rows or (2_000 if setup.quick else LONG)
    values: dict[str, list[int]] = {
        "drivers": [1, 2],
        "rows": sorted({length for length in (SHORT, 20_000, 100_000) if length < longest} | {longest}),
        "rows in flight": [10, 100, 500, 2_000, 5_000, 10_000],
        "tiers": [1, 3],
        "tier actors": [1, 2, 4],
        "routers": [1, 2],
        "nodes": [1, 2, 3],
    }
    if setup.quick:
        values |= {"rows in flight": [10, 2_000], "tiers": [1], "tier actors": [2], "routers": [1], "nodes": [2]}
    return [(varied, value) for varied, of_it in values.items() for value in of_it]


def _times(point: Point, number: int) -> int:
    """How often a point that is not the usual one runs in the round of that number, from 0."""
    varied, value = point
    if varied == "rows" and value >= ONCE:
        return int(number == 0)
    if point == ("rows", SHORT):
        return SHORT_RUNS
    return int(number < WITHOUT_AIM or varied == "drivers")


def _values(usual: Mapping[str, int], point: Point) -> dict[str, int]:
    varied, value = point
    return {**usual, varied: value} | ({"tier actors": NODE_ACTORS} if varied == "nodes" else {})


def _flat(long: list[Run], short: list[Run]) -> dict[str, Any]:
    """CPU a row of the longest input over that of the shortest, whose runs are taken together; least and most: single ones."""
    pairs = [our["cpu_us_per_row"] / their["cpu_us_per_row"] for our in long for their in short]
    note = f"{long[0]['rows']:,} rows, {len(long)} run{'s' if len(long) > 1 else ''}, over {len(short)} of {short[0]['rows']:,}"
    return spread(pairs) | {"median": pooled(long) / pooled(short), "note": note}


def _run(setup: Setup, values: Mapping[str, int], what: str) -> Run:
    bench, rows, settings = setup.bench, values["rows"], {"window": values["rows in flight"]}
    if values["drivers"] > 1:
        return bench.drivers(values["drivers"], rows, WARMUP_ROWS, what, settings)
    if "nodes" in values:
        settings["nodes"] = values["nodes"]
    names = ("main", "second", "third")[: values["tiers"]]  # those after the first are there and have nothing to do
    config: dict[str, Any] = {
        "tiers": [bench.tier(name=name, model=name, replicas=values["tier actors"]) for name in names],
        "router": {"replicas": values["routers"]},
    }
    return bench.run("raycade", rows, WARMUP_ROWS, what, settings, config)


def _curve(title: str, varied: str, key: str, runs: Mapping[Point, list[Run]]) -> dict[str, Any]:
    points = [
        {"x": value, **spread(run[key] for run in of_one)} for (name, value), of_one in runs.items() if name == varied
    ]
    return {"kind": "curve", "title": title, "x": varied, "points": points}
