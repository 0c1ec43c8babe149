"""`raycade keys new NAME`: a key that is shown once, and its hash in the gateway's keys file."""

import os
import sys

from actors.errors import ConfigError
from runtime.config import load_config
from runtime.gateway.keys import ADMIN, NAME, hash_of, new_key, read_keys

__all__ = ["new"]


def new(config_file: str | None, name: str, admin: bool = False) -> int:
    """Exit code. `admin`: the key may read /metrics too. Raises ConfigError."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"expected letters, digits, '.', '_' and '-', at most 64 characters; found {name!r:.80}", key="NAME"
        )
    config = load_config(config_file, os.environ, check_keys=False)
    file = config.gateway.keys_file
    key = new_key()
    digest = f"sha256:{hash_of(key).hex()}"
    line = f"{name} {digest} {ADMIN}" if admin else f"{name} {digest}"
    if file is None:
        print("raycade.yaml names no gateway.keys_file; the line for it:", file=sys.stderr)
        print(line, file=sys.stderr)
    elif os.path.splitext(file)[1] in (".yaml", ".yml"):
        print(f"{file} is YAML, which is yours to edit; the entry for it:", file=sys.stderr)
        print(f"  - {{name: {name}, sha256: {digest}{', admin: true' if admin else ''}}}", file=sys.stderr)
    else:
        if os.path.exists(file):
            read_keys(file, [])  # a file that is broken already is not made longer
        try:
            # Opened for its owner alone. Hashes are no secrets, but who may write here may let themselves in.
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "wb") as stream:
                stream.write(_separator(file) + f"{line}\n".encode())
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror or error}", file) from None
        print(f"added to {file}; a running gateway takes it up within seconds", file=sys.stderr)
    print("the key, which is not shown again:", file=sys.stderr)
    print(key)
    return 0


def _separator(file: str) -> bytes:
    """A line end, if the last line has none."""
    with open(file, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        if not size:
            return b""
        stream.seek(size - 1)
        return b"" if stream.read(1) == b"\n" else b"\n"
