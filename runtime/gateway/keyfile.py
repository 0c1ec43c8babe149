"""The keys file as a gateway replica sees it: read again when it changes, so that a new key works within seconds.

A file that has become unreadable or wrong changes nothing: the keys that were good stay, and the trouble is told once.
"""

import os
import sys
import time
from collections.abc import Sequence

from actors.errors import ConfigError
from runtime.gateway.keys import KeyRing, read_keys

__all__ = ["KeyFile"]

LOOK_EVERY_S = 2.0


class KeyFile:
    """`ring()` gives the current keys. Raises ConfigError when made, if the file is wrong then."""

    def __init__(self, path: str, tiers: Sequence[str]) -> None:
        self._path, self._tiers = path, list(tiers)
        self._looked_at = time.monotonic()
        self._stamp = _stamp(path)
        self._trouble = ""
        self._ring = read_keys(path, self._tiers)

    def ring(self) -> KeyRing:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._read(stamp)
        return self._ring

    def _read(self, stamp: tuple[int, ...]) -> None:
        try:
            self._ring = read_keys(self._path, self._tiers)
        except ConfigError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                print(f"raycade: {error}; the keys stay as they were", file=sys.stderr)
            return
        self._stamp, self._trouble = stamp, ""


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
