"""Charts of the benchmark page as geometry, beside those of a job's report (runtime/batch/charts.py), whose look they share."""

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any, NamedTuple

from runtime.batch.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Drawn, Tick, nice

__all__ = ["Bar", "Bars", "bars", "curve"]

LABELS = 350
"""Width of the labels beside bars."""
LAST_LABEL = 24
"""Room for half of the label at the end of the axis."""
ROW = 26
NUMBERS = 76


class Bar(NamedTuple):
    label: str
    y: float
    width: float
    least: float
    most: float
    """The x of both ends of the line from least to most."""
    number: str


class Bars(NamedTuple):
    width: float
    height: float
    left: float
    bars: tuple[Bar, ...]


def bars(values: Sequence[Mapping[str, Any]]) -> Bars:
    """One below the other: label, median, least, most."""
    top = max((value["most"] for value in values), default=0.0) or 1.0
    scale = (WIDTH - LABELS - NUMBERS) / top
    digits = 0 if top >= 100 else 1 if top >= 10 else 2
    made = [
        Bar(
            value["label"],
            TOP + number * ROW,
            round(scale * value["median"], 1),
            round(LABELS + scale * value["least"], 1),
            round(LABELS + scale * value["most"], 1),
            f"{value['median']:,.{digits}f}",
        )
        for number, value in enumerate(values)
    ]
    return Bars(WIDTH, 2 * TOP + len(values) * ROW, LABELS, tuple(made))


def curve(points: Sequence[Mapping[str, float]]) -> Chart:
    """Medians as a line over x in powers of ten, and a stroke from least to most at each."""
    ticks = nice(max((point["most"] for point in points), default=0.0))
    xs = [log10(point["x"]) for point in points]
    right = WIDTH - RIGHT - LAST_LABEL
    low, high = floor(min(xs)), max(ceil(max(xs)), floor(min(xs)) + 1)

    def x(at: float) -> float:
        return LEFT + (right - LEFT) * (at - low) / (high - low)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / ticks[-1]

    line = " L".join(f"{x(at):.1f} {y(point['median']):.1f}" for at, point in zip(xs, points, strict=True))
    strokes = [
        f"M{x(at):.1f} {y(point['least']):.1f}V{y(point['most']):.1f}" for at, point in zip(xs, points, strict=True)
    ]
    return Chart(
        WIDTH,
        HEIGHT,
        LEFT,
        right,
        HEIGHT - BOTTOM,
        (Drawn("median", "p50", f"M{line}"), Drawn("least to most", "between", " ".join(strokes))),
        tuple(Tick(round(x(power), 1), f"{10**power:,}") for power in range(low, high + 1)),
        tuple(Tick(round(y(value), 1), f"{value:,g}") for value in ticks),
    )
