"""Unit tests cannot start Ray: they are fast, and run anywhere."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(autouse=True, scope="module")
def _no_ray() -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a unit test must not start Ray: put it under tests/cluster")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", refuse)
        patch.setattr("ray._private.worker.init", refuse)
        yield
