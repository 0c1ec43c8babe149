"""The router actor: what it tells its door of itself."""

from functools import partial
from pathlib import Path
from typing import Any

from actors.lane import Lane
from actors.messages import Request
from actors.router import actor as router_module
from actors.router.actor import RouterActor
from actors.router.notes import RouterNote
from tests.simulated import LocalPeer, simulate
from tests.unit.test_flow import PROMPT, Endpoint, answer, error, house, modules


def test_the_last_note_tells_all_that_has_ended(tmp_path: Path) -> None:
    """A job ends with its last row, and what it then tells of its tiers must be right, also if it took a moment only."""

    async def scene() -> None:
        endpoints = {"a": Endpoint(lambda n, b: error(500)), "b": Endpoint(lambda n, b: answer())}
        async with house(tmp_path, endpoints) as made:
            actor = RouterActor(partial(made.another_router, "hosted"))
            told: list[RouterNote] = []
            lane: Lane[Request, Any] = Lane(
                "door", LocalPeer(actor), on_note=lambda note: told.append(note) if note is not None else None
            )
            await lane.open(10.0)
            for number in range(3):
                await lane.call(Request(f"r{number}", "/chat/completions", PROMPT, b"", 100, 16, job="j"), 60.0)
            first, second = told[-1].tiers
            assert second.answered == 3
            assert first.kinds["server"] == len(made.endpoints["a"].bodies) > 0
            await lane.close()
            await actor.close()

    simulate(scene(), *modules, router_module)
