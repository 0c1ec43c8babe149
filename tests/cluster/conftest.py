"""One real Ray for the cluster tests of a module: starting one takes seconds, and one that is left running takes CPU from others."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: nothing is sent anywhere
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its new default, else announced in a warning


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of our own on two CPUs; never one that happens to run on this machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        namespace="raycade-tests",
        object_store_memory=100 * 1024 * 1024,
    )
    yield
    ray.shutdown()
