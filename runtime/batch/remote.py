"""Objects behind a URL (s3://, gs:// and whatever else fsspec knows), as files to read and places to put files.

fsspec and the package of each store are optional; who is missing is said in one line. Keys and endpoints come from
where the store's own tools take them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ~/.aws, GOOGLE_APPLICATION_CREDENTIALS).
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple, cast

from actors.errors import ConfigError
from runtime.batch.decode import in_one_line

__all__ = ["BLOCK", "Object", "exists", "find", "is_url", "put", "remove"]

BLOCK = 8 << 20
"""What is fetched at one go while an object is read through."""
_URL = re.compile(r"[a-z][a-z0-9+]*://")


class Object(NamedTuple):
    """One object: something to read."""

    name: str
    """Its whole URL."""
    size: int
    open: "partial[BinaryIO]"
    """Called with the size of the pieces that are wanted. What it raises, then and while it is read, is an OSError."""


def is_url(spec: str) -> bool:
    return _URL.match(spec) is not None


def find(spec: str, suffixes: Sequence[str]) -> list[Object]:
    """The objects that a URL names: one, those of a folder with these endings, or those that a pattern matches."""
    files, path = _store(spec)
    try:
        if any(sign in path for sign in "*?[") and not files.exists(path):
            found, nothing = files.glob(path, detail=True), "nothing matches"
        elif files.isfile(path):
            found, nothing = {path: files.info(path)}, ""
        else:
            found = files.find(path, maxdepth=1, detail=True)
            found = {name: info for name, info in found.items() if name.endswith(tuple(suffixes))}
            nothing = f"there is no such object, and no {', '.join(f'*{suffix}' for suffix in suffixes)} below it"
    except Exception as error:  # every store has exceptions of its own
        raise ConfigError(f"cannot read the input: {_said(error)}", file=spec) from None
    found = {name: info for name, info in found.items() if info["type"] == "file"}
    if not found:
        raise ConfigError(nothing, file=spec)
    return [
        Object(files.unstrip_protocol(name), info["size"], partial(_opened, files, name))
        for name, info in sorted(found.items())
    ]


def exists(url: str) -> bool:
    """Raises ConfigError when nobody can tell."""
    files, path = _store(url)
    try:
        return bool(files.exists(path))
    except Exception as error:
        raise ConfigError(f"cannot be looked at: {_said(error)}", file=url) from None


def put(local: str, url: str) -> None:
    """Upload a file; the object is there whole or not at all. Raises OSError."""
    files, path = _store(url)
    try:
        files.put_file(local, path)
    except Exception as error:
        raise OSError(_said(error)) from None


def remove(url: str) -> None:
    """Raises OSError."""
    files, path = _store(url)
    try:
        files.rm_file(path)
    except Exception as error:
        raise OSError(_said(error)) from None


class _Reading:
    """A file of fsspec's that raises nothing but OSError."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        try:
            return cast("bytes", self._file.read(size))
        except Exception as error:
            raise OSError(_said(error)) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Reading":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _opened(files: Any, path: str, block: int) -> BinaryIO:
    try:
        return cast("BinaryIO", _Reading(files.open(path, "rb", block_size=block, cache_type="readahead")))
    except Exception as error:
        raise OSError(_said(error)) from None


def _store(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    scheme = url.partition("://")[0]
    try:
        import fsspec
    except ImportError:
        raise ConfigError(f"{scheme}:// needs fsspec: pip install 'raycade[data]'", file=url) from None
    try:
        files, path = fsspec.url_to_fs(url)
    except ImportError as error:  # names the package
        hint = "pip install 'raycade[data]'" if scheme == "s3" else _said(error)
        raise ConfigError(f"{scheme}:// needs a package that is not installed: {hint}", file=url) from None
    except Exception as error:
        raise ConfigError(f"cannot be used: {_said(error)}", file=url) from None
    return files, path


def _said(error: Exception) -> str:
    """What a store said, on one line."""
    if isinstance(error, FileNotFoundError) and " " not in str(error):  # it says nothing but the name
        return "No such file or directory"
    return in_one_line(str(error), error)
