"""The lane within one process: the same promises as the lane between two."""

import asyncio
from typing import Any

import pytest

from actors import near as near_module
from actors.errors import LaneClosed, LaneTimeout
from actors.lane import Complete, Part
from actors.near import NearLane
from tests.simulated import simulated

timed = simulated(near_module)


class Served:
    """What the serving side has: items to complete by hand, and whether they were cancelled."""

    def __init__(self) -> None:
        self.open: dict[Any, Complete[Any]] = {}
        self.stopped: list[Any] = []
        self.gone: list[str] = []

    def start(self, lane: str, item: Any, complete: Complete[Any]) -> Any:
        if item == "at once":
            complete(f"{item} done")
            complete("a second time")
            return None
        self.open[item] = complete
        return lambda: self.stopped.append(item)


async def opened() -> tuple[Served, "NearLane[Any, Any]"]:
    served = Served()
    lane: NearLane[Any, Any] = NearLane("owner", served.start, served.gone.append)
    await lane.open()
    return served, lane


@timed
async def test_an_item_ends_once_with_its_own_completion() -> None:
    """At once or later, in any order; nothing is left behind."""
    served, lane = await opened()
    heard: list[Any] = []
    lane.post("at once", heard.append, 10.0)
    assert heard == ["at once done"]
    assert await lane.call("at once", 10.0) == "at once done"
    first, second = (asyncio.create_task(lane.call(name, 10.0)) for name in ("first", "second"))
    await asyncio.sleep(0)
    served.open["second"]("2")
    served.open["first"]("1")
    served.open["first"]("again")
    assert (await first, await second) == ("1", "2")
    assert lane.outstanding == 0
    await lane.close()


@timed
async def test_what_an_item_says_comes_in_order_and_before_its_end() -> None:
    served, lane = await opened()
    words = lane.stream("talk", 10.0)
    served.open["talk"](Part("a"))
    served.open["talk"](Part("b"))
    assert await words.read() == ["a", "b"]
    served.open["talk"]("end")
    served.open["talk"](Part("late"))
    assert await words.read() == "end"
    await lane.close()


@timed
async def test_giving_an_item_up_stops_its_work() -> None:
    """By cancelling the wait, or by its number; a completion that comes afterwards goes nowhere."""
    served, lane = await opened()
    waiting = asyncio.create_task(lane.call("waited for", 10.0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    heard: list[Any] = []
    lane.cancel(lane.post("posted", heard.append, 10.0))
    served.open["posted"]("late")
    assert (served.stopped, heard, lane.outstanding) == (["waited for", "posted"], [], 0)
    await lane.close()


@timed
async def test_an_item_without_a_completion_times_out() -> None:
    served, lane = await opened()
    with pytest.raises(LaneTimeout):
        await lane.call("silent", 3.0)
    assert served.stopped == ["silent"]
    await lane.close()


@timed
async def test_closing_ends_everything() -> None:
    """What is outstanding ends as closed, its work is stopped, the owner's leaving is told, and nothing more is taken."""
    served, lane = await opened()
    waiting = asyncio.create_task(lane.call("outstanding", 10.0))
    await asyncio.sleep(0)
    await lane.close()
    with pytest.raises(LaneClosed):
        await waiting
    assert (served.stopped, served.gone) == (["outstanding"], ["owner"])
    with pytest.raises(LaneClosed):
        lane.post("late", print, 10.0)
