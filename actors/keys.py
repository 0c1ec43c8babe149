"""Where the key of an endpoint comes from: the variable that the tier names, or a file that another variable names.

    api_key_env: OPENAI_API_KEY    the key is in OPENAI_API_KEY; else in the file whose path is in OPENAI_API_KEY_FILE

A path may be shown to everybody, so it can be given with a submitted job, whose variables Ray shows on its dashboard.
Read in the tier actor's own process, and where a configuration is checked.
"""

import os
from collections.abc import Mapping

from actors.errors import ConfigError

__all__ = ["FILE", "find_key"]

FILE = "_FILE"
"""Ends the name of the variable that names a file: as in many container images."""
MOST_BYTES = 64 << 10


def find_key(name: str, environ: Mapping[str, str]) -> str:
    """The key, or nothing. Raises ConfigError, without a place, for a file that is named and cannot be read.

    The path is not shown: somebody may have put the key itself there.
    """
    if value := environ.get(name, ""):
        return value
    path = environ.get(f"{name}{FILE}", "")
    if not path:
        return ""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            value = file.read(MOST_BYTES).decode("utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"the file that {name}{FILE} names cannot be read: {reason}") from None
    if not value:
        raise ConfigError(f"the file that {name}{FILE} names is empty")
    return value
