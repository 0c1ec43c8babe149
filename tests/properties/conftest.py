"""Property tests cannot start Ray: they run thousands of examples, anywhere."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(autouse=True, scope="module")
def _no_ray() -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a property test must not start Ray: put it under tests/cluster")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", refuse)
        patch.setattr("ray._private.worker.init", refuse)
        yield
