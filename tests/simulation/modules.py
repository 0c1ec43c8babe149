"""What the actors' modules see of the outside in a history: its clock and its chance instead of the machine's."""

import contextlib
import random
import sys
import time
import uuid
from collections.abc import Iterator
from unittest import mock

from actors import lane as lane_module
from tests.simulation.loop import Clock

__all__ = ["CHANCE", "CLOCK", "simulated_modules"]


class _Chance:
    """Stands for the module `random` and for uuid4."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def random(self) -> float:
        return self.rng.random()

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(int=self.rng.getrandbits(128))


CLOCK = Clock()
CHANCE = _Chance()
"""The modules know one of each; a history that begins sets its own loop and its own randomness."""


@contextlib.contextmanager
def simulated_modules() -> Iterator[None]:
    """Within this, no module of the actors sees the real time, or chance that no seed has decided."""
    outside = (("time", time, CLOCK), ("random", random, CHANCE), ("uuid4", uuid.uuid4, CHANCE.uuid4))
    with contextlib.ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if name.startswith("actors."):
                for attribute, real, simulated in outside:
                    if getattr(module, attribute, None) is real:
                        patches.enter_context(mock.patch.object(module, attribute, simulated))
        # Every LaneServer would freeze the garbage of the histories before it.
        patches.enter_context(mock.patch.object(lane_module, "calm_gc", _nothing))
        yield


def _nothing() -> None:
    pass
