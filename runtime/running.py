"""Which jobs and gateways run with a state_dir: one small file each, by which `raycade status` finds them without Ray.

    state_dir/running/NAME.json   what the job says of itself; it holds a lock on it for as long as it lives
    state_dir/running/NAME.sums   what its observer keeps (actors/observer/actor.py)

The kernel drops the lock with the process, however that ends: a file that nobody locks is left over, and whoever finds it
removes it. Locks do not hold over network file systems, where a job that died is shown until its files are removed.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

__all__ = ["Entry", "Running", "running_jobs", "sums_file"]

FOLDER = "running"


class Entry(NamedTuple):
    """What a job says of itself."""

    name: str
    run: str
    pid: int
    output: str
    """Absolute."""
    started: float
    """Unix seconds."""
    address: str = ""
    """Of its observer; empty where it has none, or none yet."""
    kind: str = "job"
    """job, gateway or runtime; of a gateway, `output` is the address for its clients."""
    ray: str = ""
    """Of a runtime that is up: the address of its Ray, where others join it."""


def sums_file(state_dir: str, name: str) -> str:
    """Where the observer of a job keeps its sums."""
    return os.path.join(os.path.abspath(state_dir), FOLDER, f"{name}.sums")


class Running:
    """A job's own entry: there from entry to exit. Says nothing, and breaks nothing, where it cannot be written."""

    def __init__(self, state_dir: str, entry: Entry) -> None:
        self._folder = Path(state_dir) / FOLDER
        self._entry = entry
        self._file = -1

    def __enter__(self) -> Self:
        running_jobs(str(self._folder.parent))  # removes what is left over
        path = self._folder / f"{self._entry.name}.json"
        begun = path.with_suffix(".new")
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(begun, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write()
            os.rename(begun, path)  # locked before anybody can find it
        return self

    def found_at(self, address: str) -> None:
        """The observer's address is known, or another one."""
        if address != self._entry.address:
            self._entry = self._entry._replace(address=address)
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        if self._file >= 0:
            data = orjson.dumps(self._entry._asdict())
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))

    def __exit__(self, *_: object) -> None:
        for suffix in (".json", ".new", ".sums"):
            with contextlib.suppress(OSError):
                os.unlink(self._folder / f"{self._entry.name}{suffix}")
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def running_jobs(state_dir: str) -> list[Entry]:
    """The jobs that run now, the oldest first. Removes what jobs that died have left."""
    found = []
    for path in Path(state_dir, FOLDER).glob("*.json"):
        try:
            with open(path, "rb") as file:
                if _is_left_over(file.fileno()):
                    for suffix in (".json", ".sums", ".sums.new"):
                        path.with_suffix(suffix).unlink(missing_ok=True)
                    continue
                found.append(_entry(orjson.loads(file.read())))
        except (OSError, ValueError, TypeError, KeyError):  # it ended or changed just now, or is not one of ours
            continue
    return sorted(found, key=lambda entry: entry.started)


def _is_left_over(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _entry(plain: dict[str, Any]) -> Entry:
    return Entry(
        str(plain["name"]),
        str(plain["run"]),
        int(plain["pid"]),
        str(plain["output"]),
        float(plain["started"]),
        str(plain["address"]),
        str(plain.get("kind", "job")),
        str(plain.get("ray", "")),
    )
