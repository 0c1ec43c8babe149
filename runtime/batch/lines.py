"""How a moment of a batch is shown: as one line of a log, or as the lines of a bar on a terminal. Pure."""

from collections.abc import Iterable, Iterator
from math import ceil

from rich.text import Text

from runtime.batch.scene import Condition, Scene, TierScene
from runtime.batch.summary import dollars, kinds_in_words, short, span

__all__ = ["bar_lines", "log_line"]

NARROW = 80


def log_line(scene: Scene) -> str:
    """The whole scene on one line; the fields are always the same ones in the same order."""
    percent = "" if scene.fraction is None else f" ({_percent(scene)})"
    tiers = ", ".join(_tier_on_log(tier) for tier in scene.tiers)
    parts = (
        f"{scene.done:,} rows done ({scene.failed:,} failed, {scene.coalesced:,} coalesced) {_speed(scene)}",
        f"{short(scene.tokens)} tokens",
        dollars(scene.usd_micros),
        f"eta {_eta(scene)}{percent}",
    )
    return " | ".join([", ".join(parts), tiers, *scene.notices])


def _tier_on_log(tier: TierScene) -> str:
    state = tier.condition
    if state.word == "asked to pause":
        told = f"{tier.name} asked to pause {state.detail}"
    else:  # the whole reason was told as an event
        told = f"{tier.name} {state.word}{f' ({state.detail[:80]})' if state.detail else ''}"
    return f"{told} {tier.in_flight}/{tier.limit}" if state.word == "ok" or tier.in_flight else told


def bar_lines(scene: Scene, width: int, ascii_only: bool = False) -> list[Text]:
    """The scene as lines for a terminal of `width` columns: the bar, the counts, the tiers, what keeps it."""
    lines = [_bar_line(scene, width, ascii_only)]
    counts = [_speed(scene), f"eta {_eta(scene)}", f"{scene.failed:,} failed", f"{scene.coalesced:,} coalesced"]
    counts.append(f"{short(scene.tokens)} tokens  {dollars(scene.usd_micros)}")
    lines += [Text(line) for line in _packed(counts, width)]
    lines += _tier_lines(scene.tiers, width)
    lines += [Text(notice, style="yellow") for notice in scene.notices]
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return lines


def _bar_line(scene: Scene, width: int, ascii_only: bool) -> Text:
    of = "" if scene.total is None else f" of {scene.total:,}"
    count = f"{scene.done:,}{of} rows"
    if scene.fraction is None:
        return Text(count, style="bold")
    room = max(4, min(50, width - len(count) - 8))
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    filled = int(scene.fraction * room)
    return Text.assemble(
        (full * filled, "green"), (empty * (room - filled), "dim"), f" {_percent(scene):>4}  ", (count, "bold")
    )


def _tier_lines(tiers: tuple[TierScene, ...], width: int) -> list[Text]:
    """One line a tier, in columns. What has no room is left out, the least important first."""
    name_size = min(16, max((len(tier.name) for tier in tiers), default=0))
    states = [_state_in_words(tier.condition) for tier in tiers]
    outs = [tier.condition.word == "out" for tier in tiers]
    most = 24 if width < NARROW else 40
    state_size = min(most, max((len(state) for state, out in zip(states, outs, strict=True) if not out), default=0))
    room = width - name_size - 2 - state_size
    failed = [sum(tier.kinds.values()) - tier.kinds.get("ok", 0) - tier.kinds.get("cancelled", 0) for tier in tiers]
    kept: list[tuple[int, list[str]]] = []
    for place, columns in (  # by importance; the place is where a column stands
        (0, [[f"{tier.in_flight:,}/{tier.limit:,} in flight" for tier in tiers]]),
        (3, [[kinds_in_words(tier.kinds) for tier in tiers], [f"{count:,} failed" for count in failed]]),
        (2, [[f"{tier.queued:,} queued" for tier in tiers]]),
        (1, [[f"{tier.answered:,} answered" for tier in tiers]]),
    ):
        for column in columns:
            size = max(map(len, column), default=0) + 2
            if size <= room:
                room -= size
                kept.append((place, [f"  {cell:>{size - 2}}" if place < 3 else f"  {cell}" for cell in column]))
                break
    kept.sort(key=lambda column: column[0])
    lines = []
    for index, tier in enumerate(tiers):
        line = Text(f"{tier.name[:name_size]:<{name_size}}  ")
        if outs[index]:  # the reason is worth more than the numbers of a tier that gets no calls
            line.append(states[index], style=tier.condition.style)
        else:
            line.append(f"{states[index][:state_size]:<{state_size}}", style=tier.condition.style)
            line.append("".join(column[index] for _, column in kept).rstrip())
        lines.append(line)
    return lines


def _state_in_words(state: Condition) -> str:
    joint = {"out": ": ", "asked to pause": " "}.get(state.word, ", ")
    return f"{state.word}{joint}{state.detail}" if state.detail else state.word


def _packed(parts: Iterable[str], width: int) -> Iterator[str]:
    line = ""
    for part in parts:
        if line and len(line) + 2 + len(part) > width:
            yield line
            line = ""
        line += f"  {part}" if line else part
    yield line


def _percent(scene: Scene) -> str:
    return f"{int((scene.fraction or 0) * 100)}%"


def _speed(scene: Scene) -> str:
    return f"{scene.rows_per_s:,.{0 if scene.rows_per_s >= 100 or not scene.rows_per_s else 1}f} rows/s"


def _eta(scene: Scene) -> str:
    return "unknown" if scene.eta_s is None else span(ceil(scene.eta_s))
