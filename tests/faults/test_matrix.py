"""The fault matrix: whatever breaks, every row ends once, no budget is passed, no key is written, and it ends in good order.

The faults stand in tests/faults/matrix.py, what must hold in tests/faults/checker.py. `make faults` runs them all.
"""

from collections.abc import Iterator

import pytest

from tests.faults.bed import Bed
from tests.faults.checker import check
from tests.faults.matrix import FAULTS
from tests.faults.scene import Fault, played, scenario


@pytest.fixture(scope="session")
def bed() -> Iterator[Bed]:
    with Bed(scenario(FAULTS)) as made:
        yield made


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "fault", [pytest.param(f, id=f"{f.of}:{f.name}", marks=[pytest.mark.slow] * f.slow) for f in FAULTS]
)
def test_what_must_hold_holds(fault: Fault, bed: Bed) -> None:
    """One row of the matrix: its job is run, and afterwards everything in the checker holds."""
    with played(fault, bed) as scene:
        wrong = check(scene)
    assert not wrong, "\n".join([*wrong, "", scene.said[-3000:]])
