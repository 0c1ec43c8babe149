"""The simulated processes: dead ones do nothing more, stopped ones do it later, and time costs nothing."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.simulation.loop import Clock, Loop, Overlong, Process


def run(main: Callable[[Loop], Coroutine[Any, Any, None]], until_s: float = 1_000.0) -> Loop:
    loop = Loop()
    loop.run(main(loop), until_s, 10_000)
    return loop


async def work(said: list[str]) -> None:
    try:
        said.append("begins")
        await asyncio.sleep(1.0)
        said.append("ends")
    finally:
        said.append("cleans up")


def test_a_killed_process_does_not_even_clean_up() -> None:
    """After SIGKILL no `finally` runs, neither at once nor later."""
    said: list[str] = []

    async def main(loop: Loop) -> None:
        process = Process("p")
        loop.task_in(process, work(said))
        await asyncio.sleep(0.5)
        process.kill()
        await asyncio.sleep(5.0)
        assert said == ["begins"]

    run(main)


def test_a_stopped_process_goes_on_where_it_was() -> None:
    """After SIGSTOP and SIGCONT everything that came due happens late, and in order."""
    said: list[str] = []

    async def main(loop: Loop) -> None:
        process = Process("p")
        loop.task_in(process, work(said))
        await asyncio.sleep(0.5)
        process.stop()
        await asyncio.sleep(5.0)
        assert said == ["begins"]
        loop.wake_up(process)
        await asyncio.sleep(0.001)
        assert said == ["begins", "ends", "cleans up"]

    run(main)


def test_every_process_has_its_own_clocks() -> None:
    """A process reads its own wrong time; the loop's time is everybody's."""
    clock = Clock()

    async def main(loop: Loop) -> None:
        clock.loop = loop
        shown: dict[str, tuple[float, float]] = {}

        async def look(name: str) -> None:
            shown[name] = (clock.monotonic(), clock.time())

        loop.task_in(Process("right"), look("right"))
        loop.task_in(Process("wrong", monotonic_s=5.0, wall_s=-3_600.0), look("wrong"))
        await asyncio.sleep(0.0)
        assert shown["wrong"] == (shown["right"][0] + 5.0, shown["right"][1] - 3_600.0)

    run(main)


def test_what_never_ends_is_said_to_be_overlong() -> None:
    """A future that nobody resolves, and a sleep beyond the horizon, end the run with an error."""

    async def waits_for_nobody(loop: Loop) -> None:
        await loop.create_future()

    async def sleeps(loop: Loop) -> None:
        await asyncio.sleep(100.0)

    with pytest.raises(Overlong, match="nothing is left"):
        run(waits_for_nobody)
    with pytest.raises(Overlong, match="not done"):
        run(sleeps, until_s=10.0)


def test_a_task_that_fails_unseen_is_told() -> None:
    """An exception that nobody looks at is a finding, not a line that scrolls by."""

    async def fails() -> None:
        raise ValueError("boom")

    async def main(loop: Loop) -> None:
        loop.task_in(Process("p"), fails())
        await asyncio.sleep(1.0)

    assert any("boom" in trouble for trouble in run(main).troubles)
