"""The gateway's keys: who may call, what they may use.

A keys file holds names and hashes, never a key:

    team-a sha256:9f86d081...                    one a line, as `raycade keys new team-a` writes them; # begins a comment
    ops sha256:1b4f0e98... admin                 this one may read /metrics too: `raycade keys new ops --admin`

or, in YAML (a file named *.yaml or *.yml), with limits:

    keys:
      - name: team-a
        sha256: [9f86d081..., 60303ae2...]       one, or several while a key is being replaced
        tiers: [standard, basic]                 absent: all
        tokens: {per_day: 1000000}               budgets as in raycade.yaml: the ledger keeps them, for all gateways
        usd: {per_hour: 5}
        requests_per_minute: 600
        streams: 20                              at once
        admin: true                              may read /metrics; absent: it may not

Our keys are 256 random bits, so a plain SHA-256 cannot be searched, and no salt is needed. A presented key is hashed first; what
is compared are hashes, so the time that a comparison takes tells nothing that helps to guess a key.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field

from actors.errors import ConfigError
from actors.settings import Limits, ScopeSettings, Settings
from runtime.yaml_lines import Document, check, parse, shown

__all__ = ["ADMIN", "PREFIX", "Key", "KeyRing", "hash_of", "new_key", "read_keys"]

PREFIX = "rk-"
MAX_BYTES = 16 * 1024 * 1024
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ADMIN = "admin"
_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_EXPECTED = "expected NAME sha256:HASH, as `raycade keys new NAME` writes it; a key itself never stands in the file"


class Key(NamedTuple):
    """What a caller may do. `name` is its scope in the ledger, `key:NAME`."""

    name: str
    tiers: tuple[str, ...] | None = None
    """Names of the tiers it may use; None: all."""
    budget: ScopeSettings = ScopeSettings()
    requests_per_minute: int | None = None
    streams: int | None = None
    admin: bool = False
    """It may read what concerns all keys: `/metrics`."""


class KeyRing(NamedTuple):
    """All keys, by their hash."""

    by_hash: Mapping[bytes, Key]

    @property
    def keys(self) -> list[Key]:
        """Each once, in the order of the file."""
        return list({key.name: key for key in self.by_hash.values()}.values())

    def named(self, name: str) -> Key | None:
        """The key of this name, as it is now."""
        return next((key for key in self.by_hash.values() if key.name == name), None)

    def find(self, presented: str) -> Key | None:
        """Whose key this is; None: nobody's."""
        digest = hash_of(presented)
        found: Key | None = None
        for known, key in self.by_hash.items():  # all of them, whichever it is: no shortcut tells anything
            if hmac.compare_digest(known, digest):
                found = key
        return found


def hash_of(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def new_key() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(32)


class _Entry(Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    sha256: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else tuple(v))] = Field(
        min_length=1
    )
    tiers: list[str] | None = None
    tokens: Limits = Limits()
    usd: Limits = Limits()
    requests_per_minute: int | None = Field(None, ge=1)
    streams: int | None = Field(None, ge=1)
    admin: bool = False


class _File(Settings):
    keys: list[_Entry]


def read_keys(file: str, tiers: Iterable[str]) -> KeyRing:
    """Read a keys file. Raises ConfigError with file and line; no message shows what might be a key."""
    problem, data = "", b""
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        problem = error.strerror or "it cannot be read"
    if problem:
        raise ConfigError(f"cannot be read: {problem}", file)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES >> 20} MiB", file)
    if os.path.splitext(file)[1] in (".yaml", ".yml"):
        return _from_yaml(parse(data, file), list(tiers))
    return _from_lines(data, file)


def _from_lines(data: bytes, file: str) -> KeyRing:
    found: dict[bytes, Key] = {}
    for number, raw in enumerate(data.split(b"\n"), 1):
        words = raw.decode("utf-8", "replace").split("#", 1)[0].split()
        if not words:
            continue
        digest = _HASH.fullmatch(words[1]) if len(words) == 2 or words[2:] == [ADMIN] else None
        if digest is None or not NAME.fullmatch(words[0]):
            raise ConfigError(_EXPECTED, file, number)
        _add(found, Key(words[0], admin=len(words) > 2), digest[1], file, number)
    return KeyRing(found)


def _from_yaml(document: Document, tiers: list[str]) -> KeyRing:
    found: dict[bytes, Key] = {}
    names: set[str] = set()
    for index, entry in enumerate(check(_File, document).keys):
        if entry.name in names:
            raise document.error(f"two keys are called {shown(entry.name)}", ("keys", index, "name"))
        names.add(entry.name)
        for tier in entry.tiers or ():
            if tier not in tiers:
                raise document.error(
                    f"there is no tier {shown(tier)}; there are: {', '.join(tiers)}", ("keys", index, "tiers")
                )
        key = Key(
            entry.name,
            None if entry.tiers is None else tuple(entry.tiers),
            ScopeSettings(tokens=entry.tokens, usd=entry.usd),
            entry.requests_per_minute,
            entry.streams,
            entry.admin,
        )
        for text in entry.sha256:
            digest = _HASH.fullmatch(text)
            line = document.line(("keys", index, "sha256"))
            if digest is None:
                raise ConfigError(
                    "expected the SHA-256 of a key, 64 hexadecimal digits; a key itself never stands in the file",
                    document.file,
                    line,
                    f"keys[{index}].sha256",
                )
            _add(found, key, digest[1], document.file, line)
    return KeyRing(found)


def _add(found: dict[bytes, Key], key: Key, digest: str, file: str, line: int) -> None:
    raw = bytes.fromhex(digest)
    if raw in found:
        raise ConfigError(f"the same key as that of {found[raw].name}", file, line)
    found[raw] = key
