"""Which job a journal is of: `OUT.journal/meta.json`, and the files that it may write (`journal.py`).

Another input, configuration or errors file is another job, and refused. One thing may change: a file of the input that
could not be read to its end, for the same file whole.
"""

import os
import secrets
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import orjson

from actors.errors import ConfigError

__all__ = ["check_names", "journal_folder", "refuse_foreign", "replace_file", "sync_folder", "take_up", "write_meta"]

_FORMAT = 1


def journal_folder(out: str) -> Path:
    return Path(f"{out}.journal")


def check_names(out: str, errors: str) -> None:
    for path, option in ((out, "-o"), (errors, "--errors")):
        if path == "-" or path.startswith(("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")):
            raise ConfigError("a batch writes to files, not to a pipe or device: resuming it needs them", key=option)
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise ConfigError("the folder does not exist", file=folder, key=option)
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", file=path, key=option) from None
        if not stat.S_ISREG(mode):
            raise ConfigError("is not a regular file", file=path, key=option)
    if os.path.realpath(out) == os.path.realpath(errors):
        raise ConfigError("results and errors need two files", file=errors, key="--errors")


def refuse_foreign(out: str, errors: str) -> None:
    """Never write over or behind a file that no journal knows. An empty one can be lost by nobody."""
    for path in (out, errors):
        if os.path.exists(path) and os.path.getsize(path):
            raise ConfigError(
                f"exists and is not known to a journal ({journal_folder(out).name}); --fresh removes it", file=path
            )


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    replace_file(folder / "meta.json", orjson.dumps(meta, option=orjson.OPT_INDENT_2) + b"\n")


def take_up(
    out: str, errors: str, folder: Path, fingerprint: str, config_digest: str, shards: Sequence[str]
) -> dict[str, Any]:
    """The journal's meta.json: read and compared, or made for a new job."""
    path = folder / "meta.json"
    errors_name = os.path.relpath(errors, os.path.dirname(out) or ".")
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        refuse_foreign(out, errors)
        meta = {
            "format": _FORMAT,
            "run": secrets.token_hex(4),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": fingerprint,
            "shards": list(shards),
            "config": config_digest,
            "out": os.path.basename(out),
            "errors": errors_name,
        }
        write_meta(folder, meta)
        return meta
    try:
        meta = orjson.loads(text)
        held = [meta[name] for name in ("format", "run", "input", "config", "errors")]
    except (ValueError, KeyError, TypeError):
        raise ConfigError("is damaged; start over with --fresh", file=str(path)) from None
    if meta["input"] != fingerprint and _repaired(meta, shards):
        meta |= {"input": fingerprint, "shards": list(shards)}
        write_meta(folder, meta)
        return dict(meta)
    now = [_FORMAT, meta["run"], fingerprint, config_digest, errors_name]
    names = ("format", "run", "input", "config", "errors file")
    for name, was, this in zip(names, held, now, strict=True):
        if was != this:
            if name == "input":
                was, this = _first_change(meta.get("shards", []), shards) or (was, this)
            raise ConfigError(
                f"the journal is of a job with another {name}: it was {was}, now it is {this}; "
                "give the old one to resume, another -o, or --fresh to remove the old results and start over",
                file=out,
            )
    return dict(meta)


def _first_change(was: Sequence[str], now: Sequence[str]) -> tuple[str, str] | None:
    """The first file of the input that differs, as it was and as it is; None where that says no more than the whole."""
    if len(was) < 2 and len(now) < 2:
        return None
    pairs = zip_longest(was, now, fillvalue=f"nothing behind {was[-1] if len(was) < len(now) else now[-1]}")
    return next((pair for pair in pairs if pair[0] != pair[1]), None) if was and now else None


def _repaired(meta: dict[str, Any], shards: Sequence[str]) -> bool:
    """Whether the input differs only in the file that could not be read to its end."""
    was, damage = meta.get("shards", []), meta.get("damaged")
    if not damage or len(was) != len(shards):
        return False
    changed = [number for number, pair in enumerate(zip(was, shards, strict=True)) if pair[0] != pair[1]]
    at = damage["shard"]
    return changed == [at] and was[at].partition(" (")[0] == shards[at].partition(" (")[0]


def replace_file(path: Path, data: bytes) -> None:
    """The whole file or the old one, whatever happens in between, and on disk when this returns."""
    draft = path.with_suffix(".tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        sync_folder(path.parent)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path | str) -> None:
    """Bring a folder's entries to disk: a file that is on disk under no name is lost all the same."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
