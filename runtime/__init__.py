"""What you run: the command line, the batch engine, the gateway, the mock endpoint, and the wiring of the actors on Ray.

from runtime import Client    # for Python programs (runtime/client.py)
"""

import os
from typing import TYPE_CHECKING, Any

# Ray reads these when it is imported: nothing is sent anywhere, and a change of a default of its own is not announced.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

if TYPE_CHECKING:
    from runtime.client import Client, SyncClient

__all__ = ["Client", "SyncClient"]


def __getattr__(name: str) -> Any:
    """What programs import from here is loaded when it is asked for: Ray and openai take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from runtime import client

    return getattr(client, name)
