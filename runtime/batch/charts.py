"""Charts of the report as geometry: what the template draws as SVG. Pure; all coordinates are those of `WIDTH` x `HEIGHT`."""

from collections.abc import Sequence
from math import floor, log10
from typing import NamedTuple

from runtime.batch.summary import span

__all__ = [
    "BOTTOM",
    "HEIGHT",
    "LEFT",
    "RIGHT",
    "TOP",
    "WIDTH",
    "Band",
    "Chart",
    "Drawn",
    "Tick",
    "lines",
    "nice",
    "stacked",
    "time_ticks",
    "timeline",
]

WIDTH, HEIGHT = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 26
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
MOST_TICKS = 7
ROW = 30
THINNEST = 2.0


class Tick(NamedTuple):
    at: float
    label: str


class Drawn(NamedTuple):
    """One series. `style` names its colour, `path` is SVG's."""

    label: str
    style: str
    path: str


class Chart(NamedTuple):
    width: float
    height: float
    left: float
    right: float
    bottom: float
    """The y of the time axis."""
    series: tuple[Drawn, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


class Band(NamedTuple):
    """A stretch of time on a row of the timeline."""

    x: float
    width: float
    style: str
    title: str


class Row(NamedTuple):
    label: str
    y: float
    bands: tuple[Band, ...]


def stacked(series: Sequence[tuple[str, str, Sequence[float]]], width_s: float, ended_s: float) -> Chart:
    """Values of slices of time on top of each other, as steps. `series`: label, style, values of each slice."""
    count = max((len(values) for _, _, values in series), default=0)
    totals = [sum(values[index] for _, _, values in series) for index in range(count)]
    ticks = nice(max(totals, default=0.0))
    until = max(ended_s, width_s * count, 1e-9)
    floors, drawn = [0.0] * count, []
    for label, style, values in series:
        tops = [low + value for low, value in zip(floors, values, strict=True)]
        upper = [
            f"L{_x(edge, until):.1f} {_y(top, ticks[-1]):.1f}"
            for index, top in enumerate(tops)
            for edge in (index * width_s, (index + 1) * width_s)
        ]
        lower = [
            f"L{_x(edge, until):.1f} {_y(low, ticks[-1]):.1f}"
            for index, low in reversed(list(enumerate(floors)))
            for edge in ((index + 1) * width_s, index * width_s)
        ]
        drawn.append(Drawn(label, style, "M" + " ".join([*upper, *lower])[1:] + "Z" if count else ""))
        floors = tops
    return _chart(drawn, ticks, until)


def lines(series: Sequence[tuple[str, str, Sequence[float | None]]], width_s: float, ended_s: float) -> Chart:
    """Values of slices of time as lines through their middles; None makes a gap."""
    count = max((len(values) for _, _, values in series), default=0)
    ticks = nice(max((value for _, _, values in series for value in values if value is not None), default=0.0))
    until = max(ended_s, width_s * count, 1e-9)
    drawn = []
    for label, style, values in series:
        path, pen_up = [], True
        for index, value in enumerate(values):
            if value is None:
                pen_up = True
                continue
            point = f"{_x((index + 0.5) * width_s, until):.1f} {_y(value, ticks[-1]):.1f}"
            # a point of its own is drawn as a dot, which a line without length and with round ends is
            alone = pen_up and (index + 1 == len(values) or values[index + 1] is None)
            path.append(f"M{point}h0" if alone else f"{'M' if pen_up else 'L'}{point}")
            pen_up = False
        drawn.append(Drawn(label, style, " ".join(path)))
    return _chart(drawn, ticks, until)


def timeline(
    rows: Sequence[tuple[str, Sequence[tuple[float, float, str, str]]]], until_s: float
) -> tuple[tuple[Row, ...], Chart]:
    """Rows of bands (from, to, style, title), and the axes below them."""
    until = max(until_s, 1e-9)
    placed = []
    for number, (label, bands) in enumerate(rows):
        made = []
        for begin, end, style, title in bands:
            x = _x(begin, until)
            made.append(Band(round(x, 1), round(max(THINNEST, _x(end, until) - x), 1), style, title))
        placed.append(Row(label, TOP + number * ROW, tuple(made)))
    bottom = TOP + len(rows) * ROW
    axes = Chart(WIDTH, bottom + BOTTOM, LEFT, WIDTH - RIGHT, bottom, (), _time_axis(until), ())
    return tuple(placed), axes


def time_ticks(until_s: float) -> list[float]:
    """Round moments from zero on, not more than fit."""
    step = next((step for step in STEPS_S if until_s / step <= MOST_TICKS), 0)
    if not step:
        step = 86_400 * (floor(until_s / 86_400 / MOST_TICKS) + 1)
    return [float(step * number) for number in range(int(until_s / step) + 1)]


def _chart(drawn: Sequence[Drawn], ticks: Sequence[float], until: float) -> Chart:
    y = tuple(Tick(round(_y(value, ticks[-1]), 1), f"{value:,g}") for value in ticks)
    return Chart(WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, tuple(drawn), _time_axis(until), y)


def _time_axis(until: float) -> tuple[Tick, ...]:
    return tuple(Tick(round(_x(at, until), 1), span(at) if at else "0") for at in time_ticks(until))


def _x(seconds: float, until: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, seconds / until)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def nice(most: float) -> list[float]:
    """From zero to at least `most`, in four or five round steps."""
    if most <= 0:
        return [0.0, 1.0]
    size = 10.0 ** floor(log10(most / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * 5 >= most)
    count = 1
    while step * count < most * (1 - 1e-9):
        count += 1
    return [round(step * number, 10) for number in range(count + 1)]
